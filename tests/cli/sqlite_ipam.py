"""An IPAM plugin of another distribution, which keeps its leases in an SQLite file. Tests install it."""

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from ipaddress import ip_address
from typing import Any

from attrs import frozen

from cnisdk import AddRequest, DelRequest, IPAMConf, NetConf, Plugin, PluginMain, Result
from cnisdk.ipam import Examination, LeaseRecord, LeaseTable, Owner
from cnisdk.ipam.ranges import make_range_set, parse_range, pools
from cnisdk.ipam.store import LOCK_TIMEOUT

SCHEMA = "CREATE TABLE IF NOT EXISTS leases (address TEXT PRIMARY KEY, network, container, ifname, made REAL, age REAL)"


@frozen(kw_only=True)
class SqliteIPAM(IPAMConf):
    file: str
    subnet: str = ""
    shared: bool = False


@frozen(kw_only=True)
class SqliteConf(NetConf):
    ipam: SqliteIPAM


def run(path: str, statement: str, *values: object) -> list[Any]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(SCHEMA)
        return db.execute(statement, values).fetchall()


class SqliteTable(LeaseTable):
    def __init__(self, network: str, conf: SqliteIPAM) -> None:
        ranges = pools([make_range_set([parse_range(conf.subnet)], 0, "$.ipam")]) if conf.subnet else ()
        super().__init__(network, conf.file, ranges)
        self.exclusive = not conf.shared

    def examine(self, *, timeout: float = LOCK_TIMEOUT) -> Examination:
        rows = run(
            self.place, "SELECT address, container, ifname, made, age FROM leases WHERE network = ?", self.network
        )
        leases = (LeaseRecord(ip_address(row[0]), Owner(*row[1:3]), age=row[4], stamp=row[3]) for row in rows)
        return Examination(tuple(leases), exclusive=self.exclusive)

    def drop(self, leases: Iterable[LeaseRecord], *, timeout: float = LOCK_TIMEOUT) -> tuple[LeaseRecord, ...]:
        where = "DELETE FROM leases WHERE (address, container, ifname, made) = (?, ?, ?, ?) RETURNING address"
        return tuple(each for each in leases if run(self.place, where, str(each.address), *each.owner, each.stamp))


class SqliteIpam(Plugin[SqliteConf]):
    """Lease addresses from an SQLite file."""

    @classmethod
    def lease_tables(cls, conf: SqliteConf | None, directory: str = "") -> Sequence[LeaseTable]:
        return [] if conf is None else [SqliteTable(conf.name, conf.ipam)]

    def add(self, request: AddRequest[SqliteConf]) -> Result:
        raise NotImplementedError

    def delete(self, request: DelRequest[SqliteConf]) -> None:
        raise NotImplementedError


main = PluginMain(SqliteIpam)
