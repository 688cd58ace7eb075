"""Measure host-local beside the reference: ADD and DEL, as whole processes, at growing numbers of leases.

Usage: python benchmarks/ipam.py [--runs N] [--leases N ...] [--subnet CIDR] [--directory DIR]

Run it in an environment where cnisdk and cnisdk-plugins are installed, or from a checkout. The two plugins take turns,
each in a directory of its own, so that they see the same machine. "resident" is our plugin called within one process,
as a resident server does. "bare" is Python that does nothing: a one-shot plugin cannot be faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from cnisdk.plugin._launch import code_of, interpreter_of  # noqa: E402 - the checkout comes first
from cnisdk.plugin.reply import respond  # noqa: E402 - the checkout comes first
from cnisdk_plugins.host_local import HostLocal  # noqa: E402

GO = Path(os.environ.get("CNI_REFERENCE_PLUGINS", "/usr/lib/cni")) / "host-local"
# What a launcher of `cnisdk install` executes.
PATHS = [str(ROOT), str(ROOT / "examples"), *(path for path in sys.path if path.endswith("-packages"))]
OURS = [*interpreter_of(sys.executable, PATHS), "-c", code_of("cnisdk_plugins.host_local", "main", PATHS)]
BARE = [sys.executable, "-I", "-S", "-c", "pass"]
CONTAINER = "0123456789abcdef" * 4


def configuration(data_dir: Path, subnet: str) -> bytes:
    ipam = {"type": "host-local", "dataDir": str(data_dir), "ranges": [[{"subnet": subnet}]]}
    return json.dumps({"cniVersion": "1.0.0", "name": "net", "type": "bench", "ipam": ipam}).encode()


def environment(verb: str) -> dict[str, str]:
    return {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": CONTAINER,
        "CNI_NETNS": "/dev/null",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": ".",
    }


def fill(data_dir: Path, leases: int) -> None:
    directory = data_dir / "net"
    directory.mkdir(parents=True)
    (directory / "lock").touch(mode=0o600)
    name = "10.0.0.1"
    for number in range(leases):
        host = number + 2
        name = f"10.{host >> 16 & 255}.{host >> 8 & 255}.{host & 255}"
        (directory / name).write_bytes(b"%064x\r\neth0" % number)
    (directory / "last_reserved_ip.0").write_text(name)


def process(command: list[str], verb: str, stdin: bytes) -> Callable[[], None]:
    def run() -> None:
        done = subprocess.run(command, input=stdin, env=environment(verb), capture_output=True, check=False)
        if done.returncode:
            raise SystemExit(f"{command[0]} {verb} failed: {done.stdout.decode()}{done.stderr.decode()}")

    return run


def resident(verb: str, stdin: bytes) -> Callable[[], None]:
    def run() -> None:
        reply = respond(HostLocal, environment(verb), stdin)
        if reply.status:
            raise SystemExit(f"{verb} failed: {reply.stdout.decode()}")

    return run


def milliseconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="runs of each; the median is shown (default %(default)s)")
    parser.add_argument("--leases", type=int, nargs="+", default=[10, 1000, 2000, 10000, 60000])
    parser.add_argument(
        "--subnet",
        default="10.0.0.0/8",
        help="what to allocate from (default %(default)s); with 10.0.0.0/16 and 65532 leases, one address is left",
    )
    parser.add_argument("--directory", help="where to put the directories (default: the system's temporary one)")
    arguments = parser.parse_args()
    names = ["ref ADD", "ref DEL", "ours ADD", "ours DEL", "resident ADD", "resident DEL", "bare"]
    print(f"{'leases':>8}" + "".join(f"{name:>14}" for name in names) + f"{'first scan':>14}   (ms, median)")
    table: dict[int, list[float]] = {}
    for leases in arguments.leases:
        with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
            go, ours = Path(directory, "ref"), Path(directory, "ours")
            fill(go, leases)
            fill(ours, leases)
            runs: list[Callable[[], None]] = []
            for verb in ("ADD", "DEL"):
                runs.append(
                    process([str(GO)], verb, configuration(go, arguments.subnet)) if GO.exists() else lambda: None
                )
            for verb in ("ADD", "DEL"):
                runs.append(process(OURS, verb, configuration(ours, arguments.subnet)))
            for verb in ("ADD", "DEL"):
                runs.append(resident(verb, configuration(ours, arguments.subnet)))
            runs.append(process(BARE, "", b""))
            # The first to come finds no index and makes one, once in the life of a boot.
            scan = milliseconds(runs[4])
            runs[5]()
            times = [[milliseconds(run) for run in runs] for _ in range(arguments.runs)]
            table[leases] = [statistics.median(column) for column in zip(*times, strict=True)]
            print(f"{leases:>8}" + "".join(f"{value:>14.2f}" for value in table[leases]) + f"{scan:>14.2f}", flush=True)
    first, last = table[arguments.leases[0]], table[arguments.leases[-1]]
    print(f"\n{arguments.leases[-1]} leases against {arguments.leases[0]}:")
    for index, name in enumerate(names[:6]):
        if first[index] > 0.01:
            print(f"  {name:14} {last[index] / first[index]:6.2f} x")
    print(f"one-shot ADD against a bare Python: {last[2] / last[6]:.2f} x")


if __name__ == "__main__":
    main()
