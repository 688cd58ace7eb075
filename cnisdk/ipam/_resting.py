"""Addresses of this node that rest: released a short time ago, and not to be handed out again yet.

The node that had an address lets it rest, before it hands it out again or gives it back to the cluster. So the clocks
of two nodes are never compared, and etcd is not asked. Time is that of ``CLOCK_BOOTTIME``, which no administrator and
no NTP daemon sets. No such clock tells how long a machine was off, so after a boot the rest of each address begins
again.

Noting an address comes before its release, so that a process killed in between leaves only an address that is leased
and noted. A lock of its own keeps a DEL from waiting for a process that waits for etcd.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from time import CLOCK_BOOTTIME, clock_gettime

from .._files import read_file, replace_file
from ..errors import IOFailureError, cause_of
from ..spec import _json
from ..spec.addresses import IPAddress
from . import _lockfile
from ._keys import address_of_key, key_of_address
from ._records import current_boot
from .store import LOCK_TIMEOUT


class RestingAddresses:
    """The resting addresses of one network on this node.

    Args:
        directory: Directory for their file; made when it is needed.
        seconds: How long an address rests; 0 means not at all.
        timeout: Seconds to wait for other processes.
    """

    def __init__(self, directory: str, seconds: float, *, timeout: float = LOCK_TIMEOUT) -> None:
        self._directory = directory
        self._path = f"{directory}/resting.json"
        self._seconds = seconds
        self._timeout = timeout

    @property
    def is_used(self) -> bool:
        """True if addresses rest at all."""
        return self._seconds > 0

    def note(self, addresses: Collection[IPAddress]) -> None:
        """Let addresses rest from now on.

        Raises:
            TryAgainLaterError: (11) Other processes kept the file locked.
            IOFailureError: (5) It cannot be written.
        """
        if not self._seconds or not addresses:
            return
        with _lockfile.locked(self._directory, self._timeout):
            self._write({**self._read(), **dict.fromkeys(addresses, self._end())})

    def find(self) -> dict[IPAddress, float]:
        """Return the addresses that rest, each with the seconds that are left.

        Raises:
            TryAgainLaterError: (11) Other processes kept the file locked.
            IOFailureError: (5) The file cannot be read or written.
        """
        if not self._seconds:
            return {}
        boot, untils = self._load()
        if untils and boot != current_boot().boot_id:  # only the first process after a boot
            with _lockfile.locked(self._directory, self._timeout):
                untils = self._read()
                self._write(untils)
        now = clock_gettime(CLOCK_BOOTTIME)
        return {address: until - now for address, until in untils.items() if until > now}

    def _read(self) -> dict[IPAddress, float]:
        """Return the addresses that rest, each with the time at which it is rested. Under the lock."""
        boot, untils = self._load()
        if boot != current_boot().boot_id:
            return dict.fromkeys(untils, self._end())
        now = clock_gettime(CLOCK_BOOTTIME)
        return {address: until for address, until in untils.items() if until > now}

    def _end(self) -> float:
        return clock_gettime(CLOCK_BOOTTIME) + self._seconds

    def _load(self) -> tuple[str, dict[IPAddress, float]]:
        """Return the boot that the file is of, and the times in it."""
        try:
            value = _json.read(read_file(self._path, follow=False).decode())
            return str(value["boot"]), {address_of_key(key): float(each) for key, each in value["until"].items()}
        except FileNotFoundError:
            return "", {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise IOFailureError(f"cannot read {self._path}: {cause_of(exc)}") from exc

    def _write(self, untils: Mapping[IPAddress, float]) -> None:
        times = {key_of_address(address): round(until, 3) for address, until in untils.items()}
        try:
            replace_file(self._path, _json.write({"boot": current_boot().boot_id, "until": times}).encode())
        except OSError as exc:
            raise IOFailureError(f"cannot write {self._path}: {cause_of(exc)}") from exc
