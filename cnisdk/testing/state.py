"""The state of a host as typed values: taken in one go, compared, and shown as a readable difference.

pyroute2 decodes rules of policy routing. Its import takes a quarter of a second. So import this module where a state is
taken, before a process is forked to take it: a forked process cannot hand an import back.

What comes and goes by itself is left out, so that two states of a host at rest are equal: link-local IPv6 addresses and
their routes, operational states, packet counters.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Any, NamedTuple

from attrs import evolve, fields, frozen
from pyroute2.netlink.rtnl.fibmsg import fibmsg

from ..linux import netns, sysctl
from ..linux.ip import address, route
from ..linux.links import link
from ..linux.rtnetlink import KernelError, Message, Socket

# Where plugins keep what outlives them. The names of namespaces are not state of a plugin, nor are lock files.
_KEPT_IN = ("/run", "/var/lib", "/etc/cni")
_NAMES = "/run/netns"
_LEASES = Path("/var/lib/cni/networks")
_LOCKS = frozenset({"/run/xtables.lock"})

# Rules of policy routing that a fresh namespace has, and those that the kernel makes with the first VRF and keeps: once
# deleted, they do not come again with the next VRF.
_DEFAULT_RULES = frozenset(
    {
        (4, "0: lookup 255"),
        (4, "32766: lookup 254"),
        (4, "32767: lookup 253"),
        (6, "0: lookup 255"),
        (6, "32766: lookup 254"),
        (4, "1000: l3mdev=1 lookup 0"),
        (6, "1000: l3mdev=1 lookup 0"),
    }
)
_VERSIONS = {AF_INET: 4, AF_INET6: 6}  # multicast routing has rules of other families
# linux/fib_rules.h: FR_ACT_TO_TABLE. And attributes that are shown apart from the others, or say who made the rule.
_TO_TABLE = 1
_SHOWN = frozenset({"FRA_PRIORITY", "FRA_TABLE", "FRA_PROTOCOL"})
_NO_LIMIT = 0xFFFFFFFF  # of FRA_SUPPRESS_PREFIXLEN

# linux/netlink.h: struct nlmsghdr: length, type, flags, sequence number, port. And linux/rtnetlink.h.
_HEADER = struct.Struct("=IHHII")
_NEWRULE, _GETRULE = 32, 34

# linux/netfilter/nf_tables.h
_NETLINK_NETFILTER = 12
_NFT_GETTABLE = 10 << 8 | 1
_QUOTED = re.compile(r'"[^"]*"')
_ELEMENT = re.compile(r'(?:[^,"]|"[^"]*")+')
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
    """A rule of policy routing that a fresh namespace does not have.

    Attributes:
        place: Name of the container, empty for the host.
        version: 4 or 6.
        rule: ``"100: src=10.0.0.2/32 lookup 200"``: priority, what packets it selects, what it does.
    """

    place: str
    version: int
    rule: str


class NftState(NamedTuple):
    """A line of ``nft list ruleset``, or an element of a set in it, and where it stands."""

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
        """Return only what is in one container, or with the empty name on the host itself."""
        kept = {
            field.name: tuple(each for each in getattr(self, field.name) if getattr(each, "place", "") == place)
            for field in fields(State)
        }
        return State(**kept)

    def without(self, *names: str) -> State:
        """Return the state without some kinds of things: ``without("files", "nft")``."""
        return evolve(self, **dict.fromkeys(names, ()))

    def since(self, before: State) -> State:
        """Return what is in this state and was not in an earlier one: what was left behind."""
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
    """Return a line for each difference between two states: ``-`` only in the left one, ``+`` only in the right one."""
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
    """Take the state of the host this process is on. Needs ``ip`` and ``nft`` where there are nft tables.

    Args:
        places: Names of containers (files in ``/run/netns``); None means all of them.
        sysctls: Keys to look up everywhere: ``"net/ipv4/ip_forward"``.
        rules: Include policy routing and nft, which takes some milliseconds in each place.
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
        texts, tables = _list_rules() if space is None else space.call(_list_rules)
        found["rules"] += [RuleState(place, *each) for each in texts]
        if tables:
            found["nft"] += _nft(place)


def _list_rules() -> tuple[list[tuple[int, str]], bool]:
    """Return the rules of policy routing that a fresh namespace does not have, and whether nft may have tables.

    Nearly always nft has none. The kernel says so in microseconds, ``nft`` takes milliseconds.
    """
    with Socket() as sock:
        listed = sock.dump(Message(_GETRULE, bytes(12), "cannot list the rules of policy routing"))
        rules = [each for each in map(_describe_rule, listed) if each is not None and each not in _DEFAULT_RULES]
    try:
        with Socket(family=_NETLINK_NETFILTER) as sock:
            return rules, bool(sock.dump(Message(_NFT_GETTABLE, bytes(4), "cannot list tables")))
    except (OSError, KernelError):
        return rules, True


def _describe_rule(message: bytes) -> tuple[int, str] | None:
    """Return IP version and text of a rule; None for a rule of multicast routing."""
    return _describe_body(message[_HEADER.size :])  # the header says who asked, and differs each time


@lru_cache(maxsize=100)
def _describe_body(body: bytes) -> tuple[int, str] | None:
    """Describe a rule as pyroute2 decodes it (``pyroute2.netlink.rtnl.fibmsg``)."""
    rule: Any = fibmsg(_HEADER.pack(_HEADER.size + len(body), _NEWRULE, 0, 0, 0) + body)
    rule.decode()
    if rule["family"] not in _VERSIONS:
        return None
    words = [f"{rule.get_attr('FRA_PRIORITY') or 0}:"]
    for name, value in rule["attrs"]:
        if name in _SHOWN or (name == "FRA_SUPPRESS_PREFIXLEN" and value == _NO_LIMIT):
            continue
        key = name.removeprefix("FRA_").lower()
        length = f"/{rule[f'{key}_len']}" if key in ("src", "dst") else ""
        words.append(f"{key}={value}{length}")
    words += [f"{key}={rule[key]}" for key in ("tos", "flags") if rule[key]]
    lookup = f"lookup {rule.get_attr('FRA_TABLE') or rule['table']}"
    words.append(lookup if rule["action"] == _TO_TABLE else f"action {rule['action']}")
    return _VERSIONS[rule["family"]], " ".join(words)


def _run(place: str, *argv: str) -> str:
    inside = ["ip", "netns", "exec", place] if place else []
    # Programs that are not there, or that this kernel has no support for, have no state to tell of.
    done = subprocess.run([*inside, *argv], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return done.stdout if done.returncode == 0 else ""


def _nft(place: str) -> Iterator[NftState]:
    if shutil.which("nft") is None:
        return
    where: list[str] = []
    elements = ""
    for line in _run(place, "nft", "-s", "list", "ruleset").splitlines():
        text = line.strip()
        if elements or text.startswith("elements = {"):
            # Several are in one line, and one may go on in the next; comments may have any characters but quotes.
            elements += f" {text}"
            body = _QUOTED.sub("", elements)
            if body.count("{") == body.count("}"):
                for each in _ELEMENT.findall(elements.partition("{")[2].rpartition("}")[0]):
                    yield NftState(place, " ".join(where), f"element {each.strip()}")
                elements = ""
        elif text.endswith("{"):
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
                content = None if str(path) in _LOCKS else read_regular_file(path)
                if content is None:
                    continue
                lease = _lease(path, content)
                if lease is not None:
                    found["leases"].append(lease)
                elif name != "lock" and not name.startswith("last_reserved_ip."):
                    found["files"].append(FileState(str(path), len(content), sha256(content).hexdigest()[:12]))


def read_regular_file(path: Path) -> bytes | None:
    """Return the content of a file; None if it is no regular file, or has just been removed."""
    try:
        return path.read_bytes() if path.is_file() else None
    except FileNotFoundError:
        return None


def _lease(path: Path, content: bytes) -> LeaseState | None:
    if path.parent.parent != _LEASES or not path.name[0].isalnum() or not ("." in path.name or ":" in path.name):
        return None
    if path.name.startswith("last_reserved_ip"):
        return None
    owner, _, ifname = content.decode(errors="replace").partition("\r\n")
    return LeaseState(path.parent.name, path.name, owner, ifname)
