# ruff: noqa: UP006, UP007, UP045 - both ways of writing annotations
"""Counterparts of typing, enum and json in :mod:`cnisdk._light` and :mod:`cnisdk.spec._json`, beside the real ones."""

from __future__ import annotations

import copy
import enum
import inspect
import json
import math
import pickle
import re
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, strategies as st

from cnisdk import _light
from cnisdk.spec import _json
from cnisdk.spec.versions import Verb

SOURCE = """
class Plain(NamedTuple):
    \"\"\"Documented.\"\"\"
    first: int
    second: str = "x"
    third: tuple[int, ...] = ()

    @property
    def doubled(self):
        return 2 * self.first

    def __str__(self):
        return f"<{self.first}>"

class One(NamedTuple):
    only: int

class Three(NamedTuple):
    a: int
    b: int
    c: int

class Empty(NamedTuple):
    pass

class Sub(Plain):
    __slots__ = ()

    def more(self):
        return self.first + 1

class Verb(TextEnum):
    ADD = "ADD"
    DEL = "DELETE"

    def __str__(self):
        return self.value

    @property
    def short(self):
        return self.value[0]
"""
NAMES = ("Plain", "One", "Three", "Empty", "Sub")


class _RealTextEnum(str, enum.Enum):
    pass


def load(name: str, tuples: Any, texts: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(NamedTuple=tuples, TextEnum=texts)
    sys.modules[name] = module
    code = compile(f"from __future__ import annotations\n{SOURCE}", name, "exec", dont_inherit=True)
    exec(code, module.__dict__)
    return module


LIGHT = load("light_tuples", _light.NamedTuple, _light.TextEnum)
REAL = load("real_tuples", typing.NamedTuple, _RealTextEnum)


def signature(cls: Any) -> str:
    return re.sub(r"ForwardRef\(('.*?')\)", r"\1", str(inspect.signature(cls)))


COPIES: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))]
CALLS: list[tuple[str, Callable[[types.ModuleType], Any]]] = [
    ("positional", lambda m: repr(m.Plain(1, "a", (2,)))),
    ("defaults", lambda m: repr(m.Plain(1))),
    ("named", lambda m: repr(m.Plain(third=(), first=3))),
    ("both", lambda m: repr(m.Plain(3, third=(1,)))),
    ("none", lambda m: m.Plain()),
    ("all missing", lambda m: m.Three()),
    ("too many", lambda m: m.Plain(1, 2, 3, 4)),
    ("too many and named", lambda m: m.One(1, 2, only=3)),
    ("twice", lambda m: m.Plain(1, first=2)),
    ("unknown", lambda m: m.Plain(1, fourth=2)),
    ("unknown instead", lambda m: m.One(fourth=2)),
    ("equal to a tuple", lambda m: m.Three(1, 2, 3) == (1, 2, 3)),
    ("ordered", lambda m: m.Three(1, 2, 3) < m.Three(1, 3, 0)),
    ("unpacked", lambda m: [*m.Three(1, 2, 3)]),
    ("hash", lambda m: hash(m.Three(1, 2, 3)) == hash((1, 2, 3))),
    ("field", lambda m: (m.Plain(5).first, m.Plain(5)[0], m.Plain(5).doubled)),
    ("own str", lambda m: str(m.Plain(5))),
    ("write", lambda m: setattr(m.One(1), "only", 2)),
    ("write anything", lambda m: setattr(m.One(1), "other", 2)),
    ("replace", lambda m: repr(m.Plain(1)._replace(second="b"))),
    ("replace what is not there", lambda m: m.Plain(1)._replace(fourth="b")),
    ("make", lambda m: repr(m.Three._make([1, 2, 3]))),
    ("make too few", lambda m: m.Three._make([1])),
    ("asdict", lambda m: m.Plain(1)._asdict()),
    ("about", lambda m: (m.Plain.__match_args__, m.Plain.__doc__)),
    ("fields", lambda m: [(getattr(m, name)._fields, getattr(m, name)._field_defaults) for name in NAMES]),
    ("annotations", lambda m: sorted(m.Plain.__annotations__)),
    ("signature", lambda m: [signature(getattr(m, name)) for name in NAMES]),
    ("copies", lambda m: [(each(x := m.Plain(1, "y")) == x, type(each(x)) is type(x)) for each in COPIES]),
    ("copies of a subclass", lambda m: [(each(x := m.Sub(1, "y")) == x, type(each(x)) is type(x)) for each in COPIES]),
    ("subclass", lambda m: (repr(m.Sub(1)), m.Sub(1).more(), type(m.Sub(1)._replace(first=2)) is m.Sub)),
    ("type", lambda m: (type(m.Plain), m.Plain.__bases__, m.Plain.__module__ == m.__name__, m.Plain.__qualname__)),
    ("match", lambda m: eval("1") if not isinstance(m.One(1), tuple) else "tuple"),
    ("members", lambda m: [(each.name, each.value, each.short, str(each), f"{each}") for each in m.Verb]),
    ("by value", lambda m: m.Verb("DELETE") is m.Verb.DEL),
    ("by name", lambda m: m.Verb["DEL"] is m.Verb.DEL),
    ("no value", lambda m: m.Verb("DEL")),
    ("no name", lambda m: m.Verb["DELETE"]),
    ("as text", lambda m: (m.Verb.ADD == "ADD", {"ADD": 1}[m.Verb.ADD], m.Verb.ADD + "!", json.dumps([m.Verb.ADD]))),
    ("count", lambda m: (len(m.Verb), m.Verb.ADD in m.Verb, list(m.Verb.__members__))),
    ("repr", lambda m: (repr(m.Verb.ADD), repr(m.Verb))),
    ("copies of a member", lambda m: [each(m.Verb.ADD) is m.Verb.ADD for each in COPIES]),
]


def outcome(call: Callable[[], Any]) -> str:
    try:
        return str(call())
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"


@pytest.mark.parametrize("call", [call for _, call in CALLS], ids=[name for name, _ in CALLS])
def test_a_class_is_as_the_standard_librarys(call: Callable[[types.ModuleType], Any]) -> None:
    assert outcome(lambda: call(LIGHT)) == outcome(lambda: call(REAL))


def test_defaults_come_last() -> None:
    for maker in (_light.NamedTuple, typing.NamedTuple):
        with pytest.raises(TypeError):
            types.new_class("Odd", (maker,), {}, lambda body: body.update(__annotations__={"a": int, "b": int}, a=1))


def test_the_verbs_are_light() -> None:
    assert enum.Enum not in Verb.__mro__
    assert [str(each) for each in Verb] == ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"]


KINDS = [
    *(int, str, list, None, Ellipsis, "text", list[int], dict[str, int], tuple[int, ...], tuple[()], int | None),
    *(typing.Optional[int], typing.Union[int, str], typing.List[int], typing.Literal["a"], typing.Any),
    *(typing.Annotated[int, "x"], typing.Callable[[int], str], typing.TypeVar("T"), type[int]),
]


@pytest.mark.parametrize("kind", KINDS, ids=map(str, range(len(KINDS))))
def test_annotations_are_taken_apart_alike(kind: Any) -> None:
    assert (_light.get_origin(kind), _light.get_args(kind)) == (typing.get_origin(kind), typing.get_args(kind))
    assert _light.is_union(kind) is (typing.get_origin(kind) in (typing.Union, types.UnionType))
    assert _light.is_any(kind) is (kind is typing.Any)


def test_a_class_may_be_subscripted() -> None:
    generic: Any = _light.Generic
    box = types.new_class("Box", (generic[int],))
    small: Any = types.new_class("Small", (box[int],))  # type: ignore[index]
    assert [(typing.get_origin(each), typing.get_args(each)) for each in small.__orig_bases__] == [(box, (int,))]
    assert small.__mro__ == (small, box, generic, object)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner),
    max_leaves=10,
)


@given(json_values)
def test_json_is_written_as_by_json(value: Any) -> None:
    compact = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    assert _json.write(value) == compact
    assert _json.write(value, indent=True) == json.dumps(value, indent=4, ensure_ascii=False)
    assert _json.write(value, sort_keys=True, indent=True) == json.dumps(
        value, indent=4, ensure_ascii=False, sort_keys=True
    )
    assert _json.read(compact) == json.loads(compact)
    assert _json.read(f" \n\t{compact}\r ") == json.loads(compact)


class Word(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [
        *(math.nan, math.inf, [-math.inf], object(), {"a": {1}}, {1: 2}, {None: 1, True: 2, 1.5: 3}, {(1,): 2}),
        *(Verb.ADD, 10**400, Word("x"), {Word("k"): Word("v")}, True, 1.0, 1e300, "\ud800", "\u2028<>&", b"x"),
    ],
    ids=lambda value: "object" if type(value) is object else repr(value),
)
def test_what_json_writes_or_refuses(value: Any) -> None:
    def real() -> str:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    assert outcome(lambda: _json.write(value)) == outcome(real)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "{", "[1,]", "[1] 2", "nul", "NaN", "[Infinity]", "1e999", '"\n"', '"\\ud800"', "\ufeff{}", "1.0"),
        *('{"a": 1, "a": 2}', "\u00a0[]", "[" * 100_000, '{"a" 1}', "'a'", "[1]x", "\x00", "1_000", "0x1", '"\\x"'),
        *("01", "-", "-0", "1E2"),
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_what_json_reads_or_refuses(text: str) -> None:
    decoder = json.JSONDecoder(parse_constant=_json._refuse_constant, parse_float=_json._read_float)
    assert outcome(lambda: _json.read(text)) == outcome(lambda: decoder.decode(text))


def test_without_the_extension_module_json_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import util

    monkeypatch.setitem(sys.modules, "_json", None)
    spec = util.find_spec("cnisdk.spec._json")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module._scan is None
    assert module.read('{"a": ["\\u00e9", 1.5]}') == {"a": ["é", 1.5]}
    assert module.write({"a": ["é", 1.5]}) == '{"a":["é",1.5]}'
    assert module.write_ascii("é") == '"\\u00e9"'
