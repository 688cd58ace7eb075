"""Limits of traffic: a token bucket on a link, and a redirection of what comes in (tc-tbf(8), tc-mirred(8)).

The kernel limits what a link sends. Packets that a container sends come in on its host link. They are redirected to an
``ifb`` link, which sends them on, limited.
"""

from __future__ import annotations

import errno
import struct
import sys

from .._light import NamedTuple
from ..errors import InvalidConfigError, IOFailureError
from ..spec.names import shorten
from . import rtnetlink
from .attributes import attribute, iterate, read, read_text, read_uint
from .links.link import Link
from .rtnetlink import HEADER, KernelError, Message

# linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h
_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_NEWTFILTER, _DELTFILTER, _GETTFILTER = 44, 45, 46
_FIXED = struct.Struct("=BxxxiIII")  # struct tcmsg: family, interface, handle, parent, info
_KIND, _OPTIONS = 1, 2
_ROOT, _INGRESS, _INGRESS_HANDLE = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFF0000
_TBF_HANDLE = 0x10000  # 1:, as the reference has it
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
# struct tc_tbf_qopt: two tc_ratespec (of the rate and of a peak rate), limit, buffer, mtu
_TBF = struct.Struct("=BBHhHI 12x III")
_LINKLAYER_ETHERNET = 1
_TICKS_PER_MICROSECOND = 15.625  # PSCHED_SHIFT: a tick of the packet scheduler has 64 ns
_UINT32_MAX = (1 << 32) - 1
_UINT64_MAX = (1 << 64) - 1
_U32_SELECTOR, _U32_ACTION = 5, 7
# struct tc_u32_sel with one tc_u32_key that no bit of a packet can fail, terminal
_ANY = struct.pack("=BBBxHHhhI IIii", 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
_ACTION_KIND, _ACTION_OPTIONS = 1, 2
_MIRRED_PARMS = 2
_MIRRED = struct.Struct("=IIiii iI")  # struct tc_mirred: index, capability, action, two counters, what to do, interface
_STOLEN, _EGRESS_REDIRECT = 4, 1
_FIRST_PRIORITY_OF_ALL = 1 << 16 | 0x0003 << (8 if sys.byteorder == "little" else 0)  # ETH_P_ALL, as it is sent

LATENCY = 0.025
"""Seconds that a packet waits at most before it is dropped, as in the reference plugin."""


class Limit(NamedTuple):
    """A token bucket.

    Attributes:
        rate: Bytes per second, at least 1.
        burst: Bytes that may be sent at once.
    """

    rate: int
    burst: int

    @property
    def queue(self) -> int:
        """Bytes that may wait, at most 2³² - 1, as the kernel's field has 32 bits."""
        return min(int(self.rate * LATENCY) + self.burst, _UINT32_MAX)

    @property
    def buffer(self) -> int:
        """Time that it takes to send the burst, in ticks of 64 ns, at most 2³² - 1."""
        ticks = int(int(self.burst * 1_000_000 / self.rate) * _TICKS_PER_MICROSECOND)
        return min(max(ticks, 1), _UINT32_MAX)


def limit(link: Link, wanted: Limit) -> None:
    """Limit what a link sends (tc-tbf(8)). A limit that it has is replaced.

    Args:
        link: The link.
        wanted: Rate in bytes per second, and burst in bytes.

    Raises:
        InvalidConfigError: (7) No link can have such a limit.
        KernelError: (5) The kernel refused, for example because it lacks ``sch_tbf``.
    """
    if not (0 < wanted.rate <= _UINT64_MAX and 0 < wanted.burst <= _UINT32_MAX):
        raise InvalidConfigError(
            f"{shorten(wanted.rate)} bytes per second in bursts of {shorten(wanted.burst)} bytes are no limit",
            details=f"expected 1 to {_UINT64_MAX} bytes per second, and 1 to {_UINT32_MAX} bytes at once",
        )
    parameters = _TBF.pack(
        0, _LINKLAYER_ETHERNET, 0, 0, 0, min(wanted.rate, _UINT32_MAX), wanted.queue, wanted.buffer, 0
    )
    options = attribute(_TBF_PARMS, parameters)
    if wanted.rate > _UINT32_MAX:
        options += attribute(_TBF_RATE64, struct.pack("=Q", wanted.rate))
    if wanted.buffer == _UINT32_MAX:
        options += attribute(_TBF_BURST, struct.pack("=I", wanted.burst))
    _set_tbf(link, options)


def _set_tbf(link: Link, options: bytes) -> None:
    body = _message(link, _TBF_HANDLE, _ROOT, attribute(_KIND, b"tbf\0"), attribute(_OPTIONS, options))
    _send(link, Message(_NEWQDISC, body, f"cannot limit what link {link.name} sends", _REPLACE))


def redirect(link: Link, to: Link) -> None:
    """Redirect every packet that comes in on a link: another link sends it out (tc-mirred(8)).

    Args:
        link: The link whose packets are redirected.
        to: The link that sends them, such as an ``ifb`` in the same namespace.

    Raises:
        KernelError: (5) The kernel refused, for example because it lacks ``sch_ingress``, ``cls_u32`` or
            ``act_mirred``.
    """
    mirred = attribute(_MIRRED_PARMS, _MIRRED.pack(0, 0, _STOLEN, 0, 0, _EGRESS_REDIRECT, to.index))
    action = attribute(1, attribute(_ACTION_KIND, b"mirred\0"), attribute(_ACTION_OPTIONS, mirred))
    options = attribute(_OPTIONS, attribute(_U32_SELECTOR, _ANY), attribute(_U32_ACTION, action))
    what = f"cannot redirect what comes in on link {link.name}"
    ingress = _message(link, _INGRESS_HANDLE, _INGRESS, attribute(_KIND, b"ingress\0"))
    _send(link, Message(_NEWQDISC, ingress, what, _REPLACE))
    # A filter of this priority that an earlier ADD made goes: the kernel would put the new one beside it.
    info = _FIRST_PRIORITY_OF_ALL
    old = _message(link, 0, _INGRESS_HANDLE, info=info)
    new = _message(link, 0, _INGRESS_HANDLE, attribute(_KIND, b"u32\0"), options, info=info)
    with rtnetlink.connect(link.netns) as sock:
        sock.exchange([Message(_DELTFILTER, old, what)])
        sock.send([Message(_NEWTFILTER, new, what, rtnetlink.F_ACK | rtnetlink.F_CREATE | rtnetlink.F_EXCL)])


def has_limit(link: Link) -> bool:
    """Return True if a link limits what it sends by a token bucket.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    return _find_tbf(link) is not None


def check_limit(link: Link, wanted: Limit) -> None:
    """Verify that a link has this limit.

    Args:
        link: The link.
        wanted: Rate in bytes per second, and burst in bytes.

    Raises:
        IOFailureError: (5) It has none, or another.
    """
    found = _find_tbf(link)
    if found is None:
        raise IOFailureError(f"link {link.name} has no limit on what it sends (qdisc tbf)")
    rate, buffer = found
    if rate != wanted.rate:
        raise IOFailureError(f"link {link.name} sends {rate} bytes per second at most, expected {wanted.rate}")
    if abs(buffer - wanted.buffer) > _TICKS_PER_MICROSECOND and wanted.buffer < _UINT32_MAX:
        burst = round(buffer / _TICKS_PER_MICROSECOND * rate / 1_000_000)
        raise IOFailureError(f"link {link.name} sends bursts of {burst} bytes at most, expected {wanted.burst}")


def keep_limit(link: Link) -> bytes | None:
    """Return the limit of what a link sends, for :func:`put_back`.

    Returns:
        The options of its token bucket, as netlink attributes; None if it has no token bucket.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    # F_ECHO: the kernel answers with a notification. F_ACK: of a link without a discipline of its own it says nothing.
    flags = rtnetlink.F_ACK | rtnetlink.F_ECHO
    request = Message(_GETQDISC, _message(link, 0, _ROOT), f"cannot read the limit of link {link.name}", flags)
    with rtnetlink.connect(link.netns) as sock:
        (answer,) = sock.exchange([request])
    if isinstance(answer, KernelError):
        if answer.errno == errno.ENOENT:
            return None
        raise answer
    found = read(answer or b"", HEADER.size + _FIXED.size)
    if read_text(found.get(_KIND, b"")) != "tbf":
        return None
    return found[_OPTIONS]


def _find_tbf(link: Link) -> tuple[int, int] | None:
    """Rate and buffer of a link's token bucket, in bytes per second and ticks; None when it has no token bucket."""
    kept = keep_limit(link)
    if kept is None:
        return None
    options = read(kept)
    *_, rate, _limit, buffer, _mtu = _TBF.unpack(options[_TBF_PARMS])
    return read_uint(options.get(_TBF_RATE64, b"")) or rate, buffer


def check_redirect(link: Link, to: Link) -> None:
    """Verify that what comes in on a link is redirected to another one.

    Args:
        link: The link whose packets are redirected.
        to: The link that sends them.

    Raises:
        IOFailureError: (5) It is not.
    """
    if not redirects(link, to):
        raise IOFailureError(f"packets that come in on link {link.name} are not redirected to link {to.name}")


def redirects(link: Link, to: Link) -> bool:
    """Return True if what comes in on a link is redirected to another one.

    Args:
        link: The link whose packets are redirected.
        to: The link that sends them.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    return any(to.index in _redirections(each) for each in _list_filters(link))


def check_no_other_filters(link: Link) -> None:
    """Verify that no other program filters what comes in on a link: :func:`redirect` would take the place of that.

    Args:
        link: The link whose packets are to be redirected.

    Raises:
        IOFailureError: (5) There is a filter that does not redirect.
        KernelError: (5) The kernel refused the query.
    """
    for each in _list_filters(link):
        found = read(each, HEADER.size + _FIXED.size)
        kind = read_text(found.get(_KIND, b""))
        # Of u32, the kernel lists the tables as well, which select nothing.
        selects = kind != "u32" or _U32_SELECTOR in read(found.get(_OPTIONS, b""))
        if selects and not _redirections(each):
            raise IOFailureError(f"link {link.name} has a filter of another program ({kind}) for what comes in")


def _list_filters(link: Link) -> list[bytes]:
    """List the filters for what comes in on a link."""
    request = Message(_GETTFILTER, _message(link, 0, _INGRESS_HANDLE), f"cannot read the filters of link {link.name}")
    try:
        with rtnetlink.connect(link.netns) as sock:
            return [*sock.dump(request)]
    except KernelError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):  # no ingress discipline, no filters
            raise
        return []


def put_back(link: Link, kept: bytes | None, to: Link | None = None) -> None:
    """Restore the limit and the redirection that a link had, and delete those that it did not have.

    A link that is gone is fine.

    Args:
        link: The link.
        kept: Its limit: see :func:`keep_limit`.
        to: The link that what came in was redirected to; None if it was not.

    Raises:
        KernelError: (5) The kernel refused.
    """
    what = f"cannot take the limits off link {link.name}"
    if kept is not None:
        _set_tbf(link, kept)
    if to is not None and not redirects(link, to):
        redirect(link, to)
    # With their kinds: another program may have a discipline of another kind there, such as clsact.
    limit = _message(link, _TBF_HANDLE, _ROOT, attribute(_KIND, b"tbf\0"))
    redirection = _message(link, _INGRESS_HANDLE, _INGRESS, attribute(_KIND, b"ingress\0"))
    absent = [each for each, had in ((limit, kept), (redirection, to)) if had is None]
    requests = [Message(_DELQDISC, each, what) for each in absent]
    with rtnetlink.connect(link.netns) as sock:
        for answer in sock.exchange(requests):
            if isinstance(answer, KernelError) and answer.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
                raise answer


_REPLACE = rtnetlink.F_ACK | rtnetlink.F_CREATE | rtnetlink.F_REPLACE


def _message(link: Link, handle: int, parent: int, *attributes: bytes, info: int = 0) -> bytes:
    return _FIXED.pack(0, link.index, handle, parent, info) + b"".join(attributes)


def _send(link: Link, request: Message) -> None:
    with rtnetlink.connect(link.netns) as sock:
        sock.send([request])


def _redirections(message: bytes) -> list[int]:
    """Indexes of the links that a u32 filter redirects to."""
    options = read(read(message, HEADER.size + _FIXED.size).get(_OPTIONS, b""))
    actions = [read(action) for _, action in iterate(options.get(_U32_ACTION, b""))]
    parameters = [
        read(action.get(_ACTION_OPTIONS, b"")).get(_MIRRED_PARMS, b"")
        for action in actions
        if read_text(action.get(_ACTION_KIND, b"")) == "mirred"
    ]
    found = [_MIRRED.unpack(each) for each in parameters if len(each) >= _MIRRED.size]
    return [interface for *_, what, interface in found if what == _EGRESS_REDIRECT]
