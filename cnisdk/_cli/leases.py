"""``cnisdk leases``: the addresses IPAM plugins have handed out, their owners, and whether these are alive."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from ..runtime.liveness import describe_age
from .attachments import JudgedLease, JudgedNetwork, JudgedTable, add_shared_arguments, count_used, judge_host

_BAR = 30
_HEADINGS = ("address", "container", "interface", "age", "boot", "attachment")
_NARROWEST = 24  # width of the column with the reason


DESCRIPTION = (
    "Show, for each network, how full its ranges are, and each lease: its owner, its age, the boot it "
    "is from, and whether its attachment is alive, with the reason: the same judgement as that of cnisdk gc. "
    "Nothing is changed."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("network", metavar="NETWORK", nargs="?", default="", help="only this network")
    parser.add_argument("--json", action="store_true", help="print a JSON document")
    add_shared_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the leases."""
    host = judge_host(args, args.network)
    states = [(network, each) for network in host.networks for each in network.tables]
    for problem in (
        *host.problems,
        *host.notes,
        *(f"{each.path} {each.text}" for each in host.memory.unreadable),
    ):
        print(f"cnisdk: {problem}", file=sys.stderr)
    for doubt in host.seen.doubts:
        print(f"cnisdk: no attachment can be judged dead: {doubt}", file=sys.stderr)
    if args.network and not states:
        if args.network in host.unknown:
            return 1  # a note has said why
        if not any(each.network for each in host.networks):
            print(f'cnisdk: network "{args.network}" has neither configuration nor leases', file=sys.stderr)
            return 1
        print(f'cnisdk: network "{args.network}" keeps no leases', file=sys.stderr)
    if args.json:
        print(json.dumps({"networks": [table_as_json(*each) for each in states]}, indent=4))
        return 0
    tables = [each for _, each in states]
    if not sys.stdout.isatty():
        _print_plain(tables)  # one line a lease, whole, for grep and awk
        return 0
    try:
        _print_rich(tables)
    except ImportError:
        print('cnisdk: for tables, install "cnisdk[cli]"', file=sys.stderr)
        _print_plain(tables)
    return 0


def table_as_json(network: JudgedNetwork, state: JudgedTable) -> dict[str, Any]:
    """Return a table of a network as JSON."""
    return {
        "name": network.name,
        "ipam": state.type,
        "directory": state.table.place,
        "configured": network.network is not None,
        "ranges": [
            {"range": str(pool.range_set), "size": pool.size(), "used": count_used(pool, state.leases)}
            for pool in state.table.pools
        ],
        "leases": [
            {
                "address": str(each.lease.address),
                "containerID": each.lease.owner.container_id,
                "ifname": each.lease.owner.ifname,
                "ageSeconds": round(each.lease.age, 3),
                "boot": each.lease.boot,
                "state": each.state,
                "why": each.why,
                "netns": each.netns,
            }
            for each in state.leases
        ],
        "findings": [
            {"path": finding.path, "problem": finding.problem, "repairable": bool(finding.repair)}
            for finding in state.examination.findings
        ],
    }


def bar(used: int, size: int, width: int = _BAR) -> str:
    """Draw how full a pool is. The bar is empty only with no address used, and full only with none left."""
    if not size:
        return "█" * width
    filled = used * width // size
    if used and not filled:
        filled = 1
    return "█" * min(filled, width) + "░" * (width - filled)


def share(used: int, size: int) -> str:
    """Write used and total addresses: ``"3 of 253"``, ``"3 of 2^64"``."""
    return f"{used} of {size:,}" if size < 10**9 else f"{used} of 2^{(size - 1).bit_length()}"


def _print_rich(states: Sequence[JudgedTable]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    colours = {"alive": "green", "dead": "red", "unknown": "yellow"}
    for state in states:
        console.print(
            f"[bold]{escape(state.table.network)}[/bold]  {escape(state.table.place)}", highlight=False, soft_wrap=True
        )
        for pool in state.table.pools:
            used, size = count_used(pool, state.leases), pool.size()
            colour = "red" if used >= size else "yellow" if used * 10 >= size * 9 else "green"
            console.print(
                f"  {pool.range_set}  [{colour}]{bar(used, size)}[/{colour}]  {share(used, size)}",
                highlight=False,
                soft_wrap=True,
            )
        lines = [
            (*map(escape, row[:-1]), f"[{colours[judged.state]}]{escape(row[-1])}[/]")
            for row, judged in zip(rows(state.leases), state.leases, strict=True)
        ]
        if not _fits(state.leases, console.width):
            for address, container, ifname, *rest in lines:  # an identifier is never cut or broken
                console.print(f"{address}  {container}  {ifname}", highlight=False, soft_wrap=True)
                console.print(f"    {', '.join(rest)}", highlight=False)
        elif lines:
            table = Table(box=None, pad_edge=False, padding=(0, 2))
            for heading in _HEADINGS:
                table.add_column(heading, no_wrap=heading != _HEADINGS[-1])
            for line in lines:
                table.add_row(*line)
            console.print(table)
        _print_findings(state)


def _fits(leases: Sequence[JudgedLease], width: int) -> bool:
    """Return True if a table with whole identifiers and a column for the reason fits."""
    lines = [_HEADINGS[:-1], *(row[:-1] for row in rows(leases))]
    return sum(max(map(len, column)) + 4 for column in zip(*lines, strict=True)) + _NARROWEST <= width


def _print_plain(states: Sequence[JudgedTable]) -> None:
    for state in states:
        print(f"{state.table.network}  {state.table.place}")
        for pool in state.table.pools:
            used, size = count_used(pool, state.leases), pool.size()
            print(f"  {pool.range_set}  {bar(used, size)}  {share(used, size)}")
        for row in rows(state.leases):
            print("  " + "  ".join(row))
        _print_findings(state)


def _print_findings(state: JudgedTable) -> None:
    for finding in state.examination.findings:
        print(f"  {finding.path} {finding.problem}" + ("; cnisdk fsck repairs it" if finding.repair else ""))


def rows(leases: Sequence[JudgedLease]) -> list[tuple[str, ...]]:
    """Return the leases as rows of a table."""
    return [
        (
            str(each.lease.address),
            each.lease.owner.container_id or "?",
            each.lease.owner.ifname or "?",
            describe_age(each.lease.age),
            each.lease.boot,
            f"{each.state}: {each.why}",
        )
        for each in leases
    ]
