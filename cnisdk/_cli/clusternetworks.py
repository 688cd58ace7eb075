"""The networks of this node whose addresses are a cluster's, for ``cnisdk cluster``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ..errors import InvalidConfigError, IOFailureError
from ..ipam.cluster import Cluster
from ..ipam.clusterconf import ClusterKeys, node_name, open_cluster, open_holdings
from ..ipam.filestore import FileStore
from ..ipam.holdings import Holdings
from ..ipam.ranges import Pool
from ..ipam.table import LeaseTable
from ..runtime.load import load_networks
from ..runtime.network import Network
from ..spec._lenient import structure_leniently
from ..spec.codec import find_key, loads
from .tables import search_tables

TYPE = "cnisdk-cluster"


class ClusterNetwork(NamedTuple):
    """A network, as this node is configured for it.

    Attributes:
        name: Its name.
        conf: Its configuration.
        table: The leases of this node.
    """

    name: str
    conf: ClusterKeys
    table: LeaseTable

    @property
    def node(self) -> str:
        """Name of this node."""
        return node_name(self.conf)

    @property
    def pools(self) -> Sequence[Pool]:
        """The addresses of the cluster, for each range set."""
        return self.table.pools

    @property
    def endpoints(self) -> str:
        """Endpoints of etcd, and how to authenticate there."""
        return ", ".join(self.conf.etcd.endpoints)

    @contextmanager
    def open(self, *, operator: bool = True) -> Iterator[Cluster]:
        """Open its blocks in etcd."""
        with open_cluster(self.conf, self.name, operator=operator) as cluster:
            yield cluster

    @contextmanager
    def open_holdings(self) -> Iterator[Holdings]:
        """Open what this node has."""
        with self.open(operator=False) as cluster:
            yield open_holdings(self.conf, self.store, cluster)

    @property
    def store(self) -> FileStore:
        """The leases of this node."""
        return FileStore(os.path.dirname(self.table.place), self.name)


def add_network_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that all of these commands have in common."""
    parser.add_argument("--network", metavar="NETWORK", default="", help="only this network")


def load_cluster_networks(args: argparse.Namespace) -> list[ClusterNetwork]:
    """Read the networks of a cluster from the configuration.

    Raises:
        InvalidConfigError: (7) There is none, or none of this name.
        IOFailureError: (5) The plugin's leases are not known here.
    """
    loaded = load_networks(args.conf_dir)
    for problem in loaded.problems:
        print(f"cnisdk: {problem}", file=sys.stderr)
    found = [each for each in map(_read, loaded.networks) if each and args.network in ("", each.name)]
    if not found:
        which = f'no network "{args.network}"' if args.network else "no network"
        raise InvalidConfigError(f"{args.conf_dir} has {which} whose ipam.type is {TYPE}")
    return found


def only_network(args: argparse.Namespace) -> ClusterNetwork:
    """Read the one network that a command is about.

    Raises:
        InvalidConfigError: (7) There are several, and the arguments do not say which.
    """
    found = load_cluster_networks(args)
    if len(found) > 1:
        raise InvalidConfigError(
            f"there are several networks of type {TYPE}",
            details=f"say --network {' or '.join(each.name for each in found)}",
        )
    return found[0]


def _read(network: Network) -> ClusterNetwork | None:
    for member in network.plugins:
        ipam = find_key(member.document, "ipam")
        if isinstance(ipam, dict) and find_key(ipam, "type") == TYPE:
            document = loads(network.request(member))
            conf, problems = structure_leniently(find_key(document, "ipam"), ClusterKeys, path="$.ipam")
            if problems:
                raise problems[0]
            tables = [each.table for each in search_tables([network], only=network.name).tables if each.type == TYPE]
            if not tables:
                raise IOFailureError(
                    f'the leases of network "{network.name}" are not known',
                    details=f'no plugin "{TYPE}" is registered with this Python: install cnisdk-plugins',
                )
            return ClusterNetwork(network.name, conf, tables[0])
    return None
