"""nftables: look at chains and rules, and change them in one transaction."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..errors import IOFailureError
from ..spec.names import short_hash
from . import program

# linux/netfilter.h, linux/netfilter/nf_tables.h, linux/netlink.h
_FAMILIES = {"inet": 1, "ip": 2, "bridge": 7, "ip6": 10}
_NETLINK_NETFILTER = 12
_SUBSYS_NFTABLES = 10
_GETCHAIN = 4
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_REQUEST, _ACK = 1, 4
_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")

# A comment has at most NFTNL_UDATA_COMMENT_MAXLEN bytes, a chain's name fewer than NFT_NAME_MAXLEN.
COMMENT_MAX = 128
NAME_MAX = 255

# The kernel has no nftables, or not for this family: then it has no such chain either.
_NO_NFTABLES = frozenset({errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EINVAL})


_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")


def plain(ifname: str) -> str:
    """An interface's name for use in a script: hashed if it has characters that could mean something there.

    Names of networks and ids of containers have none; those of interfaces may have any that the kernel takes.
    """
    return ifname if _PLAIN.issuperset(ifname) else f"h-{short_hash(ifname, digits=12)}"


class Rule(NamedTuple):
    """A rule of a chain.

    Attributes:
        chain: Name of its chain.
        handle: The kernel's number of it.
        comment: Its comment, empty when it has none.
        expr: What it matches and does, as ``nft -j`` writes it.
    """

    chain: str
    handle: int
    comment: str
    expr: list[Any]


def has_chain(family: str, table: str, chain: str) -> bool:
    """Is there such a chain?

    Asks the kernel directly: running ``nft`` to learn that there is nothing costs milliseconds.

    Args:
        family: ``inet``, ``ip``, ``ip6`` or ``bridge``.
        table: Name of the table; ``iptables`` based on nftables has its tables here too.
        chain: Name of the chain.

    Raises:
        IOFailureError: (5) The kernel refused to answer (EPERM: no CAP_NET_ADMIN).
    """
    body = struct.pack("=BBH", _FAMILIES[family], 0, 0)
    for kind, text in ((_CHAIN_TABLE, table), (_CHAIN_NAME, chain)):
        data = text.encode() + b"\0"
        body += struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)
    message = _HEADER.pack(_HEADER.size + len(body), _SUBSYS_NFTABLES << 8 | _GETCHAIN, _REQUEST | _ACK, 1, 0) + body
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as sock:
            sock.bind((0, 0))
            sock.send(message)
            answer = sock.recv(1 << 16)
    except OSError as exc:
        if exc.errno in _NO_NFTABLES:
            return False
        raise IOFailureError(
            f"cannot ask the kernel for nftables chain {family} {table} {chain}: {exc.strerror}"
        ) from exc
    if _HEADER.unpack_from(answer)[1] != _NLMSG_ERROR:
        return True
    error = -int.from_bytes(answer[_HEADER.size : _HEADER.size + 4], sys.byteorder, signed=True)
    if error == 0 or error in _NO_NFTABLES:
        return error == 0
    raise IOFailureError(f"cannot ask the kernel for nftables chain {family} {table} {chain}: {os.strerror(error)}")


def list_rules(family: str, table: str, chain: str) -> list[Rule]:
    """The rules of a chain, in order; none when there is no such chain.

    Raises:
        IOFailureError: (5) ``nft`` failed.
        PluginNotAvailableError: (50) ``nft`` is not installed.
    """
    if not has_chain(family, table, chain):
        return []
    return _rules(program.run(["nft", "-j", "-a", "list", "chain", family, table, chain]))


def list_table(family: str, table: str, chain: str) -> list[Rule]:
    """The rules of all chains of a table; none unless it has ``chain``."""
    if not has_chain(family, table, chain):
        return []
    return _rules(program.run(["nft", "-j", "-a", "list", "table", family, table]))


def _rules(listing: str) -> list[Rule]:
    rules = (entry["rule"] for entry in json.loads(listing)["nftables"] if "rule" in entry)
    return [Rule(rule["chain"], rule["handle"], rule.get("comment", ""), rule.get("expr", [])) for rule in rules]


def commit(commands: Iterable[str]) -> None:
    """Carry out commands in one transaction: all of them, or none.

    Raises:
        IOFailureError: (5) ``nft`` refused them.
        PluginNotAvailableError: (50) ``nft`` is not installed.
    """
    script = "".join(f"{command}\n" for command in commands)
    if script:
        program.run(["nft", "-f", "-"], script)
