"""The state of a host as typed values: taken in one go, compared, and shown as a readable difference.

What comes and goes by itself is left out, so that two states of a host at rest are equal: link-local IPv6 addresses and
their routes, operational states, packet counters.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NamedTuple

from attrs import evolve, fields, frozen

from ..linux import address, attributes, link, netns, route, sysctl
from ..linux.rtnetlink import HEADER, KernelError, Request, Socket

# Where plugins keep what outlives them. The names of namespaces are not state of a plugin, nor are lock files.
_KEPT_IN = ("/run", "/var/lib", "/etc/cni")
_NAMES = "/run/netns"
_LEASES = Path("/var/lib/cni/networks")
_LOCKS = frozenset({"/run/xtables.lock"})

# What a fresh namespace has.
_DEFAULT_RULES = frozenset(
    {"0: from all lookup local", "32766: from all lookup main", "32767: from all lookup default"}
)

# linux/fib_rules.h, linux/netfilter/nf_tables.h
_GETRULE = 34
_RULE = struct.Struct("=xBBBBxxBI")
"""struct fib_rule_hdr: length of dst, length of src, tos, table, action, flags."""
_FRA_PRIORITY, _FRA_SUPPRESS_PREFIXLEN = 6, 14
_PLAIN = {_FRA_PRIORITY, _FRA_SUPPRESS_PREFIXLEN, 15, 21}  # FRA_TABLE, FRA_PROTOCOL
_NO_LIMIT = b"\xff" * 4
_NETLINK_NETFILTER = 12
_NFT_GETTABLE = 10 << 8 | 1
_AUTOMATIC = (ip_network("fe80::/10"), ip_network("ff00::/8"))


class LinkState(NamedTuple):
    """A link: ``place`` is the name of its container, empty for the host."""

    place: str
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    master: str
    alias: str


class AddressState(NamedTuple):
    """An address of a link."""

    place: str
    link: str
    address: str


class RouteState(NamedTuple):
    """A route; ``table`` 254 is main."""

    place: str
    dst: str
    gw: str
    link: str
    table: int
    priority: int
    mtu: int
    advmss: int


class RuleState(NamedTuple):
    """A rule of policy routing that a fresh namespace does not have, as ``ip rule`` prints it."""

    place: str
    rule: str


class NftState(NamedTuple):
    """A line of ``nft list ruleset``, and where it stands."""

    place: str
    chain: str
    line: str


class LeaseState(NamedTuple):
    """An address host-local's directory format reserves."""

    network: str
    address: str
    container_id: str
    ifname: str


class FileState(NamedTuple):
    """A file below ``/run``, ``/var/lib`` or ``/etc/cni``, leases apart."""

    path: str
    size: int
    digest: str


class SysctlState(NamedTuple):
    """The value of a sysctl that was asked for; empty where there is none."""

    place: str
    key: str
    value: str


@frozen(kw_only=True)
class State:
    """Everything of a host and its containers that plugins change; sorted, so that equal hosts compare equal."""

    links: tuple[LinkState, ...] = ()
    addresses: tuple[AddressState, ...] = ()
    routes: tuple[RouteState, ...] = ()
    rules: tuple[RuleState, ...] = ()
    nft: tuple[NftState, ...] = ()
    leases: tuple[LeaseState, ...] = ()
    files: tuple[FileState, ...] = ()
    sysctls: tuple[SysctlState, ...] = ()

    def of(self, place: str) -> State:
        """Only what is in one container, or with the empty name on the host itself."""
        kept = {
            field.name: tuple(each for each in getattr(self, field.name) if getattr(each, "place", "") == place)
            for field in fields(State)
        }
        return State(**kept)

    def without(self, *names: str) -> State:
        """Everything but some kinds of things: ``without("files", "nft")``."""
        return evolve(self, **dict.fromkeys(names, ()))

    def since(self, before: State) -> State:
        """What is here and was not before: what has been left behind."""
        return State(
            **{
                field.name: tuple(each for each in getattr(self, field.name) if each not in getattr(before, field.name))
                for field in fields(State)
            }
        )

    def __bool__(self) -> bool:
        return self != _NOTHING

    def __str__(self) -> str:
        return "\n".join(_lines(self)) or "nothing"


_NOTHING = State()


def describe_difference(left: State, right: State) -> list[str]:
    """What differs between two states, a line each: ``-`` only in the left one, ``+`` only in the right one."""
    gone, new = set(_lines(left)) - set(_lines(right)), set(_lines(right)) - set(_lines(left))
    marked = [(line, "-") for line in gone] + [(line, "+") for line in new]
    return [f"{mark} {line}" for line, mark in sorted(marked)]


def _lines(state: State) -> Iterator[str]:
    for field in fields(State):
        for each in getattr(state, field.name):
            values = each._asdict()
            place = values.pop("place", "") or "host"
            shown = ", ".join(f"{key}={value}" for key, value in values.items() if value not in ("", 0, False))
            yield f"{place}: {field.name}: {shown}"


def collect(places: Iterable[str] | None = None, sysctls: Sequence[str] = (), *, rules: bool = True) -> State:
    """Take the state of the host this process is on. Needs ``ip`` for rules, and ``nft`` for its own where it is.

    Args:
        places: Names of containers (files in ``/run/netns``); None means all of them.
        sysctls: Keys to look up everywhere: ``"net/ipv4/ip_forward"``.
        rules: Ask ``ip`` and ``nft``, which takes some milliseconds in each place.
    """
    if places is None:
        places = sorted(os.listdir(_NAMES)) if os.path.isdir(_NAMES) else []
    found: dict[str, list[Any]] = {field.name: [] for field in fields(State)}
    _collect_place("", None, found, sysctls, rules)
    for place in places:
        space = netns.find(f"{_NAMES}/{place}")
        if space is not None:
            with space:
                _collect_place(place, space, found, sysctls, rules)
    _collect_files(found)
    return State(**{name: tuple(sorted(values)) for name, values in found.items()})


def _collect_place(
    place: str, space: netns.NetNS | None, found: dict[str, list[Any]], sysctls: Sequence[str], rules: bool
) -> None:
    links = link.list_all(space)
    names = {each.index: each.name for each in links}
    for each in links:
        try:
            addresses = address.list_on(each)
        except KernelError as exc:
            if exc.errno != errno.ENODEV:
                raise
            continue  # it went meanwhile: the kernel takes its time to remove what was in a namespace
        master = names.get(each.master, "")
        found["links"].append(LinkState(place, each.name, each.kind, each.mac, each.mtu, each.up, master, each.alias))
        for one in addresses:
            if not (one.interface.is_link_local and one.interface.version == 6):
                found["addresses"].append(AddressState(place, each.name, str(one.interface)))
    for way in route.list_all(space):
        automatic = way.dst.version == 6 and any(way.dst.subnet_of(each) for each in _AUTOMATIC)  # type: ignore[arg-type]
        if way.unicast and not automatic:
            gw = "" if way.gw is None else str(way.gw)
            out = names.get(way.link_index, "")
            found["routes"].append(
                RouteState(place, str(way.dst), gw, out, way.table, way.priority, way.mtu, way.advmss)
            )

    def look_up() -> None:
        for key in sysctls:
            found["sysctls"].append(SysctlState(place, key, sysctl.find(key) or ""))

    if space is None:
        look_up()
    elif sysctls:
        space.call(look_up)
    if rules:
        families, tables = _what_to_ask() if space is None else space.call(_what_to_ask)
        found["rules"] += _rules(place, families)
        if tables:
            found["nft"] += _nft(place)


def _what_to_ask() -> tuple[list[str], bool]:
    """For which families there are rules that a fresh namespace does not have, and whether nft may have tables.

    Nearly always there is nothing, which the kernel says in microseconds and the programs in milliseconds.
    """
    with Socket() as sock:
        families = [
            option
            for family, option in ((socket.AF_INET, "-4"), (socket.AF_INET6, "-6"))
            if not all(map(_is_default, sock.dump(Request(_GETRULE, bytes([family]) + bytes(11), "cannot list rules"))))
        ]
    try:
        with Socket(family=_NETLINK_NETFILTER) as sock:
            return families, bool(sock.dump(Request(_NFT_GETTABLE, bytes(4), "cannot list tables")))
    except (OSError, KernelError):
        return families, True


def _is_default(message: bytes) -> bool:
    dst, src, tos, table, action, flags = _RULE.unpack_from(message, HEADER.size)
    found = attributes.read(message, HEADER.size + _RULE.size)
    priority = attributes.read_uint(found.get(_FRA_PRIORITY, b""))
    selects = (dst, src, tos, action, flags) != (0, 0, 0, 1, 0) or not found.keys() <= _PLAIN
    limited = found.get(_FRA_SUPPRESS_PREFIXLEN, _NO_LIMIT) != _NO_LIMIT
    return not selects and not limited and (priority, table) in {(0, 255), (32766, 254), (32767, 253)}


def _run(place: str, *argv: str) -> str:
    inside = ["ip", "netns", "exec", place] if place else []
    # Programs that are not there, or that this kernel has no support for, have no state to tell of.
    done = subprocess.run([*inside, *argv], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return done.stdout if done.returncode == 0 else ""


def _rules(place: str, families: Iterable[str]) -> Iterator[RuleState]:
    for family in families:
        for line in _run(place, "ip", family, "rule").splitlines():
            text = " ".join(line.split())
            if text not in _DEFAULT_RULES:
                yield RuleState(place, text)


def _nft(place: str) -> Iterator[NftState]:
    if shutil.which("nft") is None:
        return
    where: list[str] = []
    for line in _run(place, "nft", "-s", "list", "ruleset").splitlines():
        text = line.strip()
        if text.endswith("{"):
            text = text.removesuffix(" {")
            yield NftState(place, " ".join(where), text)
            where.append(text)
        elif text == "}":
            where.pop()
        elif text:
            yield NftState(place, " ".join(where), text)


def _collect_files(found: dict[str, list[Any]]) -> None:
    for top in _KEPT_IN:
        for directory, subdirectories, names in os.walk(top):
            if directory == "/run":
                subdirectories[:] = [name for name in subdirectories if name not in ("netns", "cnisdk-testing")]
            for name in names:
                path = Path(directory, name)
                if not path.is_file() or str(path) in _LOCKS:
                    continue
                content = path.read_bytes()
                lease = _lease(path, content)
                if lease is not None:
                    found["leases"].append(lease)
                elif name != "lock" and not name.startswith("last_reserved_ip."):
                    found["files"].append(FileState(str(path), len(content), sha256(content).hexdigest()[:12]))


def _lease(path: Path, content: bytes) -> LeaseState | None:
    if path.parent.parent != _LEASES or not path.name[0].isalnum() or not ("." in path.name or ":" in path.name):
        return None
    if path.name.startswith("last_reserved_ip"):
        return None
    owner, _, ifname = content.decode(errors="replace").partition("\r\n")
    return LeaseState(path.parent.name, path.name, owner, ifname)
