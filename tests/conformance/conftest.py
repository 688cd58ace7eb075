"""Plugins to judge: correct ones in plain shell and Python, and broken ones made of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnisdk.conformance import Outcome, Subject, judge, select
from cnisdk.conformance._known import STUB
from cnisdk.conformance.identify import identify
from cnisdk.conformance.judgement import Kind
from cnisdk.testing.stub import SCRIPT

from ..programs import python_program

WIRE = Path(__file__).with_name("wire").read_text()

# An IPAM plugin: the kit's stub, with a state of its own, and the checks of names it leaves out.
POOL = (
    SCRIPT.replace("@PREFIX@", "10.31.0")
    .replace("@LAST@", "50")
    .replace("@ROUTES@", "")
    .replace('>"stdin.$CNI_COMMAND"', ">/dev/null")
    .replace(">>calls", ">/dev/null")
    .replace('>"fds.$CNI_COMMAND"', ">/dev/null")
    .replace("cd '@HOME@' || exit 70", "mkdir -p /var/lib/cni/pool/leases && cd /var/lib/cni/pool || exit 70")
)

ECHO = python_program(
    """
import json, os, sys
if os.environ["CNI_COMMAND"] == "VERSION":
    print('{"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]}')
    sys.exit()
conf = json.load(sys.stdin)
if os.environ["CNI_COMMAND"] == "ADD":
    result = conf["prevResult"]
    print(json.dumps(result))
""",
    "-ISs",
)

BRIDGE = python_program("""
from cnisdk import PluginMain
from cnisdk_plugins.bridge import Bridge
class Broken(Bridge):
    pass
PluginMain(Broken)()
""")

WORD = {Kind.INTERFACE: ("wire", WIRE), Kind.IPAM: ("pool", POOL), Kind.CHAINED: ("echo", ECHO)}

Make = Callable[..., Subject]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make a plugin of a text, with some of it replaced, and identify it."""

    def install(kind: Kind, *replacements: tuple[str, str], text: str = "", name: str = "") -> Subject:
        plain_name, plain = WORD[kind]
        program = text or plain
        for old, new in replacements:
            assert old in program, old
            program = program.replace(old, new, 1)
        path = tmp_path / (name or plain_name)
        path.write_text(program)
        path.chmod(0o755)
        conf: dict[str, Any] = {"ipam": {"type": path.name}} if kind is Kind.IPAM else {}
        if text:
            conf = {"bridge": "cni0", "isGateway": True, "capabilities": {"mac": True}, "ipam": {"type": STUB}}
        return identify(str(path), kind=kind, conf=conf)

    return install


def run(subject: Subject, *only: str) -> list[Outcome]:
    """Judge a subject by some cases, or by all."""
    return list(judge(subject, select(subject.kind, only)))


@pytest.fixture(scope="session")
def go() -> Path:
    """The directory of the reference plugins."""
    directory = Path(os.environ.get("CNI_REFERENCE_PLUGINS", "/usr/lib/cni"))
    if not (directory / "bridge").exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{directory}/bridge is not installed (Debian: containernetworking-plugins)")
        pytest.skip(f"{directory}/bridge is not installed (Debian: containernetworking-plugins)")
    return directory
