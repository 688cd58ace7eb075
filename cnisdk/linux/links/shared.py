"""A link that several attachments set up and down, such as a namespace's loopback interface.

Each attachment marks the link with an alternative name. The link goes down with the last mark. So a late DEL removes
only its own mark, even if the path of the namespace leads to another container by now.
"""

from __future__ import annotations

import errno

from ...spec.names import Attachment
from .. import rtnetlink
from ..rtnetlink import KernelError
from . import link, loan, messages
from .link import Link

_PREFIX = "cni:"


def set_up(shared: Link, owner: Attachment) -> bool:
    """Mark a link as used by an attachment, and set it up.

    Args:
        shared: The link, on the host or in a container.
        owner: The attachment.

    Returns:
        False if it had the mark already: another ADD of the attachment made it, and undo must not remove it.

    Raises:
        KernelError: (5) The kernel refused. Kernels before 5.5 know no alternative names: that is fine.
    """
    mark = messages.altname_request(loan.tag(owner), add=True, index=shared.index)
    with rtnetlink.connect(shared.netns) as sock:
        marked, up = sock.exchange([mark, messages.up_request(shared.index, shared.name)])
    if isinstance(up, KernelError):
        raise up
    if isinstance(marked, KernelError) and marked.errno not in (errno.EEXIST, errno.EOPNOTSUPP):
        raise marked
    return not isinstance(marked, KernelError) or marked.errno != errno.EEXIST


def set_down(shared: Link, owner: Attachment, *, keep_up: bool = False) -> None:
    """Take an attachment's mark off a link, and set the link down if no other attachment uses it.

    A link with no mark at all is the reference plugin's. It is set down as well, unless another link of its namespace
    is up: then the container may be alive.

    Args:
        shared: The link as it is now, with its marks.
        owner: The attachment.
        keep_up: Take only the mark off: the link was up before it was marked.

    Raises:
        KernelError: (5) The kernel refused.
    """
    marks, own = _marks(shared), loan.tag(owner)
    if not marks and any(each.up and each.index != shared.index for each in link.list_all(shared.netns)):
        return
    requests = [messages.altname_request(own, add=False, index=shared.index)] if own in marks else []
    last = marks <= {own} and not keep_up
    if last:
        requests.append(messages.down_request(shared.index, shared.name))
    with rtnetlink.connect(shared.netns) as sock:
        sock.send(requests)
        if last and _marks(shared.refresh()):  # another attachment has marked it meanwhile, and set it up
            sock.send([messages.up_request(shared.index, shared.name)])


def _marks(shared: Link) -> set[str]:
    return {name for name in shared.altnames if name.startswith(_PREFIX)}
