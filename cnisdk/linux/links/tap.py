"""TAP devices: links whose frames a program reads and writes, such as a virtual machine's.

A device is made in its final namespace with its final name. The last step makes it persistent (TUNSETPERSIST). Until
then the kernel deletes it when its file is closed, so a process that is killed on the way leaves nothing.
"""

from __future__ import annotations

import errno
import os
import struct

from ...errors import IOFailureError, cause_of
from ...spec.names import Attachment
from .. import program, rtnetlink
from ..attributes import text
from ..netns import NetNS
from ..rtnetlink import KernelError
from . import link, messages
from .link import Link

MIN_TAP_MTU, MAX_TAP_MTU = 68, 65521
"""Least and largest MTU of a TAP device, in bytes (drivers/net/tun.c: 65535 without the header of a frame)."""

# linux/if_tun.h
_DEVICE = "/dev/net/tun"
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER, _TUNSETGROUP = 0x400454CA, 0x400454CB, 0x400454CC, 0x400454CE
_IFF_TAP, _IFF_MULTI_QUEUE, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x2, 0x100, 0x1000, 0x4000, 0x8000
_IFREQ = struct.Struct("=16sH22x")

# proc(5): the SELinux context of the next program that the thread starts.
_EXEC_LABEL = "/proc/thread-self/attr/exec"


def create(
    name: str,
    netns: NetNS,
    *,
    owner: Attachment,
    mtu: int = 0,
    mac: str = "",
    user: int | None = None,
    group: int | None = None,
    multi_queue: bool = False,
    bridge: Link | None = None,
    selinux_context: str = "",
) -> Link:
    """Make a persistent TAP device in a namespace, down. Nothing is left when it fails.

    Args:
        name: Its name.
        netns: Where.
        owner: The attachment it belongs to: its alias says so.
        mtu: MTU in bytes; 0 leaves it to the kernel.
        mac: Hardware address; empty makes one up.
        user: Id of the user who may open it without CAP_NET_ADMIN; None lets every user who may open ``/dev/net/tun``.
        group: Id of the group, in the same way.
        multi_queue: Several programs or threads may open it at the same time, with a queue each.
        bridge: A bridge in `netns` of which it becomes a port.
        selinux_context: SELinux context of the program that makes it, and so of the device. The program ``ip`` makes
            it then, persistent from the start: a process that is killed can leave it without alias.

    Raises:
        InvalidEnvironmentError: (4) There is a link of that name.
        IOFailureError: (5) The kernel refused, or lacks TAP devices.
    """
    look = messages.get_request(name=name, what=f"link {name}")
    change = messages.set_request(
        f"cannot set up tap {name} in {netns.path}",
        name=name,
        alias=owner.tag,
        mac=mac or link.random_mac(),
        mtu=mtu or None,
        master=bridge.index if bridge is not None else None,
    )
    with rtnetlink.connect(netns) as there:
        (taken,) = there.exchange([look])
        if not isinstance(taken, KernelError):
            raise link.name_taken(name, netns)
        if selinux_context:
            netns.call(_create_labelled, name, selinux_context, user, group, multi_queue)
            try:
                return _finish(there, change, look, netns)
            except BaseException:
                _delete(there, name)
                raise
        file = netns.call(_open)
        try:
            _attach(file, name, netns, multi_queue=multi_queue)
            made = _finish(there, change, look, netns)
            for request, value in ((_TUNSETOWNER, user), (_TUNSETGROUP, group), (_TUNSETPERSIST, 1)):
                if value is not None:
                    _set(file, request, value, name)
            return made
        finally:
            os.close(file)


def require() -> None:
    """Verify that the kernel has TAP devices and this process may make some.

    Raises:
        IOFailureError: (5) It may not.
    """
    os.close(_open())


def _open() -> int:
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        lacking = error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
        raise IOFailureError(
            f"cannot open {_DEVICE}: {cause_of(error)}",
            details="the kernel lacks TAP devices (CONFIG_TUN): modprobe tun" if lacking else "",
        ) from error


def _attach(file: int, name: str, netns: NetNS, *, multi_queue: bool) -> None:
    """Make the device. It belongs to the namespace in which the file was opened."""
    import fcntl

    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL | (_IFF_MULTI_QUEUE if multi_queue else 0)
    try:
        fcntl.ioctl(file, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EEXIST):
            raise link.name_taken(name, netns) from error
        raise IOFailureError(f"cannot create tap {name} in {netns.path}: {cause_of(error)}") from error


def _set(file: int, request: int, value: int, name: str) -> None:
    import fcntl

    what = {_TUNSETOWNER: "owner", _TUNSETGROUP: "group", _TUNSETPERSIST: "persistence"}[request]
    try:
        fcntl.ioctl(file, request, value)
    except (OSError, OverflowError) as error:
        raise IOFailureError(f"cannot set the {what} of tap {name} to {value}: {cause_of(error)}") from error


def _finish(there: rtnetlink.Socket, change: rtnetlink.Message, look: rtnetlink.Message, netns: NetNS) -> Link:
    _, found = there.send([change, look])
    assert found is not None
    return link.parse(found, netns)


def _delete(there: rtnetlink.Socket, name: str) -> None:
    body = messages.message(text(messages.IFLA_IFNAME, name))
    there.exchange([rtnetlink.Message(rtnetlink.DELLINK, body, f"cannot delete link {name}")])


def _create_labelled(name: str, context: str, user: int | None, group: int | None, multi_queue: bool) -> None:
    """Have a program with an SELinux context make the device: it has the context of its maker."""
    try:
        file = os.open(_EXEC_LABEL, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(file, context.encode())
        finally:
            os.close(file)
    except OSError as error:
        raise IOFailureError(
            f'cannot set the SELinux context "{context}": {cause_of(error)}',
            details="is SELinux enabled, and the context one of its policy?",
        ) from error
    words = ["ip", "tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr"]
    words += ["multi_queue"] if multi_queue else []
    words += ["user", str(user)] if user is not None else []
    words += ["group", str(group)] if group is not None else []
    program.run(words)
