"""Counts of the server, as a text file for those who scrape (Prometheus' text format)."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from typing import Any, BinaryIO

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Upper ends of the latency histogram, in seconds."""

# The file is for people and scrapers: once a second is enough.
_EVERY = 1.0


# A shim stops counting at half of that.
_MOST = 2 << 20


def create(path: str) -> BinaryIO:
    """Make a file in place of one of that name, for this user alone.

    Where another one can write to the directory, nothing of his is followed, waited for or written to.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _open_regular(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


class Metrics:
    """What the server counts.

    Args:
        path: The file to write.
        fallbacks: The one in which shims count what they run by themselves.
    """

    def __init__(self, path: str, fallbacks: str) -> None:
        self._path = path
        self._fallbacks = fallbacks
        self._written = -_EVERY
        self._text = ""
        self.requests: Counter[tuple[str, str]] = Counter()
        self.errors: Counter[tuple[str, str]] = Counter()
        self.seconds: Counter[tuple[str, str]] = Counter()
        self.buckets: Counter[tuple[str, str, float]] = Counter()
        self.fallbacks: Counter[tuple[str, str]] = Counter()
        self.declined = 0
        self.died = 0

    def count(self, type: str, verb: str, status: int, seconds: float) -> None:
        """Count one request.

        Args:
            type: The plugin's.
            verb: What was asked.
            status: The exit status; others than 0 count as errors.
            seconds: How long it took.
        """
        key = (type, verb)
        self.requests[key] += 1
        self.errors[key] += status != 0
        self.seconds[key] += seconds  # type: ignore[assignment]
        for end in BUCKETS:
            self.buckets[type, verb, end] += seconds <= end

    def summary(self) -> dict[str, Any]:
        """The totals, for ``cnisdk serve --status``."""
        self._read_fallbacks()
        return {
            "requests": self.requests.total(),
            "errors": self.errors.total(),
            "fallbacks": self.fallbacks.total(),
            "declined": self.declined,
            "died": self.died,
        }

    def write(self, idle: int, busy: int, *, now: bool = False) -> None:
        """Write the file, whole, if it is time and there is something new."""
        if not now and time.monotonic() - self._written < _EVERY:
            return
        self._written = time.monotonic()
        self._read_fallbacks()
        text = self.text(idle, busy)
        if text == self._text:
            return
        temporary = f"{self._path}.{os.getpid()}"
        try:
            with create(temporary) as file:
                file.write(text.encode("ascii"))
                os.fchmod(file.fileno(), 0o644)
            os.rename(temporary, self._path)
            self._text = text
        except OSError:
            pass  # no reason to stop serving

    def text(self, idle: int, busy: int) -> str:
        """The file's text."""
        lines: list[str] = []

        def family(name: str, kind: str, about: str) -> None:
            lines.extend((f"# HELP cnisdk_{name} {about}", f"# TYPE cnisdk_{name} {kind}"))

        family("requests_total", "counter", "Requests served by workers.")
        lines += [f"cnisdk_requests_total{_labels(*key)} {count}" for key, count in sorted(self.requests.items())]
        family("errors_total", "counter", "Requests that were answered with an error.")
        lines += [f"cnisdk_errors_total{_labels(*key)} {count}" for key, count in sorted(self.errors.items())]
        family("request_seconds", "histogram", "From taking a request to its answer.")
        for key, count in sorted(self.requests.items()):
            for end in BUCKETS:
                label = _labels(*key, le=str(end))
                lines.append(f"cnisdk_request_seconds_bucket{label} {self.buckets[key[0], key[1], end]}")
            lines.append(f"cnisdk_request_seconds_bucket{_labels(*key, le='+Inf')} {count}")
            lines.append(f"cnisdk_request_seconds_sum{_labels(*key)} {self.seconds[key]:.6f}")
            lines.append(f"cnisdk_request_seconds_count{_labels(*key)} {count}")
        family("fallbacks_total", "counter", "Requests that shims ran in processes of their own, by reason.")
        for (type_, reason), count in sorted(self.fallbacks.items()):
            lines.append(f'cnisdk_fallbacks_total{{plugin="{type_}",reason="{reason}"}} {count}')
        family("declined_total", "counter", "Requests the server left to the shim.")
        lines.append(f"cnisdk_declined_total {self.declined}")
        family("workers_died_total", "counter", "Workers that ended without an answer.")
        lines.append(f"cnisdk_workers_died_total {self.died}")
        family("workers", "gauge", "Worker processes.")
        lines += [f'cnisdk_workers{{state="idle"}} {idle}', f'cnisdk_workers{{state="busy"}} {busy}']
        return "\n".join(lines) + "\n"

    def _read_fallbacks(self) -> None:
        """Take over what shims have counted. The file is moved away first: later counts go into a new one."""
        taken = f"{self._fallbacks}.{os.getpid()}"
        try:
            os.rename(self._fallbacks, taken)
            with open(taken, encoding="ascii", errors="replace", opener=_open_regular) as file:
                for line in file.read(_MOST).splitlines():
                    type_, _, reason = line.strip().partition(" ")
                    if type_.replace("-", "").replace("_", "").isalnum() and reason.isalpha():
                        self.fallbacks[type_, reason] += 1
            os.unlink(taken)
        except OSError:
            pass


def _labels(type: str, verb: str, le: str = "") -> str:
    more = f',le="{le}"' if le else ""
    return f'{{plugin="{type}",verb="{verb}"{more}}}'
