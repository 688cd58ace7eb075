"""Three members of etcd on a throw-away host, each in a namespace of its own, and faults of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cnisdk.ipam.etcdclient import EtcdClient, EtcdConf

# So short that a new leader is there within a test.
_TIMES = ["--heartbeat-interval", "50", "--election-timeout", "500"]


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True)


class Members:
    """A cluster of three. Call it on a host (``host.call``), whose namespaces die with it.

    Args:
        directory: Directory for their data; in memory, since etcd waits for the disk with each change.
    """

    def __init__(self, directory: Path) -> None:
        self.names = ["m1", "m2", "m3"]
        self.urls = [f"http://10.99.0.{number}:2379" for number in (1, 2, 3)]
        self._directory = directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Members:
        self._directory.mkdir(parents=True, mode=0o700)
        ip("link", "set", "lo", "up")
        ip("link", "add", "members", "type", "bridge")
        ip("addr", "add", "10.99.0.254/24", "dev", "members")
        ip("link", "set", "members", "up")
        for number, name in enumerate(self.names, 1):
            ip("netns", "add", name)
            ip("link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"to-{name}", "master", "members", "up")
            ip("-n", name, "addr", "add", f"10.99.0.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        for name in self.names:
            self.start(name)
        with EtcdClient(EtcdConf(endpoints=tuple(self.urls), timeout=60)) as client:
            client.look("ready")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def start(self, name: str) -> None:
        """Start a member, with the data it has."""
        number = self.names.index(name)
        host = f"http://10.99.0.{number + 1}"
        peers = ",".join(f"{each}=http://10.99.0.{at}:2380" for at, each in enumerate(self.names, 1))
        argv = ["ip", "netns", "exec", name, "etcd", "--name", name, "--data-dir", str(self._directory / name), *_TIMES]
        argv += ["--logger", "zap", "--log-level", "error", "--initial-cluster", peers]
        argv += ["--listen-client-urls", f"{host}:2379", "--advertise-client-urls", f"{host}:2379"]
        argv += ["--listen-peer-urls", f"{host}:2380", "--initial-advertise-peer-urls", f"{host}:2380"]
        with open(self._directory / f"{name}.log", "ab") as log:
            self._processes[name] = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self, name: str) -> None:
        """Kill a member. `ip netns exec` has become it."""
        self._processes[name].kill()
        self._processes[name].wait()

    def stop(self, name: str) -> None:
        """Stop a member: its connections stay, and it answers nothing."""
        self._processes[name].send_signal(signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        self._processes[name].send_signal(signal.SIGCONT)

    def cut_off(self, name: str) -> None:
        """Cut a member off from the others and from all nodes."""
        ip("link", "set", f"to-{name}", "down")

    def join_up(self, name: str) -> None:
        ip("link", "set", f"to-{name}", "up")

    def faults(self) -> Sequence[tuple[str, str]]:
        """Return the names of methods that make a fault, and of those that end it."""
        return [("kill", "start"), ("stop", "go_on"), ("cut_off", "join_up")]


def place(name: str) -> Path:
    """Return a directory in memory, if there is one, that no other test uses."""
    shm = Path("/dev/shm")
    return (shm if os.access(shm, os.W_OK) else Path("/tmp")) / f"cnisdk-{name}-{os.getpid()}"
