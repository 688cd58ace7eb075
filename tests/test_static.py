"""The IPAM plugin static, beside the reference plugin of that name."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cnisdk.plugin import respond
from cnisdk_plugins.static import Static

GO = Path(os.environ.get("CNI_REFERENCE_PLUGINS", "/usr/lib/cni")) / "static"
BOTH = [{"address": "10.1.0.2/24", "gateway": "10.1.0.1"}, {"address": "2001:db8::2/64", "gateway": "2001:db8::1"}]
FOUR = BOTH[:1]
SECOND = [*FOUR, {"address": "10.2.0.2/24"}]


def ask(verb: str, conf: Mapping[str, Any], args: str = "") -> tuple[int, Any]:
    """Return the reply of our plugin, which needs no process."""
    reply = respond(Static, environ(verb, args), json.dumps(conf).encode())
    return reply.status, json.loads(reply.stdout) if reply.stdout else None


def environ(verb: str, args: str) -> dict[str, str]:
    about = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/nowhere", "CNI_IFNAME": "eth0", "CNI_PATH": "/"}
    return {"CNI_COMMAND": verb, "CNI_ARGS": args, **about}


def config(addresses: Any = None, version: str = "1.0.0", **keys: Any) -> dict[str, Any]:
    ipam = {"type": "static", "addresses": addresses or [], "routes": [{"dst": "0.0.0.0/0"}], "dns": {"domain": "x"}}
    return {"cniVersion": version, "name": "net", "type": "static", "ipam": ipam, **keys}


def runtime(*ips: str) -> dict[str, Any]:
    return {"runtimeConfig": {"ips": list(ips)}}


def conventional(*ips: str) -> dict[str, Any]:
    return {"args": {"cni": {"ips": list(ips)}}}


@pytest.mark.interop
@pytest.mark.skipif(not GO.exists() and os.environ.get("CI") != "true", reason=f"needs {GO}")
@pytest.mark.parametrize(
    ("conf", "args"),
    [
        *((config(BOTH, version), "") for version in ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0")),
        (config(), ""),
        (config(FOUR), "IP=10.2.0.2/16, 2001:db8::9/64;GATEWAY=10.2.0.1,2001:db8::1"),
        (config(FOUR), "IP=10.2.0.2/16;GATEWAY=10.2.0.1,10.2.0.3"),
        (config(FOUR), "IP=10.2.0.2/16;GATEWAY=10.3.0.1"),
        (config(**runtime("10.4.0.2/24", "2001:db8::4/64")), "IP=10.2.0.2/16"),
        (config(**conventional("10.5.0.2/24")), "IP=10.2.0.2/16"),
        (config(**conventional("10.5.0.2/24"), **runtime("10.4.0.2/24")), ""),
        (config(SECOND, "0.3.0"), ""),
        (config([{"address": "::ffff:10.1.0.2/120"}]), ""),
        (config([{"address": "10.1.0.2/24", "gateway": "192.0.2.1"}]), ""),
    ],
)
def test_results_are_those_of_the_reference(conf: dict[str, Any], args: str) -> None:
    done = subprocess.run(
        [GO], env=environ("ADD", args), input=json.dumps(conf), capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert ask("ADD", conf, args) == (0, result)
    if conf["cniVersion"] >= "0.4":
        assert ask("CHECK", conf | {"prevResult": result}, args) == (0, None)


def addresses(conf: dict[str, Any], args: str = "") -> list[tuple[str, str]]:
    status, result = ask("ADD", conf, args)
    assert status == 0, result
    return [(each["address"], each.get("gateway", "")) for each in result["ips"]]


def test_what_the_runtime_names_keeps_the_gateways(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [("10.1.0.7/24", "10.1.0.1"), ("10.9.0.7/24", "")]
    assert addresses(config(BOTH, **runtime("10.1.0.7/24", "10.9.0.7/24"))) == wanted
    assert capsys.readouterr().err == "static: $.runtimeConfig.ips replaces $.ipam.addresses\n"
    assert addresses(config(BOTH, **conventional("10.1.0.7/24", "10.9.0.7/24"))) == wanted
    assert addresses(config(FOUR), "IP=10.1.0.2/24,10.1.0.2/24;GATEWAY=10.1.0.9") == [("10.1.0.2/24", "10.1.0.1")]


@pytest.mark.parametrize(
    ("conf", "args", "code", "message"),
    [
        ({**config(), "ipam": {}}, "", 7, "IPAM config missing 'ipam' key"),
        (
            config([{"address": "10.1.0.2"}]),
            "",
            7,
            "the 'address' field is expected to be in CIDR notation, got: '10.1.0.2'",
        ),
        (config([{"address": "10.1.0.2/24", "gateway": "x"}]), "", 7, "invalid gateway address: x"),
        (config(FOUR), "IP=10.1.0.3", 4, "the 'ip' field is expected to be in CIDR notation, got: '10.1.0.3'"),
        (config(FOUR), "IP=10.1.0.3/24;GATEWAY=y", 4, "invalid gateway address: y"),
        (config(FOUR, **runtime("z")), "", 7, "an entry in the 'ips' field is NOT in CIDR notation, got: 'z'"),
        (config(FOUR, **conventional("z")), "", 7, "an entry in the 'ips' field is NOT in CIDR notation, got: 'z'"),
        (config(SECOND, "0.2.0"), "", 7, "CNI version 0.2.0 does not support more than 1 address per family"),
        (config(SECOND, ""), "", 7, "CNI version 0.1.0 does not support more than 1 address per family"),
    ],
)
def test_mistakes(conf: dict[str, Any], args: str, code: int, message: str) -> None:
    status, error = ask("ADD", conf, args)
    assert (status, error["code"], error["msg"]) == (1, code, message)
    assert ask("DEL", conf, args) == (0, None)


@pytest.mark.parametrize(
    ("ips", "message"),
    [
        ([{"address": "10.1.0.2/24"}], None),
        ([{"address": "10.1.0.2/24", "gateway": "10.1.0.1"}, {"address": "10.7.0.2/24"}], None),
        ([{"address": "10.1.0.2/16"}], "static: 10.1.0.2/24 is not among the addresses of $.prevResult.ips"),
        (
            [{"address": "10.1.0.2/24", "gateway": "10.1.0.9"}],
            "static: 10.1.0.2/24 has the gateway 10.1.0.9 in $.prevResult, not 10.1.0.1",
        ),
    ],
)
def test_check(ips: list[Any], message: str | None) -> None:
    status, error = ask("CHECK", config(FOUR, prevResult={"cniVersion": "1.0.0", "ips": ips}))
    assert (status, error and error["msg"]) == (0 if message is None else 1, message)


def test_status_and_gc() -> None:
    assert ask("STATUS", config(FOUR, "1.1.0")) == (0, None)
    assert ask("STATUS", config([{"address": "x"}], "1.1.0"))[0] == 1
    assert ask("GC", config(FOUR, "1.1.0") | {"cni.dev/valid-attachments": []}) == (0, None)
