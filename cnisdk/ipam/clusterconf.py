"""Open what a configuration of a cluster's network names: its blocks in etcd, and what this node has of them.

The plugin cnisdk-cluster has more keys. The command ``cnisdk cluster`` reads only those of :class:`ClusterKeys`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..classes import frozen
from ..errors import InvalidConfigError
from .blocktable import BlockTable
from .cluster import Cluster
from .etcdclient import EtcdClient, EtcdConf
from .filestore import FileStore
from .holdings import Holdings
from .store import LOCK_TIMEOUT

_NAME = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"


@frozen(kw_only=True)
class ClusterKeys:
    """Keys of ``ipam`` that are a cluster's. The configuration class of a plugin inherits them.

    Attributes:
        node: Name of this node; empty for the host's.
        etcd: Endpoints of etcd, and how to authenticate there.
        block_size: Prefix length of an IPv4 block; the same on all nodes.
        block_size6: Prefix length of an IPv6 block; the same on all nodes.
        cool_down: Seconds an address rests after its release, before it is used again.
        lock_timeout: Seconds to wait for other processes, and for etcd.
    """

    node: str = ""
    etcd: EtcdConf = EtcdConf()
    block_size: int = 26
    block_size6: int = 122
    cool_down: float = 0.0
    lock_timeout: float = LOCK_TIMEOUT


def node_name(conf: ClusterKeys) -> str:
    """Return the name of this node."""
    return conf.node or os.uname().nodename


@contextmanager
def open_cluster(conf: ClusterKeys, network: str, *, operator: bool = False) -> Iterator[Cluster]:
    """Open a network's blocks. Nothing is sent yet; a connection that is made later is closed at the end.

    Args:
        conf: The configuration.
        network: Name of the network.
        operator: If true, the changes are an operator's, and not those of this node.

    Raises:
        InvalidConfigError: (7) The configuration of etcd or of the blocks is wrong.
    """
    lengths = {4: conf.block_size, 6: conf.block_size6}
    for version, key, longest in ((4, "blockSize", 30), (6, "blockSize6", 126)):
        if not 8 <= lengths[version] <= longest:
            raise InvalidConfigError(
                f"invalid {key} {lengths[version]}",
                details=f"$.ipam.{key}: expected a prefix length from 8 to {longest}",
            )
    node = "" if operator else node_name(conf)
    if node.strip(_NAME):
        raise InvalidConfigError(
            f'invalid node "{node}"', details="$.ipam.node: expected a name of letters, digits, '.', '_' and '-'"
        )
    etcd = conf.etcd
    prefix = etcd.prefix if etcd.prefix.endswith("/") else f"{etcd.prefix}/"
    with EtcdClient(etcd) as client:
        yield Cluster(BlockTable(client, network, node, prefix=prefix, lengths=lengths))


def open_holdings(conf: ClusterKeys, store: FileStore, cluster: Cluster) -> Holdings:
    """Return the holdings of this node: its leases, and its share of the blocks.

    Args:
        conf: The configuration.
        store: The leases of this node. The share is noted beside their directory.
        cluster: The blocks in etcd.

    Raises:
        InvalidConfigError: (7) The configuration is wrong.
    """
    if conf.cool_down < 0:
        raise InvalidConfigError(
            f"invalid coolDown {conf.cool_down:g}", details="$.ipam.coolDown: expected a number of seconds"
        )
    directory = f"{store.data_dir}/.cnisdk-cluster/{store.network}"
    return Holdings(store, cluster, directory, cool_down=conf.cool_down, timeout=conf.lock_timeout)
