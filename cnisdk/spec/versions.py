"""Versions of the specification, and what each allows, as tables (spec §1, "Version considerations")."""

from __future__ import annotations

from collections.abc import Iterable

from .._light import NamedTuple, TextEnum
from ..errors import DecodingError, IncompatibleVersionError


class Verb(TextEnum):
    """Verbs: the values of ``CNI_COMMAND`` (spec §2, "CNI operations")."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"
    VERSION = "VERSION"


class SpecVersion(NamedTuple):
    """A version of the specification. Compares as numbers: 0.10.0 is newer than 0.9.0."""

    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> SpecVersion:
        """Read ``"1.0.0"``. The empty string is 0.1.0, as everywhere in CNI.

        Missing parts are 0, as the reference reads them. Signs, spaces and suffixes are refused.

        Raises:
            DecodingError: (6) ``text`` is not a version.
        """
        if not text:
            return V0_1_0
        parts = text.split(".")
        if len(parts) > _PARTS or not all(0 < len(part) <= _DIGITS and _NUMBER.issuperset(part) for part in parts):
            raise DecodingError(f"invalid CNI version {text!r}", details='expected up to three numbers, as in "1.0.0"')
        return cls(*map(int, (*parts, "0", "0")[:_PARTS]))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


_PARTS = 3
_DIGITS = 9
_NUMBER = frozenset("0123456789")

V0_1_0 = SpecVersion(0, 1, 0)  #: CNI 0.1.0
V0_2_0 = SpecVersion(0, 2, 0)  #: CNI 0.2.0
V0_3_0 = SpecVersion(0, 3, 0)  #: CNI 0.3.0
V0_3_1 = SpecVersion(0, 3, 1)  #: CNI 0.3.1
V0_4_0 = SpecVersion(0, 4, 0)  #: CNI 0.4.0
V1_0_0 = SpecVersion(1, 0, 0)  #: CNI 1.0.0
V1_1_0 = SpecVersion(1, 1, 0)  #: CNI 1.1.0

ALL = (V0_1_0, V0_2_0, V0_3_0, V0_3_1, V0_4_0, V1_0_0, V1_1_0)
"""Every released version, oldest first."""

CURRENT = V1_1_0
"""The newest version this SDK speaks; its result type is the one plugins work with."""

SINCE: dict[Verb, SpecVersion] = {
    Verb.ADD: V0_1_0,
    Verb.DEL: V0_1_0,
    Verb.CHECK: V0_4_0,
    Verb.GC: V1_1_0,
    Verb.STATUS: V1_1_0,
    # VERSION came with 0.2.0, but runtimes ask it before any version is agreed on, so it is never refused.
    Verb.VERSION: V0_1_0,
}
"""The first version of the specification that knows a verb."""

PREV_RESULT_SINCE: dict[Verb, SpecVersion] = {Verb.ADD: V0_3_0, Verb.CHECK: V0_4_0, Verb.DEL: V0_4_0}
"""The first version in which a runtime hands ``prevResult`` to a plugin, by verb."""


def allows(version: SpecVersion, verb: Verb) -> bool:
    """Return whether a version of the specification knows the verb."""
    return version >= SINCE[verb]


def negotiate(configured: str, supported: Iterable[SpecVersion], verb: Verb) -> SpecVersion:
    """Agree on the version of one request.

    The configuration's version must be one the plugin lists, to the letter, as in the reference: ``"1.0"`` is not
    ``"1.0.0"``.

    Args:
        configured: ``cniVersion`` of the configuration; empty means 0.1.0.
        supported: The versions that the plugin supports.
        verb: The verb asked for; CHECK, GC and STATUS need a version that knows them.

    Raises:
        IncompatibleVersionError: (1) The plugin does not list the version, or the version does not know the verb.
        DecodingError: (6) The verb depends on the version, and `configured` is not one.
    """
    listed = sorted(supported)
    if verb in _GATED:
        since = SINCE[verb]
        if SpecVersion.parse(configured) < since:
            raise IncompatibleVersionError(
                f"config version does not allow {verb}",
                details=f'cniVersion is "{configured}", {verb} needs {since} or newer',
            )
        if not listed or listed[-1] < since:
            raise IncompatibleVersionError(f"plugin version does not allow {verb}")
    wanted = configured or str(V0_1_0)
    for version in reversed(listed):
        if str(version) == wanted:
            return version
    names = " ".join(f'"{version}"' for version in listed)
    raise IncompatibleVersionError(
        "incompatible CNI versions", details=f'config is "{wanted}", plugin supports [{names}]'
    )


_GATED = frozenset(verb for verb, since in SINCE.items() if since > V0_1_0)
