"""Take back what ``cnisdk repair`` has put back for attachments that were being deleted meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from .._releasing import releasing
from ..errors import CNIError, InvalidNetNSError, IOFailureError
from ..linux import netns
from ..linux.links import link, veth
from ..plugin.reply import respond
from ..runtime.caches import Place, Remembered, namespace_of, read_file, read_of
from ..runtime.survey import find_working
from ..spec.names import Attachment
from .plugincalls import call
from .repairlog import RepairLog, warn

_LOOKS = 10
BUSY = "another process attaches, releases or repairs it"


class TakeBack:
    """The second look at attachments that were repaired.

    Args:
        log: What was put back.
        files: Each attachment's cached results.
        places: All directories of cached results.
        timeout: Seconds that a call of a plugin may take; 0 means no limit.
    """

    def __init__(
        self, log: RepairLog, files: Mapping[Attachment, Sequence[str]], places: Sequence[Place], timeout: float
    ) -> None:
        self._log, self._files, self._places, self._timeout = log, files, places, timeout

    def settle_all(self, pause: Callable[[], object]) -> None:
        """Look at all, up to ten times, each after a pause, until no DEL of one may still be at work."""
        waiting = dict.fromkeys(self._log.touched, "")
        for _ in range(_LOOKS):
            if waiting:
                pause()
                looked = {owner: self._settle(owner) for owner in waiting}
                for owner, why in looked.items():
                    if why not in ("", waiting[owner]):
                        warn(f"{owner}: a DEL may not have ended: {why}")
                waiting = {owner: why for owner, why in looked.items() if why}
        for owner in waiting:
            warn(
                f"{owner}: a DEL has not ended; if it began before the repair, rules may be left that cnisdk gc deletes"
            )

    def _settle(self, owner: Attachment) -> str:
        """Take back what was put back for an attachment if it was deleted meanwhile.

        Returns:
            A reason why a DEL of it may not have ended; empty if it has, or there was none.
        """
        try:
            if working := find_working(owner.container_id):
                return f"{working} works for it"
            if any(map(os.path.lexists, self._files[owner])):
                return "" if _has_interface(owner, self._files[owner]) else "its interface is gone"
            with releasing(owner) as alone:
                if not alone:
                    return BUSY
                if working := find_working(owner.container_id):
                    return f"{working} works for it"
                # What was added again is not touched: ADD has replaced what was put back.
                if not read_of(owner, self._places) and veth.find_host_end(owner) is None:
                    self._delete(owner)
        except CNIError as exc:
            self._log.fail(owner, exc)
        return ""

    def _delete(self, owner: Attachment) -> None:
        self._log.say(f"took back {owner}: it was deleted meanwhile")
        for request in reversed([*self._log.touched[owner].values()]):
            environ = {**request.environ, "CNI_COMMAND": "DEL"}
            try:
                step = partial(respond, request.plugin, environ, request.stdin)
                reply = call(self._timeout, owner, request.kind, step)
            except CNIError as exc:
                self._log.fail(owner, exc, f"DEL of plugin {request.kind}: ")
                continue
            if reply.status:
                text = reply.stdout.decode(errors="replace")
                self._log.fail(owner, IOFailureError(f"DEL of plugin {request.kind} failed", details=text))


def _has_interface(owner: Attachment, paths: Iterable[str]) -> bool:
    """Return True if an attachment has its interface, as far as that can be known."""
    if veth.find_host_end(owner) is not None:
        return True
    for path in paths:
        found = read_file(path)
        if isinstance(found, Remembered):
            with suppress(InvalidNetNSError), netns.open(namespace_of(found)) as space:
                if link.find(owner.ifname, space) is not None:
                    return True
    return False
