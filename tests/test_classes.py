"""Classes of :mod:`cnisdk.classes` beside those that attrs makes of the same source."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import re
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import cattrs
import pytest

import cnisdk
from cnisdk import classes
from cnisdk.classes import FIELDS
from cnisdk.spec.fields import get_fields

ROOT = Path(__file__).resolve().parents[1]

# The same source, for both decorators.
SOURCE = """
import functools
import typing
from collections.abc import Mapping
from typing import ClassVar

@frozen(kw_only=True)
class Base:
    name: str
    size: int = 0
    extra: Mapping[str, object] = field(factory=dict)
    limit: ClassVar[int] = 5
    other: typing.ClassVar[int] = 6

    def double(self):
        return 2 * self.size

@frozen(kw_only=True)
class Derived(Base):
    \"\"\"It declares a field of its base again.\"\"\"
    size: int = 7
    tags: tuple[str, ...] = ()
    inner: "Base | None" = None
    marked: int = field(default=1, metadata={"mark": "x"})

class Plain:
    def hello(self):
        return "hello"

@frozen(kw_only=True)
class Mixed(Derived, Plain):
    last: list[int] = field(factory=lambda: [1])

    @functools.cached_property
    def total(self):
        return self.double() + len(self.tags)

    @property
    def shown(self):
        return f"<{self.name}>"

@frozen(kw_only=True)
class Checked:
    low: int = 0
    high: int = 0

    def __attrs_post_init__(self):
        if self.low > self.high:
            raise ValueError("low must be at most high")

@frozen(kw_only=True)
class CheckedToo(Checked):
    step: int = 1

@frozen(kw_only=True)
class Empty:
    pass

@frozen(kw_only=True)
class Left(Base):
    a: int = 1

@frozen(kw_only=True)
class Right(Base):
    b: int = 2
    name: str = "right"

@frozen(kw_only=True)
class Diamond(Left, Right):
    c: int = 3
"""
NAMES = ("Base", "Derived", "Mixed", "Checked", "CheckedToo", "Empty", "Left", "Right", "Diamond")


def load(name: str, decorators: Any, future: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(frozen=decorators.frozen, field=decorators.field, evolve=decorators.evolve)
    sys.modules[name] = module
    exec(compile(future + SOURCE, name, "exec", dont_inherit=True), module.__dict__)
    return module


# Objects of classes with slots cannot have two bases with fields.
ATTRS = types.SimpleNamespace(
    frozen=lambda **options: attrs.frozen(slots=False, **options), field=attrs.field, evolve=attrs.evolve
)
# With annotations that are types, and with those that are text.
PAIRS = [
    (load(f"made_here{number}", classes, future), load(f"made_by_attrs{number}", ATTRS, future))
    for number, future in enumerate(("", "from __future__ import annotations\n"))
]


def outcome(call: Callable[[], Any]) -> object:
    """Return what a call returns or raises, as text that is alike for both."""
    try:
        return str(call())
    except Exception as exc:
        return type(exc), str(exc)


COPIES: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))]

CALLS: list[tuple[str, Callable[[types.ModuleType], Any]]] = [
    ("required", lambda m: m.Base(name="n")),
    ("missing", lambda m: m.Base()),
    ("missing in a subclass", lambda m: m.Mixed(size=3)),
    ("unexpected", lambda m: m.Base(name="n", nonsense=1)),
    ("unexpected and missing", lambda m: m.Base(nonsense=1)),
    ("unexpected alone", lambda m: m.Empty(other=1)),
    ("class variable", lambda m: m.Base(name="n", limit=1)),
    ("positional", lambda m: m.Base("n")),
    ("all", lambda m: m.Mixed(name="n", size=1, extra={"a": 1}, tags=("t",), inner=m.Base(name="i"), last=[])),
    ("order", lambda m: [each.name for each in get_fields(m.Diamond, typed=False)]),
    ("defaults of two bases", lambda m: m.Diamond(name="d")),
    ("default of a base", lambda m: m.Right()),
    ("empty", lambda m: m.Empty()),
    ("post init", lambda m: m.Checked(low=2, high=1)),
    ("post init of a base", lambda m: m.CheckedToo(low=2, high=1)),
    ("evolve", lambda m: m.evolve(m.Derived(name="n"), size=9)),
    ("attrs.evolve", lambda m: attrs.evolve(m.Derived(name="n"), size=9)),
    ("evolve to an error", lambda m: m.evolve(m.Checked(), low=9)),
    ("evolve of nothing known", lambda m: m.evolve(m.Derived(name="n"), nonsense=9)),
    ("write", lambda m: setattr(m.Derived(name="n"), "size", 1)),
    ("write anything", lambda m: setattr(m.Derived(name="n"), "nonsense", 1)),
    ("delete", lambda m: delattr(m.Derived(name="n"), "size")),
    ("equal", lambda m: m.Derived(name="n") == m.Derived(name="n", size=7)),
    ("unequal", lambda m: m.Derived(name="n") == m.Derived(name="n", tags=("x",))),
    ("of another class", lambda m: m.Base(name="n") == m.Left(name="n", a=1)),
    ("not", lambda m: m.Base(name="n") != m.Base(name="m")),
    ("NaN", lambda m: (nan := float("nan")) and m.Base(name="n", size=nan) == m.Base(name="n", size=nan)),
    ("order of objects", lambda m: m.Checked() < m.Checked(high=1)),
    ("hash", lambda m: len({m.Checked(), m.Checked(), m.CheckedToo(), m.Checked(high=1)})),
    ("no hash", lambda m: hash(m.Base(name="n"))),
    ("repr", lambda m: repr(m.Mixed(name="n", inner=m.Base(name="i")))),
    ("cached property", lambda m: [(x := m.Mixed(name="n")).total, x.total, x == m.Mixed(name="n")]),
    ("evolve with a cached property", lambda m: (x := m.Mixed(name="n")).total + m.evolve(x, size=1).total),
    ("property", lambda m: m.Mixed(name="n").shown + m.Mixed(name="n").hello()),
    ("own factory", lambda m: m.Mixed(name="n").last is m.Mixed(name="n").last),
    ("class variables", lambda m: (m.Base.limit, m.Derived(name="n").other)),
    ("match", lambda m: m.Base.__match_args__),
    (
        "copy",
        lambda m: [each(x := m.Mixed(name="n")) == x for each in COPIES],
    ),
    ("asdict", lambda m: attrs.asdict(m.Derived(name="n", inner=m.Base(name="i")))),
    ("astuple", lambda m: attrs.astuple(m.Derived(name="n", inner=m.Base(name="i")))),
    ("cattrs", lambda m: cattrs.structure({"name": "n", "size": "3"}, m.Base)),
    ("cattrs, back", lambda m: cattrs.unstructure(m.Derived(name="n", inner=m.Base(name="i")))),
    ("has", lambda m: [attrs.has(getattr(m, name)) for name in (*NAMES, "Plain")]),
    ("fields", lambda m: [re.sub("at 0x[0-9a-f]+", "", str(attrs.fields(getattr(m, name)))) for name in NAMES]),
    ("field by name", lambda m: attrs.fields(m.Derived).marked.metadata["mark"]),
    ("resolved", lambda m: [each.type for each in attrs.fields(attrs.resolve_types(m.Derived))]),
    ("signature", lambda m: [inspect.signature(getattr(m, name)) for name in NAMES]),
    ("subclass without decorator", lambda m: type("Sub", (m.Derived,), {})(name="n")),
    ("evolve such", lambda m: m.evolve(type("Sub", (m.Derived,), {})(name="n"), size=1)),
    ("equal to such", lambda m: type("Sub", (m.Derived,), {})(name="n") == m.Derived(name="n")),
    ("docstring", lambda m: [getattr(m, name).__doc__ for name in NAMES]),
    ("weak reference", lambda m: __import__("weakref").ref(x := m.Base(name="n"))() is x),
    (
        "fields of ours",
        lambda m: [(each.name, each.type, each.required, each.make_default(None)) for each in get_fields(m.Left)][1:],
    ),
    ("keys", lambda m: [(each.key, each.argument, each.always) for each in get_fields(m.Mixed, typed=False)]),
    ("annotations", lambda m: m.Derived.__annotations__),
]


@pytest.mark.parametrize(("here", "theirs"), PAIRS, ids=("types", "text"))
@pytest.mark.parametrize("call", [call for _, call in CALLS], ids=[name for name, _ in CALLS])
def test_a_class_is_as_attrs_makes_it(
    here: types.ModuleType, theirs: types.ModuleType, call: Callable[[types.ModuleType], Any]
) -> None:
    ours = str(outcome(lambda: call(here)))
    assert ours.replace(here.__name__, theirs.__name__) == str(outcome(lambda: call(theirs)))
    assert all(FIELDS in vars(getattr(here, name)) for name in NAMES)


def behaviour(sub: Any) -> list[object]:
    calls: list[Callable[[], Any]] = [
        lambda: str(attrs.fields(sub)),
        lambda: sub(name="n"),
        lambda: sub(name="n", more=-1),
        lambda: setattr(sub(name="n"), "more", 3),
        lambda: setattr(sub(name="n"), "size", 3),
        lambda: sub(name="n") == sub(name="m"),
        lambda: sub(name="n") < sub(name="o"),
        lambda: cnisdk.evolve(sub(name="n"), size=5),
        lambda: [(each.name, each.required) for each in get_fields(sub)],
    ]
    return [outcome(call) for call in calls]


@pytest.mark.parametrize(
    ("decorator", "body"),
    [
        (attrs.frozen(kw_only=True), {"more": 1}),
        (attrs.define(kw_only=True), {"more": 1}),
        (attrs.frozen(kw_only=True, slots=False), {"more": 1}),
        (classes.frozen(kw_only=True), {"more": 1}),
        (classes.frozen(kw_only=True, order=True), {"more": 1}),
        (classes.frozen(kw_only=True), {"more": attrs.field(default=1, validator=attrs.validators.ge(0))}),
        (classes.frozen(kw_only=True), {"more": classes.field(default=1, converter=int)}),
        (classes.frozen(kw_only=True), {"more": attrs.Factory(lambda: 1)}),
        (classes.frozen(kw_only=True), {"more": 1, "__repr__": lambda self: "own"}),
        (classes.frozen(kw_only=True), {"more": 1, "__replace__": lambda self, **changes: "own"}),
        (classes.frozen(kw_only=True), {"more": 1, "__eq__": lambda self, other: True}),
        (classes.frozen(kw_only=True), {"more": 1, "_private": 3, "__annotations__": {"_private": int, "more": int}}),
    ],
)
def test_either_decorator_goes_on_from_our_classes(decorator: Any, body: dict[str, Any]) -> None:
    """A subclass is what it would be if attrs had made its bases."""
    made = []
    for module in load("fresh_here", classes, ""), load("fresh_by_attrs", ATTRS, ""):
        copied = {name: copy.copy(value) for name, value in body.items()}
        sub = decorator(type("Sub", (module.Derived,), {"__annotations__": {"more": int}, **copied}))
        made.append(behaviour(sub))
    assert made[0] == made[1]


def test_a_field_without_annotation_makes_a_class_of_attrs() -> None:
    for decorators in (classes, attrs):
        body = {"a": decorators.field(default=1), "b": 2, "__annotations__": {"b": int}}
        odd: Any = decorators.frozen(kw_only=True)(type("Odd", (), body))
        assert (str(odd(a=2)), odd.b) == ("Odd(a=2)", 2)


@pytest.mark.parametrize("first", ["attrs", "cnisdk"])
def test_the_order_of_imports_does_not_matter(first: str) -> None:
    """Fields of one and classes of the other go together, whichever was imported first."""
    script = textwrap.dedent(f"""
        import sys
        import {first}
        import attrs, cnisdk

        @attrs.frozen(kw_only=True)
        class Theirs(cnisdk.NetConf):
            size: int = cnisdk.json_field("SIZE", default=1)
            other: int = cnisdk.field(default=2)

        @cnisdk.frozen(kw_only=True)
        class Ours(cnisdk.NetConf):
            size: int = cnisdk.json_field("SIZE", default=1)
            other: int = attrs.field(default=2)

        for each in Theirs, Ours:
            from cnisdk.spec import structure, unstructure
            made = structure({{"name": "n", "SIZE": 4}}, each)
            assert (made.size, made.other, attrs.evolve(made, size=3).size) == (4, 2, 3)
            assert unstructure(made) == {{"name": "n", "SIZE": 4}}
    """)
    run(script)


@pytest.mark.parametrize("first", ["attrs", "cnisdk"])
def test_decorators_of_a_field_work_whichever_was_imported_first(first: str) -> None:
    script = textwrap.dedent(f"""
        import {first}
        import cnisdk

        @cnisdk.frozen(kw_only=True)
        class Conf(cnisdk.NetConf):
            vlan: int = cnisdk.json_field("VLAN", default=0)
            low: int = cnisdk.field(metadata={{"mark": 1}})
            high: int = cnisdk.field()

            @vlan.validator
            def check_vlan(self, attribute, value):
                if not 0 <= value < 4095:
                    raise ValueError(f"{{attribute.name}} is {{value}}")

            @vlan.validator
            def check_parity(self, attribute, value):
                if value % 2:
                    raise ValueError(f"{{attribute.name}} is odd")

            @low.default
            def _low(self):
                return self.vlan + 1

            @high.default
            def _high(self):
                return self.low + 1

            @high.validator
            def check_high(self, attribute, value):
                if value < self.low:
                    raise ValueError("high is low")

        from cnisdk.spec import structure
        made = structure({{"VLAN": 4}}, Conf)
        assert (made.vlan, made.low, made.high) == (4, 5, 6)
        for wrong in dict(vlan=4096), dict(vlan=5), dict(low=5, high=4):
            try:
                Conf(**wrong)
            except ValueError as exc:
                print(exc)

        try:
            class Twice:
                size: int = cnisdk.field(default=1)

                @size.default
                def _size(self):
                    return 2

            cnisdk.frozen(kw_only=True)(Twice)
        except Exception as exc:
            print(type(exc).__name__)
    """)
    assert run(script) == "vlan is 4096\nvlan is odd\nhigh is low\nDefaultAlreadySetError\n"


@pytest.mark.parametrize("options", ["default=1, factory=int", "factory=3"])
@pytest.mark.parametrize("first", ["attrs", "cnisdk"])
def test_wrong_options_of_a_field_are_refused_whichever_was_imported_first(first: str, options: str) -> None:
    with pytest.raises(ValueError, match="factory") as raised:
        eval(f"attrs.field({options})")
    script = f"""
import {first}
import cnisdk
try:
    cnisdk.field({options})
except ValueError as exc:
    print(exc, end="")
"""
    assert run(script) == str(raised.value)


def test_a_method_that_runs_before_init_may_be_inherited() -> None:
    class Counts:
        made: list[str] = []  # noqa: RUF012

        def __attrs_pre_init__(self) -> None:
            self.made.append(type(self).__name__)

    @cnisdk.frozen(kw_only=True)
    class Conf(cnisdk.NetConf, Counts):
        size: int = 1

    assert (Conf(size=2).size, Counts.made) == (2, ["Conf"])


def test_replace_makes_a_changed_copy() -> None:
    """``copy.replace`` calls this method, from Python 3.13 on."""
    conf: Any = cnisdk.NetConf(name="n", type="t")
    assert conf.__replace__(name="m") == cnisdk.NetConf(name="m", type="t")
    with pytest.raises(TypeError, match="nonsense"):
        conf.__replace__(nonsense=1)


def run(script: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
