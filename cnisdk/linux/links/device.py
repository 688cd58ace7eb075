"""Links by the device they belong to: a PCI address, an auxiliary device, a path in sysfs.

sysfs shows the links of the network namespace in which it was mounted. A program in a container may work on the links
of another namespace. So what sysfs says is compared with what the kernel says of each link's device (Linux 5.14), and
where it does not fit, the links are searched for the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from ...errors import InvalidConfigError, IOFailureError
from . import link
from .link import Link

_SYSFS = "/sys"
_DEVICES = "/sys/devices/"


def bus_path(bus: str, name: str, json_path: str) -> str:
    """Return the path in sysfs of a device on a bus. The device need not be there.

    Args:
        bus: Name of the bus: ``pci``, or ``auxiliary``.
        name: Name of the device on it, such as ``0000:00:1f.6`` or ``mlx5_core.sf.4``.
        json_path: Place of the name in the configuration, for the error.

    Raises:
        InvalidConfigError: (7) It is no name of a device.
    """
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        raise InvalidConfigError(f'{json_path} is "{name}", expected the name of a device on the {bus} bus')
    return f"{_SYSFS}/bus/{bus}/devices/{name}"


def kernel_path(path: str, json_path: str) -> str:
    """Return a path, if it is below ``/sys/devices/``.

    Args:
        path: The path.
        json_path: Place of the path in the configuration, for the error.

    Raises:
        InvalidConfigError: (7) It is not below that directory.
    """
    if not path.startswith(_DEVICES) or ".." in path.split("/"):
        raise InvalidConfigError(
            f'kernel device path "{path}" must be absolute and begin with {_DEVICES}', details=f"{json_path} does not"
        )
    return path


def find_driver(path: str) -> str | None:
    """Return the name of a device's driver; None when none is bound, or there is no such device."""
    try:
        return os.path.basename(os.readlink(f"{path}/driver"))
    except OSError:
        return None


def get_link(path: str) -> Link:
    """Return the link of a device, in the calling thread's namespace: the first one where it has several.

    Args:
        path: Of the device in sysfs.

    Raises:
        IOFailureError: (5) It has none here.
    """
    if not os.path.isdir(path):
        raise IOFailureError(f"device {path} does not exist")
    devices = names(path)
    for place in _places(path):
        for name in _list(f"{place}/net"):
            there = link.find(name)
            if there is not None and there.parent_device in ("", *devices):
                return there
    for there in link.list_all():
        if there.parent_device in devices:
            return there
    raise IOFailureError(
        f"failed to find network device in path {path}/net",
        details=f"its driver is {find_driver(path) or 'none'}",
    )


def names(path: str) -> set[str]:
    """Return the names of the devices that a link of a device may belong to, for :attr:`Link.parent_device`."""
    return {os.path.basename(os.path.realpath(each)) for each in _places(path)}


def is_of(there: Link, path: Callable[[], str], mac: str = "") -> bool | None:
    """Return True if a link, wherever it is, is one that was asked for by its hardware address or its device.

    Args:
        there: The link.
        path: Function that returns where sysfs has the device; empty for none. It is called if there is no address.
        mac: The hardware address, in any of the usual notations; empty for none.

    Returns:
        The answer; None if nothing tells, as for virtual links, or a device that is gone.
    """
    if mac:
        return plain_mac(mac) in (there.mac, there.permanent_mac)
    try:
        return there.parent_device in names(path()) if there.parent_device and path() else None
    except InvalidConfigError:
        return None


def get_by_mac(mac: str, json_path: str) -> Link:
    """Return the link with a hardware address, in the calling thread's namespace.

    Links that lie on others, such as VLANs and bonds, share their addresses. So a link that was made with the address
    goes first, then one of no kind, which is a physical one.

    Args:
        mac: In any of the usual notations.
        json_path: Where the configuration has it.

    Raises:
        InvalidConfigError: (7) It is no address, or it is not clear which of several links is meant.
        IOFailureError: (5) No link has it.
    """
    wanted = plain_mac(mac)
    if len(wanted) < len("00:00:00:00:00:00"):
        raise InvalidConfigError(f'failed to parse MAC address "{mac}"', details=f"{json_path} is no hardware address")
    found = [each for each in link.list_all() if wanted in (each.mac, each.permanent_mac)]
    if not found:
        raise IOFailureError(
            f"no link of the host has the hardware address {wanted}", details=f"{json_path} asks for it"
        )
    made_with = [each for each in found if each.permanent_mac == wanted]
    physical = [each for each in found if not each.kind]
    candidates = made_with or physical or found
    if len(candidates) > 1:
        names = ", ".join(sorted(each.name for each in candidates))
        raise InvalidConfigError(
            f"links {names} have the hardware address {wanted}",
            details=f"{json_path} does not tell which: name one in $.device",
        )
    return candidates[0]


def plain_mac(mac: str) -> str:
    """Return a hardware address as :class:`Link` has it; empty when it is none."""
    try:
        return bytes.fromhex(mac.translate(str.maketrans("", "", ":-."))).hex(":")
    except ValueError:
        return ""


def _places(path: str) -> list[str]:
    """Return the directories that can hold a device's links. A virtio device is between the PCI device and its link."""
    return [path, *(f"{path}/{each}" for each in _list(path) if each.startswith("virtio"))]


def _list(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
