"""Settings of the systemd units."""

from __future__ import annotations

from cnisdk._thick.systemd import render_units

SERVICE = render_units("/opt/cnisdk/bin/python", "/run/cnisdk")["cnisdk.service"].decode().splitlines()


def test_requests_go_on_when_the_server_dies() -> None:
    assert [line for line in SERVICE if line.startswith("KillMode=")] == ["KillMode=process"]


def test_it_is_started_however_often_it_dies() -> None:
    assert {"Restart=always", "StartLimitIntervalSec=0"} <= set(SERVICE)


def test_it_is_started_with_the_machine() -> None:
    assert "WantedBy=multi-user.target" in SERVICE
