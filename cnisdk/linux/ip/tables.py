"""Routing tables: numbers that nothing uses, and the routes that a table has over a link."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from ...spec.addresses import IPNetwork
from .. import rtnetlink
from ..links import kinds, link
from ..links.link import Link
from ..netns import NetNS
from . import route, rule
from .route import TABLE_LOCAL, TABLE_MAIN, KernelRoute

OF_THE_KERNEL = frozenset({0, 253, TABLE_MAIN, TABLE_LOCAL})
"""Numbers that no table of a plugin can have: unspecified, default, main and local."""

LAST = 2**32 - 1
"""The highest number of a table."""


def find_unused(netns: NetNS | None = None, first: int = 1) -> Iterator[int]:
    """Yield the numbers of tables with neither a route, nor a rule that looks there, nor a VRF.

    Args:
        netns: None means the calling thread's namespace.
        first: The lowest number to yield.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    used = {each.table for each in route.list_all(netns)} | {each.table for each in rule.list_all(netns)}
    used |= {int(kinds.options(each)["table"]) for each in link.list_all(netns) if each.kind == "vrf"}
    return (number for number in range(first, LAST + 1) if number not in used | OF_THE_KERNEL)


def list_over(
    end: Link, number: int | None = TABLE_MAIN, destinations: Collection[IPNetwork] | None = None
) -> list[KernelRoute]:
    """List the routes of a table that lead over a link and over no other: first those that need no gateway.

    A route with several next hops, all over this link, counts as one: :func:`.route.copy` and :func:`.route.delete`
    take it whole. Addresses of the host itself, which a VRF has in its table, are no routes here.

    Args:
        end: The link.
        number: The table; None means all but ``local``.
        destinations: Only routes to these networks: the others, of which there may be many, are not decoded.

    Raises:
        IOFailureError: (5) The kernel refused the query, or there are too many routes to these destinations.
    """
    if destinations is not None:
        there = route.list_to(destinations, end.netns)
    else:
        with rtnetlink.connect(end.netns) as sock:
            there = route.dump(sock, number)
    by_message: dict[bytes, list[KernelRoute]] = {}
    for each in there:
        if number in (None, each.table) and each.unicast:
            by_message.setdefault(each.message, []).append(each)
    own = [hops[0] for hops in by_message.values() if all(each.link_index == end.index for each in hops)]
    return sorted(own, key=lambda each: each.gw is not None or each.dst.prefixlen == 0)


def copy_all(routes: Iterable[KernelRoute], number: int, netns: NetNS | None = None) -> None:
    """Add routes to a table, in this order. A route that is there already is fine.

    Args:
        routes: The routes.
        number: Number of the table.
        netns: The namespace; None means the calling thread's.

    Raises:
        KernelError: (5) The kernel refused one.
    """
    for each in routes:
        route.copy(each, number, netns)


def put_back(routes: Iterable[KernelRoute], end: Link, number: int) -> None:
    """Restore the routes of a table over a link: delete all others, and add those that are missing.

    Args:
        routes: The routes that the table had.
        end: The link.
        number: Number of the table.

    Raises:
        KernelError: (5) The kernel refused one.
    """
    kept = list(routes)
    messages = {each.message for each in kept}
    for each in list_over(end, number):
        if each.message not in messages:
            route.delete(each, end.netns)
    copy_all(kept, number, end.netns)


def clear(end: Link, number: int) -> None:
    """Delete the routes of a table that lead over a link and over no other.

    Args:
        end: The link.
        number: The table.

    Raises:
        KernelError: (5) The kernel refused.
    """
    for each in list_over(end, number):
        route.delete(each, end.netns)
