"""Sources of firewalld's zones: addresses whose traffic a zone decides about.

firewalld is asked over D-Bus, as ``firewall-cmd`` does. Changes are made in its runtime configuration, which it drops
when it restarts or reloads. A source names no owner, so the caller has to know the owner.
"""

from __future__ import annotations

from ...errors import CNIError, InvalidConfigError, IOFailureError, PluginNotAvailableError, TryAgainLaterError
from ...spec.addresses import IPAddress
from ...spec.names import shorten
from . import _dbus

_NAME = "org.fedoraproject.FirewallD1"

# Seconds to wait for firewalld, which answers no request while it starts and reloads: the default of D-Bus' library.
_TIMEOUT = 25.0

# Errors of the bus if there is no program of that name.
_NO_OWNER = ("org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner")

# The bus does not run.
_NO_BUS = (FileNotFoundError, ConnectionRefusedError)


class _RefusedError(Exception):
    """firewalld refused; ``code`` is its word for the reason, such as ``INVALID_ZONE``."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(":")[0]


def is_running() -> bool:
    """Return True if firewalld runs: it has its name on the system's D-Bus. Without a bus, this costs a system call.

    Raises:
        TryAgainLaterError: (11) The bus does not answer.
        IOFailureError: (5) The bus refuses this user.
    """
    try:
        return _dbus.call(_dbus.bus_method("NameHasOwner"), [_NAME], _TIMEOUT) is True
    except _NO_BUS:
        return False
    except (OSError, _dbus.Refusal) as exc:
        raise _unreachable(exc) from exc


def status(zone: str) -> None:
    """Raise :class:`PluginNotAvailableError` (50) unless sources can be added to a zone.

    Raises:
        PluginNotAvailableError: (50) firewalld does not run, or has no such zone.
        TryAgainLaterError: (11) It does not answer.
    """
    try:
        _ask("querySource", zone, "192.0.2.1/32")  # of RFC 5737; the answer does not matter
    except _RefusedError as exc:
        error = _invalid_zone(zone) if exc.code == "INVALID_ZONE" else IOFailureError(f"firewalld: {exc}")
        raise PluginNotAvailableError(error.msg, details=error.details) from exc


def find_zone(address: IPAddress) -> str | None:
    """Return the zone that has an address as a source; None if none has it.

    Raises:
        PluginNotAvailableError: (50) firewalld does not run.
        TryAgainLaterError: (11) It does not answer.
        IOFailureError: (5) It refused.
    """
    try:
        return str(_ask("getZoneOfSource", source_of(address)) or "") or None
    except _RefusedError as exc:
        raise IOFailureError(f"firewalld does not tell the zone of {address}: {exc}") from exc


def find_permanent_zone(address: IPAddress) -> str | None:
    """Return the zone that has an address as a source in the permanent configuration.

    Returns:
        The zone; None if none has it, or firewalld does not run.

    Raises:
        TryAgainLaterError: (11) firewalld does not answer.
        IOFailureError: (5) It refused.
    """
    try:
        return str(_ask("getZoneOfSource", source_of(address), permanent=True) or "") or None
    except PluginNotAvailableError:
        return None
    except _RefusedError as exc:
        raise IOFailureError(f"firewalld does not tell the permanent zone of {address}: {exc}") from exc


def add_source(zone: str, address: IPAddress) -> None:
    """Make an address a source of a zone. If it is one already, nothing changes.

    Args:
        zone: Name of the zone.
        address: The address.

    Raises:
        InvalidConfigError: (7) There is no such zone.
        PluginNotAvailableError: (50) firewalld does not run.
        TryAgainLaterError: (11) It does not answer.
        IOFailureError: (5) The address is a source of another zone, or firewalld refused for another reason.
    """
    source = source_of(address)
    try:
        _ask("addSource", zone, source)
    except _RefusedError as exc:
        if exc.code == "INVALID_ZONE":
            raise _invalid_zone(zone) from exc
        if exc.code not in ("ZONE_ALREADY_SET", "ZONE_CONFLICT"):
            raise IOFailureError(f"firewalld did not add {source} to zone {zone}: {exc}") from exc
        there = find_zone(address)
        if there != zone:
            raise IOFailureError(
                f"firewalld has {source} in zone {there}, not in {zone}",
                details=f"firewall-cmd --zone={there} --remove-source={source} removes it, if no configuration adds it",
            ) from exc


def remove_source(zone: str, address: IPAddress) -> None:
    """Make an address no source of a zone any more. If it is none, or firewalld does not run, nothing changes.

    Args:
        zone: Name of the zone.
        address: The address.

    Raises:
        TryAgainLaterError: (11) firewalld does not answer.
        IOFailureError: (5) It refused.
    """
    source = source_of(address)
    try:
        _ask("removeSource", zone, source)
    except PluginNotAvailableError:
        return
    except _RefusedError as exc:
        # ZONE_CONFLICT: it is a source of another zone.
        if exc.code not in ("UNKNOWN_SOURCE", "INVALID_ZONE", "ZONE_CONFLICT"):
            raise IOFailureError(f"firewalld did not remove {source} from zone {zone}: {exc}") from exc


def source_of(address: IPAddress) -> str:
    """Return the source for an address, as the reference plugin writes it: firewalld compares texts."""
    return f"{address}/{address.max_prefixlen}"


def _ask(member: str, *arguments: str, permanent: bool = False) -> str | bool | None:
    """Call a method of firewalld's zones, as they are or as the permanent configuration has them."""
    # An empty name stands for the default zone, or for any; and D-Bus has no texts with a NUL.
    if not all(each and each.isprintable() for each in arguments):
        raise _RefusedError("INVALID_ZONE")
    path, interface = ("/config", "config") if permanent else ("", "zone")
    method = _dbus.Method(_NAME, f"/org/fedoraproject/FirewallD1{path}", f"{_NAME}.{interface}", member)
    try:
        return _dbus.call(method, arguments, _TIMEOUT)
    except _NO_BUS as exc:
        raise PluginNotAvailableError(
            "firewalld does not run", details=f"there is no system bus at {_dbus.SOCKET}"
        ) from exc
    except _dbus.Refusal as exc:
        if exc.name in _NO_OWNER:
            raise PluginNotAvailableError(
                "firewalld does not run", details="systemctl start firewalld starts it"
            ) from exc
        if exc.name.startswith(_NAME):
            raise _RefusedError(exc.text) from exc
        raise _unreachable(exc) from exc
    except OSError as exc:
        raise _unreachable(exc) from exc


def _unreachable(exc: Exception) -> CNIError:
    if isinstance(exc, TimeoutError):
        return TryAgainLaterError(f"firewalld, or the system bus, did not answer within {_TIMEOUT:g} seconds")
    return IOFailureError(f"cannot ask firewalld over the system bus: {exc}")


def _invalid_zone(zone: str) -> InvalidConfigError:
    return InvalidConfigError(
        f"firewalld has no zone {shorten(zone)}",
        details="$.firewalldZone: firewall-cmd --get-zones lists them; a new permanent one is there after a reload",
    )
