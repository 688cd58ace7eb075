"""Sockets of the packet filter: the kernel makes the process wait that closes one after a deletion."""

from __future__ import annotations

import os

import pytest

from cnisdk.linux import _sockets
from cnisdk.linux.netfilter import nfnetlink
from cnisdk.testing import Host

_LIST_TABLES = 10 << 8 | 1

pytestmark = pytest.mark.kernel


def test_no_answer_waits_for_the_end_of_sockets(host: Host) -> None:
    def count_open() -> list[int]:
        counts = [len(os.listdir("/proc/self/fd"))]
        for prepare in (None, _sockets.close_later, None, _sockets.close_all, None):
            if prepare is not None:
                prepare()
            nfnetlink.dump(_LIST_TABLES, 0, b"")
            counts.append(len(os.listdir("/proc/self/fd")) - counts[0])
        return counts[1:]

    assert host.call(count_open) == [0, 1, 2, 0, 0]
