"""Rows of docs/differences.md, tried with the Go plugins and with ours."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cnisdk.testing import Sandbox

GO = Path(os.environ.get("CNI_REFERENCE_PLUGINS", "/usr/lib/cni"))
CONF = {"cniVersion": "1.0.0", "name": "n", "type": "bridge", "bridge": "b0"}

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.interop,
    pytest.mark.skipif(
        not (GO / "bridge").exists() and os.environ.get("CI") != "true",
        reason="needs the Debian package containernetworking-plugins",
    ),
]


@pytest.mark.parametrize(
    ("added", "args", "go", "ours"),
    [
        pytest.param(b'"mtu": -1', "", 0, 7, id="negative mtu"),
        pytest.param(b'"runtimeConfig": {"mac": "0200.0000.0001"}', "", 0, 7, id="MAC with dots"),
        pytest.param(b'"runtimeConfig": {"mac": "02-00-00-00-00-01"}', "", 0, 0, id="MAC with hyphens"),
        pytest.param(b'"comment": "caf\xe9"', "", 0, 6, id="Latin-1"),
        pytest.param(b'"comment": ""', "IP", 999, 4, id="no pair"),
        pytest.param(b'"comment": ""', "IgnoreUnknown=1;A=B=C", 999, 0, id="two equals signs"),
        pytest.param(b'"comment": ""', "IgnoreUnknown=1;;A=B", 999, 0, id="an empty part"),
    ],
)
def test_add(
    host: Sandbox, shell: Callable[[str], str], tmp_path: Path, added: bytes, args: str, go: int, ours: int
) -> None:
    (tmp_path / "request").write_bytes(json.dumps(CONF).encode().removesuffix(b"}") + b", " + added + b"}")
    shell("cnisdk install --dest bin bridge")
    codes = []
    for number, directory in enumerate((GO, tmp_path / "bin")):
        netns = host.add_netns(f"c{number}")
        variables = (
            f"CNI_CONTAINERID=c{number} CNI_NETNS={netns} CNI_IFNAME=eth0 CNI_PATH={directory} CNI_ARGS='{args}'"
        )
        printed = shell(f"CNI_COMMAND=ADD {variables} {directory}/bridge < request || true")
        codes.append(json.loads(printed).get("code", 0))
    assert codes == [go, ours]
