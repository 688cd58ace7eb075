"""Counters of the server, written to a file in the text format of Prometheus.

The server counts requests, errors and latencies by plugin and verb. Shims count the requests that they run themselves:
each appends a line to a file, which the server moves away and adds to its own counters.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from typing import Any, BinaryIO

LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Upper bounds of the latency histogram, in seconds."""

# Seconds between two writes of the file. Scrapers read it every few seconds at most.
_INTERVAL = 1.0

# Bytes read of the shims' file. Shims stop appending at half of that.
_MAX_FALLBACKS = 2 << 20


def create_private_file(path: str) -> BinaryIO:
    """Create a file that only this user can read, in place of a file of that name.

    Another user may be able to write to the directory. So links are not followed, and nothing that exists is opened.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _open_regular(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


class Metrics:
    """Counters of a server.

    Args:
        path: File to write.
        fallbacks: File in which shims count the requests that they run themselves.
    """

    def __init__(self, path: str, fallbacks: str) -> None:
        self._path = path
        self._fallbacks = fallbacks
        self._written = -_INTERVAL
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
            type: Type of the plugin.
            verb: Verb of the request.
            status: Exit status; any other than 0 counts as an error.
            seconds: Duration, from taking the request to its answer.
        """
        key = (type, verb)
        self.requests[key] += 1
        self.errors[key] += status != 0
        self.seconds[key] += seconds  # type: ignore[assignment]
        for end in LATENCY_BUCKETS:
            self.buckets[type, verb, end] += seconds <= end

    def summary(self) -> dict[str, Any]:
        """Return the totals, for ``cnisdk serve --status``."""
        self._read_fallbacks()
        return {
            "requests": self.requests.total(),
            "errors": self.errors.total(),
            "fallbacks": self.fallbacks.total(),
            "declined": self.declined,
            "died": self.died,
        }

    def is_due(self) -> bool:
        """Return True if the file was not written within the last second."""
        return time.monotonic() - self._written >= _INTERVAL

    def write(self, idle: int, busy: int) -> None:
        """Replace the file, unless nothing has changed."""
        self._written = time.monotonic()
        self._read_fallbacks()
        text = self.text(idle, busy)
        if text == self._text:
            return
        temporary = f"{self._path}.{os.getpid()}"
        try:
            with create_private_file(temporary) as file:
                file.write(text.encode("ascii"))
                os.fchmod(file.fileno(), 0o644)
            os.rename(temporary, self._path)
            self._text = text
        except OSError:
            pass  # the server serves without the file

    def text(self, idle: int, busy: int) -> str:
        """Return the text of the file."""
        lines: list[str] = []

        def family(name: str, kind: str, about: str) -> None:
            lines.extend((f"# HELP cnisdk_{name} {about}", f"# TYPE cnisdk_{name} {kind}"))

        family("requests_total", "counter", "Requests served by workers.")
        lines += [f"cnisdk_requests_total{_labels(*key)} {count}" for key, count in sorted(self.requests.items())]
        family("errors_total", "counter", "Requests that ended with an error.")
        lines += [f"cnisdk_errors_total{_labels(*key)} {count}" for key, count in sorted(self.errors.items())]
        family("request_seconds", "histogram", "Seconds from taking a request to its answer.")
        for key, count in sorted(self.requests.items()):
            for end in LATENCY_BUCKETS:
                label = _labels(*key, le=str(end))
                lines.append(f"cnisdk_request_seconds_bucket{label} {self.buckets[key[0], key[1], end]}")
            lines.append(f"cnisdk_request_seconds_bucket{_labels(*key, le='+Inf')} {count}")
            lines.append(f"cnisdk_request_seconds_sum{_labels(*key)} {self.seconds[key]:.6f}")
            lines.append(f"cnisdk_request_seconds_count{_labels(*key)} {count}")
        family("fallbacks_total", "counter", "Requests that shims ran in processes of their own, by reason.")
        for (type_, reason), count in sorted(self.fallbacks.items()):
            lines.append(f'cnisdk_fallbacks_total{{plugin="{type_}",reason="{reason}"}} {count}')
        family("declined_total", "counter", "Requests that the server declined.")
        lines.append(f"cnisdk_declined_total {self.declined}")
        family("workers_died_total", "counter", "Workers that ended without an answer.")
        lines.append(f"cnisdk_workers_died_total {self.died}")
        family("workers", "gauge", "Worker processes.")
        lines += [f'cnisdk_workers{{state="idle"}} {idle}', f'cnisdk_workers{{state="busy"}} {busy}']
        return "\n".join(lines) + "\n"

    def _read_fallbacks(self) -> None:
        """Add what shims have counted. The file is renamed first, so that later lines go into a new file."""
        taken = f"{self._fallbacks}.{os.getpid()}"
        try:
            os.rename(self._fallbacks, taken)
            with open(taken, encoding="ascii", errors="replace", opener=_open_regular) as file:
                for line in file.read(_MAX_FALLBACKS).splitlines():
                    type_, _, reason = line.strip().partition(" ")
                    if type_.replace("-", "").replace("_", "").isalnum() and reason.isalpha():
                        self.fallbacks[type_, reason] += 1
            os.unlink(taken)
        except OSError:
            pass


def _labels(type: str, verb: str, le: str = "") -> str:
    more = f',le="{le}"' if le else ""
    return f'{{plugin="{type}",verb="{verb}"{more}}}'
