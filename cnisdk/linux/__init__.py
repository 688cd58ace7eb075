"""Talk to the Linux kernel: namespaces, links, addresses, routes, packet filter.

Modules are imported as such (``from cnisdk.linux import veth``), each when it is needed. Whatever happens in here, the
calling thread stays in the namespaces it was in.
"""

from .._lazy import exports

__all__, __dir__, __getattr__ = exports(
    __name__,
    {},
    "address attributes bridge iptables layer3 link masquerade netns nft program route rtnetlink spoofcheck sysctl "
    "veth",
)
