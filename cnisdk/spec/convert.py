"""Convert results between any two versions, and report the values that the target version cannot hold.

Four shapes serve the seven versions; :data:`CONVERTERS` lists the way between any two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .._light import Any, NamedTuple, cast
from ..classes import evolve
from ..errors import DecodingError, IncompatibleVersionError
from .codec import dumps, find_key, loads, structure
from .older_results import FamilyConfig, OlderInterface, Result020, Result040, Result100, VersionedIPConfig
from .result import Interface, IPConfig, Result, Route
from .versions import ALL, V0_1_0, V0_2_0, V0_3_0, V0_3_1, V0_4_0, V1_0_0, V1_1_0, SpecVersion

AnyResult = Result020 | Result040 | Result100 | Result
"""A result of any version."""

SHAPES: dict[SpecVersion, type[AnyResult]] = {
    V0_1_0: Result020,
    V0_2_0: Result020,
    V0_3_0: Result040,
    V0_3_1: Result040,
    V0_4_0: Result040,
    V1_0_0: Result100,
    V1_1_0: Result,
}
"""The type of each version's results."""


class Lost(NamedTuple):
    """A value that the target version has no place for: its JSON path in the source, and itself."""

    path: str
    value: object

    def __str__(self) -> str:
        return f"{self.path} ({self.value})"


class Conversion(NamedTuple):
    """A converted result, and the values it lost."""

    result: AnyResult
    lost: tuple[Lost, ...]


_Step = Callable[[Any, list[Lost]], Any]


def convert_result(result: AnyResult, version: SpecVersion) -> Conversion:
    """Convert a result to a version of the specification.

    Going up, fields that the source does not know stay empty. Going down, values that the target cannot hold are left
    out and listed.

    Raises:
        IncompatibleVersionError: (1) ``version`` is not a released version.
    """
    shape = shape_of(version)
    lost: list[Lost] = []
    for step in CONVERTERS[type(result), shape]:
        result = step(result, lost)
    return Conversion(evolve(result, cni_version=str(version)), tuple(lost))


def upgrade(result: AnyResult) -> Result:
    """Convert a result to the shape that plugins work with. It loses nothing."""
    return cast(Result, convert_result(result, V1_1_0).result)


def shape_of(version: SpecVersion) -> type[AnyResult]:
    """Return the type of a version's results.

    Raises:
        IncompatibleVersionError: (1) There is no such version.
    """
    try:
        return SHAPES[version]
    except KeyError:
        known = ", ".join(map(str, ALL))
        raise IncompatibleVersionError(
            f'unsupported CNI result version "{version}"', details=f"known: {known}"
        ) from None


def parse_result(data: bytes, default_version: str = "", *, what: str = "result") -> AnyResult:
    """Read the output of a plugin's ADD; its own ``cniVersion`` says which shape it has.

    Args:
        data: One JSON object.
        default_version: The version of a result that names none, as results of 0.1.0 may.
        what: Name of the bytes, for the message.

    Raises:
        DecodingError: (6) Not JSON, or a value has the wrong kind.
        IncompatibleVersionError: (1) A version that does not exist.
    """
    return structure_result(loads(data, what), default_version, what=what)


def structure_result(
    document: object, default_version: str = "", *, what: str = "result", path: str = "$"
) -> AnyResult:
    """Make a typed result of a parsed one; see :func:`parse_result`. Entries that are null are left out."""
    document = without_null_entries(document)
    written = document.get("cniVersion") if isinstance(document, Mapping) else None
    version = SpecVersion.parse(written if isinstance(written, str) and written else default_version)
    result = structure(document, shape_of(version), what=what, path=path, error=DecodingError)
    return evolve(result, cni_version=str(version))


def without_null_entries(document: Any) -> Any:
    """Remove the entries of ``interfaces``, ``ips`` and ``routes`` that are null from a parsed result of any version.

    The reference accepts them, and plugins written in Go crash when they get one. Addresses point at the same
    interfaces as before; an address that pointed at such an entry points at none.
    """
    if not isinstance(document, Mapping):
        return document
    cleaned = dict(document)
    interfaces: list[Any] = []
    for key, value in document.items():
        folded = key.lower()
        if folded in ("ip4", "ip6") or (folded in ("ips", "routes", "interfaces") and not isinstance(value, list)):
            cleaned[key] = without_null_entries(value)
        elif folded in ("ips", "routes", "interfaces") and None in value:
            cleaned[key] = [each for each in value if each is not None]
            if folded == "interfaces":
                interfaces = value
    if interfaces:
        _renumber(cleaned, interfaces)
    return document if cleaned == document else cleaned


def _renumber(cleaned: dict[str, Any], interfaces: list[Any]) -> None:
    """Renumber the interfaces that addresses point at, after null entries were removed."""
    kept = [index for index, each in enumerate(interfaces) if each is not None]
    for key, ips in cleaned.items():
        if key.lower() == "ips" and isinstance(ips, list):
            cleaned[key] = [_pointing(ip, kept, len(interfaces)) for ip in ips]


def _pointing(ip: Any, kept: list[int], count: int) -> Any:
    index = find_key(ip, "interface") if isinstance(ip, dict) else None
    if type(index) is not int or not 0 <= index < count:
        return ip
    if index in kept:
        return {key: kept.index(index) if key.lower() == "interface" else value for key, value in ip.items()}
    return {key: value for key, value in ip.items() if key.lower() != "interface"}


def print_result(result: AnyResult) -> bytes:
    """Write a result as the reference tools released with its version print it: in 1.1.0, all keys are sorted."""
    return dumps(result, sort_keys=isinstance(result, Result))


# --- the steps between neighbours -------------------------------------------------------------------------------------


def _to_040_from_020(old: Result020, lost: list[Lost]) -> Result040:
    families = [family for family in (old.ip4, old.ip6) if family is not None]
    return Result040(
        ips=tuple(
            VersionedIPConfig(
                version=str(family.ip.version), address=family.ip, gateway=family.gateway, extra=family.extra
            )
            for family in families
        ),
        routes=tuple(route for family in families for route in family.routes),
        dns=old.dns,
        extra=old.extra,
    )


def _to_100_from_040(old: Result040, lost: list[Lost]) -> Result100:
    return Result100(
        interfaces=tuple(
            Interface(name=link.name, mac=link.mac, sandbox=link.sandbox, extra=link.extra) for link in old.interfaces
        ),
        ips=tuple(
            IPConfig(interface=ip.interface, address=ip.address, gateway=ip.gateway, extra=ip.extra) for ip in old.ips
        ),
        routes=old.routes,
        dns=old.dns,
        extra=old.extra,
    )


def _to_110_from_100(old: Result100, lost: list[Lost]) -> Result:
    return Result(interfaces=old.interfaces, ips=old.ips, routes=old.routes, dns=old.dns, extra=old.extra)


def _to_100_from_110(new: Result, lost: list[Lost]) -> Result100:
    return Result100(interfaces=new.interfaces, ips=new.ips, routes=new.routes, dns=new.dns, extra=new.extra)


def _to_040_from_100(new: Result100, lost: list[Lost]) -> Result040:
    for index, link in enumerate(new.interfaces):
        _lose(
            lost,
            f"$.interfaces[{index}]",
            mtu=link.mtu or None,
            socketPath=link.socket_path or None,
            pciID=link.pci_id or None,
        )
    return Result040(
        interfaces=tuple(
            OlderInterface(name=link.name, mac=link.mac, sandbox=link.sandbox, extra=link.extra)
            for link in new.interfaces
        ),
        ips=tuple(
            VersionedIPConfig(
                version=str(ip.address.version),
                interface=ip.interface,
                address=ip.address,
                gateway=ip.gateway,
                extra=ip.extra,
            )
            for ip in new.ips
        ),
        routes=new.routes,
        dns=new.dns,
        extra=new.extra,
    )


def _to_020_from_040(new: Result040, lost: list[Lost]) -> Result020:
    for index, link in enumerate(new.interfaces):
        lost.append(Lost(f"$.interfaces[{index}]", link.name))
    families: dict[int, FamilyConfig] = {}
    for index, ip in enumerate(new.ips):
        if ip.address.version in families:
            lost.append(Lost(f"$.ips[{index}]", ip.address))
            continue
        _lose(lost, f"$.ips[{index}]", interface=ip.interface)
        families[ip.address.version] = FamilyConfig(ip=ip.address, gateway=ip.gateway, extra=ip.extra)
    for index, route in enumerate(new.routes):
        family = families.get(route.dst.version)
        if family is None:
            lost.append(Lost(f"$.routes[{index}]", route.dst))
            continue
        _lose(
            lost,
            f"$.routes[{index}]",
            mtu=route.mtu or None,
            advmss=route.advmss or None,
            priority=route.priority or None,
            table=route.table,
            scope=route.scope,
        )
        plain = Route(dst=route.dst, gw=route.gw, extra=route.extra)
        families[route.dst.version] = evolve(family, routes=(*family.routes, plain))
    return Result020(ip4=families.get(4), ip6=families.get(6), dns=new.dns, extra=new.extra)


def _lose(lost: list[Lost], path: str, **values: object) -> None:
    lost.extend(Lost(f"{path}.{key}", value) for key, value in values.items() if value is not None)


_020, _040, _100, _110 = Result020, Result040, Result100, Result

CONVERTERS: dict[tuple[type[AnyResult], type[AnyResult]], tuple[_Step, ...]] = {
    (_020, _020): (),
    (_020, _040): (_to_040_from_020,),
    (_020, _100): (_to_040_from_020, _to_100_from_040),
    (_020, _110): (_to_040_from_020, _to_100_from_040, _to_110_from_100),
    (_040, _020): (_to_020_from_040,),
    (_040, _040): (),
    (_040, _100): (_to_100_from_040,),
    (_040, _110): (_to_100_from_040, _to_110_from_100),
    (_100, _020): (_to_040_from_100, _to_020_from_040),
    (_100, _040): (_to_040_from_100,),
    (_100, _100): (),
    (_100, _110): (_to_110_from_100,),
    (_110, _020): (_to_100_from_110, _to_040_from_100, _to_020_from_040),
    (_110, _040): (_to_100_from_110, _to_040_from_100),
    (_110, _100): (_to_100_from_110,),
    (_110, _110): (),
}
"""The steps from each shape to each other, in order."""
