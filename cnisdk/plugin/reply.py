"""From the environment and standard input to one JSON document on standard output (spec §2, §5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from .. import _releasing
from .._light import Any, NamedTuple
from ..classes import FIELDS, evolve
from ..errors import CNIError, InternalError, InvalidNetNSError, TryAgainLaterError, as_cni_error
from ..spec.codec import dumps, dumps_compact, find_key, loads
from ..spec.config import NetConf
from ..spec.convert import AnyResult, convert_result, print_result
from ..spec.fields import is_attrs_class
from ..spec.result import Result
from ..spec.versions import ALL, CURRENT, V1_1_0, SpecVersion, Verb
from ._signals import Terminated
from .base import Plugin
from .request import AddRequest, CheckRequest, DelRequest, GCRequest, Request, StatusRequest, parse_request, parse_verb
from .undo import UndoStack

Guard = Callable[[Request[Any]], None]
"""Check of a request before its handler runs; it raises a :class:`~cnisdk.CNIError`."""

is_spent = False
"""True if this process may serve no other request: a plugin ran that does not promise to leave it unchanged
(:attr:`.Plugin.leaves_process_unchanged`), or a request failed in a way that no plugin foresees. The resident mode
resets it before each request."""

_SHOWN = 3  # problems in the configuration of a DEL that are printed


class Reply(NamedTuple):
    """The answer to a request.

    Attributes:
        stdout: Exactly one JSON document, or nothing.
        status: The exit status.
        stderr: Text for people.
        undo: The inverses to run if the answer cannot be delivered: a runtime that never got the result of an ADD may
            never send its DEL.
    """

    stdout: bytes
    status: int
    stderr: str
    undo: UndoStack


def respond(
    plugin: type[Plugin[Any]],
    environ: Mapping[str, str],
    stdin: bytes,
    *,
    guard: Guard | None = None,
    interruptible: AbstractContextManager[object] | None = None,
) -> Reply:
    """Answer one request. Apart from the handler's work, this does no I/O.

    Args:
        plugin: The class of the plugin.
        environ: The environment: the ``CNI_*`` variables, and those that delegates inherit.
        stdin: The network configuration.
        guard: Called with the request before the handler; may raise to refuse it.
        interruptible: Entered around the handler: inside, and only there, a signal may raise :class:`Terminated`.
    """
    global is_spent
    is_spent |= not promises_unchanged_process(plugin)
    undo = UndoStack()
    version: SpecVersion | None = None
    notes: list[str] = []
    verb: Verb | None = None
    try:
        verb = parse_verb(environ)
        if verb is Verb.VERSION:
            return Reply(_version_document(plugin.supported_versions), 0, "", undo)
        request = parse_request(
            verb, environ, stdin, plugin.conf_class(), plugin.supported_versions, plugin.converter()
        )
        undo, version = request.undo_stack, request.version
        with interruptible or nullcontext():
            if guard is not None:
                guard(request)
            result = _handle(plugin(), request, notes)
        stdout = b"" if result is None else _print(result, request, notes)
        if not isinstance(request, AddRequest):
            undo.commit()  # only an ADD is undone when its reply cannot be delivered
        return Reply(stdout, 0, "".join(notes), undo)
    except BaseException as exc:
        error = _as_cni_error(exc, notes)
        problems = undo.unwind()
        is_spent |= bool(problems) or not isinstance(exc, CNIError)
        if isinstance(exc, Terminated) and not problems:
            error = ended_by_signal(exc, verb)
        elif problems:
            failed = "; ".join(f"cleaning up failed too: {problem}" for problem in problems)
            error.details = f"{error.details}; {failed}" if error.details else failed
        return Reply(print_error(error, version or version_written(stdin)), 1, "".join(notes), undo)


def mark_spent() -> None:
    """Let this process serve no other request."""
    global is_spent
    is_spent = True


def promises_unchanged_process(plugin: type[Plugin[Any]]) -> bool:
    """Return True if the class itself sets :attr:`.Plugin.leaves_process_unchanged`. A subclass inherits no promise."""
    return bool(vars(plugin).get("leaves_process_unchanged", False))


def version_written(stdin: bytes) -> SpecVersion:
    """Find the version of a configuration that was not read yet, or is broken; the newest when it is not known."""
    try:
        document = loads(stdin)
        written = find_key(document, "cniVersion") or "" if isinstance(document, dict) else None
    except CNIError:
        written = _version_in_broken(stdin)
    if written == "":
        return ALL[0]
    return next((each for each in ALL if str(each) == written), CURRENT)


def _version_in_broken(stdin: bytes) -> str | None:
    """Return the version that the outermost object of a text names, which is no JSON; None when it names none."""
    import re

    depth = 0
    parts = rb'"cniVersion"\s*:\s*"(?P<version>[0-9.]{1,20})"|(?P<open>[{\[])|(?P<close>[}\]])|"(?:[^"\\]|\\.)*"'
    for part in re.finditer(parts, stdin, re.IGNORECASE | re.DOTALL):
        depth += bool(part["open"]) - bool(part["close"])
        if part["version"] and depth == 1:
            return part["version"].decode()
    return None


def ended_by_signal(exc: Terminated, verb: Verb | None) -> CNIError:
    """Make the error of a request that a signal ended, after its undo has run."""
    if verb in (Verb.DEL, Verb.GC):
        details = "it may be done in part; run it again"
    else:
        details = "everything done so far was taken back"
    return TryAgainLaterError(f"ended by signal {exc.signum}", details=details)


def _note_mistakes(conf: NetConf, notes: list[str]) -> None:
    """Note what looks like a mistake, but may be none, in ADD alone: CHECK and DEL get the same configuration."""
    if _has_unknown_keys(conf):
        from ..spec._spelling import find_misspelt

        notes += [f"{place} is not known: did you mean {meant}?\n" for place, meant in find_misspelt(conf)]
    if conf.ipam.extra and not conf.ipam.type:
        notes.append("$.ipam.type is not set: no IPAM plugin is asked for addresses\n")


def _has_unknown_keys(part: Any) -> bool:
    """Return whether a part of a configuration has keys that no field stands for, however deep."""
    if isinstance(part, tuple):
        return any(map(_has_unknown_keys, part))
    cls = type(part)
    if not is_attrs_class(cls):
        return False
    fields = vars(cls).get(FIELDS) or cls.__attrs_attrs__
    return bool(getattr(part, "extra", None)) or any(_has_unknown_keys(getattr(part, each.name)) for each in fields)


def _handle(plugin: Plugin[Any], request: Request[Any], notes: list[str]) -> AnyResult | None:
    if isinstance(request, AddRequest):
        _note_mistakes(request.conf, notes)
        result: object = plugin.add(request)
        if not isinstance(result, AnyResult):
            raise InternalError(
                f"{type(plugin).__name__}.add returned {type(result).__name__}, expected a cnisdk.Result",
                details="this is a bug in the plugin; what it did was taken back",
            )
        return result
    if isinstance(request, DelRequest):
        try:
            plugin.delete(request)
        finally:
            if request.problems:
                shown = "; ".join(map(str, request.problems[:_SHOWN]))
                more = f" (and {len(request.problems) - _SHOWN} more)" if len(request.problems) > _SHOWN else ""
                notes.append(f"DEL goes on without what is wrong in its configuration: {shown}{more}\n")
    elif isinstance(request, CheckRequest):
        plugin.check(request)
    elif isinstance(request, GCRequest):
        plugin.gc(request)
    elif isinstance(request, StatusRequest):
        plugin.status(request)
    return None


def _print(result: AnyResult, request: Request[Any], notes: list[str]) -> bytes:
    version = request.version
    if version < V1_1_0 and request.conf.prev_result is None and isinstance(result, Result):
        # Readers of older versions do not know the keys of 1.1.0. Those of a plugin before in the chain stay.
        plain = (evolve(each, mtu=0, socket_path="", pci_id="") for each in result.interfaces)
        result = evolve(result, interfaces=tuple(plain))
    conversion = convert_result(result, version)
    # Versions before 0.3.0 have no interfaces, and those before 1.0.0 lack some of their fields: that is known and does
    # no harm. A lost address or route does.
    serious = [
        str(lost)
        for lost in conversion.lost
        if lost.path.startswith(("$.ips", "$.routes")) and not lost.path.endswith("].interface")
    ]
    if serious:
        notes.append(f"a result of version {version} has no place for {', '.join(serious)}\n")
    return print_result(conversion.result)


def _as_cni_error(exc: BaseException, notes: list[str]) -> CNIError:
    if isinstance(exc, CNIError):
        return exc
    if isinstance(exc, Terminated):
        return TryAgainLaterError(f"ended by signal {exc.signum}")
    if not isinstance(exc, Exception):
        return InternalError(f"ended by {type(exc).__name__}")
    from traceback import format_exception

    notes.extend(format_exception(exc))
    error = as_cni_error(exc)
    if isinstance(error, InternalError):
        error.details = "this is a bug in the plugin; its traceback is on stderr"
    return error


def print_error(error: CNIError, version: SpecVersion = CURRENT) -> bytes:
    """Write the error object (spec §5, "Error"), with the ``cniVersion`` the spec asks for."""
    document: dict[str, object] = {"cniVersion": str(version), "code": error.code, "msg": error.msg}
    if error.details:
        document["details"] = error.details
    return dumps(document)


def _version_document(supported: tuple[SpecVersion, ...]) -> bytes:
    listed = [str(version) for version in sorted(supported)]
    return dumps_compact({"cniVersion": str(CURRENT), "supportedVersions": listed}) + b"\n"


def check_may_begin(request: Request[Any]) -> None:
    """Refuse what :func:`refuse_own_netns` does. Let an ADD wait while gc releases what is left under its names.

    Raises:
        InvalidNetNSError: (8) The container's network namespace is the plugin's own.
        TryAgainLaterError: (11) The gc took too long.
    """
    refuse_own_netns(request)
    if isinstance(request, AddRequest):
        _releasing.wait(request.attachment)


def refuse_own_netns(request: Request[Any]) -> None:
    """Refuse to work when the container's network namespace is the plugin's own: it would reconfigure the host.

    The variable ``CNI_NETNS_OVERRIDE`` (``1`` or ``true``) allows it, as in the reference.

    Raises:
        InvalidNetNSError: (8) They are the same.
    """
    if not isinstance(request, AddRequest | CheckRequest | DelRequest) or not request.netns:
        return
    if request.environ.get("CNI_NETNS_OVERRIDE", "").lower() in ("1", "true"):
        return
    import os

    try:
        theirs, ours = os.stat(request.netns), os.stat("/proc/self/ns/net")
    except (OSError, ValueError):
        return  # open_netns() reports it, if the plugin needs the namespace: IPAM plugins and DEL do not
    if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
        raise InvalidNetNSError(
            f"CNI_NETNS {request.netns} is the plugin's own network namespace",
            details="plugin's netns and netns from CNI_NETNS should not be the same; "
            "a DEL with an empty CNI_NETNS releases what is outside the container",
        )
