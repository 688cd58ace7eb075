"""Hypothesis strategies for the objects of the specification: names, configurations, results, errors.

They make what the specification allows, edge cases included, and nothing else; to see what a plugin does with the rest,
there is ``cnisdk conform``.
"""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Address, IPv6Interface
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from ..errors import CNIError, error_for_code
from ..spec.codec import unstructure
from ..spec.config import Bandwidth, IPAMConf, IPRange, NetConf, NetConfList, PortMapping, RuntimeConfig, RuntimeDNS
from ..spec.convert import AnyResult, convert_result
from ..spec.names import Attachment
from ..spec.result import DNS, Interface, IPConfig, Result, Route
from ..spec.versions import ALL, SpecVersion

if TYPE_CHECKING:
    from ..spec.addresses import IPAddress, IPInterface, IPNetwork

_ALNUM = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TABLE = st.integers(1, 2**31 - 1)


def versions() -> st.SearchStrategy[SpecVersion]:
    """Released versions of the specification."""
    return st.sampled_from(ALL)


def names(max_size: int = 64) -> st.SearchStrategy[str]:
    """Container IDs, and names of networks: a letter or digit, then those and ``_``, ``.``, ``-``."""
    rest = st.text(_ALNUM + "_.-", max_size=max_size - 1)
    return st.builds(str.__add__, st.sampled_from(_ALNUM), rest)


def ifnames() -> st.SearchStrategy[str]:
    """Names of interfaces: 1 to 15 bytes without ``/``, ``:`` and white space, not ``.`` or ``..``."""
    letters = st.sampled_from("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789_.-@+")
    return st.text(letters, min_size=1, max_size=15).filter(lambda name: name not in (".", ".."))


def attachments() -> st.SearchStrategy[Attachment]:
    """Attachments: network, container ID, interface."""
    return st.builds(Attachment, names(), names(), ifnames())


def macs() -> st.SearchStrategy[str]:
    """Hardware addresses of single stations, lower case."""
    return st.binary(min_size=6, max_size=6).map(lambda data: bytes([data[0] & 0xFE, *data[1:]]).hex(":"))


def addresses() -> st.SearchStrategy[IPAddress]:
    """Addresses of both families."""
    return st.ip_addresses(v=4) | _unmapped()


def _unmapped() -> st.SearchStrategy[Any]:
    # Written by Go, an IPv4-mapped address is an IPv4 address.
    return st.ip_addresses(v=6).map(_unmap)


def _unmap(address: Any) -> Any:
    return address if address.ipv4_mapped is None else IPv6Address(int(address) | 1 << 127)


def interfaces_with_prefix() -> st.SearchStrategy[IPInterface]:
    """Addresses with their prefix length."""
    ipv4 = st.builds(
        lambda address, length: IPv4Interface((int(address), length)), st.ip_addresses(v=4), st.integers(0, 32)
    )
    ipv6 = st.builds(lambda address, length: IPv6Interface((int(address), length)), _unmapped(), st.integers(0, 128))
    return ipv4 | ipv6


def networks() -> st.SearchStrategy[IPNetwork]:
    """Networks of both families."""
    return interfaces_with_prefix().map(lambda interface: interface.network)


def domains() -> st.SearchStrategy[str]:
    """Domain names."""
    label = st.text(_ALNUM[:36], min_size=1, max_size=12)
    return st.lists(label, min_size=2, max_size=3).map(".".join)


def dns() -> st.SearchStrategy[DNS]:
    """Name resolution."""
    return st.builds(
        DNS,
        nameservers=st.lists(addresses().map(str), max_size=3).map(tuple),
        domain=st.just("") | domains(),
        search=st.lists(domains(), max_size=3).map(tuple),
        options=st.lists(st.sampled_from(["ndots:5", "timeout:1", "rotate"]), max_size=2, unique=True).map(tuple),
    )


@st.composite
def routes(draw: st.DrawFn) -> Route:
    """Routes; the gateway is of the family of the destination."""
    dst = draw(networks())
    gateways = st.ip_addresses(v=4) if dst.version == 4 else _unmapped()
    return Route(
        dst=dst,
        gw=draw(st.none() | gateways),
        mtu=draw(st.just(0) | st.integers(1280, 9000)),
        advmss=draw(st.just(0) | st.integers(536, 8960)),
        priority=draw(st.just(0) | st.integers(1, 2**31 - 1)),
        table=draw(st.none() | _TABLE),
        scope=draw(st.none() | st.sampled_from([0, 253, 254])),
    )


@st.composite
def interfaces(draw: st.DrawFn, version: SpecVersion | None = None) -> Interface:
    """Links of a result; with a version, only with what it has a place for."""
    newest = version is None or version >= ALL[-1]
    return Interface(
        name=draw(ifnames()),
        mac=draw(st.just("") | macs()),
        mtu=draw(st.just(0) | st.integers(68, 65536)) if newest else 0,
        sandbox=draw(st.just("") | names(20).map(lambda name: f"/run/netns/{name}")),
        pci_id=draw(st.sampled_from(["", "0000:01:00.0"])) if newest else "",
    )


@st.composite
def results(draw: st.DrawFn, version: SpecVersion | None = None) -> Result:
    """Results of ADD; with a version, only with what it has a place for (0.3.0 or newer)."""
    links = tuple(draw(st.lists(interfaces(version), max_size=3)))
    ips = tuple(draw(st.lists(ip_configs(len(links)), max_size=3)))
    return Result(interfaces=links, ips=ips, routes=tuple(draw(st.lists(routes(), max_size=3))), dns=draw(dns()))


@st.composite
def ip_configs(draw: st.DrawFn, links: int = 0) -> IPConfig:
    """Addresses of a result with so many links."""
    address = draw(interfaces_with_prefix())
    gateways = st.ip_addresses(v=4) if address.version == 4 else _unmapped()
    index = draw(st.none() | st.integers(0, links - 1)) if links else None
    return IPConfig(address=address, gateway=draw(st.none() | gateways), interface=index)


def results_of(version: SpecVersion) -> st.SearchStrategy[AnyResult]:
    """Results of ADD in the shape of a version: 0.1.0 and 0.2.0 have one address of each family and no links."""
    return results().map(lambda result: convert_result(result, version).result)


@st.composite
def ip_ranges(draw: st.DrawFn) -> IPRange:
    """Ranges of addresses: a subnet, and perhaps where in it to begin, to end, and its gateway."""
    subnet = draw(networks().filter(lambda each: each.num_addresses >= 4))
    first, last = int(subnet.network_address) + 1, int(subnet.broadcast_address) - 1
    start, end = sorted((draw(st.integers(first, last)), draw(st.integers(first, last))))
    spelled = [draw(st.sampled_from(["", str(subnet.network_address + (each - first + 1))])) for each in (start, end)]
    gateway = draw(st.sampled_from(["", str(subnet.network_address + 1)]))
    return IPRange(subnet=str(subnet), range_start=spelled[0], range_end=spelled[1], gateway=gateway)


def port_mappings() -> st.SearchStrategy[PortMapping]:
    """Published ports."""
    ports, hosts = st.integers(1, 65535), st.just("") | addresses().map(str)
    protocols = st.sampled_from(["tcp", "udp", "sctp"])
    return st.builds(PortMapping, host_port=ports, container_port=ports, protocol=protocols, host_ip=hosts)


def bandwidths() -> st.SearchStrategy[Bandwidth]:
    """Rates in bits a second, and bursts in bits; a burst goes with a rate only."""
    pair = st.just((0, 0)) | st.tuples(st.integers(1, 10**11), st.integers(1, 2**31 - 1))
    return st.tuples(pair, pair).map(
        lambda pairs: Bandwidth(
            ingress_rate=pairs[0][0], ingress_burst=pairs[0][1], egress_rate=pairs[1][0], egress_burst=pairs[1][1]
        )
    )


def runtime_dns() -> st.SearchStrategy[RuntimeDNS]:
    """Name resolution as the capability ``dns`` has it."""
    return dns().map(lambda made: RuntimeDNS(servers=made.nameservers, searches=made.search, options=made.options))


def runtime_configs() -> st.SearchStrategy[RuntimeConfig]:
    """Capability arguments."""
    return st.builds(
        RuntimeConfig,
        ips=st.lists(interfaces_with_prefix().map(str), max_size=2).map(tuple),
        mac=st.just("") | macs(),
        ip_ranges=st.lists(st.lists(ip_ranges(), min_size=1, max_size=2).map(tuple), max_size=2).map(tuple),
        port_mappings=st.lists(port_mappings(), max_size=2).map(tuple),
        bandwidth=st.none() | bandwidths(),
        dns=st.none() | runtime_dns(),
        aliases=st.lists(names(20), max_size=2).map(tuple),
    )


def cni_args() -> st.SearchStrategy[str]:
    """Values of ``CNI_ARGS``: ``KEY=value;OTHER=value``."""
    word = st.text(_ALNUM + "_.-:/", min_size=1, max_size=20)
    return st.dictionaries(names(20), word, max_size=4).map(lambda made: ";".join(f"{k}={v}" for k, v in made.items()))


def configurations(**keys: Any) -> st.SearchStrategy[NetConf]:
    """Network configurations of one plugin.

    Args:
        **keys: Fixed values of fields: ``type="bridge"``.
    """
    fields: dict[str, Any] = {
        "cni_version": versions().map(str),
        "name": names(),
        "type": names(20),
        "ipam": st.just(IPAMConf()) | names(20).map(lambda name: IPAMConf(type=name)),
        "dns": dns(),
        "capabilities": st.dictionaries(st.sampled_from(["portMappings", "ips", "mac", "bandwidth"]), st.booleans()),
        "args": st.dictionaries(domains(), st.dictionaries(names(10), st.text()), max_size=1),
        "runtime_config": runtime_configs(),
        "prev_result": st.none() | results().map(unstructure),
    }
    return st.builds(NetConf, **{**fields, **{key: st.just(value) for key, value in keys.items()}})


def configuration_lists() -> st.SearchStrategy[NetConfList]:
    """Network configuration lists of one to three plugins."""
    plugins = st.lists(st.fixed_dictionaries({"type": names(20)}), min_size=1, max_size=3)
    return st.builds(
        NetConfList,
        cni_version=versions().map(str),
        name=names(),
        plugins=plugins.map(tuple),
        disable_check=st.booleans(),
        disable_gc=st.booleans(),
    )


def errors() -> st.SearchStrategy[CNIError]:
    """Errors: the well-known codes, and a plugin's own from 100."""
    codes = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 11, 50, 51]) | st.integers(100, 999)
    return st.builds(error_for_code, codes, st.text(min_size=1), st.text())
