"""The conformance suite judges dhcp behind macvlan: a server and the daemon are on each of its hosts."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from cnisdk.conformance import Verdict, judge, select
from cnisdk.conformance.identify import identify
from cnisdk.conformance.judgement import Kind

from .network import SOCKET

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

CASES = (
    "every-version-it-claims-works",
    "the-result-is-what-the-kernel-has",
    "two-attachments-of-one-container",
    "parallel-attachments",
    "check-after-add",
    "del-leaves-nothing",
    "gc-drops-what-is-stale",
    "a-refused-add-changes-nothing",
)

OPTIONS = (
    "--no-daemon --conf-file=/dev/null --port=0 --interface=eth0 --bind-interfaces --no-ping --pid-file= "
    "--dhcp-authoritative --dhcp-leasefile=/run/dnsmasq.leases --dhcp-range=10.1.0.50,10.1.0.99,2m"
)

# The suite has made the link up0, with its other end.
SETUP = " && ".join(
    [
        "ip netns add server",
        "ip link set up0x netns server name eth0",
        "ip -n server addr add 10.1.0.1/24 dev eth0",
        "ip -n server link set eth0 up",
        f"{{ ip netns exec server dnsmasq {OPTIONS} </dev/null >/dev/null 2>&1 & }}",
        f"{{ {shlex.quote(sys.executable)} -I -m cnisdk dhcp </dev/null >/dev/null 2>&1 & }}",
        f"until [ -S {SOCKET} ] && [ -e /run/dnsmasq.leases ]; do :; done",
    ]
)


def test_dhcp_behind_macvlan(plugin_directory: Path) -> None:
    conf = {"master": "up0", "ipam": {"type": "dhcp", "timeout": 30}}
    subject = identify(str(plugin_directory / "macvlan"), conf=conf, kind=Kind.INTERFACE, setup=SETUP)
    assert (subject.problem, subject.remark) == ("", "")
    outcomes = list(judge(subject, select(subject.kind, CASES), jobs=2))
    assert [(each.case.id, each.expected, each.seen) for each in outcomes if each.verdict is not Verdict.PASSED] == []
    assert {each.case.id for each in outcomes} == set(CASES)
