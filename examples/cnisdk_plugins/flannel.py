"""flannel: turn this node's subnet, which flannel's daemon has written down, into a configuration of another plugin.

Takes the configuration of flannel's own CNI plugin. The other plugin, bridge by default, attaches the container, and
its result is the result. What it was given is kept in a file until DEL, where flannel's plugin finds it as well.
"""

from __future__ import annotations

if __name__ == "__main__":  # VERSION needs nothing of what follows
    from cnisdk.plugin.quick import answer_version

    answer_version()

from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_interface

from cnisdk import (
    AddRequest,
    CheckRequest,
    CNIError,
    DecodingError,
    DelRequest,
    GCRequest,
    InvalidConfigError,
    InvalidEnvironmentError,
    IOFailureError,
    NetConf,
    Plugin,
    PluginMain,
    PluginNotAvailableError,
    Result,
    StatusRequest,
    TryAgainLaterError,
    field,
    frozen,
)
from cnisdk.invoke import Delegate
from cnisdk.plugin.request import AttachmentRequest, Request
from cnisdk.plugin.statefile import StateFile, delete_stale, read_text_file
from cnisdk.spec.codec import dumps, find_key, structure

TYPE_CHECKING = False  # without typing, a request ends sooner
if TYPE_CHECKING:
    from typing import Any


@frozen(kw_only=True)
class FlannelConf(NetConf):
    """The configuration: the keys of flannel's own plugin.

    Attributes:
        subnet_file: File in which flannel's daemon writes the subnet of this node.
        data_dir: Directory for what the other plugin was given, a file for each attachment.
        delegate: Configuration of the other plugin, without ``name`` and ``ipam``.
    """

    subnet_file: str = "/run/flannel/subnet.env"
    data_dir: str = "/var/lib/cni/flannel"
    delegate: dict[str, Any] = field(factory=dict)

    def validate(self) -> None:
        """Refuse a delegate's configuration with keys that this plugin sets.

        Raises:
            InvalidConfigError: (7) There is such a key, or its type is no text.
        """
        for key in ("name", "ipam"):
            if find_key(self.delegate, key) is not None:
                raise InvalidConfigError(
                    f"'delegate' dictionary must not have '{key}' field, it'll be set by flannel",
                    details=f"$.delegate.{key} is set",
                )
        if not isinstance(find_key(self.delegate, "type") or "", str):
            raise InvalidConfigError(
                "'delegate' dictionary, if present, must have (string) 'type' field",
                details="$.delegate.type is no text",
            )


@frozen(kw_only=True)
class Subnet:
    """A node's subnet, as flannel's daemon has written it down.

    Attributes:
        ranges: This node's subnet of each IP version, as networks.
        networks: The networks of all nodes, IPv4 first.
        mtu: MTU in bytes.
        ip_masq: The daemon itself masquerades.
    """

    ranges: list[str]
    networks: list[str]
    mtu: int
    ip_masq: bool


def read_subnet(path: str) -> Subnet:
    """Read the file of flannel's daemon: lines ``KEY=VALUE``; unknown keys are ignored.

    Raises:
        TryAgainLaterError: (11) It is not there: the daemon is not up yet.
        IOFailureError: (5) It cannot be read.
        DecodingError: (6) A key is missing, or a value is malformed.
    """
    try:
        lines = [line.strip() for line in read_text_file(path).split("\n")]
    except FileNotFoundError as exc:
        raise TryAgainLaterError(
            f"failed to load flannel 'subnet.env' file: open {path}: no such file or directory. "
            "Check the flannel pod log for this node."
        ) from exc
    except OSError as exc:
        raise IOFailureError(f"failed to load flannel 'subnet.env' file: open {path}: {exc.strerror}") from exc
    values = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    ranges = [values[key] for key in ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET") if values.get(key)]
    texts = [values.get(key, "") for key in ("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK")]
    networks = [each.strip() for each in ",".join(texts).split(",") if each.strip()]
    wanted = {
        "FLANNEL_NETWORK": networks,
        "FLANNEL_SUBNET": ranges,
        "FLANNEL_MTU": values.get("FLANNEL_MTU"),
        "FLANNEL_IPMASQ": values.get("FLANNEL_IPMASQ"),
    }
    if missing := [key for key, value in wanted.items() if not value]:
        raise DecodingError(f"{path} is missing {', '.join(missing)}")
    try:
        return Subnet(
            ranges=[str(ip_interface(each).network) for each in ranges],
            networks=[str(ip_interface(each).network) for each in dict.fromkeys(networks)],
            mtu=int(values["FLANNEL_MTU"]),
            ip_masq=values["FLANNEL_IPMASQ"] == "true",
        )
    except ValueError as exc:
        raise DecodingError(f"{path} has a malformed value: {exc}") from exc


def delegated(request: Request[FlannelConf]) -> dict[str, Any]:
    """Return the configuration of the other plugin.

    Raises:
        InvalidConfigError: (7) The configuration is wrong.
        TryAgainLaterError: (11) Flannel's daemon is not up yet.
        CNIError: Its file cannot be read.
    """
    request.conf.validate()
    subnet = read_subnet(request.conf.subnet_file)
    given = request.conf.delegate
    conf: dict[str, Any] = {"type": "bridge", "ipMasq": not subnet.ip_masq, "mtu": subnet.mtu}
    if (find_key(given, "type") or "bridge") == "bridge":
        conf["isGateway"] = True
    conf = {key: value for key, value in conf.items() if find_key(given, key) is None}
    conf |= {key: value for key, value in given.items() if value is not None}
    routes = structure(request.conf.ipam.extra.get("routes") or (), tuple[dict[str, object], ...], path="$.ipam.routes")
    conf["ipam"] = {
        **request.conf.ipam.extra,
        "type": request.conf.ipam.type or "host-local",
        "ranges": [[{"subnet": each}] for each in subnet.ranges],
        "routes": [*routes, *({"dst": each} for each in subnet.networks)],
    }
    conf["name"] = request.network
    for key in ("cniVersion", "runtimeConfig"):
        if (value := find_key(request.document, key)) is not None:
            conf[key] = value
    return conf


def run(request: Request[FlannelConf], conf: Mapping[str, Any]) -> Delegate:
    """Return the other plugin, ready to be run with a configuration."""
    return Delegate(str(find_key(conf, "type")), request.environ, dumps(conf))


class State:
    """The other plugin's configuration for one attachment, kept in a file.

    Flannel's own plugin names the file after the container alone, so that a second interface overwrites it. Here the
    second has another name, which is no container's.

    Attributes:
        conf: What was kept; None if there is nothing of this attachment's.
        lost: Nothing at all is kept of the container. DEL then goes by what ADD would do today: flannel's own plugin
            keeps one file for all interfaces, and a power cut may have torn it.
    """

    def __init__(self, request: AttachmentRequest[FlannelConf]) -> None:
        owner, directory = request.attachment, request.conf.data_dir
        names = (f"{owner.container_id}:{owner.ifname}", owner.container_id)
        self._files = [StateFile(directory, owner, name) for name in names]
        self._mine: StateFile | None = None
        self._written: StateFile | None = None
        self.conf: dict[str, Any] | None = None
        for file in self._files:
            conf = file.find()
            # What flannel's own plugin wrote names no owner, but the network.
            if self.conf is None and conf is not None and conf.get("name") == owner.network:
                self.conf, self._mine = conf, file
        self._found, self._before = self._mine, self.conf
        self.lost = self.conf is None and all(file.is_free() for file in self._files)

    def write(self, conf: Mapping[str, Any]) -> None:
        """Keep a configuration, until :meth:`delete`.

        Raises:
            InvalidEnvironmentError: (4) Another network has an interface of this name in the container.
        """
        self._mine = next((file for file in reversed(self._files) if file.is_free()), None)
        if self._mine is None:
            path = self._files[0].path
            raise InvalidEnvironmentError(
                f"CNI_IFNAME {self._files[0].owner.ifname} of this container belongs to another network: see {path}"
            )
        self._written = self._mine
        self._mine.write(conf)
        self.conf = dict(conf)

    def take_back(self) -> None:
        """Undo :meth:`write`. What was kept before is another ADD's, whose DEL needs it."""
        if self._before is None:
            self.delete()
        elif self._written is not None and self._written is self._found:
            self._written.write(self._before)
        elif self._written is not None:
            self._written.delete()

    def delete(self) -> None:
        """Delete the file, if it is this attachment's."""
        if self._mine is not None:
            self._mine.delete()
        else:
            self._files[0].delete()  # what a killed ADD left


class Flannel(Plugin[FlannelConf]):
    """CNI flannel plugin: this node's subnet, given to another plugin."""

    leaves_process_unchanged = True

    @classmethod
    def conformance(cls) -> dict[str, object]:
        lines = "FLANNEL_NETWORK=10.9.0.0/16\nFLANNEL_SUBNET=10.9.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true"
        setup = f"mkdir -p /run/flannel; echo '{lines}' >/run/flannel/subnet.env"
        return {"kind": "interface", "conf": {"ipam": {"type": "stub-ipam"}}, "setup": setup}

    def add(self, request: AddRequest[FlannelConf]) -> Result:
        conf, state = delegated(request), State(request)
        again = state.conf is not None
        request.undo(state.take_back)
        state.write(conf)
        return request.add_through(run(request, conf), again=again)

    def delete(self, request: DelRequest[FlannelConf]) -> None:
        state = State(request)
        conf = state.conf
        if conf is None and state.lost:
            with suppress(CNIError):
                conf = delegated(request)
        if conf is not None:
            run(request, conf).delete()
        state.delete()  # not before: a DEL that failed comes again

    def check(self, request: CheckRequest[FlannelConf]) -> None:
        run(request, {**self.find_delegate_conf(request), "prevResult": request.conf.prev_result}).check()

    def find_delegate_conf(self, request: CheckRequest[FlannelConf]) -> dict[str, Any]:
        return State(request).conf or delegated(request)

    def gc(self, request: GCRequest[FlannelConf]) -> None:
        valid = [{"containerID": each.container_id, "ifname": each.ifname} for each in request.valid_attachments]
        run(request, {**delegated(request), "cni.dev/valid-attachments": valid}).gc()
        delete_stale(request.conf.data_dir, request.network, request.valid_attachments)

    def status(self, request: StatusRequest[FlannelConf]) -> None:
        try:
            conf = delegated(request)
        except (TryAgainLaterError, IOFailureError, DecodingError) as exc:
            raise PluginNotAvailableError(exc.msg) from exc
        run(request, conf).status()


main = PluginMain(Flannel, "CNI flannel plugin v1.8.0")

if __name__ == "__main__":
    main()
