"""The plugins everybody has, judged: ours pass everything, and the known defects of the reference ones are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cnisdk.testing.conformance import Level, Subject, Verdict
from cnisdk.testing.conformance.subject import identify

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
        "the-plugins-own-netns-is-refused",
    },
    "host-local": {"check-compares-the-address", "an-exhausted-pool-has-code-11"},
    "ptp": {
        "check-of-a-route-without-gateway",
        "check-notices-missing-rules",
        "del-without-netns",
        "del-with-a-netns-that-is-a-plain-file",
        "a-failed-delegate-is-told-to-del",
    },
    "loopback": {"every-version-it-claims", "del-with-a-netns-that-is-a-plain-file"},
    "macvlan": {
        "check-of-a-route-without-gateway",
        "del-with-a-netns-that-is-a-plain-file",
        "a-failed-add-leaves-nothing",
        "a-failed-delegate-is-told-to-del",
    },
    "portmap": {"check-after-add"},
    "tuning": {"check-after-add", "del-without-netns"},
    "static": set[str](),
}
# No plugin of that version knows GC or STATUS.
EVERYWHERE = {"error-objects-tell-the-version", "leaks-can-be-collected", "readiness-can-be-asked"}


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


def patch(directory: Path) -> str:
    """The tutorial's plugin, as an executable."""
    import sys

    source = Path(__file__).parents[2] / "examples" / "tutorial" / "patch.py"
    path = directory / "patch"
    path.write_text(f"#!{sys.executable}\n{source.read_text()}")
    path.chmod(0o755)
    return str(path)


def subject_of(name: str, plugins: Path, tmp_path: Path) -> Subject:
    return identify(patch(tmp_path) if name == "patch" else str(plugins / name))


@pytest.mark.parametrize("name", ["bridge", "host-local"])
def test_our_plugins(plugin_directory: Path, tmp_path: Path, name: str) -> None:
    outcomes = run(subject_of(name, plugin_directory, tmp_path))
    assert [each for each in outcomes if each.verdict in (Verdict.FAILED, Verdict.ERROR)] == []
    assert sum(each.verdict is Verdict.PASSED for each in outcomes) > 40
