"""cnisdk-cluster: addresses of a network that spans hosts (IPAM plugin).

Takes host-local's configuration and returns its results; in addition it needs etcd, in which each node claims blocks of
the addresses. The leases of a node are in its own files, as host-local's, so that an ADD asks etcd only when its node
runs short.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

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
    LimitedConnectivityError,
    Plugin,
    PluginMain,
    PluginNotAvailableError,
    Result,
    StatusRequest,
    TryAgainLaterError,
    UnknownContainerError,
    frozen,
)
from cnisdk.ipam import FileStore, Lease, Owner
from cnisdk.ipam.allocator import find_held, release, release_exactly
from cnisdk.ipam.blocks import BlockAllocator
from cnisdk.ipam.cluster import Cluster
from cnisdk.ipam.clusterconf import ClusterKeys, open_cluster, open_holdings
from cnisdk.spec.addresses import IPAddress

from .host_local import (
    HostLocal,
    HostLocalConf,
    HostLocalIPAM,
    compare_with_result,
    open_store,
    read_range_sets,
    read_resolv_conf,
    requested_addresses,
    show,
)

TYPE_CHECKING = False  # without typing, a request ends sooner
if TYPE_CHECKING:
    from cnisdk.ipam import LeaseTable

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}"
_STICKY = {
    "pod": r"(.+)",
    "statefulset": r"(.+-\d+)",
    # KubeVirt runs a virtual machine in a pod with five more characters, which change.
    "vm": r"virt-launcher-(.+)-[a-z0-9]{5}",
}
"""Names of the pods whose addresses are kept, by the value of ``stickyBy``. The group is what stays the same."""


@frozen(kw_only=True)
class ClusterIPAM(HostLocalIPAM, ClusterKeys):
    """The object ``ipam``: the keys of host-local and of a cluster, and these. ``dataDir`` is this node's.

    Attributes:
        borrow: If true, and no block is left to claim, single addresses of other nodes' blocks are borrowed.
        sticky_by: Pods that get the same addresses again: ``"pod"``, ``"statefulset"``, ``"vm"``; empty for none.
    """

    borrow: bool = True
    sticky_by: str = ""


@frozen(kw_only=True)
class ClusterConf(HostLocalConf):
    """The network configuration."""

    ipam: ClusterIPAM = ClusterIPAM()


class ClusterPlugin(Plugin[ClusterConf]):
    """Allocate addresses of a network that spans hosts."""

    leaves_process_unchanged = True

    @classmethod
    def conformance(cls) -> dict[str, object]:
        etcd = {"endpoints": ["http://127.0.0.1:2379"]}
        ranges = [[{"subnet": "10.22.0.0/27"}]]  # few enough to run out of
        conf = {"ipam": {"type": "cnisdk-cluster", "ranges": ranges, "blockSize": 29, "etcd": etcd}}
        # etcd's log files are large; what is left on this host is not looked for in a file system of its own.
        start = "etcd --data-dir /mnt/etcd --log-level error </dev/null >/dev/null 2>&1 &"
        ready = "until etcdctl get ready >/dev/null 2>&1; do sleep 0.05; done"
        setup = f"ip link set lo up; mount -t tmpfs etcd /mnt; export ETCDCTL_API=3; {start} {ready}"
        return {"kind": "ipam", "conf": {"capabilities": {"ips": True}, **conf}, "setup": setup}

    @classmethod
    def lease_tables(cls, conf: ClusterConf | None, directory: str = "") -> "Sequence[LeaseTable]":
        # Its leases lie as host-local's, which lists the networks that have any.
        return () if conf is None else HostLocal.lease_tables(conf, directory)

    def add(self, request: AddRequest[ClusterConf]) -> Result:
        conf = request.conf.ipam
        dns = read_resolv_conf(conf.resolv_conf) if conf.resolv_conf else DNS()
        new: list[Lease] = []
        owner, store = Owner(request.container_id, request.ifname), open_store(request.conf)
        with open_cluster(request.conf.ipam, request.conf.name) as cluster:
            allocator = open_allocator(request.conf, cluster, store)
            pod = sticky_identity(request)
            request.undo(release_exactly, store, new, timeout=conf.lock_timeout)
            ips = allocator.allocate(owner, requested_addresses(request), pod=pod, new=new)
        return Result(ips=ips, routes=conf.routes, dns=dns)

    def delete(self, request: DelRequest[ClusterConf]) -> None:
        owner = Owner(request.container_id, request.ifname)
        try:
            with open_cluster(request.conf.ipam, request.conf.name) as cluster:
                open_holdings(request.conf.ipam, open_store(request.conf), cluster).release(owner)
        except CNIError:  # whatever is wrong: leases name their owner. The next GC tells the cluster
            release(open_store(request.conf), owner, timeout=request.conf.ipam.lock_timeout)

    def check(self, request: CheckRequest[ClusterConf]) -> None:
        with open_cluster(request.conf.ipam, request.conf.name) as cluster:
            holdings = open_holdings(request.conf.ipam, open_store(request.conf), cluster)
            owner = Owner(request.container_id, request.ifname)
            held = holdings.store.read(lambda view: find_held(view, owner), timeout=holdings.timeout)
            compare_with_result(request, "cnisdk-cluster", held, read_range_sets(request.conf))
            try:
                others = foreign(cluster, held)
            except IOFailureError as exc:
                sys.stderr.write(f"cnisdk-cluster: not compared with the cluster: {exc.msg}\n")
                return
        if others:
            address, node = next(iter(others.items()))
            raise UnknownContainerError(
                f"cnisdk-cluster: {address} is leased to container {request.container_id}, but belongs to {node}",
                details=f"network {request.network}, node {cluster.node}",
            )

    def gc(self, request: GCRequest[ClusterConf]) -> None:
        valid = frozenset(Owner(each.container_id, each.ifname) for each in request.valid_attachments)
        with open_cluster(request.conf.ipam, request.conf.name) as cluster:
            holdings = open_holdings(request.conf.ipam, open_store(request.conf), cluster)
            holdings.retain(valid)
            with suppress(IOFailureError, TryAgainLaterError):  # etcd is away: this node's leases are in order
                holdings.refresh()

    def status(self, request: StatusRequest[ClusterConf]) -> None:
        with open_cluster(request.conf.ipam, request.conf.name) as cluster:
            store = open_store(request.conf)
            allocator = open_allocator(request.conf, cluster, store)
            store.check_usable()
            try:
                allocator.check_capacity()
            except (TryAgainLaterError, IOFailureError) as exc:
                raise PluginNotAvailableError(exc.msg, details=exc.details) from exc
            try:
                cluster.table.member = allocator.holdings.read().member
                cluster.table.check_member()
            except (IOFailureError, TryAgainLaterError) as exc:
                raise LimitedConnectivityError(
                    f"only the addresses that node {cluster.node} has can be leased: {exc.msg}", details=exc.details
                ) from exc


def open_allocator(conf: ClusterConf, cluster: Cluster, store: FileStore) -> BlockAllocator:
    """Make the allocator of this node.

    Raises:
        InvalidConfigError: (7) The configuration is wrong.
    """
    policy = conf.ipam.on_duplicate or "error"
    if policy not in ("error", "return"):
        raise InvalidConfigError(
            f'invalid onDuplicate "{policy}"', details='$.ipam.onDuplicate: expected "error" or "return"'
        )
    return BlockAllocator(
        open_holdings(conf.ipam, store, cluster),
        read_range_sets(conf),
        on_duplicate="return" if policy == "return" else "error",
        borrow=conf.ipam.borrow,
    )


def sticky_identity(request: AddRequest[ClusterConf]) -> str:
    """Return the interface of a pod whose addresses are kept, as ``namespace/name/interface``; empty for any other.

    Raises:
        InvalidConfigError: (7) ``stickyBy`` has no such value.
        InvalidEnvironmentError: (4) The names in ``CNI_ARGS`` are none.
    """
    kind = request.conf.ipam.sticky_by
    if not kind:
        return ""
    if kind not in _STICKY:
        raise InvalidConfigError(
            f'invalid stickyBy "{kind}"', details=f"$.ipam.stickyBy: expected one of {', '.join(_STICKY)}"
        )
    import re  # few networks keep addresses, and it takes longer than an ADD

    namespace, name = (request.args.get(key, "") for key in ("K8S_POD_NAMESPACE", "K8S_POD_NAME"))
    if not namespace and not name:
        return ""  # the runtime is none of Kubernetes
    for key, text in (("K8S_POD_NAMESPACE", namespace), ("K8S_POD_NAME", name)):
        if not re.fullmatch(_NAME, text):
            raise InvalidEnvironmentError(
                f'invalid {key} "{text}" in CNI_ARGS',
                details="expected a name as Kubernetes gives it: lower-case letters, digits, '-' and '.'",
            )
    match = re.fullmatch(_STICKY[kind], name)
    return f"{namespace}/{match[1]}/{request.ifname}" if match else ""


def foreign(cluster: Cluster, addresses: Sequence[IPAddress]) -> Mapping[str, str]:
    """Return the addresses that are not this node's, with the node that has them, or what else there is to say."""
    found = {}
    for address in addresses:
        block = cluster.find(address)
        node = "nobody" if block is None else block.lent.get(address) or block.node or "nobody"
        if node != cluster.node:
            found[show([address])] = "no node" if node == "nobody" else f"node {node}"
    return found


main = PluginMain(ClusterPlugin, "CNI cnisdk-cluster plugin v0.1.0")

if __name__ == "__main__":
    main()
