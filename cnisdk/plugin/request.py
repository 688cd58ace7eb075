"""Typed requests of a runtime to a plugin (spec §2, "CNI operations"; §3, "Deriving request configuration").

:func:`parse_request` makes them of an environment mapping and the bytes of standard input, without any I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .._light import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar
from .._signals import HeldBack
from ..classes import evolve, frozen
from ..errors import CNIError, DecodingError, InvalidConfigError, InvalidEnvironmentError
from ..spec._mismatch import show_path
from ..spec.codec import find_key, loads, structure
from ..spec.config import NetConf, RuntimeConfig, parse_args
from ..spec.convert import structure_result, upgrade
from ..spec.fields import json_field
from ..spec.names import Attachment, check_container_id, check_ifname, check_network_name, check_plugin_type
from ..spec.versions import PREV_RESULT_SINCE, SpecVersion, Verb, negotiate
from .undo import UndoStack

if TYPE_CHECKING:
    from cattrs import BaseConverter

    from ..invoke import Delegate
    from ..linux.netns import NetNS
    from ..spec.result import Result

ConfT = TypeVar("ConfT", bound=NetConf)
"""Configuration class of a plugin."""

_P = ParamSpec("_P")

REQUIRED_VARIABLES: dict[Verb, tuple[str, ...]] = {
    Verb.ADD: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    Verb.CHECK: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    Verb.DEL: ("CNI_CONTAINERID", "CNI_IFNAME"),
    Verb.GC: ("CNI_PATH",),
    Verb.STATUS: (),
    Verb.VERSION: (),
}
"""Variables that must be set, and not empty, for each verb (spec §2, "CNI operations").

The reference's SDK requires ``CNI_PATH`` for every verb, the specification only for GC.
"""

_VALIDATORS: dict[str, Callable[[str], str]] = {"CNI_CONTAINERID": check_container_id, "CNI_IFNAME": check_ifname}

VALID_ATTACHMENTS_KEYS = ("cni.dev/valid-attachments", "cni.dev/attachments")
"""Keys of the attachments that GC keeps: the specification's, and the one of the first edition of 1.1.0."""


IPAM_TIMEOUT = 90.0
"""Seconds an IPAM plugin may take.

With the DEL of a failed ADD it is less than the two minutes after which runtimes kill the plugin that waits for it.
"""


@frozen(kw_only=True)
class _ValidAttachment:
    container_id: str = json_field("containerID")
    ifname: str


class IPAM:
    """The IPAM plugin a configuration delegates to (spec §4).

    The verbs do nothing when the configuration names none. Leases are released again if the request fails.
    """

    def __init__(self, conf: NetConf, environ: Mapping[str, str], stdin: bytes, undo: UndoStack) -> None:
        self._type = conf.ipam.type
        self._is_itself = conf.ipam.type == conf.type
        self._environ = environ
        self._stdin = stdin
        self._undo = undo

    @property
    def configured(self) -> bool:
        """True if the configuration names an IPAM plugin; an empty name is none."""
        return bool(self._type)

    @property
    def delegate(self) -> Delegate:
        """The plugin, ready to be run with the environment and the configuration of this request.

        Raises:
            InvalidConfigError: (7) The configuration names none, or one that cannot be found, or the plugin itself.
        """
        self.require()
        check_plugin_type(self._type, "$.ipam.type")
        if self._is_itself:  # which would run itself, and that one itself, until the machine is full
            raise InvalidConfigError(
                f"plugin {self._type} is its own IPAM plugin", details="$.ipam.type: expected one such as host-local"
            )
        from ..invoke import Delegate

        delegate = Delegate(self._type, self._environ, self._stdin, timeout=IPAM_TIMEOUT)
        try:
            delegate.path  # noqa: B018  # it is looked for once
        except InvalidConfigError as exc:
            raise InvalidConfigError(exc.msg, details="; ".join(filter(None, ("$.ipam.type", exc.details)))) from exc
        return delegate

    def require(self) -> None:
        """Refuse a configuration that names no IPAM plugin, for a plugin that needs addresses.

        Raises:
            InvalidConfigError: (7) It names none.
        """
        if not self._type:
            raise InvalidConfigError("the network configuration names no IPAM plugin", details="$.ipam.type is not set")

    def add(self) -> Result:
        """Lease addresses. They are released again if this request fails later, unless they are another ADD's.

        A runtime may send two ADDs of one attachment. Make the link first, where you can: the second ADD ends there.
        If nothing to undo has been registered before this call, the addresses stay when the request has failed and
        the container has the interface all the same.

        The result of an IPAM plugin is abbreviated (spec §5, "Delegated plugins (IPAM)"): this plugin fills in the
        interfaces, and the interface of each address. Some IPAM plugins send interfaces nevertheless. They describe
        nothing, and are left out, as by the reference's plugins.

        Returns:
            The result of the IPAM plugin; an empty one when the configuration names none. Its addresses belong to no
            interface yet: :meth:`cnisdk.Result.with_interfaces` gives them the container's.

        Raises:
            CNIError: The error of the IPAM plugin. It has been told to release what it may have leased. If it refused
                (code 4) since the attachment has addresses already, it has not: another ADD leased those.
        """
        if not self._type:
            return _empty_result()
        # A plugin that has something to undo is taken to have made its link, and so to have won the interface. One that
        # has made nothing may still lose it.
        keep = None if self._undo else lambda: _is_attached(self._environ)
        return _abbreviate(_add_through(self.delegate, self._undo, keep))

    def check(self) -> None:
        """Have the IPAM plugin check its leases."""
        if self._type:
            self.delegate.check()

    def delete(self) -> None:
        """Have the IPAM plugin release the addresses of this attachment."""
        if self._type:
            self.delegate.delete()

    def gc(self) -> None:
        """Have the IPAM plugin release the addresses that no valid attachment holds."""
        if self._type:
            self.delegate.gc()

    def status(self) -> None:
        """Ask the IPAM plugin whether it can serve ADD."""
        if self._type:
            self.delegate.status()


def _is_attached(environ: Mapping[str, str]) -> bool:
    """Return whether the container has the interface.

    If it has before this request makes it, or after all that this request has made is undone, another ADD of the
    attachment made it. The addresses are that one's, too: many IPAM plugins give an attachment the same again.
    """
    from ..linux import link, netns

    try:
        opened = netns.find(environ.get("CNI_NETNS", ""))
        if opened is None:
            return False
        with opened:
            return link.find(environ["CNI_IFNAME"], opened) is not None
    except CNIError:
        return True  # nothing tells; the DEL that a runtime sends after a failed ADD releases them


def _add_through(delegate: Delegate, undo: UndoStack, keep: Callable[[], bool] | None = None) -> Result:
    """Run a delegate's ADD; its DEL, if the request fails later, unless `keep` returns True then."""
    forget = undo.push(_unless, keep, delegate.delete)
    try:
        return delegate.add(keep=keep)
    except CNIError:
        forget()  # the delegate has been told to DEL already
        raise
    except BaseException:
        # A signal or a deadline leaves little time, and the delegate may hang: its DEL runs last.
        forget()
        undo.push_last(_unless, keep, delegate.delete_soon)
        raise


def _unless(keep: Callable[[], bool] | None, step: Callable[[], object]) -> None:
    if keep is None or not keep():
        step()


def _abbreviate(result: Result) -> Result:
    """Return the result without interfaces, and with addresses that belong to none."""
    if not result.interfaces and all(ip.interface is None for ip in result.ips):
        return result
    return evolve(result, interfaces=(), ips=tuple(evolve(ip, interface=None) for ip in result.ips))


def _empty_result() -> Result:
    from ..spec.result import Result

    return Result()


class Request(Generic[ConfT]):
    """The common part of all requests.

    Attributes:
        verb: The verb.
        version: The version of the specification both sides agreed on.
        conf: The configuration, typed.
        document: The configuration as parsed, for keys no type stands for.
        environ: The environment the plugin was run with.
        stdin: The configuration, byte for byte, for delegates.
        ipam: The IPAM plugin the configuration names.
        undo_stack: The inverses to run if the request fails.
    """

    def __init__(
        self,
        verb: Verb,
        version: SpecVersion,
        conf: ConfT,
        document: Mapping[str, Any],
        environ: Mapping[str, str],
        stdin: bytes,
    ) -> None:
        self.verb = verb
        self.version = version
        self.conf: ConfT = conf
        self.document = document
        self.environ = environ
        self.stdin = stdin
        self.undo_stack = UndoStack()
        self.ipam = IPAM(conf, environ, stdin, self.undo_stack)

    @property
    def network(self) -> str:
        """Name of the network."""
        return self.conf.name

    @property
    def args(self) -> dict[str, str]:
        """``CNI_ARGS`` as a mapping.

        Raises:
            InvalidEnvironmentError: (4) It is malformed.
        """
        return parse_args(self.environ.get("CNI_ARGS", ""))


class AttachmentRequest(Request[ConfT]):
    """A request about one attachment: ADD, CHECK, DEL."""

    @property
    def container_id(self) -> str:
        """``CNI_CONTAINERID``."""
        return self.environ["CNI_CONTAINERID"]

    @property
    def ifname(self) -> str:
        """``CNI_IFNAME``: name of the interface inside the container."""
        return self.environ["CNI_IFNAME"]

    @property
    def netns(self) -> str:
        """``CNI_NETNS``: path of the network namespace, verbatim; may be empty in DEL."""
        return self.environ.get("CNI_NETNS", "")

    @property
    def attachment(self) -> Attachment:
        """The attachment: the owner of all objects that this request makes."""
        return Attachment(self.network, self.container_id, self.ifname)

    @property
    def prev_result(self) -> Result | None:
        """``prevResult`` in the current shape: the result of the plugin before (ADD), or of the whole ADD.

        Raises:
            DecodingError: (6) It is malformed.
        """
        if self.conf.prev_result is None:
            return None
        old = structure_result(self.conf.prev_result, self.conf.cni_version, what="prevResult", path="$.prevResult")
        return upgrade(old)

    def require_prev_result(self) -> Result:
        """Return the result of the plugin before, for plugins that cannot work without one.

        Raises:
            InvalidConfigError: (7) The runtime sent none.
        """
        result = self.prev_result
        if result is None:
            since = PREV_RESULT_SINCE[self.verb]
            raise InvalidConfigError(
                "required prevResult missing",
                details=f"$.prevResult is absent; runtimes send it to {self.verb} from cniVersion {since} on",
            )
        return result

    def find_netns(self) -> NetNS | None:
        """Open the network namespace, or return None when it is gone: no path, nothing there, or no namespace there.

        It is closed with the request; see :meth:`open_netns`.
        """
        from ..linux import netns

        found = netns.find(self.netns)
        return None if found is None else self._keep(found)

    def open_netns(self) -> NetNS:
        """Open the network namespace.

        The request closes it, after the inverses registered for undo have run. A ``with`` around it is not needed, and
        leaves it open.

        Raises:
            InvalidNetNSError: (8) There is nothing at the path, or it is not a network namespace.
        """
        from ..linux import netns

        return self._keep(netns.open(self.netns))

    def _keep(self, opened: NetNS) -> NetNS:
        from ..linux import rtnetlink

        opened.keep()
        self.undo_stack.close_at_end(opened.close)
        self.undo_stack.close_at_end(rtnetlink.keep(opened))
        return opened


class AddRequest(AttachmentRequest[ConfT]):
    """ADD: attach a container to the network.

    :class:`Request` has more: the configuration, ``conf``, and the IPAM plugin that it names, ``ipam``.
    """

    def step(self) -> HeldBack:
        """Hold signals back inside ``with``, for a step that makes an object and registers its :meth:`undo`.

        A signal ends a request at any line. Between the two it would leave an object that no undo removes. Inside the
        block it waits, and is raised when the block ends; so wait for nothing in there. Call it in the main thread.
        """
        return HeldBack()

    def undo(self, inverse: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs) -> None:
        """Register the inverse of a step. If the request fails from here on, inverses run in reverse order.

        An inverse must accept that there is nothing to undo: it may run when its step was interrupted half way.
        """
        self.undo_stack.push(inverse, *args, **kwargs)

    def add_through(self, delegate: Delegate, *, again: bool = False) -> Result:
        """Run the ADD of another plugin, which attaches the container. If this request fails later, its DEL runs.

        For IPAM plugins, use :attr:`ipam`.

        Args:
            delegate: The plugin, with its configuration: ``Delegate(type, request.environ, dumps(conf))``.
            again: There are signs of an earlier ADD. If the container has the interface before this one, that is the
                earlier one's, and no DEL runs.

        Returns:
            Its result in the shape of 1.1.0.

        Raises:
            CNIError: Its error, see :meth:`cnisdk.invoke.Delegate.add`.
        """
        attached = again and _is_attached(self.environ)
        return _add_through(delegate, self.undo_stack, lambda: attached)


class CheckRequest(AttachmentRequest[ConfT]):
    """CHECK: verify that the attachment is as ADD left it. Change nothing."""


class DelRequest(AttachmentRequest[ConfT]):
    """DEL: remove what ADD made, also when some or all of it is gone.

    Attributes:
        problems: Errors in the configuration. The wrong values have their defaults, since DEL must work nevertheless.
            The error in a capability argument is added when a plugin reads the argument.
    """

    problems: list[CNIError]

    @property
    def prev_result(self) -> Result | None:
        """``prevResult`` in the current shape; None when it is absent, or malformed: DEL must work nevertheless."""
        try:
            return super().prev_result
        except CNIError:
            return None


class GCRequest(Request[ConfT]):
    """GC: remove what belongs to attachments that are no longer valid.

    Attributes:
        valid_attachments: The attachments to keep on this network.
    """

    valid_attachments: frozenset[Attachment] = frozenset()


class StatusRequest(Request[ConfT]):
    """STATUS: check that the plugin can serve ADD."""


_CLASSES: dict[Verb, type[Request[Any]]] = {
    Verb.ADD: AddRequest,
    Verb.CHECK: CheckRequest,
    Verb.DEL: DelRequest,
    Verb.GC: GCRequest,
    Verb.STATUS: StatusRequest,
}


_VERBS = {str(verb): verb for verb in Verb}


def parse_verb(environ: Mapping[str, str]) -> Verb:
    """Read the verb.

    Raises:
        InvalidEnvironmentError: (4) ``CNI_COMMAND`` is missing or unknown.
    """
    command = environ.get("CNI_COMMAND", "")
    if not command:
        raise InvalidEnvironmentError("required env variables [CNI_COMMAND] missing")
    verb = _VERBS.get(command)
    if verb is None:
        raise InvalidEnvironmentError(f"unknown CNI_COMMAND: {command}", details=f"known: {', '.join(_VERBS)}")
    return verb


def check_variables(verb: Verb, environ: Mapping[str, str]) -> None:
    """Check the variables the verb needs.

    Raises:
        InvalidEnvironmentError: (4) Some are missing (the message names them all), or one is malformed.
    """
    required = REQUIRED_VARIABLES[verb]
    missing = [name for name in required if not environ.get(name)]
    if missing:
        raise InvalidEnvironmentError(f"required env variables [{','.join(missing)}] missing")
    for name in required:
        if name in _VALIDATORS:
            _VALIDATORS[name](environ[name])


def parse_request(
    verb: Verb,
    environ: Mapping[str, str],
    stdin: bytes,
    conf_class: type[ConfT],
    supported: tuple[SpecVersion, ...],
    converter: BaseConverter | None = None,
) -> Request[ConfT]:
    """Make a typed request.

    Raises:
        InvalidEnvironmentError: (4) A variable is missing or malformed.
        DecodingError: (6) Standard input is not a JSON document.
        InvalidConfigError: (7) The network's name is missing or malformed, or a value is not what its key asks for.
        IncompatibleVersionError: (1) The plugin does not support the configuration's version, or that version has no
            such verb.
    """
    check_variables(verb, environ)
    problems: list[CNIError] = []
    try:
        document = loads(stdin)
    except DecodingError as exc:
        if verb is not Verb.DEL:
            raise
        # Bytes that are no UTF-8 must not keep a container attached: a key or a value is lost, as with the reference.
        document = loads(stdin.decode(errors="replace").encode())
        problems.append(exc)
    if not isinstance(document, dict):
        raise InvalidConfigError("invalid network configuration: expected an object")
    check_network_name(_text(document, "name"))
    version = negotiate(_text(document, "cniVersion"), supported, verb)
    if verb is Verb.DEL:
        from ..spec._lenient import structure_leniently

        conf, wrong = structure_leniently(document, conf_class, converter=converter)
        problems += wrong
    else:
        conf = structure(document, conf_class, converter=converter)
    request: Request[ConfT] = _CLASSES[verb](verb, version, conf, document, environ, stdin)
    if isinstance(request, DelRequest):
        request.problems = problems
        if isinstance(conf.runtime_config, RuntimeConfig):  # an author's own class was structured with the rest
            # A copy, since the object may be the default of the class, which all requests of a worker share. Not with
            # evolve, since checks of the class may refuse a configuration that was read leniently.
            object.__setattr__(conf, "runtime_config", conf.runtime_config.leniently(problems.append))
    elif isinstance(request, GCRequest):
        request.valid_attachments = _valid_attachments(document, conf.name)
    elif isinstance(request, AddRequest | CheckRequest):
        request.args  # noqa: B018 - malformed arguments are refused before any work
        request.prev_result  # noqa: B018 - and so is a malformed result
    return request


def _text(document: Mapping[str, Any], key: str) -> str:
    value = find_key(document, key)
    if value is None or type(value) is str:
        return value or ""
    return structure(value, str, path=show_path((key,)))  # which says what is wrong


def _valid_attachments(document: Mapping[str, Any], network: str) -> frozenset[Attachment]:
    """Read the attachments that GC keeps.

    The reference's runtime library writes an empty list as ``null``. If the key is missing, no attachment is known to
    be stale, and dropping all of them would cut off running containers: that is an error.
    """
    folded = {key.lower(): key for key in document}
    for name in VALID_ATTACHMENTS_KEYS:
        key = name if name in document else folded.get(name)
        if key is not None:
            value = document[key]
            path = show_path((key,))
            entries = structure([] if value is None else value, tuple[_ValidAttachment, ...], path=path)
            return frozenset(Attachment(network, entry.container_id, entry.ifname) for entry in entries)
    raise InvalidConfigError(
        f'GC needs $["{VALID_ATTACHMENTS_KEYS[0]}"]: without it, nothing is known to be stale',
        details="nothing was removed",
    )
