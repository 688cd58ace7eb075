"""State files: no attachment takes another's, whatever their names make when they are joined."""

from __future__ import annotations

import os
from itertools import permutations
from pathlib import Path

import pytest

from cnisdk.plugin.statefile import StateFile, delete_stale
from cnisdk.spec.names import Attachment

# Each makes the name a_b_c.json.
ONE, OTHER = Attachment("net", "a_b", "c"), Attachment("net", "a", "b_c")


@pytest.mark.parametrize(("first", "second"), list(permutations((ONE, OTHER))))
@pytest.mark.parametrize("goes", [0, 1])
def test_names_that_make_the_same_text_when_joined(
    tmp_path: Path, first: Attachment, second: Attachment, goes: int
) -> None:
    files = [StateFile(str(tmp_path), each) for each in (first, second)]
    for number, file in enumerate(files):
        for _ in range(2):
            file.write({"value": number})
    assert [file.find() for file in files] == [{"value": 0}, {"value": 1}]
    assert files[0].path == str(tmp_path / "a_b_c.json"), "the reference's name"
    files[goes].delete()
    assert files[goes].find() is None
    assert files[1 - goes].find() == {"value": 1 - goes}
    delete_stale(str(tmp_path), "net", [files[1 - goes].owner])
    assert files[1 - goes].find() == {"value": 1 - goes}
    files[1 - goes].delete()
    assert os.listdir(tmp_path) == []


def test_the_same_interface_in_another_network_takes_the_file_over(tmp_path: Path) -> None:
    """A container has one interface of a name: the DEL of the one before comes too late to put anything back."""
    before, now = (StateFile(str(tmp_path), Attachment(network, "c", "eth0")) for network in ("a", "b"))
    before.write({"value": 1})
    now.write({"value": 2})
    assert (before.find(), now.find()) == (None, {"value": 2})
    before.delete()
    assert now.find() == {"value": 2}
