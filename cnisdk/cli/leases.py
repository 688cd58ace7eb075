"""``cnisdk leases``: the addresses host-local has handed out, whose they are, and whether anybody still needs them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from ..runtime.liveness import describe_age
from .attachments import Judged, NetworkState, add_arguments, look, used_in

_BAR = 30
_HEADINGS = ("address", "container", "interface", "age", "boot", "attachment")
_NARROWEST = 24  # of the column with the reason


def register(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser(
        "leases",
        help="show the addresses host-local has handed out",
        description="Show, for each network, how full its ranges are, and each lease: its owner, its age, the boot it "
        "is from, and whether its attachment is alive, with the reason: the same judgement as that of cnisdk gc. "
        "Nothing is changed.",
    )
    parser.add_argument("network", metavar="NETWORK", nargs="?", default="", help="only this network")
    parser.add_argument("--json", action="store_true", help="print a JSON document")
    add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Show them."""
    situation = look(args, args.network)
    states = [each for each in situation.networks if each.store is not None]
    for problem in (*situation.problems, *(f"{each.path} {each.text}" for each in situation.memory.unreadable)):
        print(f"cnisdk: {problem}", file=sys.stderr)
    for doubt in situation.seen.doubts:
        print(f"cnisdk: nothing can be told to be dead: {doubt}", file=sys.stderr)
    if args.network and not states:
        print(f'cnisdk: network "{args.network}" has neither configuration nor leases', file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"networks": [describe(state) for state in states]}, indent=4))
        return 0
    if not sys.stdout.isatty():
        _print_plain(states)  # one line a lease, whole, for grep and awk
        return 0
    try:
        _print_rich(states)
    except ImportError:
        print('cnisdk: for tables, install "cnisdk[cli]"', file=sys.stderr)
        _print_plain(states)
    return 0


def describe(state: NetworkState) -> dict[str, Any]:
    """A network as JSON."""
    return {
        "name": state.name,
        "directory": _path(state),
        "configured": state.network is not None,
        "ranges": [
            {"range": str(pool.range_set), "size": pool.size(), "used": used_in(pool, state.leases)}
            for pool in state.pools
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
    """How full something is: never empty when there is anything, never full when there is room."""
    if not size:
        return "█" * width
    filled = used * width // size
    if used and not filled:
        filled = 1
    return "█" * min(filled, width) + "░" * (width - filled)


def share(used: int, size: int) -> str:
    """``"3 of 253"``, ``"3 of 2^64"``."""
    return f"{used} of {size:,}" if size < 10**9 else f"{used} of 2^{(size - 1).bit_length()}"


def _print_rich(states: Sequence[NetworkState]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    colours = {"alive": "green", "dead": "red", "unknown": "yellow"}
    for state in states:
        console.print(f"[bold]{escape(state.name)}[/bold]  {escape(_path(state))}", highlight=False, soft_wrap=True)
        for pool in state.pools:
            used, size = used_in(pool, state.leases), pool.size()
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
            for address, container, ifname, *rest in lines:  # an identifier is never cut, nor broken into two
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


def _fits(leases: Sequence[Judged], width: int) -> bool:
    """Is there room for a table with whole identifiers, and a column for the reason?"""
    lines = [_HEADINGS[:-1], *(row[:-1] for row in rows(leases))]
    return sum(max(map(len, column)) + 4 for column in zip(*lines, strict=True)) + _NARROWEST <= width


def _print_plain(states: Sequence[NetworkState]) -> None:
    for state in states:
        print(f"{state.name}  {_path(state)}")
        for pool in state.pools:
            used, size = used_in(pool, state.leases), pool.size()
            print(f"  {pool.range_set}  {bar(used, size)}  {share(used, size)}")
        for row in rows(state.leases):
            print("  " + "  ".join(row))
        _print_findings(state)


def _path(state: NetworkState) -> str:
    return state.store.path if state.store is not None else ""


def _print_findings(state: NetworkState) -> None:
    for finding in state.examination.findings:
        print(f"  {finding.path} {finding.problem}" + ("; cnisdk fsck repairs it" if finding.repair else ""))


def rows(leases: Sequence[Judged]) -> list[tuple[str, ...]]:
    """Leases as lines of a table."""
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
