"""Repair of an attachment by one of its plugins, in the calling process: the specification has no verb for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .._light import Any
from ..errors import CNIError, InvalidNetNSError, IOFailureError
from ..linux import address, link
from ..spec.versions import Verb
from . import interface
from .base import Plugin
from .reply import refuse_own_netns
from .request import CheckRequest, parse_request


class NotAsRecordedError(IOFailureError):
    """Code 5: the attachment is gone, or not as its result says."""


class NoLongerAsRecordedError(NotAsRecordedError):
    """Code 5: the same, since its plugin began to put something back."""


def repairs(plugin: type[Plugin[Any]]) -> bool:
    """Return whether a plugin has anything that could be put back."""
    return plugin.repair is not Plugin.repair


def delegates(plugin: type[Plugin[Any]]) -> bool:
    """Return whether a plugin may delegate to another one that has anything."""
    return plugin.find_delegate_conf is not Plugin.find_delegate_conf


def repair(plugin: type[Plugin[Any]], environ: Mapping[str, str], stdin: bytes, *, dry_run: bool = False) -> bool:
    """Have a plugin put back what CHECK would miss, and return whether anything was missing.

    Args:
        plugin: The class of the plugin.
        environ: The environment of a CHECK.
        stdin: The configuration that it would get.
        dry_run: If true, nothing is put back.

    Raises:
        NotAsRecordedError: (5) The attachment is gone, or not as its result says. Nothing was changed.
        NoLongerAsRecordedError: (5) The same since the plugin began. It may have put something back.
        CNIError: The configuration or the result is of no use; or the plugin's own.
    """
    with _alive(plugin, environ, stdin) as request:
        try:
            return plugin().repair(request, dry_run=dry_run)
        except CNIError:
            try:
                _expect_alive(request)
            except NotAsRecordedError as exc:
                raise NoLongerAsRecordedError(exc.msg, details=exc.details) from exc
            raise


def find_delegate_conf(plugin: type[Plugin[Any]], environ: Mapping[str, str], stdin: bytes) -> Mapping[str, Any] | None:
    """Find the configuration with which a plugin has delegated an attachment; the arguments are those of `repair`.

    Raises:
        NotAsRecordedError: (5) The attachment is gone, or not as its result says.
        CNIError: The configuration or the result is of no use; or the plugin's own.
    """
    with _alive(plugin, environ, stdin) as request:
        return plugin().find_delegate_conf(request)


@contextmanager
def _alive(plugin: type[Plugin[Any]], environ: Mapping[str, str], stdin: bytes) -> Iterator[CheckRequest[Any]]:
    request = parse_request(
        Verb.CHECK, environ, stdin, plugin.conf_class(), plugin.supported_versions, plugin.converter()
    )
    assert isinstance(request, CheckRequest)
    try:
        _expect_alive(request)
        yield request
    finally:
        request.undo_stack.commit()


def _expect_alive(request: CheckRequest[Any]) -> None:
    try:
        refuse_own_netns(request)  # where the number of a process that has ended is that of another one
        _check_alive(request)
    except (InvalidNetNSError, IOFailureError) as exc:
        raise NotAsRecordedError(exc.msg, details=exc.details) from exc


def _check_alive(request: CheckRequest[Any]) -> None:
    """Verify that the container's interface has the hardware address and the addresses of its result.

    If it has not, the attachment may be gone, and its addresses another container's.
    """
    result, ifname = request.require_prev_result(), request.ifname
    described, ips = interface.find_described(result, ifname), interface.own_ips(result, ifname)
    if described is None and not ips:
        raise IOFailureError(f"its cached result has neither interface {ifname} nor addresses of it")
    end = link.get(ifname, request.open_netns())
    if described is not None:
        interface.check_mac(described, end)
    present = {each.interface for each in address.list_on(end)}
    for ip in ips:
        if ip.address not in present:
            raise IOFailureError(f"interface {ifname} in {request.netns} does not have the address {ip.address}")
