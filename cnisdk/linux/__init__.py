"""Talk to the Linux kernel. Whatever happens in here, the calling thread stays in the namespaces it was in.

``links``
    Network interfaces, by kind: ``link``, ``veth``, ``bridge``, ``bridge_port``, ``vlan_gateway``, ``tap``; ``kinds``
    has the simple ones. ``loan``: links of the host that a container has. ``shared``: a link that several
    attachments set up. ``device``: links by the device they belong to. ``messages``: requests about links.
``ip``
    Layer 3: ``address``, ``route``, ``rule``, ``tables``, and ``layer3``, which configures and verifies an interface's
    addresses and routes.
``netfilter``
    The packet filter: ``rules`` of an attachment, in ``nft`` or ``iptables``; ``masquerade`` and ``spoofcheck`` use it.
    ``firewalld``: the sources of its zones.
``traffic``
    Limits of what a link sends.
``netns``, ``sysctl``, ``rtnetlink``, ``attributes``, ``lock``, ``program``
    Foundations of the others: namespaces, kernel settings, netlink, locks, programs of the host.

Plugins import modules by name, ``from cnisdk.linux import veth``; each is loaded when it is first asked for.
"""

from .._lazy import exports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .ip import address as address, layer3 as layer3, route as route, rule as rule, tables as tables
    from .links import (
        bridge as bridge,
        bridge_port as bridge_port,
        device as device,
        kinds as kinds,
        link as link,
        loan as loan,
        shared as shared,
        tap as tap,
        veth as veth,
        vlan_gateway as vlan_gateway,
    )
    from .netfilter import (
        conntrack as conntrack,
        firewall as firewall,
        firewalld as firewalld,
        hostports as hostports,
        iptables as iptables,
        masquerade as masquerade,
        nft as nft,
        rules as rules,
        spoofcheck as spoofcheck,
    )

__all__, __dir__, __getattr__ = exports(
    __name__,
    {
        ".ip": "address layer3 route rule tables",
        ".links": "bridge bridge_port device kinds link loan shared tap veth vlan_gateway",
        ".netfilter": "conntrack firewall firewalld hostports iptables masquerade nft rules spoofcheck",
    },
    "attributes ip links lock netfilter netns program rtnetlink sysctl traffic",
)
