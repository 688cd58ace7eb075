"""Every annotation an author may write in a configuration class: read strictly, or refused with advice.

The tables below are also the documentation's: `python -m tests.spec.test_annotations` prints
docs/reference/configuration-types.md.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import ipaddress
import json
import os
import pathlib
import re
import types
import typing
import uuid
from collections import abc
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    TypedDict,
    TypeVar,
    Union,
)

import attrs
import pytest
from attrs import field, frozen, make_class, validators

from cnisdk import DelRequest, InvalidConfigError, NetConf, Plugin, Result
from cnisdk.plugin import respond
from cnisdk.spec import IPAddress, IPInterface, IPNetwork, structure
from cnisdk.spec._annotations import name_of
from cnisdk.spec._lenient import structure_leniently
from cnisdk.spec._mismatch import UnsupportedAnnotationError
from cnisdk.spec.codec import check_class, make_converter


class Mode(enum.Enum):
    BRIDGE = "bridge"
    VEPA = "vepa"


class TextMode(str, enum.Enum):
    BRIDGE = "bridge"
    VEPA = "vepa"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@frozen(kw_only=True)
class Inner:
    size: int = 0


@frozen(kw_only=True)
class Tree:
    parts: tuple[Tree, ...] = ()


class Plain:
    pass


class Typed(TypedDict):
    size: int


class Named(NamedTuple):
    size: int


@dataclasses.dataclass
class Data:
    size: int


class Name(str):
    __slots__ = ()


VlanID = NewType("VlanID", int)
T = TypeVar("T")


@frozen(kw_only=True)
class Box(Generic[T]):
    content: T


# annotation, as written · values that are read, and what they become · values that are not, and what is said of them
SUPPORTED: list[tuple[Any, list[tuple[Any, Any]], list[tuple[Any, str]]]] = [
    (str, [("a", "a"), ("", "")], [(1, "$.key is 1, expected a string")]),
    (int, [(1, 1)], [("1", "$.key is '1', expected an integer"), (True, "$.key is true, expected an integer")]),
    (float, [(1.5, 1.5), (1, 1)], [("1", "$.key is '1', expected a number")]),
    (
        bool,
        [(True, True)],
        [("true", "$.key is 'true', expected true or false"), (1, "$.key is 1, expected true or false")],
    ),
    (Any, [({"a": [1]}, {"a": [1]})], []),
    (object, [([1], [1])], []),
    (int | None, [(1, 1)], [("", "$.key is '', expected an integer")]),
    (Optional[str], [("", "")], [(1, "$.key is 1, expected a string")]),  # noqa: UP045 - both ways of writing it
    (
        int | str,
        [(1, 1), ("auto", "auto")],
        [
            (1.5, "$.key is 1.5, expected an integer or a string"),
            (True, "$.key is true, expected an integer or a string"),
        ],
    ),
    (Union[bool, int, None], [(True, True), (1, 1)], [("x", "$.key is 'x', expected true or false or an integer")]),  # noqa: UP007
    (int | float, [(1, 1), (1.5, 1.5)], [("x", "$.key is 'x', expected a number")]),
    (Literal["auto"] | int, [("auto", "auto"), (5, 5)], [("x", """$.key is 'x', expected "auto\"""")]),
    (
        Inner | bool,
        [({"size": 1}, Inner(size=1)), (False, False)],
        [
            ("x", "$.key is 'x', expected an object or true or false"),
            ({"size": "x"}, "$.key.size is 'x', expected an integer"),
        ],
    ),
    (
        Inner | tuple[Inner, ...],
        [({"size": 1}, Inner(size=1)), ([{}], (Inner(),))],
        [("x", "$.key is 'x', expected an object or an array")],
    ),
    (
        Literal["bridge", "vepa"],
        [("vepa", "vepa")],
        [
            ("x", """$.key is 'x', expected one of "bridge", "vepa\""""),
            (["vepa"], """$.key is an array, expected one of "bridge", "vepa\""""),
        ],
    ),
    (Literal[1, 2], [(2, 2)], [(True, "$.key is true, expected one of 1, 2"), (3, "$.key is 3, expected one of 1, 2")]),
    (
        Mode,
        [("vepa", Mode.VEPA)],
        [
            ("x", """$.key is 'x', expected one of "bridge", "vepa\""""),
            ({}, """$.key is an object, expected one of "bridge", "vepa\""""),
        ],
    ),
    (TextMode, [("vepa", TextMode.VEPA)], [("x", """$.key is 'x', expected one of "bridge", "vepa\"""")]),
    (Level, [(2, Level.HIGH)], [(3, "$.key is 3, expected one of 1, 2"), ("2", "$.key is '2', expected one of 1, 2")]),
    (Annotated[int, "metres"], [(1, 1)], [("1", "$.key is '1', expected an integer")]),
    (Final[int], [(1, 1)], [("1", "$.key is '1', expected an integer")]),
    (VlanID, [(1, 1)], [("1", "$.key is '1', expected an integer")]),
    (
        tuple[str, ...],
        [(["a"], ("a",)), ([], ())],
        [("ab", "$.key is 'ab', expected an array"), ([1], "$.key[0] is 1, expected a string")],
    ),
    (
        list[str],
        [(["a"], ["a"])],
        [("ab", "$.key is 'ab', expected an array"), ([1], "$.key[0] is 1, expected a string")],
    ),
    (abc.Sequence[str], [(["a"], ("a",))], [("ab", "$.key is 'ab', expected an array")]),
    (typing.List[str], [(["a"], ["a"])], [("ab", "$.key is 'ab', expected an array")]),  # noqa: UP006
    (list, [(["a", 1], ["a", 1])], [("ab", "$.key is 'ab', expected an array")]),
    (tuple, [(["a", 1], ("a", 1))], [("ab", "$.key is 'ab', expected an array")]),
    (
        set[str],
        [(["a", "b", "a"], {"a", "b"})],
        [("ab", "$.key is 'ab', expected an array"), ([1], "$.key[0] is 1, expected a string")],
    ),
    (frozenset[int], [([1, 1], frozenset({1}))], [({}, "$.key is an object, expected an array")]),
    (abc.Set[int], [([1], frozenset({1}))], [("", "$.key is '', expected an array")]),
    (
        tuple[int, int],
        [([1, 2], (1, 2))],
        [([1], "$.key is an array, expected an array of 2 values"), ([1, "2"], "$.key[1] is '2', expected an integer")],
    ),
    (
        tuple[str, bool, int],
        [(["a", True, 1], ("a", True, 1))],
        [("abc", "$.key is 'abc', expected an array of 3 values")],
    ),
    (
        abc.Mapping[str, int],
        [({"a": 1}, {"a": 1})],
        [({"a": "1"}, "$.key.a is '1', expected an integer"), ([], "$.key is an array, expected an object")],
    ),
    (dict[str, Inner], [({"a": {}}, {"a": Inner()})], [({"a": 1}, "$.key.a is 1, expected an object")]),
    (dict, [({"a": 1}, {"a": 1})], [([], "$.key is an array, expected an object")]),
    (abc.MutableMapping[str, str], [({"a": "b"}, {"a": "b"})], [({"a": 1}, "$.key.a is 1, expected a string")]),
    (Inner, [({"size": 1}, Inner(size=1))], [({"size": None, "SIZE": "x"}, "$.key.SIZE is 'x', expected an integer")]),
    (
        Tree,
        [({"parts": [{"parts": []}]}, Tree(parts=(Tree(),)))],
        [({"parts": [{"parts": 1}]}, "$.key.parts[0].parts is 1, expected an array")],
    ),
    (
        pathlib.Path,
        [("/a/b", pathlib.Path("/a/b"))],
        [
            (1, "$.key is 1, expected a path"),
            ("", "$.key is '', expected a path"),
            ("a\0b", "$.key is 'a\\x00b', expected a path"),
        ],
    ),
    (pathlib.PurePosixPath, [("a", pathlib.PurePosixPath("a"))], [([], "$.key is an array, expected a path")]),
    (
        IPAddress,
        [("10.0.0.1", ipaddress.ip_address("10.0.0.1"))],
        [("10.0.0.256", "$.key is '10.0.0.256', expected an IP address"), (1, "$.key is 1, expected an IP address")],
    ),
    (
        ipaddress.IPv4Address,
        [("10.0.0.1", ipaddress.ip_address("10.0.0.1"))],
        [("::1", "$.key is '::1', expected an IPv4 address")],
    ),
    (
        IPInterface,
        [("10.0.0.1/8", ipaddress.ip_interface("10.0.0.1/8"))],
        [("x", """$.key is 'x', expected an address with its prefix length, such as "10.1.2.3/24\"""")],
    ),
    (
        IPNetwork | None,
        [("10.0.0.0/8", ipaddress.ip_network("10.0.0.0/8")), ("", None)],
        [("x", """$.key is 'x', expected a network with its prefix length, such as "10.1.2.0/24\"""")],
    ),
]

AS_TEXT = "write str and parse it in a property, or add a hook in Plugin.configure_converter"
OWN_TYPE = "write a class decorated with @frozen(kw_only=True)"

# annotation · what to write instead
REFUSED: list[tuple[Any, str]] = [
    (Typed, OWN_TYPE),
    (Named, OWN_TYPE),
    (Data, OWN_TYPE),
    (Plain, OWN_TYPE),
    (Box[int], "write a class without type variables"),
    (Box, "Box.content: T is not read from JSON: write a type without type variables"),
    (T, "write a type without type variables"),
    (types.NoneType, "int | None"),
    (Name, "write str"),
    (bytes, AS_TEXT),
    (complex, AS_TEXT),
    (datetime.datetime, AS_TEXT),
    (datetime.timedelta, AS_TEXT),
    (decimal.Decimal, AS_TEXT),
    (uuid.UUID, AS_TEXT),
    (re.Pattern[str], AS_TEXT),
    (os.PathLike[str], AS_TEXT),
    (abc.Callable[[], int], AS_TEXT),
    (type[int], AS_TEXT),
    (dict[int, str], "every key is a string"),
    (collections.OrderedDict[str, int], "write Mapping[str, …] or dict[str, …]"),
    (collections.deque[int], "write tuple[…, …], list[…] or set[…]"),
    (set[list[int]], "a set cannot hold"),
    (str | ipaddress.IPv4Address, "both read a string"),
    (Literal["a"] | str, "both read a string"),
    (list[int] | tuple[str, ...], "both read an array"),
    (Inner | dict[str, int], "both read an object"),
    (tuple[Plain, ...], OWN_TYPE),
    (Plain | None, OWN_TYPE),
]


def conf_with(annotation: Any, default: Any = attrs.NOTHING) -> type[NetConf]:
    """A configuration with one key of an annotation."""
    key = field(default=default, type=annotation)
    return make_class("Conf", {"key": key}, bases=(NetConf,), frozen=True, kw_only=True, slots=True)


def converters() -> tuple[Any, ...]:
    """The package's own rules, and a cattrs converter with the same ones."""
    return None, make_converter()


@pytest.mark.parametrize(("annotation", "reads", "refuses"), SUPPORTED, ids=[name_of(row[0]) for row in SUPPORTED])
def test_an_annotation_is_read_strictly(annotation: Any, reads: Any, refuses: Any) -> None:
    conf = conf_with(annotation)
    for converter in converters():
        check_class(conf, converter)
        for value, wanted in reads:
            read = structure({"key": value}, conf, converter=converter).key  # type: ignore[attr-defined]
            assert (read, type(read)) == (wanted, type(wanted))
        for value, message in refuses:
            with pytest.raises(InvalidConfigError) as raised:
                structure({"key": value}, conf, converter=converter)
            assert raised.value.msg == f"invalid network configuration: {message}"


@pytest.mark.parametrize(("annotation", "reads", "refuses"), SUPPORTED, ids=[name_of(row[0]) for row in SUPPORTED])
def test_an_annotation_is_read_leniently_alike(annotation: Any, reads: Any, refuses: Any) -> None:
    conf = conf_with(annotation)
    for value, _ in (*reads, *refuses):
        own, cattrs = (structure_leniently({"key": [value]}, conf, converter=each) for each in converters())
        assert (own[0], [str(each) for each in own[1]]) == (cattrs[0], [str(each) for each in cattrs[1]])


@pytest.mark.parametrize(("annotation", "reads", "refuses"), SUPPORTED, ids=[name_of(row[0]) for row in SUPPORTED])
def test_no_value_of_a_required_key_blocks_del(annotation: Any, reads: Any, refuses: Any) -> None:
    conf = conf_with(annotation)
    for document in [{}, {"key": None}, *({"key": value} for value, _ in refuses)]:
        read, problems = structure_leniently({"name": "n", "key2": 1, **document}, conf)
        assert read.name == "n"
        assert read.extra == {"key2": 1}
        assert len(problems) >= 1
        hash(problems[0].msg)


@pytest.mark.parametrize(("annotation", "advice"), REFUSED, ids=[name_of(row[0]) for row in REFUSED])
def test_an_annotation_is_refused_where_the_plugin_is_defined(annotation: Any, advice: str) -> None:
    conf = conf_with(annotation)
    with pytest.raises(UnsupportedAnnotationError) as raised:
        types.new_class("Plug", (Plugin[conf],))  # type: ignore[valid-type]
    assert str(raised.value).startswith("Conf.key: ")
    assert advice in str(raised.value)
    with pytest.raises(UnsupportedAnnotationError, match=re.escape(str(raised.value))):
        check_class(conf, make_converter())


def test_a_class_that_forgot_frozen_is_refused_where_the_plugin_is_defined() -> None:
    class Conf(NetConf):
        bridge: str = "cni0"

    with pytest.raises(TypeError, match=r"Conf is no attrs class: put @frozen\(kw_only=True\) above it"):

        class Plug(Plugin[Conf]):
            pass


def to_upper(text: str) -> str:
    return text.upper()


def look_up(number: int) -> int:
    return {0: 0, 1: 10}[number]


@frozen(kw_only=True)
class Checked(NetConf):
    mode: str = field(default="bridge", validator=validators.in_(["bridge", "vepa"]))
    port: int = field(default=1, validator=[validators.ge(1), validators.le(4094)])
    low: int = field(default=0)
    upper: str = field(default="", converter=to_upper)
    number: int = field(default=0, converter=look_up)

    @low.validator
    def _check_low(self, attribute: object, value: int) -> None:
        if value > self.port:
            raise ValueError(f"low must be at most port, which is {self.port}")

    def __attrs_post_init__(self) -> None:
        if self.mode == "vepa" and self.port == 13:
            raise ValueError("vepa has no port 13")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"mode": "x"}, "$.mode is 'x': 'mode' must be in ['bridge', 'vepa'] (got 'x')"),
        ({"port": 5000}, "$.port is 5000: 'port' must be <= 4094: 5000"),
        ({"low": 5, "PORT": 2}, "$.low is 5: low must be at most port, which is 2"),
        ({"Number": 7}, "$.Number is 7: KeyError: 7"),
        ({"mode": "vepa", "port": 13}, "$ is an object: vepa has no port 13"),
    ],
)
def test_validators_and_converters_name_path_value_and_problem(document: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidConfigError) as raised:
        structure(document, Checked)
    assert raised.value.msg == f"invalid network configuration: {message}"
    read, problems = structure_leniently({"name": "n", "upper": "x", **document}, Checked)
    assert (read.name, read.upper) == ("n", "X")
    assert [problem.msg for problem in problems] == [f"invalid network configuration: {message}"]


@frozen(kw_only=True)
class Appointment(NetConf):
    when: datetime.datetime


class Dated(Plugin[Appointment]):
    @classmethod
    def configure_converter(cls, converter: Any) -> None:
        converter.register_structure_hook(datetime.datetime, lambda value, _: datetime.datetime.fromisoformat(value))

    def add(self, request: Any) -> Result:
        assert request.conf.when.year == 2026
        return Result()

    def delete(self, request: DelRequest[Appointment]) -> None:
        assert request.conf.when is None


ENVIRON = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0"}


def test_an_authors_own_hook_reads_types_of_their_own() -> None:
    good = b'{"cniVersion": "1.0.0", "name": "n", "type": "dated", "when": "2026-11-26"}'
    assert respond(Dated, {"CNI_COMMAND": "ADD", **ENVIRON}, good).status == 0
    bad = good.replace(b"2026-11", b"soon")
    reply = respond(Dated, {"CNI_COMMAND": "ADD", **ENVIRON}, bad)
    assert b"$.when is 'soon-26': Invalid isoformat string: 'soon-26'" in reply.stdout
    reply = respond(Dated, {"CNI_COMMAND": "DEL", **ENVIRON}, bad)
    assert reply[:2] == (b"", 0)
    assert "$.when is 'soon-26'" in reply.stderr


def test_a_required_key_does_not_block_del() -> None:
    @frozen(kw_only=True)
    class Conf(NetConf):
        size: int
        inner: Inner
        mode: Mode

    class Plug(Plugin[Conf]):
        def add(self, request: Any) -> Result:
            return Result()

        def delete(self, request: DelRequest[Conf]) -> None:
            conf = request.conf
            assert (conf.size, conf.inner, conf.mode) == (0, Inner(), Mode.BRIDGE)

    stdin = b'{"cniVersion": "1.0.0", "name": "n", "type": "plug", "mode": "nonsense"}'
    reply = respond(Plug, {"CNI_COMMAND": "DEL", **ENVIRON}, stdin)
    assert reply[:2] == (b"", 0)
    assert [reply.stderr.count(key) for key in ("$.size is missing", "$.inner is missing", "$.mode is")] == [1] * 3


# --- the documentation's page -----------------------------------------------------------------------------------------

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "reference" / "configuration-types.md"

INTRODUCTION = """# Types of configuration keys

A plugin's configuration is a class of annotated fields, decorated with `@frozen(kw_only=True)`, below `NetConf`.
The annotation decides which JSON values are read. A value that does not fit is an error with code 7 that names its
path, the value and what was expected; nothing is coerced. `null` counts as absent. A key without a default is
required.

In DEL nothing of this is an error, but a warning for each path that is wrong. The default stands in the place of the
wrong value, and where there is none the empty value of the type: `""`, `0`, `False`, `()`, the first of an `Enum` or
`Literal`, else `None`. So it is at any depth: an object that lacks a key, also one in an array, keeps its other keys.
A wrong entry of an array or of a mapping is left out. What a hook of your own reads, or a validator or converter
refuses, counts as one value; an object that `__attrs_post_init__` refuses is handed over as it is.

attrs' validators and converters, also those of your own, and checks in `__attrs_post_init__` may raise any
exception: its text follows path and value in the error.

In the examples `Mode` is an `Enum` of the strings `bridge` and `vepa`, `Level` an `IntEnum` of 1 and 2, `VlanID` a
`NewType` of `int`, and `Inner` and `Tree` are classes decorated with `@frozen(kw_only=True)`: one with an integer
`size`, the other with `parts: tuple[Tree, ...]`.

This page is made from the test that holds it true: `python -m tests.spec.test_annotations` prints it.
"""

HOOKS = """## Types of your own

Add a cattrs hook in a class method of the plugin. What the hook raises is the error's text:

```python
from datetime import datetime

from cattrs import BaseConverter

from cnisdk import AddRequest, DelRequest, NetConf, Plugin, Result, frozen


@frozen(kw_only=True)
class DatedConf(NetConf):
    until: datetime


class Dated(Plugin[DatedConf]):
    @classmethod
    def configure_converter(cls, converter: BaseConverter) -> None:
        converter.register_structure_hook(datetime, lambda value, _: datetime.fromisoformat(value))

    def add(self, request: AddRequest[DatedConf]) -> Result:
        return Result()

    def delete(self, request: DelRequest[DatedConf]) -> None:
        pass
```
"""


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def page() -> str:
    lines = [
        INTRODUCTION,
        "## Read",
        "",
        "| annotation | JSON that fits | JSON that does not, and what the error says |",
        "|---|---|---|",
    ]
    for annotation, reads, refuses in SUPPORTED:
        fits = ", ".join(code(json.dumps(value)) for value, _ in reads)
        errors = "<br>".join(f"{code(json.dumps(value))}: {code(message)}" for value, message in refuses)
        lines.append(f"| {code(name_of(annotation))} | {fits} | {errors} |")
    lines += [
        "",
        "## Refused",
        "",
        "Where the plugin's class is defined, with `UnsupportedAnnotationError`, a `TypeError`:",
        "",
    ]
    lines += ["| annotation | what the error says |", "|---|---|"]
    for annotation, _ in REFUSED:
        lines.append(f"| {code(name_of(annotation))} | {code(refusal(annotation))} |")
    return "\n".join([*lines, "", HOOKS])


def refusal(annotation: Any) -> str:
    with pytest.raises(UnsupportedAnnotationError) as raised:
        check_class(conf_with(annotation))
    return str(raised.value)


def test_the_documentation_has_the_table() -> None:
    assert PAGE.read_text() == page()


if __name__ == "__main__":
    print(page(), end="")
