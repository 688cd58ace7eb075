"""The last look at an attachment that was found dead, right before what it left is dropped.

It is much quicker than a judgement, and sees what may have changed since: an ADD that is running, or has ended.
"""

from __future__ import annotations

import argparse

from ..linux.links import veth
from ..runtime.caches import addresses_of, find_places, known_directories, namespace_of, read_of
from ..runtime.survey import find_working, look_at
from .attachments import HostState, JudgedAttachment, find_passed_on

BUSY = "another process is about to attach or release it"
"""Reason to keep an attachment whose lock (:mod:`cnisdk._releasing`) another process has."""


def find_return(
    args: argparse.Namespace, host: HostState, each: JudgedAttachment, *, begun: bool = False
) -> str | None:
    """Find out that an attachment was added again since the last judgement, or is being added; return how that shows.

    An ADD of our plugins that begins after this waits until the DEL has ended. Nothing keeps another plugin from
    beginning one. What that makes before the DEL ends may be deleted.

    Args:
        args: The arguments of the command.
        host: The last judgement.
        each: The attachment.
        begun: If true, the caller has begun to release it. Otherwise it also counts if its runtime has released it: the
            same runtime may be about to add it again.
    """
    attachment, entries = each.traces.attachment, each.traces.entries
    working = find_working(attachment.container_id)
    if working:
        return f"{working} works for it"
    if veth.find_host_end(attachment) is not None:
        return "it exists again"
    paths = [path for path in map(namespace_of, entries) if path and not path.startswith("/proc/")]
    if any(look_at(path).found == "there" for path in paths):
        return "it exists again"
    places = find_places(known_directories(args.cache_dir))
    cached = read_of(attachment, places, [entry.path for entry in entries])
    if any(file.stamp not in each.stamps for file in cached):
        return "a runtime has attached it again"
    tables = [judged.table for state in host.networks if state.name == attachment.network for judged in state.tables]
    leases = [lease for table in tables for lease in table.find(each.owner, timeout=args.timeout)]
    if any(lease.stamp not in each.stamps for lease in leases):
        return "it has another lease now"
    if not begun and not cached and not leases:
        return "it has been released meanwhile"
    if {address for entry in entries for address in addresses_of(entry)} - {lease.address for lease in leases}:
        examined = [table.examine(timeout=args.timeout).leases for table in tables]
        holders = {lease.address: lease.owner for listed in examined for lease in listed}
        for address, holder in find_passed_on(each.traces, holders):
            return f"its address {address} is leased to {holder} now"
    return None
