"""Plugins are judged rightly: ours pass everything, and the known defects of the reference ones are found."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from cnisdk.conformance import (
    Level,
    Verdict,
    judge,
    select,
)
from cnisdk.conformance.identify import identify

from ..modes import Plugins
from ..programs import python_program
from .conftest import run

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

# Facts about version 1.1.1, which Debian 12 packages, beside what every plugin made with its SDK gets wrong.
DEFECTS = {
    "bridge": {
        "check-without-ipam",
        "check-of-a-route-without-gateway",
        "check-notices-missing-rules",
        "two-attachments-of-one-container",
        "del-without-netns",
        "del-with-a-netns-that-is-gone",
        "del-with-a-netns-that-is-a-plain-file",
        "a-failed-delegate-is-told-to-del",
        "a-failed-add-leaves-nothing",
        "an-add-that-fails-late-leaves-nothing",
        "a-delegate-that-hangs",
        "codes-are-of-the-table",
        # 1.1.1 does not look whether the namespace is its own: it prints one document, and works on the host.
        "the-plugins-own-netns-is-refused",
        "del-spares-the-plugins-own-netns",
    },
    "host-local": {
        "check-compares-the-address",
        "an-exhausted-pool-has-code-11",
        "an-exhausted-pool-can-be-noticed",
    },
    "ptp": {
        "check-of-a-route-without-gateway",
        "check-notices-missing-rules",
        "del-without-netns",
        "del-with-a-netns-that-is-a-plain-file",
        "a-failed-delegate-is-told-to-del",
    },
    "loopback": {
        "every-version-it-claims",
        "del-with-a-netns-that-is-a-plain-file",
        "del-spares-the-plugins-own-netns",
    },
    "macvlan": {
        "check-of-a-route-without-gateway",
        "del-with-a-netns-that-is-a-plain-file",
        "a-failed-add-leaves-nothing",
        "a-failed-delegate-is-told-to-del",
    },
    "firewall": {"check-changes-nothing", "del-without-netns-and-prev-result", "del-without-prev-result"},
    "portmap": {"check-after-add"},
    "tuning": {"check-after-add", "del-without-netns", "a-full-disk-while-attaching"},
    "static": set[str](),
}
# No plugin of that version knows GC or STATUS; static and loopback have nothing to collect.
EVERYWHERE = {"error-objects-tell-the-version", "readiness-can-be-asked"}
for _name in set(DEFECTS) - {"static", "loopback"}:
    DEFECTS[_name].add("leaks-can-be-collected")


# These are judged by all cases, here and with the others for docs/conformance.md: one of each kind. The others by those
# that find their defects, and by some that find none.
REFERENCES_JUDGED_WHOLE = {"bridge", "portmap", "host-local"}
HARMLESS = {"success-prints-one-document", "hostile-interface-names", "parallel-attachments", "del-leaves-nothing"}


@pytest.mark.interop
@pytest.mark.parametrize("name", DEFECTS)
def test_the_reference_plugins(go: Path, name: str) -> None:
    subject = identify(str(go / name))
    outcomes = run(subject, *(() if name in REFERENCES_JUDGED_WHOLE else DEFECTS[name] | EVERYWHERE | HARMLESS))
    failed = {each.case.id for each in outcomes if each.verdict is Verdict.FAILED}
    assert not [each for each in outcomes if each.verdict is Verdict.ERROR]
    assert not DEFECTS[name] - failed
    if "1.1.0" not in subject.versions:
        assert not EVERYWHERE - failed
    for each in outcomes:
        if each.verdict is Verdict.FAILED:
            assert each.expected
            assert each.seen
            assert each.case.level in Level
    json.dumps([each.script for each in outcomes])


@pytest.mark.interop
def test_the_reference_dhcp(go: Path) -> None:
    """A server, the plugin's daemon and the containers' interfaces are there without a word from the caller."""
    outcomes = run(identify(str(go / "dhcp")), "check-after-add", "check-notices-a-missing-lease")
    assert [each.verdict for each in outcomes] == [Verdict.PASSED, Verdict.FAILED]


OURS = sorted({entry.name for entry in entry_points(group="cnisdk.plugins")})

# What these make is a kind of link that small kernels lack. Where the kernel has them, they are judged as all others.
# In the guest of `nox -s kernel` each request takes a second: there it is by some cases about links only.
LACKING_KINDS = {"dummy", "ipvlan", "vlan", "vrf"}
IN_A_GUEST = pytest.mark.skipif(
    "CNISDK_SPARE_CARD" in os.environ and "CNISDK_TEST_WHOLE" not in os.environ,
    reason="all cases take a guest a quarter of an hour: CNISDK_TEST_WHOLE=1 has them",
)
ABOUT_LINKS = (
    "the-result-is-what-the-kernel-has",
    "del-leaves-nothing",
    "del-undoes-changes",
    "check-after-add",
    "gc-drops-what-is-stale",
)

# A shim leaves to the launcher what it is told to end before a worker has it, and what it has no descriptors left for.
UNSERVED = {"killed-in-add", "terminated-in-add", "few-open-files"}

# Two plugins are judged by all cases in both modes. The others by all of them one-shot, and behind a server by those in
# which their own code matters most: a server changes how requests come to a plugin, which is the same for all, and each
# case on a host with a server of its own takes a second.
WHOLE = {"bridge", "host-local"}
SERVED = (
    "every-version-it-claims-works",
    "a-refused-add-changes-nothing",
    "the-result-is-what-the-kernel-has",
    "two-attachments-of-one-container",
    "parallel-attachments",
    "check-after-add",
    "del-leaves-nothing",
    "gc-drops-what-is-stale",
)

# Each case starts what these ask, which takes a second; their tests are elsewhere.
BEHIND_DAEMONS = {"cnisdk-cluster": ("one-shot",), "dhcp": ("one-shot", "resident")}


def rows() -> Iterator[Any]:
    for name in OURS:
        kinds = [pytest.mark.kinds, IN_A_GUEST] if name in LACKING_KINDS else []
        if name in BEHIND_DAEMONS:
            for mode in BEHIND_DAEMONS[name]:
                marks = [pytest.mark.resident] if mode == "resident" else []
                yield pytest.param(mode, name, SERVED, id=f"{name}-{mode}", marks=marks)
            continue
        served = () if name in WHOLE else SERVED
        yield pytest.param("one-shot", name, (), id=name, marks=kinds)
        yield pytest.param("resident", name, served, id=f"{name}-resident", marks=[pytest.mark.resident, *kinds])


@pytest.mark.parametrize(("plugins", "name", "only"), list(rows()), indirect=["plugins"])
def test_our_plugins(plugins: Plugins, name: str, only: Sequence[str]) -> None:
    """Each plugin that is installed passes every case that applies."""
    subject = identify(str(plugins.directory / name), setup=plugins.setup)
    assert (subject.problem, subject.remark) == ("", "")
    cases = select(subject.kind, only)
    plugins.take_fallbacks()
    served = list(judge(subject, [case for case in cases if case.id not in UNSERVED], jobs=2))
    assert plugins.take_fallbacks() == []
    outcomes = [*served, *judge(subject, [case for case in cases if case.id in UNSERVED], jobs=2)]
    plugins.take_fallbacks()
    assert [each for each in outcomes if each.verdict in (Verdict.FAILED, Verdict.ERROR)] == []
    assert sum(each.verdict is Verdict.PASSED for each in outcomes) > len(cases) / 3


@pytest.mark.kinds
@pytest.mark.parametrize("name", sorted(LACKING_KINDS))
def test_cases_about_links(tmp_path: Path, name: str) -> None:
    subject = identify(str(Plugins(tmp_path, name).directory / name))
    outcomes = run(subject, *ABOUT_LINKS)
    assert {each.verdict for each in outcomes} == {Verdict.PASSED}
    assert {each.case.id for each in outcomes} == {each.id for each in select(subject.kind, ABOUT_LINKS)}


@pytest.mark.parametrize(
    ("name", "conf"), [("patch", {"bridge": "up1", "ipam": {"type": "stub-ipam"}}), ("cable", None)]
)
def test_the_tutorials_plugins(tmp_path: Path, name: str, conf: dict[str, Any] | None) -> None:
    source = Path(__file__).parents[2] / "examples" / "tutorial" / f"{name}.py"
    path = tmp_path / name
    path.write_text(python_program(source.read_text()))
    path.chmod(0o755)
    outcomes = run(identify(str(path), conf=conf))
    assert [each for each in outcomes if each.verdict in (Verdict.FAILED, Verdict.ERROR)] == []
    assert sum(each.verdict is Verdict.PASSED for each in outcomes) > 40
