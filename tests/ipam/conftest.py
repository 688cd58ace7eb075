"""Members of etcd, and settings, that all tests of addresses share."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cnisdk.ipam import filestore
from cnisdk.ipam.etcdclient import EtcdClient, EtcdConf


@pytest.fixture(autouse=True)
def from_the_first_lease_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an index also where there are few leases."""
    monkeypatch.setattr(filestore, "_FEW", 0)


class Member:
    """One member of etcd, on a loopback address, with its data in a directory.

    Args:
        directory: Directory of its data.
        options: Further options of etcd.
        keys: What a client needs besides the endpoint: keys of :class:`EtcdConf`. With certificates it is TLS.
    """

    def __init__(self, directory: Path, *options: str, **keys: Any) -> None:
        self.directory = directory
        self.options = options
        with socket.socket() as first, socket.socket() as second:
            for sock in (first, second):
                sock.bind(("127.0.0.1", 0))
            self.port, self.peers = first.getsockname()[1], second.getsockname()[1]
        self.url = f"{'https' if keys else 'http'}://127.0.0.1:{self.port}"
        self.conf = EtcdConf(endpoints=(self.url,), timeout=60, **keys)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        peers = f"http://127.0.0.1:{self.peers}"
        argv = ["etcd", "--name", "m", "--data-dir", str(self.directory), "--logger", "zap", "--log-level", "error"]
        argv += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url, *self.options]
        argv += ["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", f"m={peers}"]
        with open(self.directory.with_suffix(".log"), "ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        with EtcdClient(self.conf) as client:
            client.look("ready")  # asks until it answers

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def started(directory: Path, *options: str, **keys: Any) -> Iterator[Member]:
    """Run a member."""
    if shutil.which("etcd") is None:
        missing = "etcd is not installed (Debian: etcd-server)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    # On a file system in memory: etcd waits for the disk with each change.
    shm = Path("/dev/shm")
    if shm.is_dir() and os.access(shm, os.W_OK):
        directory = shm / f"cnisdk-etcd-{os.getpid()}-{directory.name}"
    made = Member(directory / "data", *options, **keys)
    made.directory.mkdir(parents=True, mode=0o700)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    with started(tmp_path_factory.mktemp("etcd")) as made:
        yield made


@pytest.fixture
def client(member: Member) -> Iterator[EtcdClient]:
    with EtcdClient(EtcdConf(endpoints=(member.url,))) as made:
        yield made
