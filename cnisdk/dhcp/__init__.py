"""DHCP: leases from a server of the network, which a daemon keeps for containers.

``options`` and ``lease`` only compute. ``client`` is what a plugin calls. The daemon itself is private: ``cnisdk dhcp``
runs it.
"""
