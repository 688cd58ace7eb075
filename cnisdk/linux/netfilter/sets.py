"""Sets and maps of nftables, and chains that only record something, read and changed by netlink.

nftables looks an element up in the same time however many there are, and adding one takes no program, since there is
nothing to compile.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable

from ..._light import NamedTuple
from ...errors import IOFailureError, cause_of, describe_errno
from .. import attributes
from . import nfnetlink
from .nft import COMMENT_MAX, NftTable, Rule, read_generation as read_generation

_SUBSYSTEM = 10
_FAMILIES = {"inet": 1, "ip": 2, "bridge": 7, "ip6": 10}
_NEW_CHAIN, _DELETE_CHAIN, _NEW_RULE, _DELETE_RULE = (_SUBSYSTEM << 8 | each for each in (3, 5, 6, 8))
_NEW_ELEMENT, _GET_ELEMENT, _DELETE_ELEMENT = (_SUBSYSTEM << 8 | each for each in (12, 13, 14))
_TABLE, _CHAIN_NAME, _RULE_CHAIN, _RULE_USERDATA = 1, 3, 2, 7
_ELEMENTS_SET, _ELEMENTS = 2, 3
_LIST_ITEM = 1
_KEY, _DATA, _USERDATA = 1, 2, 6
_VALUE = 1
_APPEND = 0x800
_LOOK_AGAIN = (errno.ENOENT, errno.EEXIST, errno.EBUSY, errno.ENOTEMPTY, errno.ERESTART)
# libnftnl's own format: type, length and value, one byte each for the first two.
_COMMENT_TYPE = 0


class Element(NamedTuple):
    """An element of a set or map.

    Attributes:
        where: Name of the set or map.
        key: Its fields, one after the other: see :func:`concat`.
        data: Value of the key in a map, its fields likewise; empty in a set.
        comment: Its comment.
    """

    where: str
    key: bytes
    data: bytes = b""
    comment: str = ""


class Shape(NamedTuple):
    """The parts of a rule by which it is known, in whatever way ``nft`` compiled it.

    Attributes:
        verdict: Its verdict; empty for none.
        expression: Name of an expression that is in it; empty for any.
        named: Name of a set or map that it looks up; empty for any.
        compared: Value that it compares with; empty for any.
    """

    verdict: str
    expression: str = ""
    named: str = ""
    compared: bytes = b""

    def is_like(self, rule: Rule) -> bool:
        """Return True if a rule of the kernel has these parts."""
        matches = rule.matches
        return (
            rule.verdict == self.verdict
            and (not self.expression or any(each.what == self.expression for each in matches))
            and (not self.named or any(self.named.encode() + b"\0" in each.value for each in matches))
            and (not self.compared or any(self.compared in each.value for each in matches))
        )


def concat(*fields: bytes) -> bytes:
    """Put fields together as the kernel has them: each is padded to four bytes."""
    return b"".join(each.ljust((len(each) + 3) & ~3, b"\0") for each in fields)


def find(table: NftTable, wanted: Iterable[Element]) -> list[Element]:
    """Return those of these elements that exist, with the data and comments they have.

    Args:
        table: The table.
        wanted: The elements; only their sets and keys are looked at.

    Raises:
        IOFailureError: (5) The kernel refused to answer.
    """
    elements = list(wanted)
    family = _FAMILIES[table.family]
    requests = [(_GET_ELEMENT, 0, family, _name(table, each)) for each in elements]
    try:
        answers = nfnetlink.ask(requests)
    except OSError as exc:
        raise IOFailureError(f"cannot read {table}: {cause_of(exc)}") from exc
    return [each for answer in answers if answer is not None for each in _read(answer)]


def list_all(table: NftTable, where: str, endings: Collection[bytes] = ()) -> list[Element]:
    """Return all elements of a set or map; none when there is no such.

    Args:
        table: The table.
        where: Name of the set or map.
        endings: If given, only elements whose keys end with one of these. The others are hardly looked at: that takes
            a tenth of the time.

    Raises:
        IOFailureError: (5) The kernel refused to answer.
    """
    body = _text(_TABLE, table.name) + _text(_ELEMENTS_SET, where)
    answers = _dump(table, _GET_ELEMENT, body)
    if not endings:
        return [each for answer in answers for each in _read(answer)]
    some = (answer for answer in answers if any(ending in answer for ending in endings))
    return [each for answer in some for each in _read(answer, endings) if each.key.endswith(tuple(endings))]


class Change(NamedTuple):
    """A transaction: everything in it happens, or nothing. Deletions come first.

    Attributes:
        deleted: Elements to delete.
        forgotten: Chains to delete, with their rules.
        added: Elements to add.
        records: Chains to make, with the comments of their rules, which do nothing.
    """

    deleted: tuple[Element, ...] = ()
    forgotten: tuple[str, ...] = ()
    added: tuple[Element, ...] = ()
    records: tuple[tuple[str, tuple[str, ...]], ...] = ()


def carry_out(table: NftTable, change: Change, generation: int) -> bool:
    """Carry out a change.

    The kernel deletes an element by its key, whatever its comment: also one that another process has put in the place
    of the one that was seen. And the owner of a chain of records may have been given an element a moment ago. So
    nothing is deleted if the ruleset has changed since it was looked at.

    Args:
        table: The table.
        change: The change.
        generation: The ruleset's generation, read before looking for what to delete: see :func:`read_generation`.

    Returns:
        False if something to delete is gone or may be another's, or something to add exists already: look again.

    Raises:
        IOFailureError: (5) The kernel refused.
    """
    family, named = _FAMILIES[table.family], _text(_TABLE, table.name)
    make = nfnetlink.CREATE | nfnetlink.EXCLUSIVE
    messages: list[nfnetlink.FilterMessage] = []
    messages += [(_DELETE_ELEMENT, 0, family, _name(table, each)) for each in change.deleted]
    for chain in change.forgotten:
        messages.append((_DELETE_RULE, 0, family, named + _text(_RULE_CHAIN, chain)))
        messages.append((_DELETE_CHAIN, 0, family, named + _text(_CHAIN_NAME, chain)))
    for chain, comments in change.records:
        messages.append((_NEW_CHAIN, make, family, named + _text(_CHAIN_NAME, chain)))
        for comment in comments:
            body = named + _text(_RULE_CHAIN, chain) + attributes.attribute(_RULE_USERDATA, _comment(comment))
            messages.append((_NEW_RULE, nfnetlink.CREATE | _APPEND, family, body))
    messages += [(_NEW_ELEMENT, make, family, _name(table, each, whole=True)) for each in change.added]
    if not messages:
        return True
    try:
        error = nfnetlink.transact(_SUBSYSTEM, messages, generation if change.deleted or change.forgotten else 0)
    except OSError as exc:
        error = exc.errno or errno.EIO
    if error in _LOOK_AGAIN:
        return False
    if error:
        raise IOFailureError(f"cannot change {table}: {describe_errno(error)}")
    return True


def _dump(table: NftTable, number: int, body: bytes) -> list[bytes]:
    try:
        return nfnetlink.dump(number, _FAMILIES[table.family], body)
    except OSError as exc:
        raise IOFailureError(f"cannot read {table}: {cause_of(exc)}") from exc


def _text(number: int, value: str) -> bytes:
    return attributes.text(number, f"{value}\0")


def _nest(number: int, *payload: bytes) -> bytes:
    return attributes.attribute(number | nfnetlink.NESTED, *payload)


def _name(table: NftTable, element: Element, *, whole: bool = False) -> bytes:
    """Return the attributes that name an element, or that are the whole of it."""
    parts = [_nest(_KEY, attributes.attribute(_VALUE, element.key))]
    if whole and element.data:
        parts.append(_nest(_DATA, attributes.attribute(_VALUE, element.data)))
    if whole and element.comment:
        parts.append(attributes.attribute(_USERDATA, _comment(element.comment)))
    names = _text(_TABLE, table.name) + _text(_ELEMENTS_SET, element.where)
    return names + _nest(_ELEMENTS, _nest(_LIST_ITEM, *parts))


def _read(answer: bytes, endings: Collection[bytes] = (b"",)) -> list[Element]:
    found = attributes.read(answer)
    where = attributes.read_text(found[_ELEMENTS_SET])
    elements = []
    for _, item in attributes.iterate(found.get(_ELEMENTS, b"")):
        if not any(ending in item for ending in endings):
            continue
        parts = attributes.read(item)
        key, data = (attributes.read(parts.get(each, b"")).get(_VALUE, b"") for each in (_KEY, _DATA))
        noted = parts.get(_USERDATA, b"\0\0")
        comment = attributes.read_text(noted[2 : 2 + noted[1]]) if noted[0] == _COMMENT_TYPE else ""
        elements.append(Element(where, key, data, comment))
    return elements


def _comment(text: str) -> bytes:
    data = text.encode(errors="surrogateescape")[: COMMENT_MAX - 1] + b"\0"
    return bytes([_COMMENT_TYPE, len(data)]) + data
