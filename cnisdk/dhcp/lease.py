"""A lease: what a DHCP server's acknowledgement gives a client, and the result of ADD that it makes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from .._light import Any
from ..classes import evolve, frozen
from ..spec.result import DNS, IPConfig, Result, Route
from . import options

DEFAULT_LIFETIME = 3600
"""Seconds that a lease lasts if the server does not say."""

_INFINITE = 0xFFFFFFFF  # RFC 2131, section 3.3
_SCOPE_LINK = 253
_DEFAULT = IPv4Network("0.0.0.0/0")
_NO_ROUTER = IPv4Address("0.0.0.0")
_StaticRoute = tuple[IPv4Network, IPv4Address]
_MIN_MTU, _MAX_MTU = 68, 0xFFFF  # RFC 2132, section 5.1
_POINT_TO_POINT = 31  # RFC 3021: both addresses of such a network are hosts'


@frozen(kw_only=True)
class DHCPLease:
    """A lease, with all options of the acknowledgement.

    Attributes:
        address: The address.
        options: Options of the server's message, by number.
        started: When the request for it was sent, in seconds of the clock that counts from the boot, also in suspend.
        server_mac: Hardware address of the server, or of the router that leads to it.
    """

    address: IPv4Address
    options: Mapping[int, bytes]
    started: float
    server_mac: str = ""

    def find_problem(self) -> str | None:
        """Return the reason why the lease is of no use, in words; None if it is good."""
        if not options.is_host(self.address):
            return f"its address is {self.address}"
        if options.SUBNET_MASK not in self.options:
            return "DHCP option Subnet Mask not found in DHCPACK"
        if not options.read_prefix_length(self.options):  # neither, nor one that has all addresses on the link
            return f"its subnet mask is {self.options[options.SUBNET_MASK].hex()}"
        network = self.interface.network
        if network.prefixlen < _POINT_TO_POINT and self.address in (network[0], network[-1]):
            return f"its address is {self.address}, which no host of {network} can have"
        if not self.server:
            return "it does not tell the server"
        return None

    @property
    def interface(self) -> IPv4Interface:
        """The address with the prefix length of its network."""
        length = options.read_prefix_length(self.options)
        return IPv4Interface((int(self.address), 32 if length is None else length))

    @property
    def server(self) -> IPv4Address | None:
        """Identifier of the server: its address."""
        return next(iter(options.read_addresses(self.options, options.SERVER_ID)), None)

    @property
    def lifetime(self) -> float:
        """Seconds that the lease lasts; infinite for one without end."""
        seconds = options.read_number(self.options, options.LEASE_TIME)
        return math.inf if seconds == _INFINITE else float(seconds or DEFAULT_LIFETIME)

    @property
    def renews(self) -> float:
        """Time at which to ask the server for more time (T1): as it says, or after half of the lifetime."""
        return self.started + self._times()[0]

    @property
    def rebinds(self) -> float:
        """Time at which to ask any server (T2): as the server says, or after seven eighths of the lifetime."""
        return self.started + self._times()[1]

    @property
    def expires(self) -> float:
        """Time at which the lease ends."""
        return self.started + self.lifetime

    def _times(self) -> tuple[float, float]:
        """Return T1 and T2 as RFC 2131, section 4.4.5 has them; the server's only if they are in order."""
        t1 = options.read_number(self.options, options.RENEWAL_TIME)
        t2 = options.read_number(self.options, options.REBINDING_TIME)
        if self.lifetime == math.inf:
            return math.inf, math.inf
        second = float(t2) if t2 and t2 < self.lifetime else self.lifetime * 0.875
        first = float(t1) if t1 and t1 < second else min(self.lifetime * 0.5, second)
        return first, second

    @property
    def routers(self) -> tuple[IPv4Address, ...]:
        """Routers, in order of preference. The client itself is none."""
        found = options.read_addresses(self.options, options.ROUTERS)
        return tuple(each for each in found if each != self.address)

    @property
    def gateway(self) -> IPv4Address | None:
        """The first router; without one, that of the classless default route."""
        defaults = (via for dst, via in self._usable_routes() if dst == _DEFAULT and int(via))
        return next(iter((*self.routers, *defaults)), None)

    def list_routes(self, priority: int = 0) -> tuple[Route, ...]:
        """List the routes.

        Classless static routes replace all others (RFC 3442). Without any, there are the static routes of option 33,
        and a default route to the first router. A router outside of the address's network is on the link all the same:
        it gets a route of its own, without which the kernel refuses the others.

        Args:
            priority: Metric of each; 0 leaves it to the kernel.
        """
        found = self._usable_routes()
        if not found:
            found = self._usable(options.read_static_routes(self.options))
            if self.routers and all(dst != _DEFAULT for dst, _ in found):
                found = (*found, (_DEFAULT, self.routers[0]))
        # The kernel must know the way to a router before a route through it.
        near = [(dst, via) for dst, via in found if not int(via)]
        reached = [self.interface.network, *(dst for dst, _ in near)]
        for via in dict.fromkeys(via for _, via in found if int(via)):
            if not any(via in each for each in reached):
                near.append((IPv4Network(via), _NO_ROUTER))
        return tuple(
            Route(dst=dst, gw=via, priority=priority, scope=None if int(via) else _SCOPE_LINK)
            for dst, via in (*near, *(each for each in found if int(each[1])))
        )

    def _usable_routes(self) -> tuple[_StaticRoute, ...]:
        return self._usable(options.read_classless_routes(self.options))

    def _usable(self, found: tuple[_StaticRoute, ...]) -> tuple[_StaticRoute, ...]:
        """Leave out what the kernel or the container cannot use, and all but the first route to a destination."""
        usable: dict[IPv4Network, IPv4Address] = {}
        for dst, via in found:
            leads = via == _NO_ROUTER or (options.is_host(via) and via != self.address)
            somewhere = dst == _DEFAULT or options.is_host(dst.network_address)
            if leads and somewhere and dst != self.interface.network:  # the address brings that one
                usable.setdefault(dst, via)
        return tuple(usable.items())

    @property
    def dns(self) -> DNS:
        """Name resolution: options 6, 15 and 119."""
        return DNS(
            nameservers=tuple(map(str, options.read_addresses(self.options, options.NAME_SERVERS))),
            domain=options.read_domain(self.options),
            search=options.read_domains(self.options),
        )

    @property
    def mtu(self) -> int:
        """MTU of the interface, in bytes; 0 if the server does not say."""
        mtu = options.read_number(self.options, options.INTERFACE_MTU) or 0
        return mtu if _MIN_MTU <= mtu <= _MAX_MTU else 0

    def to_result(self, priority: int = 0) -> Result:
        """Make the result of an IPAM plugin's ADD."""
        ip = IPConfig(address=self.interface, gateway=self.gateway)
        return Result(ips=(ip,), routes=self.list_routes(priority), dns=self.dns)

    def keeping_mask_of(self, older: DHCPLease) -> DHCPLease:
        """Return the lease with the mask of an older one of the same address, if its own has none."""
        mask = older.options.get(options.SUBNET_MASK)
        if mask is None or options.SUBNET_MASK in self.options or older.address != self.address:
            return self
        return evolve(self, options={**self.options, options.SUBNET_MASK: mask})

    def to_json(self) -> dict[str, Any]:
        """Write the lease as a JSON object."""
        return {
            "address": str(self.address),
            "options": {str(number): value.hex() for number, value in self.options.items()},
            "started": self.started,
            "serverMAC": self.server_mac,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> DHCPLease:
        """Read what :meth:`to_json` wrote, also in an earlier version, which lacks what came later.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: It is damaged.
        """
        return cls(
            address=IPv4Address(document["address"]),
            options={int(number): bytes.fromhex(value) for number, value in document["options"].items()},
            started=float(document["started"]),
            server_mac=str(document.get("serverMAC", "")),
        )
