"""`cnisdk serve --background`, and what the tests that run in both modes rely on."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from cnisdk.testing import Host, Sandbox
from cnisdk.testing.running import PluginUnderTest

from ..modes import SERVE, Plugins

STATUS = [sys.executable, "-I", "-m", "cnisdk", "serve", "--status"]
QUIET = f"{shlex.join(SERVE)} </dev/null >/dev/null 2>&1"


@pytest.fixture(scope="session")
def shims(install: Callable[[str], Plugins]) -> Plugins:
    return install("resident")


def pool(host: Host, shims: Plugins) -> PluginUnderTest:
    return host.plugin(
        shims.directory / "host-local", {"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]]}}
    )


def test_it_serves_when_the_command_ends(host: Host, shims: Plugins) -> None:
    host.run(["sh", "-euc", QUIET])
    web = host.container("web")
    assert [str(each.address) for each in pool(host, shims).add(web).ips] == ["10.1.0.2/24"]
    assert shims.take_fallbacks() == []
    status = json.loads(host.run(STATUS).stdout)
    assert (status["requests"], status["errors"], status["fallbacks"]) == (1, 0, 0)
    # Nothing is left of the way it told.
    assert host.run(["ls", "/run/cnisdk"]).stdout.split() == ["control.sock", "metrics.prom", "server.sock"]


def test_a_server_that_cannot_start(host: Sandbox) -> None:
    host.run(["mkdir", "-m", "755", "/run/cnisdk"])
    done = host.run(SERVE, check=False)
    assert (done.returncode, "not a directory of this user alone" in done.stderr) == (1, True), done
    host.run(["sh", "-c", "chmod 700 /run/cnisdk; mkdir /run/cnisdk/server.sock"])
    done = host.run(SERVE, check=False)
    assert (done.returncode, "cannot listen at /run/cnisdk/server.sock" in done.stderr) == (1, True), done
    assert "ready" not in host.run(["ls", "/run/cnisdk"]).stdout


def test_those_who_scrape_need_not_enter_the_directory(host: Host, shims: Plugins) -> None:
    done = host.run([*SERVE, "--metrics", "/nowhere/cnisdk.prom"], check=False)
    assert (done.returncode, "/nowhere/cnisdk.prom: there is no such directory" in done.stderr) == (1, True), done
    host.run(["sh", "-euc", QUIET.replace("--background", "--background --metrics /run/cnisdk.prom")])
    web = host.container("web")
    pool(host, shims).add(web)
    host.run(["sh", "-euc", "until grep -qs 'requests_total.*host-local' /run/cnisdk.prom; do sleep 0.1; done"])
    assert host.run(["stat", "-c", "%a", "/run/cnisdk.prom"]).stdout.strip() == "644"
    assert "metrics.prom" not in host.run(["ls", "/run/cnisdk"]).stdout


def test_requests_that_reach_no_server_are_noticed(host: Host, shims: Plugins) -> None:
    def detach_without_a_server() -> None:
        with shims.on(host):
            web = host.container("web")
            pool(host, shims).add(web)
            host.run(["rm", "/run/cnisdk/server.sock"])
            pool(host, shims).delete(web)

    with pytest.raises(AssertionError, match="host-local absent"):
        detach_without_a_server()
    assert shims.take_fallbacks() == []


def test_shims_and_launchers_are_what_install_writes(plugins: Plugins) -> None:
    types = {path.name for path in Path(plugins.directory).iterdir()}
    assert types == {each.name for each in entry_points(group="cnisdk.plugins")}
