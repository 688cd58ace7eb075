"""The real firewalld on a throw-away host, with a D-Bus of its own. Neither touches this machine's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cnisdk.testing import Host

BUS = """<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"""
"""Configuration of a system bus on which everything is allowed."""

_CONF = "/run/firewalld-conf"
NAME = "org.fedoraproject.FirewallD1"


def skip_without_firewalld() -> None:
    """Skip the test where a program is not installed; in CI, fail it."""
    missing = [each for each in ("firewalld", "firewall-cmd", "dbus-daemon", "gdbus") if shutil.which(each) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)} (Debian: firewalld, dbus, libglib2.0-bin)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


class Bus:
    """A system bus on a host, at the usual path."""

    def __init__(self, host: Host) -> None:
        host.shell("mkdir -p /run/dbus")
        host.run(["tee", "/run/bus.conf"], input=BUS)
        argv = ["dbus-daemon", "--config-file=/run/bus.conf", "--nofork", "--nopidfile", "--print-address=1"]
        self._process = host.popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._process.stdout is not None
        assert self._process.stdout.readline().startswith("unix:path=/run/dbus/")

    def stop(self) -> None:
        """End it; its socket stays."""
        self._process.kill()
        self._process.communicate()


class Firewalld:
    """firewalld on a host that has a bus, with the configuration of the distribution."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.shell(f"mkdir -p {_CONF}")
        self._log = Path(host.shell("mktemp").strip())
        with self._log.open("w") as log:
            self._process = host.popen(
                ["firewalld", "--nofork", "--nopid", "--system-config", _CONF, "--log-target", "console"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            host.run(["gdbus", "wait", "--system", "--timeout", "60", NAME])
            self.cmd("--state")  # answers when it has started
        except BaseException:
            self.stop()
            raise

    def cmd(self, *arguments: str) -> str:
        """Run ``firewall-cmd``, and return what it printed."""
        return self.host.run(["firewall-cmd", *arguments]).stdout.strip()

    def sources(self, zone: str = "trusted") -> list[str]:
        """Return the sources of a zone, sorted."""
        method = f"{NAME}.zone.getSources"  # firewall-cmd takes ten times as long
        call = ["gdbus", "call", "--system", "-d", NAME, "-o", "/org/fedoraproject/FirewallD1", "-m", method, zone]
        return sorted(re.findall(r"'([^']*)'", self.host.run(call).stdout))

    def stop(self) -> None:
        """End it, with its rules."""
        self._process.terminate()
        self._process.wait(60)
        self._log.unlink(missing_ok=True)
