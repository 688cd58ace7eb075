"""What the units ask of systemd."""

from __future__ import annotations

import pytest

from cnisdk.thick.units import render_units

SERVICE = render_units("/opt/cnisdk/bin/python", "/run/cnisdk")["cnisdk.service"].decode().splitlines()


@pytest.mark.xfail(reason="with mixed, systemd kills the workers of a server that died, and their requests fail")
def test_requests_go_on_when_the_server_dies() -> None:
    assert [line for line in SERVICE if line.startswith("KillMode=")] == ["KillMode=process"]


@pytest.mark.xfail(reason="after five ends in ten seconds systemd gives up, and closes the socket too")
def test_it_is_started_however_often_it_dies() -> None:
    assert {"Restart=always", "StartLimitIntervalSec=0"} <= set(SERVICE)


@pytest.mark.xfail(reason="enabling it enables the socket only: after a boot, the first container waits for the server")
def test_it_is_started_with_the_machine() -> None:
    assert "WantedBy=multi-user.target" in SERVICE
