"""Fixtures of the tests with real runtimes: they need root, and the programs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from ..modes import Plugins
from .image import BUSYBOX
from .node import Node, describe

MODES = [
    pytest.param("one-shot", marks=pytest.mark.slow),
    pytest.param("resident", marks=pytest.mark.resident),
]


@pytest.fixture(scope="module", params=MODES)
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node whose only plugins are ours."""
    wanted = [*request.module.PROGRAMS, "nsenter", "nft", str(BUSYBOX)]
    missing = [each for each in wanted if shutil.which(each) is None]
    if os.geteuid() or missing:
        reason = f"needs root, and {', '.join(missing) or 'nothing else'}"
        if os.environ.get("CI") and not os.geteuid():
            pytest.fail(reason)
        pytest.skip(reason)
    plugins = Plugins(tmp_path_factory.mktemp("plugins"), resident=request.param == "resident", fork=False)
    with Node(plugins) as made:
        yield made
        plugins.assert_served()


class Leaks:
    """Leftovers on a node, compared to how it was when this object was made."""

    def __init__(self, node: Node) -> None:
        self._node, self._before = node, node.remains()

    def find(self) -> set[str]:
        """Return what is there now, and was not."""
        return self._node.remains() - self._before

    def assert_none(self) -> None:
        """See that nothing is left."""
        left = self.find()
        assert not left, f"left:\n{describe(left)}"
