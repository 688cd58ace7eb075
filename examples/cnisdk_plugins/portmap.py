"""portmap: publish ports of a container on the host.

Takes the configuration of the reference plugin of that name and returns its results. All that it makes is on the host
and names its owner: DEL needs neither port mappings nor a previous result, and GC asks the kernel what there is.
"""

if __name__ == "__main__":  # VERSION needs nothing of what follows
    from cnisdk.plugin.quick import answer_version

    answer_version()


from cnisdk import (
    AddRequest,
    Attachment,
    CheckRequest,
    CNIError,
    DelRequest,
    GCRequest,
    InvalidConfigError,
    IOFailureError,
    IPConfig,
    NetConf,
    Plugin,
    PluginMain,
    Result,
    StatusRequest,
    frozen,
)
from cnisdk.linux import hostports
from cnisdk.linux.netfilter.hostports import HostPort, Options
from cnisdk.plugin import interface
from cnisdk.spec.addresses import IPAddress, parse_address, specified
from cnisdk.spec.names import shorten

DEFAULT_MARK_BIT = 13
CHAIN_NAME_MAX = 28  # of iptables
DOCUMENTATION = {"4": "192.0.2.2/24", "6": "2001:db8::2/64"}  # RFC 5737, RFC 3849


@frozen(kw_only=True)
class PortmapConf(NetConf):
    """The configuration: the keys of the newest reference plugin.

    Attributes:
        backend: ``iptables`` or ``nftables``; by default iptables where it is installed.
        snat: Masquerade connections that would not come back otherwise: those from localhost and from the container's
            own network.
        masq_all: Masquerade all connections.
        mark_masq_bit: Number of the bit of a packet's mark that asks for it; with iptables only.
        external_set_mark_chain: Chain of iptables that marks packets to be masqueraded, instead of our own.
        conditions_v4: Further conditions for IPv4, in the words of the backend's language.
        conditions_v6: The same for IPv6.
    """

    backend: str = ""
    snat: bool = True
    masq_all: bool = False
    mark_masq_bit: int | None = None
    external_set_mark_chain: str | None = None
    conditions_v4: tuple[str, ...] = ()
    conditions_v6: tuple[str, ...] = ()

    def validate(self) -> None:
        """Refuse what makes no sense, before anything is changed.

        Raises:
            InvalidConfigError: (7) The message has the JSON path and the value.
        """
        chain, bit = self.external_set_mark_chain, self.mark_masq_bit
        if chain and bit is not None:
            raise InvalidConfigError("Cannot specify externalSetMarkChain and markMasqBit")
        if bit is not None and not 0 <= bit <= 31:
            raise InvalidConfigError("MasqMarkBit must be between 0 and 31", details=f"$.markMasqBit is {bit}")
        if chain and (not is_word(chain) or chain.startswith(("-", "!")) or len(chain) > CHAIN_NAME_MAX):
            raise InvalidConfigError(
                f"$.externalSetMarkChain is {shorten(chain)}, expected the name of an iptables chain"
            )
        for key, words in (("conditionsV4", self.conditions_v4), ("conditionsV6", self.conditions_v6)):
            for index, word in enumerate(words):
                if not is_word(word):
                    raise InvalidConfigError(
                        f"$.{key}[{index}] is {shorten(word)}, expected one word of an iptables or nft condition"
                    )
        self.choose_backend()

    def choose_backend(self) -> str:
        """Return the name of the backend.

        Raises:
            InvalidConfigError: (7) There is none of that name, or the conditions are in the other's language.
        """
        first = [words[0] for words in (self.conditions_v4, self.conditions_v6) if words]
        return hostports.choose_backend(self.backend, first)

    def options(self) -> dict[int, Options]:
        """Return how ports lead to the container, by IP version."""
        bit = DEFAULT_MARK_BIT if self.mark_masq_bit is None else self.mark_masq_bit
        chain = self.external_set_mark_chain or ""
        return {
            version: Options(self.snat, self.masq_all, conditions, bit, chain)
            for version, conditions in ((4, self.conditions_v4), (6, self.conditions_v6))
        }


def is_word(text: str) -> bool:
    """Return whether a text can be a word of a rule: no character ends the rule or begins a comment."""
    return bool(text) and text.isascii() and text.isprintable() and not set(text) & set(" \\\"';#$`")


class Portmap(Plugin[PortmapConf]):
    """CNI portmap plugin: ports of the host that lead to a container."""

    leaves_process_unchanged = True

    @classmethod
    def rehearsals(cls, directory: str) -> tuple[dict[str, object], ...]:
        ips = [{"address": address, "version": version} for version, address in DOCUMENTATION.items()]
        mappings = [{"hostPort": port, "containerPort": 80, "protocol": "tcp"} for port in (8080, 8081)]
        conf = {"prevResult": {"cniVersion": "0.4.0", "ips": ips}, "runtimeConfig": {"portMappings": mappings}}
        return tuple({"backend": each, **conf} for each in hostports.installed_backends())

    @classmethod
    def conformance(cls) -> dict[str, object]:
        mappings = [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 9080, "containerPort": 53, "protocol": "udp"},
        ]
        conf = {"capabilities": {"portMappings": True}, "runtimeConfig": {"portMappings": mappings}}
        return {"kind": "chained", "conf": conf}

    def add(self, request: AddRequest[PortmapConf]) -> Result:
        hostports.publish(*wanted(request), undo=request.undo)
        return request.require_prev_result()

    def delete(self, request: DelRequest[PortmapConf]) -> None:
        result = request.prev_result
        try:
            ports = host_ports(read_mappings(request.conf), result, request.ifname) if result is not None else []
        except CNIError:
            ports = []  # what was published is known without
        own = [each.address.ip for each in own_ips(result, request.ifname)] if result is not None else []
        hostports.withdraw(request.attachment, ports, own or None)

    def check(self, request: CheckRequest[PortmapConf]) -> None:
        hostports.check(*wanted(request))

    def repair(self, request: CheckRequest[PortmapConf], *, dry_run: bool = False) -> bool:
        try:
            self.check(request)
        except IOFailureError:
            if not dry_run:
                hostports.publish(*wanted(request))
            return True
        return False

    def gc(self, request: GCRequest[PortmapConf]) -> None:
        hostports.gc(request.network, request.valid_attachments)

    def status(self, request: StatusRequest[PortmapConf]) -> None:
        request.conf.validate()
        hostports.status(request.conf.choose_backend())


Wanted = tuple[str, Attachment, list[HostPort], dict[int, Options], list[tuple[str, int]]]
"""What :func:`cnisdk.linux.hostports.publish` is asked for."""


def wanted(request: AddRequest[PortmapConf] | CheckRequest[PortmapConf]) -> Wanted:
    """Return what a request asks for.

    Raises:
        InvalidConfigError: (7) There is no previous result, or the configuration or a port mapping makes no sense.
    """
    conf = request.conf
    conf.validate()
    mappings = read_mappings(conf)
    ports = host_ports(mappings, request.require_prev_result(), request.ifname)
    listed = [(protocol, port) for protocol, port, _, _ in mappings]  # the reference lists those of all IP versions
    return conf.choose_backend(), request.attachment, ports, conf.options(), listed


Mapping = tuple[str, int, IPAddress | None, int]
"""Protocol, port of the host, its address if it is one, and port of the container."""


def read_mappings(conf: PortmapConf) -> list[Mapping]:
    """Read the capability ``portMappings``.

    Raises:
        InvalidConfigError: (7) A value is none that a port mapping can have.
    """
    found: list[Mapping] = []
    for index, each in enumerate(conf.runtime_config.port_mappings):
        path = f"$.runtimeConfig.portMappings[{index}]"
        for what, key, port in (
            ("host", "hostPort", each.host_port),
            ("container", "containerPort", each.container_port),
        ):
            if not 1 <= port <= 65535:
                raise InvalidConfigError(f"Invalid {what} port number: {port}", details=f"{path}.{key}")
        protocol = each.protocol.lower()
        if protocol not in hostports.PROTOCOLS:
            raise InvalidConfigError(
                f"{path}.protocol is {shorten(each.protocol)}, expected {', '.join(hostports.PROTOCOLS)}"
            )
        host_ip = None
        if each.host_ip:
            try:
                host_ip = parse_address(each.host_ip)
            except ValueError as exc:
                raise InvalidConfigError(f"{path}.hostIP is {shorten(each.host_ip)}, expected an IP address") from exc
        found.append((protocol, each.host_port, host_ip, each.container_port))
    return found


def host_ports(mappings: list[Mapping], result: Result, ifname: str) -> list[HostPort]:
    """Return the ports to publish: to the first address of each IP version that the container's interface has."""
    targets = {ip.address.version: ip.address for ip in reversed(own_ips(result, ifname))}
    found: dict[tuple[int, str, int, IPAddress | None], HostPort] = {}
    for version, target in sorted(targets.items()):
        for protocol, port, host_ip, to in mappings:
            if host_ip is None or host_ip.version == version:
                each = HostPort(protocol, port, specified(host_ip), target, to)
                found.setdefault((version, *each[:3]), each)  # of two for one port, the first counts
    return list(found.values())


def own_ips(result: Result, ifname: str) -> list[IPConfig]:
    """List the addresses of the container's interface; a link of that name outside the container is another."""
    interfaces = result.interfaces
    return [ip for ip in interface.own_ips(result, ifname) if ip.interface is None or interfaces[ip.interface].sandbox]


main = PluginMain(Portmap, "CNI portmap plugin v1.9.1")

if __name__ == "__main__":
    main()
