"""A node for container runtimes: a throw-away host whose only plugins are ours.

The sandboxes of ``cnisdk.testing`` have a user namespace, in which runtimes take themselves for rootless ones. A node
has none: it needs root, and has mount, network, pid, uts and ipc namespaces of its own. Everything on it ends with it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..modes import Plugins
from .image import write_image

OUTSIDE, NODE, NODE6 = "outside", "192.0.2.1", "2001:db8::1"
_SCRIPT = Path(__file__).with_name("_init.sh")
_PROBE = Path(__file__).with_name("probe.py")
# Processes of the node itself; and those that are ending, which have no arguments any more.
_OWN = re.compile(r"^(\[|ps -eo|containerd -c|\S+ -I -m cnisdk serve)")
# Sixteen chains for the records of all attachments, made when first needed. What is in them counts.
_SHARED_CHAIN = re.compile(r"chain CNI-FORWARD-OWNERS-[0-9a-f] \{$")
_COUNTERS = re.compile(r"counter packets \d+ bytes \d+|\[\d+:\d+\]|# handle \d+")

_CRASH = r"""
kill -9 -1 || true # all but the first process, and this one
for link in $(ls /sys/class/net); do [ $link = lo ] || ip link del $link 2>/dev/null || true; done
nft flush ruleset
umount -l /run/netns/* 2>/dev/null || true
awk '$2 ~ /^.run.container/ {print $2}' /proc/1/mounts | sort -r | xargs -r umount -l
find /run -mindepth 1 -xdev ! -path /run/netns -delete
cat /proc/sys/kernel/random/uuid >boot_id
mount --bind boot_id /proc/sys/kernel/random/boot_id
"""


class Node:
    """A node.

    Attributes:
        work: Directory of files that the test shares with the node.
        oci_runtime: Path of a crun that makes no control groups.
    """

    def __init__(self, plugins: Plugins) -> None:
        self.plugins = plugins
        self.work = Path(tempfile.mkdtemp(prefix="node"))  # short: sockets are in it
        self._booted: subprocess.Popen[str] | None = None
        self._pid = 0
        write_image(self.work / "image.tar")
        self.oci_runtime = self.work / "crun"
        self.oci_runtime.write_text('#!/bin/sh\nexec crun --cgroup-manager=disabled "$@"\n')
        self.oci_runtime.chmod(0o755)

    def __enter__(self) -> Node:
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _boot(self) -> None:
        unshare = ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        self._booted = subprocess.Popen(
            [*unshare, "sh", str(_SCRIPT), str(self.plugins.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self._booted.stdout is not None
        line = self._booted.stdout.readline()
        assert line == "ready\n", line + self._booted.stdout.read()
        children = Path(f"/proc/{self._booted.pid}/task/{self._booted.pid}/children").read_text().split()
        self._pid = int(children[0])
        self._connect()

    def _connect(self) -> None:
        """Lay a cable to a network outside, and start what the plugins need."""
        self.shell(
            f"ip netns add {OUTSIDE}"
            f"; ip link add out0 type veth peer name eth0 netns {OUTSIDE}"
            f"; ip addr add {NODE}/24 dev out0; ip addr add {NODE6}/64 dev out0 nodad; ip link set out0 up"
            f"; ip -n {OUTSIDE} addr add 192.0.2.2/24 dev eth0"
            f"; ip -n {OUTSIDE} addr add 2001:db8::2/64 dev eth0 nodad"
            f"; ip -n {OUTSIDE} link set eth0 up; ip -n {OUTSIDE} link set lo up"
        )
        if self.plugins.resident:
            self.shell(self.plugins.setup)

    def close(self) -> None:
        """Let the node vanish, with all that runs on it."""
        if self._booted is not None:
            self._booted.communicate()  # the end of its input ends its first process, and so the kernel all others
            self._booted = None
        shutil.rmtree(self.work, ignore_errors=True)

    # -- running -------------------------------------------------------------------------------------------------------

    def enter(self, *argv: str) -> list[str]:
        """Return the command that runs a program on the node."""
        return ["nsenter", "-t", str(self._pid), "-m", "-n", "-p", "-u", "-i", f"--wd={self.work}", "--", *argv]

    def run(self, *argv: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a program on the node.

        Raises:
            AssertionError: It failed, and `check` is set.
        """
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:  # daemons that it leaves keep them open
            done = subprocess.run(
                self.enter(*argv), stdin=subprocess.DEVNULL, stdout=out, stderr=err, check=False, timeout=timeout
            )
            out.seek(0)
            err.seek(0)
            printed, told = out.read().decode(), err.read().decode()
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)} exited with {done.returncode}\n{printed}{told}".rstrip())
        return subprocess.CompletedProcess(argv, done.returncode, printed, told)

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a program on the node. The options are those of :class:`subprocess.Popen`."""
        return subprocess.Popen(self.enter(*argv), stdin=subprocess.DEVNULL, **options)

    def shell(self, command: str) -> str:
        """Run a shell command on the node, and return what it printed."""
        return self.run("sh", "-euc", command).stdout

    def write(self, path: str, content: str) -> None:
        """Write a file of the node."""
        (self.work / "file").write_text(content)
        self.run("sh", "-euc", 'mkdir -p "$(dirname "$1")"; cp file "$1"', "sh", path)

    def ip(self, *argv: str, pid: int = 0) -> list[dict[str, Any]]:
        """Run ``ip -j`` on the node, or in the network of one of its processes, and return what it printed."""
        inside = ["nsenter", "-t", str(pid), "-n", "--"] if pid else []
        printed = self.run(*inside, "ip", "-j", "-d", *argv).stdout
        return [each for each in json.loads(printed or "[]") if each]

    def addresses(self, pid: int, ifname: str) -> list[str]:
        """Return the addresses of a link in the network of a process, with their prefix length."""
        found = self.ip("addr", "show", "dev", ifname, pid=pid)[0]["addr_info"]
        return [f"{each['local']}/{each['prefixlen']}" for each in found if each["scope"] == "global"]

    def reaches(
        self,
        pid: int,
        address: str,
        port: int,
        *,
        server: int = 0,
        protocol: str = "tcp",
        source: int | str = OUTSIDE,
        patience: float = 15,
    ) -> bool:
        """Return if a message, and its answer, get to a server in the network of a process.

        Args:
            pid: The process.
            address: Where the client sends to.
            port: The port it sends to.
            server: The port of the server, if that is another.
            protocol: ``tcp`` or ``udp``.
            source: Network of the client: that of a process, or a named one.
            patience: Seconds to wait for each step; few where nothing should come.
        """
        client = f"/proc/{source}/ns/net" if isinstance(source, int) else f"/run/netns/{source}"
        words = [f"/proc/{pid}/ns/net", client, protocol, address, str(port), str(server or port), str(patience)]
        done = self.run(sys.executable, str(_PROBE), *words, check=False)
        assert done.returncode in (0, 3), done.stderr
        return done.returncode == 0

    def crash(self) -> None:
        """Do what a power cut and a boot do: no process, link, rule and namespace is left, and ``/run`` is empty."""
        self.shell(_CRASH)
        self._connect()

    # -- what is left --------------------------------------------------------------------------------------------------

    def remains(self) -> set[str]:
        """Return all that attachments can leave: links, addresses, routes, rules, files, mounts and processes."""
        found = {f"link {each['ifname']}" for each in self.ip("link", "show")}
        for link in self.ip("addr", "show"):
            found |= {
                f"address {each['local']} on {link['ifname']}" for each in link["addr_info"] if each["scope"] != "link"
            }
        for family in ("-4", "-6"):
            routes = self.run("ip", family, "route", "show", "table", "all").stdout.splitlines()
            found |= {
                f"route {each.replace(' linkdown', '').strip()}"
                for each in routes
                if "fe80::" not in each and "ff00::" not in each
            }
            found |= {f"policy {each}" for each in self.run("ip", family, "rule").stdout.splitlines()}
        # Rules of iptables are listed by nft as well: Debian's iptables writes them there.
        table = ""
        for line in self.run("nft", "list", "ruleset").stdout.splitlines():
            table = line if line.startswith("table") else table
            if line.strip() not in ("", "}") and not _SHARED_CHAIN.search(line):
                found.add(f"nft {table}: {_COUNTERS.sub('', line.strip())}")
        files = "find /var/lib/cni /run/cni /run/cnisdk /var/run/netns ! -type d 2>/dev/null || true"
        found |= {f"file {each}" for each in self.shell(files).splitlines() if not _is_furniture(each)}
        found |= {
            f"mount {each}" for each in self.shell("cut -d' ' -f2 /proc/1/mounts").split() if "boot_id" not in each
        }
        for line in self.run("ps", "-eo", "pid=,stat=,args=").stdout.splitlines():
            pid, state, args = line.split(maxsplit=2)
            if pid != "1" and not state.startswith("Z") and not _OWN.search(args):
                found.add(f"process {args}")
        return found


def _is_furniture(path: str) -> bool:
    """Return if a file is there for all attachments of a network: locks, hints, indexes; or for the node."""
    name = os.path.basename(path)
    return name in ("lock", OUTSIDE) or name.startswith("last_reserved_ip.") or path.startswith("/run/cnisdk/")


def describe(things: Iterable[str]) -> str:
    """Write what is left, one thing a line."""
    return "\n".join(sorted(things))
