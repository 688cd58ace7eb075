"""firewall: let the host forward what a container sends, and the replies, though it drops what it forwards.

Takes the configuration of the reference plugin of that name and returns its results. All that it makes is on the host
and names its owner: DEL needs no previous result, and GC asks the kernel what there is.
"""

if __name__ == "__main__":  # VERSION needs nothing of what follows
    from cnisdk.plugin.quick import answer_version

    answer_version()

import sys
from collections.abc import Callable, Collection, Mapping
from functools import cache, partial

from cnisdk import (
    AddRequest,
    CheckRequest,
    DelRequest,
    GCRequest,
    InvalidConfigError,
    NetConf,
    Plugin,
    PluginMain,
    Result,
    StatusRequest,
    frozen,
    run_all,
)
from cnisdk.linux import firewall, firewalld
from cnisdk.linux.netfilter.firewall import Forwarding, Ingress
from cnisdk.plugin import chained, interface, zones
from cnisdk.plugin.request import AttachmentRequest
from cnisdk.spec.addresses import IPAddress
from cnisdk.spec.names import shorten

TYPE_CHECKING = False  # without typing, a request ends sooner
if TYPE_CHECKING:
    from cnisdk.runtime import Survey

CHAIN_NAME_MAX = 28  # of iptables
FIREWALLD = "firewalld"
DOCUMENTATION = {"4": "192.0.2.2/24", "6": "2001:db8::2/64"}  # RFC 5737, RFC 3849


@frozen(kw_only=True)
class FirewallConf(NetConf):
    """The configuration: the keys of the newest reference plugin.

    Attributes:
        backend: ``iptables``, ``firewalld`` or ``nftables``; by default firewalld where it runs, otherwise iptables
            where it is installed.
        iptables_admin_chain_name: Chain of iptables in which the administrator has rules that come first.
        firewalld_zone: Zone of firewalld that gets the addresses.
        ingress_policy: Which other containers reach this one: ``open``, ``same-bridge``, or ``isolated`` for none.
    """

    backend: str = ""
    iptables_admin_chain_name: str = ""
    firewalld_zone: str = ""
    ingress_policy: str = ""

    @property
    def admin_chain(self) -> str:
        """The administrator's chain."""
        return self.iptables_admin_chain_name or "CNI-ADMIN"

    @property
    def policy(self) -> str:
        """The policy."""
        return self.ingress_policy or "open"

    @property
    def zone(self) -> str:
        """The zone of firewalld."""
        return self.firewalld_zone or "trusted"

    def validate(self) -> None:
        """Refuse what makes no sense, before anything is changed.

        Raises:
            InvalidConfigError: (7) The message has the JSON path and the value.
        """
        chain = self.admin_chain
        if not (chain.isascii() and chain.replace("-", "").replace("_", "").isalnum()) or chain.startswith("-"):
            raise InvalidConfigError(
                f"$.iptablesAdminChainName is {shorten(chain)}, expected the name of an iptables chain"
            )
        if len(chain) > CHAIN_NAME_MAX:
            raise InvalidConfigError(
                f"$.iptablesAdminChainName is {shorten(chain)}, expected at most {CHAIN_NAME_MAX} characters"
            )
        if self.policy not in firewall.POLICIES:
            raise InvalidConfigError(
                f"unknown ingress policy: {shorten(self.ingress_policy)}",
                details=f"$.ingressPolicy: expected one of {', '.join(firewall.POLICIES)}",
            )


class Firewall(Plugin[FirewallConf]):
    """CNI firewall plugin: accept what the host forwards for a container."""

    leaves_process_unchanged = True

    @classmethod
    def rehearsals(cls, directory: str) -> tuple[dict[str, object], ...]:
        ips = [{"address": address, "version": version} for version, address in DOCUMENTATION.items()]
        result = {"cniVersion": "0.4.0", "interfaces": [{"name": "rehearsal"}], "ips": ips}
        conf = {"ingressPolicy": "same-bridge", "prevResult": result}
        return tuple({"backend": each, **conf} for each in firewall.installed_backends())

    @classmethod
    def conformance(cls) -> dict[str, object]:
        return {"kind": "chained", "conf": {}}

    def add(self, request: AddRequest[FirewallConf]) -> Result:
        request.conf.validate()
        has_zone, asked = wanted(request)
        sources, netns = (asked.addresses, request.find_netns()) if has_zone else ((), None)
        zones.admit(request.attachment, request.conf.zone, sources, request.undo, netns=netns)
        firewall.admit(asked, request.undo)
        return request.require_prev_result()

    def delete(self, request: DelRequest[FirewallConf]) -> None:
        result = request.prev_result
        withdraw(request, addresses_of(result) if result is not None else [])

    def check(self, request: CheckRequest[FirewallConf]) -> None:
        request.conf.validate()
        has_zone, asked = wanted(request)
        if has_zone:
            zones.check(request.attachment, request.conf.zone, asked.addresses)
        firewall.check(asked)

    def repair(self, request: CheckRequest[FirewallConf], *, dry_run: bool = False) -> bool:
        request.conf.validate()
        has_zone, asked = wanted(request)
        owner, zone, netns = request.attachment, request.conf.zone, request.find_netns()
        missed = has_zone and zones.repair(owner, zone, asked.addresses, netns, dry_run=dry_run)
        return firewall.repair(asked, dry_run=dry_run) or missed

    def gc(self, request: GCRequest[FirewallConf]) -> None:
        network, valid = request.network, request.valid_attachments
        run_all(partial(firewall.gc, network, valid), partial(zones.gc, network, valid, find_elsewhere))

    def status(self, request: StatusRequest[FirewallConf]) -> None:
        request.conf.validate()
        conf = request.conf
        has_zone, backend = choose(conf)
        if has_zone:
            firewalld.status(conf.zone)
        if not has_zone or conf.policy != "open":
            firewall.status(backend, conf.policy)


def wanted(request: AddRequest[FirewallConf] | CheckRequest[FirewallConf]) -> tuple[bool, Forwarding]:
    """Return True if a zone of firewalld accepts packets, and what a request asks for beside it.

    Raises:
        InvalidConfigError: (7) There is no previous result, or it has no interface for the policy.
    """
    conf, result = request.conf, request.require_prev_result()
    ingress = None if conf.policy == "open" else Ingress(conf.policy, *chained.find_bridge(result, "$.ingressPolicy"))
    has_zone, backend = choose(conf)
    addresses = addresses_of(result)
    return has_zone, Forwarding(backend, request.attachment, addresses, conf.admin_chain, ingress, not has_zone)


def choose(conf: FirewallConf) -> tuple[bool, str]:
    """Return True if a zone of firewalld accepts packets, and the backend of rules: a zone knows no policies."""
    chosen = firewall.choose_backend(conf.backend)
    return (True, firewall.default_backend()) if chosen == FIREWALLD else (False, chosen)


def withdraw(request: AttachmentRequest[FirewallConf], known: Collection[IPAddress] = ()) -> None:
    """Take back what the attachment has, by any backend.

    Args:
        request: The request.
        known: Its addresses, as far as they are known: the reference records nothing else.

    Raises:
        CNIError: Something failed; the rest was done nevertheless.
    """
    conf = request.conf

    def withdraw_sources() -> None:
        # What no record is of can be the reference's only where it would have asked firewalld.
        asked = known and (conf.backend == FIREWALLD or (not conf.backend and firewalld.is_running()))
        zones.withdraw(request.attachment, conf.zone, known if asked else (), is_used)

    is_used = neighbours(request)
    run_all(partial(firewall.withdraw, request.attachment, known, is_used), withdraw_sources)


def neighbours(request: AttachmentRequest[FirewallConf]) -> Callable[[IPAddress], bool]:
    """Return a function that tells if another container may use an address of an attachment, whose DEL comes late.

    The reference's rules name no owner. The next container may have the address, and rules like those: all namespaces
    of the host are looked into, when the function is called first.
    """

    @cache
    def look() -> "tuple[Survey, set[IPAddress]]":
        from cnisdk.runtime import survey_host

        return survey_host(), interface.list_own_addresses(request)

    @cache
    def is_used(address: IPAddress) -> bool:
        (survey, own), netns = look(), request.find_netns()
        place = survey.find_use(address, but=netns.inode if netns is not None and address in own else None)
        if place is not None:
            why = f"another container may have it ({place})"
            sys.stderr.write(f"firewall: what has no record of its owner stays for {address}: {why}\n")
        return place is not None

    return is_used


def find_elsewhere(identities: Mapping[IPAddress, str]) -> Collection[IPAddress]:
    """Find addresses that another container has: one in a namespace with another identifier."""
    from cnisdk.runtime import find_other_uses

    return find_other_uses(identities)


def addresses_of(result: Result) -> list[IPAddress]:
    """List the addresses of a result, of all its interfaces."""
    return [each.address.ip for each in result.ips]


main = PluginMain(Firewall, "CNI firewall plugin v1.9.1")

if __name__ == "__main__":
    main()
