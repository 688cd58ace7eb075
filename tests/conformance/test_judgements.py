"""The plugins everybody has, judged: ours pass everything, and the known defects of the reference ones are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cnisdk.conformance import Level, Verdict, judge, select
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
    "portmap": {"check-after-add"},
    "tuning": {"check-after-add", "del-without-netns", "a-full-disk-while-attaching"},
    "static": set[str](),
}
# No plugin of that version knows GC or STATUS; static and loopback have nothing to collect.
EVERYWHERE = {"error-objects-tell-the-version", "readiness-can-be-asked"}
for _name in set(DEFECTS) - {"static", "loopback"}:
    DEFECTS[_name].add("leaks-can-be-collected")


@pytest.mark.interop
@pytest.mark.parametrize("name", DEFECTS)
def test_the_reference_plugins(go: Path, name: str) -> None:
    outcomes = run(identify(str(go / name)))
    failed = {each.case.id for each in outcomes if each.verdict is Verdict.FAILED}
    assert not [each for each in outcomes if each.verdict is Verdict.ERROR]
    assert not DEFECTS[name] - failed
    if "1.1.0" not in identify(str(go / name)).versions:
        assert not EVERYWHERE - failed
    for each in outcomes:
        if each.verdict is Verdict.FAILED:
            assert each.expected
            assert each.seen
            assert each.case.level in Level
    json.dumps([each.script for each in outcomes])


# A shim leaves to the launcher what it is told to end before a worker has it, and what it has no descriptors left for.
UNSERVED = {"killed-in-add", "terminated-in-add", "few-open-files"}


@pytest.mark.parametrize("name", ["bridge", "host-local"])
def test_our_plugins(plugins: Plugins, name: str) -> None:
    subject = identify(str(plugins.directory / name), setup=plugins.setup)
    outcomes = []
    for outcome in judge(subject, select(subject.kind)):
        outcomes.append(outcome)
        fallbacks = plugins.take_fallbacks()
        assert not fallbacks or outcome.case.id in UNSERVED, (outcome.case.id, fallbacks)
    assert [each for each in outcomes if each.verdict in (Verdict.FAILED, Verdict.ERROR)] == []
    assert sum(each.verdict is Verdict.PASSED for each in outcomes) > 40
    assert {each.case.id for each in outcomes} >= UNSERVED


UNSEEN_BY_DEFAULT = {  # the CHECK of a plugin that has none of its own compares the result with the kernel, and no more
    "check-notices-a-port-without-bridge",
    "check-notices-a-missing-bridge",
    "check-notices-a-host-end-that-is-down",
}


@pytest.mark.parametrize(
    ("name", "conf", "known"),
    [("patch", {"bridge": "up1", "ipam": {"type": "stub-ipam"}}, UNSEEN_BY_DEFAULT), ("cable", None, set())],
)
def test_the_tutorials_plugins(tmp_path: Path, name: str, conf: dict[str, Any] | None, known: set[str]) -> None:
    source = Path(__file__).parents[2] / "examples" / "tutorial" / f"{name}.py"
    path = tmp_path / name
    path.write_text(python_program(source.read_text()))
    path.chmod(0o755)
    outcomes = run(identify(str(path), conf=conf))
    assert {each.case.id for each in outcomes if each.verdict in (Verdict.FAILED, Verdict.ERROR)} == known
    assert sum(each.verdict is Verdict.PASSED for each in outcomes) > 40
