"""Contents of launchers, and the plugins that distributions register."""

from importlib.metadata import EntryPoint

import pytest

from cnisdk._cli.launchers import ENTRY_POINT_GROUP, RegisteredPlugin, registered_plugins, render_launcher
from cnisdk.errors import InvalidConfigError


def test_a_type_that_is_no_file_name() -> None:
    with pytest.raises(InvalidConfigError, match="invalid plugin name"):
        registered_plugins([EntryPoint("../bridge", "a:main", ENTRY_POINT_GROUP)])


def test_the_same_plugin_seen_twice_is_one() -> None:
    entry = EntryPoint("noop", "a", ENTRY_POINT_GROUP)
    assert registered_plugins([entry, entry]) == {
        "noop": RegisteredPlugin("noop", "a", "main", "an unknown distribution")
    }


def test_texts_from_metadata_stay_in_their_comment() -> None:
    text = render_launcher(RegisteredPlugin("a", "m", "main", "evil\nrm -rf /\n"), "/usr/bin/python3", b"{}")
    assert b"\nrm" not in text
