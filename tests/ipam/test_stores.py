"""The exported suite, on every store there is: our two, and the one the documentation builds."""

from pathlib import Path

from cnisdk.ipam import FileStore, MemoryStore, Store
from cnisdk.testing.stores import StoreSuite


class TestMemoryStore(StoreSuite):
    shared_by_processes = False
    stores: dict[Path, MemoryStore]

    def setup_method(self) -> None:
        self.stores = {}

    def open(self, place: Path) -> Store:
        return self.stores.setdefault(place, MemoryStore())


class TestFileStore(StoreSuite):
    def open(self, place: Path) -> Store:
        return FileStore(str(place), "net")
