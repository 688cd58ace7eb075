"""Talk to the Linux kernel: namespaces, links, addresses, routes, packet filter.

Modules are imported as such (``from cnisdk.linux import veth``), each when it is needed. pyroute2, whose message
encoder and decoder this package uses, is loaded with the first message. Whatever happens in here, the calling thread
stays in the namespaces it was in.
"""
