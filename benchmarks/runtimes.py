"""Cost of container runtimes with the Go plugins, with a default install of ours, and with `--no-server`.

Podman runs containers one after the other, and containerd starts 30 pods at once through CRI, on throw-away nodes: one
for each directory of plugins, in turns. The first request of a default install starts the server; it is not counted.
Needs root, the programs that `nox -s runtimes` needs, and its packages.

The ratios are of the same rounds: other work on the machine slows both down, and not alike. The load is printed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cnisdk._thick.server import ask_status  # noqa: E402
from cnisdk.errors import IOFailureError  # noqa: E402
from tests.runtimes.cri import Pod, Port  # noqa: E402
from tests.runtimes.image import NAME  # noqa: E402
from tests.runtimes.node import Node  # noqa: E402
from tests.runtimes.test_containerd import Containerd  # noqa: E402
from tests.runtimes.test_podman import Podman  # noqa: E402

GO, DEFAULT, ONE_SHOT = "Go", "default install", "--no-server"


class Directory(NamedTuple):
    """A directory with plugins, as a node wants it."""

    directory: Path
    resident: bool = False


def served(node: Node) -> dict[str, Any] | None:
    """The status of the server on a node; None if there is none."""
    try:
        return ask_status(f"/proc/{node._pid}/root/run/cnisdk")
    except IOFailureError:
        return None


def wait_for_server(node: Node) -> None:
    while served(node) is None:
        time.sleep(0.1)  # it tells nobody that it is ready


def memory(node: Node) -> int:
    """Proportional memory of the server and its workers, in KiB."""
    lines = node.shell(
        "for pid in $(pgrep -f 'cnisdk serve'); do cat /proc/$pid/smaps_rollup; done 2>/dev/null || true"
    ).splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def time_podman(podman: Podman) -> float:
    start = time.perf_counter()
    podman("run", "--rm", "-p", "8080:80", NAME, "true")
    return time.perf_counter() - start


def time_pods(containerd: Containerd, count: int, turn: int) -> float:
    """Start pods at once; they are stopped and removed one by one, and that is not timed."""
    with ThreadPoolExecutor(count) as pool:
        start = time.perf_counter()
        pods = list(pool.map(containerd.cri.run, (Pod(f"pod{turn}-{n}", [Port(9000 + n, 80)]) for n in range(count))))
        took = time.perf_counter() - start
    for pod in pods:
        containerd.end(pod)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="of podman (default %(default)s)")
    parser.add_argument("--bursts", type=int, default=5, help="of pods (default %(default)s)")
    parser.add_argument("--pods", type=int, default=30, help="at once (default %(default)s)")
    parser.add_argument("--only", choices=["podman", "pods"])
    parser.add_argument("--reference", default=os.environ.get("CNI_REFERENCE_PLUGINS", "/usr/lib/cni"))
    arguments = parser.parse_args()
    os.environ["CNISDK_SERVER"] = "on"  # the nodes have PID namespaces of their own
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        directories = {each: Path(work, str(number)) for number, each in enumerate((GO, DEFAULT, ONE_SHOT))}
        shutil.copytree(arguments.reference, directories[GO])
        install = [sys.executable, "-I", "-m", "cnisdk", "install", "--dest"]
        subprocess.run([*install, directories[DEFAULT]], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*install, directories[ONE_SHOT], "--no-server"], check=True, stdout=subprocess.DEVNULL)
        nodes: dict[str, Node] = {}
        for name, path in directories.items():
            nodes[name] = stack.enter_context(Node(Directory(path)))  # type: ignore[arg-type]
        if arguments.only != "pods":
            podmen = {name: Podman(node) for name, node in nodes.items()}
            for podman in podmen.values():
                time_podman(podman)
            wait_for_server(nodes[DEFAULT])
            print(f"server at rest: {memory(nodes[DEFAULT]) / 1024:.0f} MiB")
            times: dict[str, list[float]] = {name: [] for name in nodes}
            for _ in range(arguments.runs):
                for name, podman in podmen.items():
                    times[name].append(time_podman(podman))
            report("podman run --rm", times)
            print(f"served: {(served(nodes[DEFAULT]) or {}).get('requests')}")
        if arguments.only != "podman":
            daemons = {}
            for name, node in nodes.items():
                daemons[name] = Containerd(node)
                stack.callback(daemons[name].close)
                daemons[name].end(daemons[name].cri.run(Pod("first")))
            wait_for_server(nodes[DEFAULT])
            times = {name: [] for name in nodes}
            most = 0
            for turn in range(arguments.bursts):
                for name, containerd in daemons.items():
                    times[name].append(time_pods(containerd, arguments.pods, turn))
                    most = max(most, memory(nodes[DEFAULT]))
            report(f"{arguments.pods} pods at once", times)
            print(f"served: {served(nodes[DEFAULT])}; server after a burst, at most: {most / 1024:.0f} MiB")
    print(f"load {os.getloadavg()[0]:.1f} at the end, {len(os.sched_getaffinity(0))} processors")


def report(what: str, times: dict[str, list[float]]) -> None:
    for name, each in times.items():
        ratio = statistics.median(ours / go for ours, go in zip(each, times[GO], strict=True))
        print(f"{what}: {name}: median {statistics.median(each) * 1000:.0f} ms, {ratio:.2f} x Go")


if __name__ == "__main__":
    main()
