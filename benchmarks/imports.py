"""Measure the imports of each path of a plugin process, by `python -X importtime`.

Usage: python benchmarks/imports.py [--runs N] [--top N]

The median of each module's own time over several runs, in milliseconds, for what is not loaded by the path before it
in the list, and the modules that cost most.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys

PYTHON = os.path.abspath(sys.executable)
LAUNCH = "from cnisdk.plugin._launch import launch; launch('cnisdk_plugins.{}', 'main')"
PATHS = {
    "python -c pass": "pass",
    "VERSION": LAUNCH.format("bridge"),
    "attrs, cattrs": "import attrs, cattrs",
    "typing, json": "import typing, json",
    "host-local ADD": LAUNCH.format("host_local"),
    "bridge ADD": LAUNCH.format("bridge"),
    "cnitool": "from cnisdk._cli.start import cnitool; cnitool()",
}
_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \| +(\S+)")

# A request that fails after everything a successful one imports up front: what handlers import later is not in here.
ENVIRON = {
    "CNI_CONTAINERID": "imports",
    "CNI_NETNS": "/proc/self/ns/nowhere",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/nonexistent",
}
STDIN = b'{"cniVersion": "1.0.0", "name": "imports", "type": "bridge", "ipam": {"type": "host-local"}}'


def imports(path: str) -> dict[str, int]:
    """Return the microseconds that each module took by itself."""
    environ = {**ENVIRON, "CNI_COMMAND": "VERSION" if path == "VERSION" else "ADD"}
    argv = [PYTHON, "-I", "-X", "importtime", "-c", PATHS[path], "status", "no-such-network"]
    done = subprocess.run(argv, env=environ, input=STDIN, capture_output=True, check=False)
    return {match[2]: int(match[1]) for match in _LINE.finditer(done.stderr.decode())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--top", type=int, default=12, help="modules to name (default %(default)s)")
    arguments = parser.parse_args()
    imports("bridge ADD")  # compiles
    rounds = [{path: imports(path) for path in PATHS} for _ in range(arguments.runs)]
    print("| path | modules | ms | most of it |\n|---|--:|--:|---|")
    for path in PATHS:
        cost = {
            name: statistics.median(round_[path].get(name, 0) for round_ in rounds) / 1000 for name in rounds[0][path]
        }
        most = sorted(cost, key=lambda name: -cost[name])[: arguments.top]
        named = ", ".join(f"{name} {cost[name]:.1f}" for name in most)
        print(f"| {path} | {len(cost)} | {sum(cost.values()):.1f} | {named} |")


if __name__ == "__main__":
    main()
