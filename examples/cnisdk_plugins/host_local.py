"""host-local: addresses from ranges of this host, remembered in files (IPAM plugin).

Configuration, result and files are those of the reference plugin of this name; both may work in one directory. Unlike
it, this plugin has all six verbs, its leases cannot leak or tear, each operation takes the same time at any number of
leases, and leases of earlier boots are reclaimed. docs/differences.md lists the differences.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from cnisdk import (
    DNS,
    AddRequest,
    CheckRequest,
    CNIError,
    DelRequest,
    GCRequest,
    InvalidConfigError,
    InvalidEnvironmentError,
    IOFailureError,
    IPAMConf,
    NetConf,
    Plugin,
    PluginMain,
    PluginNotAvailableError,
    Result,
    Route,
    StatusRequest,
    TryAgainLaterError,
    UnknownContainerError,
    frozen,
)
from cnisdk.errors import cause_of
from cnisdk.ipam import FileStore, Lease, Owner, RangeSet, RoundRobin
from cnisdk.ipam.allocator import release, release_exactly, retain
from cnisdk.ipam.filestore import DATA_DIR
from cnisdk.ipam.ranges import make_range_set, parse_range, pools
from cnisdk.ipam.store import LOCK_TIMEOUT, in_order
from cnisdk.spec.addresses import IPAddress, parse_address, parse_interface
from cnisdk.spec.codec import structure
from cnisdk.spec.config import IPRange, check_addresses_fit, read_conventional_ips

TYPE_CHECKING = False  # without typing, a request ends sooner
if TYPE_CHECKING:
    from typing import Any

    from cnisdk.ipam import LeaseTable


@frozen(kw_only=True)
class RangeConf(IPRange):
    """A range, as IPRange, with addresses that are never handed out.

    Attributes:
        exclude: Addresses, ``first-last``, or networks.
    """

    exclude: tuple[str, ...] = ()


@frozen(kw_only=True)
class HostLocalIPAM(IPAMConf):
    """The object ``ipam``.

    Attributes:
        ranges: Each set gives an attachment one address, of any of its ranges.
        subnet: With the three below and ``exclude``: a range set of one range, before ``ranges``.
        range_start: See ``subnet``.
        range_end: See ``subnet``.
        gateway: See ``subnet``.
        exclude: See ``subnet``.
        routes: Routes to put into the result.
        resolv_conf: A file in the format of ``resolv.conf(5)``, which becomes the result's ``dns``.
        data_dir: Directory of the networks' directories; empty means ``/var/lib/cni/networks``.
        on_duplicate: ``"error"`` refuses an ADD of an attachment that has addresses; ``"return"`` returns these.
        reclaim_earlier_boots: If true, leases made in earlier boots count as free.
        lock_timeout: How long to wait for other processes, in seconds.
    """

    ranges: tuple[tuple[RangeConf, ...], ...] = ()
    subnet: str = ""
    range_start: str = ""
    range_end: str = ""
    gateway: str = ""
    exclude: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    resolv_conf: str = ""
    data_dir: str = ""
    on_duplicate: str = "error"
    reclaim_earlier_boots: bool = True
    lock_timeout: float = LOCK_TIMEOUT


@frozen(kw_only=True)
class HostLocalConf(NetConf):
    """The network configuration."""

    ipam: HostLocalIPAM = HostLocalIPAM()


class HostLocal(Plugin[HostLocalConf]):
    """Allocate addresses from ranges of this host."""

    leaves_process_unchanged = True

    @classmethod
    def rehearsals(cls, directory: str) -> tuple[dict[str, object], ...]:
        ranges = [[{"subnet": "192.0.2.0/24"}], [{"subnet": "2001:db8::/64"}]]  # RFC 5737, RFC 3849: for documentation
        routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        return ({"ipam": {"type": "host-local", "dataDir": directory, "ranges": ranges, "routes": routes}},)

    @classmethod
    def conformance(cls) -> dict[str, object]:
        ranges = [[{"subnet": "10.22.0.0/27"}]]  # few enough to run out of
        conf = {"capabilities": {"ips": True}, "ipam": {"type": "host-local", "ranges": ranges}}
        return {"kind": "ipam", "conf": conf}

    @classmethod
    def lease_tables(cls, conf: HostLocalConf | None, directory: str = "") -> Sequence[LeaseTable]:
        from cnisdk.ipam.filetable import FileTable, list_networks

        if conf is None:
            return [FileTable(FileStore(directory, name)) for name in list_networks(directory or DATA_DIR)]
        try:
            ranges = pools(read_range_sets(conf))
        except CNIError:
            ranges = ()  # the next ADD says what is wrong with them
        return [FileTable(open_store(conf, directory), ranges)]

    def add(self, request: AddRequest[HostLocalConf]) -> Result:
        conf = request.conf.ipam
        store = open_store(request.conf)
        allocator = open_allocator(request.conf, store)
        dns = read_resolv_conf(conf.resolv_conf) if conf.resolv_conf else DNS()
        owner = Owner(request.container_id, request.ifname)
        new: list[Lease] = []
        request.undo(release_exactly, store, new, timeout=conf.lock_timeout)
        ips = allocator.allocate(owner, requested_addresses(request), new=new)
        return Result(ips=ips, routes=conf.routes, dns=dns)

    def delete(self, request: DelRequest[HostLocalConf]) -> None:
        # No ranges are needed, which may have changed since ADD: leases name their owner.
        owner = Owner(request.container_id, request.ifname)
        release(open_store(request.conf), owner, timeout=request.conf.ipam.lock_timeout)

    def check(self, request: CheckRequest[HostLocalConf]) -> None:
        range_sets = read_range_sets(request.conf)
        allocator = open_allocator(request.conf, open_store(request.conf))
        held = allocator.find(Owner(request.container_id, request.ifname))
        compare_with_result(request, "host-local", held, range_sets)

    def gc(self, request: GCRequest[HostLocalConf]) -> None:
        valid = frozenset(Owner(each.container_id, each.ifname) for each in request.valid_attachments)
        retain(open_store(request.conf), valid, timeout=request.conf.ipam.lock_timeout)

    def status(self, request: StatusRequest[HostLocalConf]) -> None:
        store = open_store(request.conf)
        allocator = open_allocator(request.conf, store)
        store.check_usable()
        try:
            allocator.check_capacity()
        except (TryAgainLaterError, IOFailureError) as exc:
            raise PluginNotAvailableError(exc.msg, details=exc.details) from exc


def compare_with_result(
    request: CheckRequest[Any], plugin: str, leased: Iterable[IPAddress], range_sets: Sequence[RangeSet]
) -> None:
    """Compare the addresses that are leased to an attachment with those of its ``prevResult``.

    Raises:
        UnknownContainerError: (3) None is leased to it, or others are.
    """
    held, container = set(leased), request.container_id
    if not held:
        raise UnknownContainerError(
            f"{plugin}: Failed to find address added by container {container}",
            details=f"network {request.network} has no lease of interface {request.ifname}",
        )
    result = request.prev_result
    if result is None:
        return  # before 0.4.0 there was none, and a main plugin may have none to hand on
    expected = {ip.address.ip for ip in result.ips if any(each.holds(ip.address.ip) for each in range_sets)}
    lost = expected - held
    if lost:
        raise UnknownContainerError(
            f"{plugin}: {show(lost)} is no longer leased to container {container}",
            details=f"network {request.network}, interface {request.ifname}, holds {show(held)}",
        )
    surplus = {address for address in held - expected if any(each.holds(address) for each in range_sets)}
    if surplus:
        raise UnknownContainerError(
            f"{plugin}: {show(surplus)} is leased to container {container}, but not in its prevResult",
            details=f"network {request.network}, interface {request.ifname}, has {show(expected)}",
        )


def open_store(conf: HostLocalConf, directory: str = "") -> FileStore:
    """Return the leases of the network, which lie in `directory` where the configuration does not say."""
    return FileStore(
        conf.ipam.data_dir or directory,
        conf.name,
        reclaim_earlier_boots=conf.ipam.reclaim_earlier_boots,
        notice=lambda text: sys.stderr.write(f"host-local: {text}\n"),
    )


def open_allocator(conf: HostLocalConf, store: FileStore) -> RoundRobin:
    """Make the allocator of the network's addresses.

    Raises:
        InvalidConfigError: (7) The configuration has no ranges, or contradicts itself.
    """
    policy = conf.ipam.on_duplicate
    if policy == "return":
        return RoundRobin(store, read_range_sets(conf), on_duplicate="return", timeout=conf.ipam.lock_timeout)
    if policy not in ("", "error"):
        raise InvalidConfigError(
            f'invalid onDuplicate "{policy}"', details='$.ipam.onDuplicate: expected "error" or "return"'
        )
    return RoundRobin(store, read_range_sets(conf), timeout=conf.ipam.lock_timeout)


def read_range_sets(conf: HostLocalConf) -> tuple[RangeSet, ...]:
    """Read the range sets of the network, in the reference's order: of the runtime, of the flat keys, of ``ranges``.

    Raises:
        InvalidConfigError: (7) There are none, or one is not valid.
    """
    ipam = conf.ipam
    if not ipam.type and ipam == HostLocalIPAM():
        raise InvalidConfigError("IPAM config missing 'ipam' key", details="$.ipam is missing or empty")
    given: list[tuple[Sequence[IPRange], str]] = [
        (ranges, f"$.runtimeConfig.ipRanges[{index}]") for index, ranges in enumerate(conf.runtime_config.ip_ranges)
    ]
    if ipam.subnet:
        flat = RangeConf(
            subnet=ipam.subnet,
            range_start=ipam.range_start,
            range_end=ipam.range_end,
            gateway=ipam.gateway,
            exclude=ipam.exclude,
        )
        given.append(((flat,), "$.ipam"))
    given += ((ranges, f"$.ipam.ranges[{index}]") for index, ranges in enumerate(ipam.ranges))
    range_sets = tuple(_range_set(ranges, index, path) for index, (ranges, path) in enumerate(given))
    check_addresses_fit(conf.cni_version, [each.version for each in range_sets])
    return range_sets


def _range_set(ranges: Sequence[IPRange], index: int, path: str) -> RangeSet:
    parsed = []
    for number, each in enumerate(ranges):
        place = path if path == "$.ipam" else f"{path}[{number}]"
        # A runtime's ranges are of the general type, which keeps "exclude" unread.
        exclude = each.exclude if isinstance(each, RangeConf) else _exclusions(each, place)
        try:
            one = parse_range(each.subnet, each.range_start, each.range_end, each.gateway, exclude, path=place)
        except InvalidConfigError as exc:
            raise InvalidConfigError(f"invalid range set {index}: {exc.msg}", details=exc.details) from exc
        parsed.append(one)
    return make_range_set(parsed, index, path)


def _exclusions(conf: IPRange, path: str) -> tuple[str, ...]:
    return structure(conf.extra.get("exclude") or (), tuple[str, ...], path=f"{path}.exclude")


def requested_addresses(request: AddRequest[Any]) -> tuple[IPAddress, ...]:
    """Read the addresses asked for by ``CNI_ARGS``, by ``args.cni.ips`` and by the capability ``ips``, in this order.

    Raises:
        InvalidConfigError: (7) A text in the configuration is no address.
        InvalidEnvironmentError: (4) The text in ``CNI_ARGS`` is no address.
    """
    requested = []
    wanted = request.args.get("IP")
    if wanted:
        try:
            requested.append(_address(wanted))
        except ValueError as exc:
            raise InvalidEnvironmentError(
                f"invalid IP address in CNI_ARGS: IP={wanted}", details="expected one address, such as IP=10.1.2.3"
            ) from exc
    conventional = read_conventional_ips(request.conf.args)
    for texts, path in ((conventional, "$.args.cni.ips"), (request.conf.runtime_config.ips, "$.runtimeConfig.ips")):
        for index, text in enumerate(texts):
            try:
                requested.append(_address(text))
            except ValueError as exc:
                raise InvalidConfigError(
                    f"invalid IP address: {text}", details=f"{path}[{index}]: expected an address, such as 10.1.2.3"
                ) from exc
    return tuple(requested)


def _address(text: str) -> IPAddress:
    """Read an address. A prefix length is accepted and ignored: the address gets that of its range."""
    return parse_interface(text).ip if "/" in text else parse_address(text)


def read_resolv_conf(path: str) -> DNS:
    """Read a file in the format of ``resolv.conf(5)``; the lines of ``search`` add up, as in the reference.

    Raises:
        IOFailureError: (5) It cannot be read.
    """
    from cnisdk.plugin.statefile import read_text_file

    try:
        lines = [line.split() for line in read_text_file(path).split("\n")]
    except (OSError, ValueError) as exc:
        raise IOFailureError(f"cannot read resolvConf {path}: {cause_of(exc)}", details="$.ipam.resolvConf") from exc
    values: dict[str, list[str]] = {"nameserver": [], "domain": [], "search": [], "options": []}
    for fields in lines:
        if len(fields) > 1 and fields[0] in values:
            values[fields[0]] += fields[1:2] if fields[0] in ("nameserver", "domain") else fields[1:]
    return DNS(
        nameservers=tuple(values["nameserver"]),
        domain=values["domain"][-1] if values["domain"] else "",
        search=tuple(values["search"]),
        options=tuple(values["options"]),
    )


def show(addresses: Iterable[IPAddress]) -> str:
    """Write addresses as a part of a sentence."""
    return ", ".join(map(str, in_order(addresses))) or "none"


main = PluginMain(HostLocal, "CNI host-local plugin v1.9.1")

if __name__ == "__main__":
    main()
