"""Draw what processes.py measured: medians with whiskers to the 95th percentile, by path, on a logarithmic scale.

Usage: python benchmarks/plot.py MEASUREMENTS.json PICTURE.svg [--note TEXT]

The measurements are those of `processes.py --json`; `processes.py --plot PICTURE.svg` draws them at once. Needs
matplotlib (dependency group `bench`). The picture's ending decides its format.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from _percentile import percentile
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

# From Okabe and Ito's palette, which people see apart who do not see all colours; the shapes say it again.
MODES = {
    "go": ("Go", "#000000", "o"),
    "one-shot": ("one-shot", "#D55E00", "s"),
    "resident": ("resident", "#0072B2", "D"),
}

# Sections of the picture: what processes.py calls a path, and what the picture does.
SECTIONS = {
    "any plugin": {"VERSION": "VERSION"},
    "host-local": {"host-local ADD": "ADD", "host-local DEL": "DEL"},
    "bridge with host-local": {
        "bridge ADD, IPv4": "ADD",
        "bridge CHECK, IPv4": "CHECK",
        "bridge DEL, IPv4": "DEL",
        "bridge ADD, dual stack": "ADD, dual stack",
        "bridge ADD, ipMasq": "ADD, ipMasq",
        "bridge DEL, ipMasq": "DEL, ipMasq",
        "burst, each": "{} parallel ADDs, each",
        "burst, first": "{} parallel ADDs, in all, the first time",
        "burst, total": "{} parallel ADDs, in all, later",
    },
    "cnitool, bridge": {"cnitool add": "add", "cnitool del": "del"},
}
# Two lines: in one, it is wider than the axes it is centred below, and then the picture cuts its end.
_LABEL = "milliseconds from start to end of the process, logarithmic:\nmedian, and a line to the 95th percentile"
_STYLE = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "cnisdk",  # the same picture of the same numbers, to the byte
}


def draw(measured: Iterable[Mapping[str, Any]], picture: str, note: str = "") -> None:
    """Draw.

    Args:
        measured: Path, mode and seconds of each process.
        picture: The file.
        note: On what machine that was, for below it.
    """
    times: dict[tuple[str, str], list[float]] = {}
    for one in measured:
        times.setdefault((one["path"], one["mode"]), []).append(one["seconds"] * 1000)
    paths = {path for path, _ in times}
    each, total = (len(times.get((f"burst, {what}", "resident"), ())) for what in ("each", "total"))
    parallel = each // total if total else 0
    with mpl.rc_context(_STYLE):
        count = sum(len(paths & set(named)) + 1 for named in SECTIONS.values())
        figure = Figure(figsize=(8, 0.37 * count + 1.1), layout="constrained")
        axes = figure.add_subplot()
        row, ticks, labels = 0.0, [], []
        for section, named in SECTIONS.items():
            if not paths & set(named):
                continue
            axes.text(
                -0.005, row, section, transform=axes.get_yaxis_transform(), ha="right", va="center", weight="bold"
            )
            row += 0.85
            for path, name in named.items():
                if path in paths:
                    axes.axhspan(row - 0.46, row + 0.46, color="#f5f5f5", linewidth=0, zorder=0)
                    _draw_path(axes, row, {mode: times[path, mode] for mode in MODES if (path, mode) in times})
                    ticks.append(row)
                    labels.append(name.format(parallel))
                    row += 1
        for mode, (name, colour, shape) in MODES.items():
            if any(key[1] == mode for key in times):
                axes.plot([], [], shape, color=colour, label=name)
        axes.set_yticks(ticks, labels)
        axes.set_ylim(row - 0.4, -0.5)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xlim(low / 1.5, high)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel(_LABEL)
        axes.grid(axis="x", color="#dddddd")
        axes.grid(axis="x", which="minor", color="#eeeeee", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        figure.legend(loc="outside upper right", ncols=3, frameon=False)
        if note:
            figure.supxlabel(note, fontsize=7, color="#555555")
        figure.savefig(picture, metadata={"Date": None} if picture.endswith(".svg") else None, dpi=150)


def _draw_path(axes: Axes, row: float, times: Mapping[str, list[float]]) -> None:
    """Draw a row: the modes below each other, each with its median in numbers."""
    for place, mode in enumerate(times):
        _, colour, shape = MODES[mode]
        height = row + 0.27 * (place - (len(times) - 1) / 2)
        median, p95 = statistics.median(times[mode]), percentile(times[mode], 0.95)
        axes.plot([median, p95], [height, height], color=colour, linewidth=1.2, solid_capstyle="butt")
        axes.plot([p95, p95], [height - 0.08, height + 0.08], color=colour, linewidth=1.2)
        axes.plot([median], [height], shape, color=colour, markersize=5)
        digits = f"{median:.1f}" if median < 10 else f"{median:.0f}"
        side = {"textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 7, "color": colour}
        axes.annotate(digits, (median, height), (-5, 0), **side)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurements")
    parser.add_argument("picture")
    parser.add_argument("--note", default="", help="on what machine that was, for below the picture")
    arguments = parser.parse_args()
    draw(json.loads(Path(arguments.measurements).read_text()), arguments.picture, arguments.note)


if __name__ == "__main__":
    main()
