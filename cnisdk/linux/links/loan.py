"""Links of the host that a container has on loan, such as a network card of its own.

A link on loan says itself what the host calls it and whose it is. Its alias is its name on the host, as with the
reference plugin; one of its alternative names is the owner's tag. The kernel keeps both wherever the link goes, also
when a container's namespace ends and the kernel moves a physical link to the host by itself. So DEL finds the link with
nothing but the attachment in its hands, whatever name it has by then:

==============  =============  ====================================================================================
where           owner's tag    state
==============  =============  ====================================================================================
the host        no             at home
the container   no             on loan by the reference plugin, or :func:`lend` was killed between its two messages
the container   yes            on loan
the host        yes            to be settled: the namespace ended, the reference plugin gave the link back, or
                               :func:`give_back` was killed between its two messages
==============  =============  ====================================================================================

A move, with the new name and the alias, is one message. No program on the host, such as udev, sees a name in between.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection

from ..._light import NamedTuple
from ...errors import CNIError, InvalidEnvironmentError, IOFailureError
from ...spec.names import Attachment, check_ifname, network_tag_prefixes
from .. import netns as namespaces, rtnetlink
from ..attributes import attribute
from ..netns import NetNS
from ..rtnetlink import KernelError, Message, Socket
from . import link, messages
from .link import Link

_PREFIX = "cni:"
_NAMED = "/run/netns"
# How a name is made that the kernel completes: a name has at most 15 bytes.
_STEM_MAX = 11
# The kernel refuses a text of no bytes at all.
_NO_ALIAS = "\0"


class Loan(NamedTuple):
    """A link of the host that a container has.

    Attributes:
        device: The link as it was on the host.
        end: The link in the container, down.
        owner: The attachment that it is lent to.
    """

    device: Link
    end: Link
    owner: Attachment

    def take_back(self) -> None:
        """Give the link back, and restore its alias and whether it was up. The inverse of :func:`lend`.

        Addresses and routes that it had on the host are gone: the kernel drops them when a link moves.

        Raises:
            KernelError: (5) The kernel refused.
        """
        home = give_back(self.end, owner=self.owner, name=self.device.name)
        if home is not None:
            if self.device.alias:
                home.set_alias(self.device.alias)
            if self.device.up:
                home.set_up()


def lend(device: Link, netns: NetNS, name: str, *, owner: Attachment) -> Loan:
    """Move a link of the calling thread's namespace into a container's. It is at home again when this fails.

    Args:
        device: The link.
        netns: The container's namespace.
        name: Its name in there.
        owner: The attachment that it is lent to.

    Raises:
        InvalidEnvironmentError: (4) The container has a link of that name, or the attachment one already.
        IOFailureError: (5) The kernel refused, or another container took the link this moment.
    """
    if device.loan_tag:
        device = bring_home(device)
    look = messages.get_request(name=name, what=f"link {name}")
    what = f"cannot move link {device.name} to {name} in {netns.path}"
    with rtnetlink.connect(netns) as there:
        # The kernel would move it first and find the name taken then.
        (taken,) = there.exchange([look])
        if not isinstance(taken, KernelError):
            raise link.name_taken(name, netns)
        try:
            with rtnetlink.connect() as here:
                here.send(
                    [messages.set_request(what, index=device.index, rename=name, alias=device.name, netns=netns)],
                )
            for answer in there.exchange([messages.altname_request(tag(owner), add=True, name=name), look]):
                # Without alternative names (before Linux 5.5) the alias alone tells of the loan.
                if isinstance(answer, KernelError) and answer.errno != errno.EOPNOTSUPP:
                    raise answer
            assert isinstance(answer, bytes)
            return Loan(device, link.parse(answer, netns), owner)
        except BaseException as error:
            _fetch(there, device, netns, name, owner)
            if isinstance(error, KernelError):
                raise _explain(error, device) from error
            raise


def find(owner: Attachment, netns: NetNS | None = None) -> Link | None:
    """Look up the link that an attachment has on loan, under whatever name; None when there is none.

    Args:
        owner: The attachment.
        netns: Where; None means the calling thread's namespace, where it is when it needs to be settled.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    body = messages.message(attribute(messages.IFLA_ALT_IFNAME, tag(owner).encode(), b"\0"))
    with rtnetlink.connect(netns) as sock:
        (answer,) = sock.exchange([Message(rtnetlink.GETLINK, body, f"cannot look up {owner}", flags=0)])
    if isinstance(answer, KernelError):
        if answer.errno in (errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP):  # the latter two: before Linux 5.5
            return None
        raise answer
    assert answer is not None
    return link.parse(answer, netns)


def find_lent(
    owner: Attachment,
    netns: NetNS,
    *,
    device: str = "",
    mac: str = "",
    is_own: Callable[[Link], bool] = lambda _: False,
) -> Link | None:
    """Look up the link that an attachment has on loan in its container, also one that the reference plugin lent.

    The reference plugin tags nothing: its link has the attachment's name and an alias that is a name. The hardware
    address or the device tells that it is not another's: the path of a namespace may lead to the next container by now,
    and another attachment of the container may have the name. If the container has renamed the link, it counts only
    where the hardware address is known, which proves that there was a loan: after an ADD that failed, the link is
    another attachment's.

    Args:
        owner: The attachment.
        netns: The container's namespace.
        device: Its name on the host, where the configuration has it.
        mac: Its hardware address, where the result of ADD has it.
        is_own: Function that tells if a link of the attachment's name, whose hardware address does not tell, is the
            attachment's. It is asked where the device is not known.

    Returns:
        The link; None when there is none.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    tagged = find(owner, netns)
    if tagged is not None:
        return tagged
    named = link.find(owner.ifname, netns)
    if (
        named is not None
        and _is_untagged(named)
        and ((mac and named.mac == mac) or (named.alias == device if device else is_own(named)))
    ):
        return named
    if mac:
        for each in link.list_all(netns):
            if _is_untagged(each) and (each.alias == device or each.mac == mac):
                return each
    return None


def find_returned(device: str, mac: str) -> Link | None:
    """Find a link that the reference plugin lent. When its namespace ended, the kernel moved it to the host.

    Only its alias tells what it was called; an administrator may have set such an alias. So it counts only where no
    link has that name, and with the hardware address of the result of ADD.

    Args:
        device: Name that the link had on the host.
        mac: Hardware address of the result of ADD.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    if not device or not mac or link.find(device) is not None:
        return None
    return next((each for each in link.list_all() if (each.alias, each.mac, each.up) == (device, mac, False)), None)


def get_on_host(device: str) -> Link:
    """Return a link of the host by its name, also one that came back under another name and was not settled.

    Raises:
        LinkNotFoundError: (5) There is none.
    """
    found = link.find(device)
    if found is not None:
        return found
    for each in link.list_all():
        if each.alias == device and each.loan_tag:
            return each
    raise link.LinkNotFoundError(f"failed to find host device: link {device} does not exist")


def find_borrower(match: Callable[[Link], bool]) -> str | None:
    """Return the path of a named network namespace that has a link of the host on loan; None when none has it.

    Args:
        match: Tells whether a link on loan is the one that is looked for.
    """
    from glob import glob  # which imports re

    for path in sorted(glob(f"{_NAMED}/*")):
        try:
            with namespaces.open(path) as netns:
                if any(name_at_home(each) and match(each) for each in link.list_all(netns)):
                    return path
        except CNIError:
            continue  # it ends this moment, or its name is left over
    return None


def name_at_home(there: Link) -> str:
    """Return what the host calls a link on loan: its alias; empty when that is no name of a link."""
    try:
        return check_ifname(there.alias)
    except InvalidEnvironmentError:
        return ""


def _is_untagged(there: Link) -> bool:
    """Return True if the reference plugin may have lent the link: it leaves an alias, and no tag."""
    return bool(name_at_home(there)) and not there.loan_tag


def give_back(end: Link, *, owner: Attachment, name: str = "") -> Link | None:
    """Move a link from its container to the calling thread's namespace, under the name it had there. It is down then.

    Where another link has that name meanwhile, the kernel completes one: ``eth1-0``. The alias tells the old name then.
    Whatever a container does to the link's names, the link comes back.

    Args:
        end: The link in the container.
        owner: The attachment that it is lent to.
        name: Its name on the host; empty means its alias, and a name such as ``dev0`` where that is no name.

    Returns:
        The link on the host; None when it was gone from the container.

    Raises:
        KernelError: (5) The kernel refused.
    """
    settle(owner)  # an earlier one: no two links of the host may have one tag
    name = name or name_at_home(end)
    free = f"{name[:_STEM_MAX]}-%d" if name else "dev%d"
    targets = [free, free] if not name or link.find(name) is not None else [name, name, free]
    with namespaces.current() as host, rtnetlink.connect(end.netns) as there:
        # Tagged first, so that it is found on the host whatever comes between.
        there.exchange([messages.altname_request(tag(owner), add=True, index=end.index)])
        while targets:
            target = targets.pop(0)
            alias = _NO_ALIAS if target == name else name or _NO_ALIAS
            what = f"cannot move link {end.name} back to the host as {target}"
            move = messages.set_request(what, index=end.index, rename=target, alias=alias, netns=host)
            (answer,) = there.exchange([move])
            if not isinstance(answer, KernelError):
                break
            if answer.errno == errno.ENODEV:
                return None
            if answer.errno != errno.EEXIST or not targets:
                raise answer
            if find(owner) is not None:
                break  # it has moved, but this moment another link took the name
            # Another link of the host has one of its alternative names.
            names = [each for each in end.refresh().altnames if each != tag(owner)]
            there.exchange([messages.altname_request(each, add=False, index=end.index) for each in names])
    return settle(owner)


def settle(owner: Attachment) -> Link | None:
    """Give the link of an attachment that is on the host the name it had there, and end the loan.

    Returns:
        The link; None when there is none to settle.

    Raises:
        KernelError: (5) The kernel refused.
    """
    home = find(owner)
    return None if home is None else bring_home(home)


def settle_stale(network: str, valid: Collection[Attachment]) -> list[Link]:
    """Settle the loans of a network's attachments that are not among the valid ones, for GC.

    Links in other namespaces stay: as long as the namespace lives, DEL finds them.

    Args:
        network: Name of the network.
        valid: Attachments that are not touched.

    Returns:
        The links on the host.

    Raises:
        KernelError: (5) The kernel refused.
    """
    prefixes, keep = network_tag_prefixes(network), {tag(each) for each in valid}
    stale = [
        each
        for each in link.list_all()
        if any(name.startswith(prefixes) and name not in keep for name in each.altnames)
    ]
    return [bring_home(each) for each in stale]


def bring_home(home: Link) -> Link:
    """End the loan of a link that is on the host already: its name, its alias and its tags.

    It keeps the name it has where another link has the old one, and where it is up, because then it is in use.

    Returns:
        The link as it is now.

    Raises:
        KernelError: (5) The kernel refused.
    """
    name, requests = name_at_home(home), []
    if name == home.name:
        requests.append(messages.set_request(f"cannot clear the alias of {name}", index=home.index, alias=_NO_ALIAS))
    # One that is up is in use under the name it has.
    elif name and not home.up:
        what = f"cannot rename link {home.name} to {name}"
        requests.append(messages.set_request(what, index=home.index, rename=name, alias=_NO_ALIAS))
    tags = [each for each in home.altnames if each.startswith(_PREFIX)]
    requests += [messages.altname_request(each, add=False, index=home.index) for each in tags]
    with rtnetlink.connect() as sock:
        for answer in sock.exchange(requests):
            if isinstance(answer, KernelError) and answer.errno not in (errno.EEXIST, errno.EBUSY, errno.ENODEV):
                raise answer
    return home.refresh()


def _fetch(there: Socket, device: Link, netns: NetNS, name: str, owner: Attachment) -> None:
    """Bring a link home after a move that failed, if it has left."""
    if link.find(device.name) is not None:
        return
    answers = there.exchange([messages.get_request(name=each, what=f"link {each}") for each in (name, device.name)])
    for answer in answers:
        if isinstance(answer, bytes):
            end = link.parse(answer, netns)
            if end.alias == device.name or (end.name == device.name and end.mac == device.mac):
                Loan(device, end, owner).take_back()
                return


def _explain(error: KernelError, device: Link) -> Exception:
    if error.errno == errno.ENODEV:
        return IOFailureError(error.msg, details=f"{device.name} is gone: another container may have taken it")
    if error.errno == errno.EINVAL:
        return IOFailureError(
            error.msg,
            details=error.reason or f"links of kind {device.kind or 'unknown'} may be bound to their namespace",
        )
    return error


def tag(owner: Attachment) -> str:
    """Return the alternative name of a link that an attachment has on loan."""
    return owner.tag_within(link.ALTNAME_MAX)
