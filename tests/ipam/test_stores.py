"""The exported suite, on every store there is: our two, and the one the documentation builds."""

import re
from pathlib import Path
from typing import Any

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


def documented() -> dict[str, Any]:
    """Return the names that the how-to about stores of one's own defines."""
    page = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "bring-your-own-store.md"
    names: dict[str, Any] = {"__name__": "documented"}
    for code in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(code, str(page), "exec"), names)
    return names


DOCUMENTED = documented()


class TestDocumentedStore(StoreSuite):
    rounds = 5

    def open(self, place: Path) -> Store:
        store: Store = DOCUMENTED["SqliteStore"](place / "leases.db")
        return store


def test_the_page_says_the_same() -> None:
    assert issubclass(DOCUMENTED["TestSqliteStore"], StoreSuite)
