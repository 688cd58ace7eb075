"""Loading networks from a directory: precedence, folders, and files that are broken."""

import json
import os
from pathlib import Path

import pytest

from cnisdk.errors import CNIError, DecodingError, InvalidConfigError, IOFailureError
from cnisdk.runtime import Network, NetworkNotFoundError, load_network, load_networks, read_network


def write(path: Path, document: object) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    return str(path)


def conf_list(name: str, *types: str, **more: object) -> dict[str, object]:
    return {"cniVersion": "1.0.0", "name": name, "plugins": [{"type": each} for each in types], **more}


def conf(name: str, kind: str) -> dict[str, object]:
    return {"cniVersion": "1.0.0", "name": name, "type": kind}


def types(network: Network) -> list[str]:
    return [plugin.type for plugin in network.plugins]


def test_lists_come_before_all_others(tmp_path: Path) -> None:
    write(tmp_path / "10-a.conf", conf("net", "single"))
    write(tmp_path / "05-a.json", conf("net", "json"))
    write(tmp_path / "99-a.conflist", conf_list("net", "list"))
    assert types(load_network(str(tmp_path), "net")) == ["list"]


def test_conf_and_json_are_one_group_sorted_by_name(tmp_path: Path) -> None:
    write(tmp_path / "10.json", conf("net", "json"))
    write(tmp_path / "10.conf", conf("net", "conf"))
    assert types(load_network(str(tmp_path), "net")) == ["conf"]
    write(tmp_path / "05.json", conf("net", "first"))
    assert types(load_network(str(tmp_path), "net")) == ["first"]


def test_what_is_no_configuration_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / "a.CONF", conf("net", "x"))
    write(tmp_path / "a.conf.bak", conf("net", "x"))
    write(tmp_path / "below" / "a.conf", conf("net", "x"))
    (tmp_path / "dir.conf").mkdir()
    with pytest.raises(NetworkNotFoundError, match="no net configurations found in"):
        load_network(str(tmp_path), "net")
    assert load_networks(str(tmp_path)).networks == ()


def test_not_found_names_what_there_is(tmp_path: Path) -> None:
    write(tmp_path / "a.conf", conf("other", "x"))
    write(tmp_path / "b.conf", b"{")
    with pytest.raises(NetworkNotFoundError) as caught:
        load_network(str(tmp_path), "net")
    assert caught.value.msg == f'no net configuration with name "net" in {tmp_path}'
    assert caught.value.details.startswith(f"there are: other; not readable: network configuration {tmp_path}/b.conf")
    with pytest.raises(NetworkNotFoundError, match="no net configurations found in /nowhere"):
        load_network("/nowhere", "net")


def test_a_broken_file_of_another_network_is_reported_and_does_not_block(tmp_path: Path) -> None:
    write(tmp_path / "00-broken.conflist", b'{"name": "other", "plugins": [')
    write(tmp_path / "01-empty.conflist", b"")
    write(tmp_path / "02-wrong.conf", {"name": "another"})
    (tmp_path / "03-dangling.conf").symlink_to("/nowhere")
    write(tmp_path / "10-net.conflist", conf_list("net", "bridge"))
    problems: list[CNIError] = []
    assert types(load_network(str(tmp_path), "net", on_problem=problems.append)) == ["bridge"]
    assert [type(problem) for problem in problems] == [DecodingError, DecodingError, InvalidConfigError, IOFailureError]
    for problem, name in zip(problems, ("00-broken", "01-empty", "02-wrong", "03-dangling"), strict=True):
        assert name in problem.msg


def test_a_broken_file_of_the_network_itself_is_the_error(tmp_path: Path) -> None:
    """Not "network not found", and not a file further on, with another chain of plugins."""
    write(tmp_path / "10-net.conflist", b'{"name" :  "net", "plugins": [{"type": "firewall"}')
    write(tmp_path / "20-net.conflist", conf_list("net", "bridge"))
    with pytest.raises(DecodingError, match=r"10-net\.conflist is not JSON"):
        load_network(str(tmp_path), "net")
    write(tmp_path / "10-net.conflist", conf_list("net", "../x"))
    with pytest.raises(InvalidConfigError, match="invalid plugin name"):
        load_network(str(tmp_path), "net")


def test_a_second_definition_is_reported(tmp_path: Path) -> None:
    first = write(tmp_path / "10.conflist", conf_list("net", "a"))
    second = write(tmp_path / "20.conflist", conf_list("net", "b"))
    third = write(tmp_path / "05.conf", conf("net", "c"))
    problems: list[CNIError] = []
    assert types(load_network(str(tmp_path), "net", on_problem=problems.append)) == ["a"]
    expected = [
        f'network "net" is defined by {first} and again by {second}, which is ignored',
        f'network "net" is defined by {first} and again by {third}, which is ignored',
    ]
    assert [str(problem) for problem in problems] == expected
    loaded = load_networks(str(tmp_path))
    assert [types(network) for network in loaded.networks] == [["a"]]
    assert [str(problem) for problem in loaded.problems] == expected


def test_a_list_in_a_conf_file_is_understood(tmp_path: Path) -> None:
    write(tmp_path / "a.conf", conf_list("net", "a", "b"))
    write(tmp_path / "b.conflist", conf("single", "c"))
    assert types(load_network(str(tmp_path), "net")) == ["a", "b"]
    assert types(load_network(str(tmp_path), "single")) == ["c"]


def test_the_folder_of_further_plugins(tmp_path: Path) -> None:
    path = write(tmp_path / "net.conflist", conf_list("net", "a"))
    write(tmp_path / "net" / "2.conf", {"type": "c", "name": "ignored"})
    write(tmp_path / "net" / "10.conf", {"type": "b", "x": 1})
    write(tmp_path / "net" / "3.json", {"type": "not this"})
    write(tmp_path / "other" / "1.conf", {"type": "nor this"})
    network = read_network(path)
    assert types(network) == ["a", "b", "c"]
    # What is cached can be used without the folder.
    again = Network.parse(network.source)
    assert types(again) == ["a", "b", "c"]
    assert again.load_only_inlined_plugins


def test_a_list_may_have_its_plugins_in_the_folder_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "net.conflist", {"cniVersion": "1.1.0", "name": "net"})
    with pytest.raises(InvalidConfigError, match="no plugin configs found"):
        read_network(path)
    write(tmp_path / "net" / "1.conf", {"type": "a"})
    assert types(read_network(path)) == ["a"]


def test_only_inlined_plugins(tmp_path: Path) -> None:
    path = write(tmp_path / "net.conflist", conf_list("net", "a", loadOnlyInlinedPlugins=True))
    write(tmp_path / "net" / "1.conf", b"broken")
    assert types(read_network(path)) == ["a"]
    write(tmp_path / "net.conflist", conf_list("net", loadOnlyInlinedPlugins=True))
    with pytest.raises(InvalidConfigError, match="no plugin configs found"):
        read_network(path)


def test_errors_in_the_folder_name_their_file(tmp_path: Path) -> None:
    path = write(tmp_path / "net.conflist", conf_list("net", "a"))
    broken = write(tmp_path / "net" / "1.conf", b"{")
    with pytest.raises(DecodingError, match=f"plugin configuration {broken} is not JSON"):
        read_network(path)
    write(tmp_path / "net" / "1.conf", {})
    with pytest.raises(InvalidConfigError, match=rf"{broken}: \$\.type is missing"):
        load_network(str(tmp_path), "net")


def test_a_name_cannot_lead_to_another_folder(tmp_path: Path) -> None:
    write(tmp_path / "evil" / "1.conf", {"type": "evil"})
    (tmp_path / "conf").mkdir()
    path = write(tmp_path / "conf" / "net.conflist", conf_list("../evil", "a"))
    with pytest.raises(InvalidConfigError, match="invalid characters found in network name"):
        read_network(path)


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "file", b"")
    with pytest.raises(IOFailureError, match="cannot read the directory"):
        load_network(path, "net")


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "net.conflist"
    path.symlink_to("/proc/sys/net/ipv4/route/flush")  # only to be written to, by root as well
    with pytest.raises(IOFailureError, match="Permission denied"):
        read_network(str(path))


def test_a_fifo_among_the_configurations_is_a_problem_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "10-fifo.conflist")
    (tmp_path / "11-device.conf").symlink_to("/dev/zero")
    write(tmp_path / "20-a.conflist", conf_list("net", "list"))
    loaded = load_networks(str(tmp_path))
    assert [network.name for network in loaded.networks] == ["net"]
    assert [problem.code for problem in loaded.problems] == [5, 5]
    assert "10-fifo.conflist: it is a FIFO, not a regular file" in loaded.problems[0].msg
    assert "11-device.conf: it is a device, not a regular file" in loaded.problems[1].msg
    assert types(load_network(str(tmp_path), "net")) == ["list"]


def test_a_fifo_among_the_plugins_of_a_folder_is_an_error_and_not_waited_for(tmp_path: Path) -> None:
    path = write(tmp_path / "20-a.conflist", conf_list("net", "list"))
    (tmp_path / "net").mkdir()
    os.mkfifo(tmp_path / "net" / "10.conf")
    with pytest.raises(IOFailureError, match="it is a FIFO"):
        read_network(path)


def test_a_link_to_a_configuration_is_followed(tmp_path: Path) -> None:
    """As Kubernetes mounts configuration maps."""
    write(tmp_path / "hidden", conf_list("net", "list"))
    (tmp_path / "10.conflist").symlink_to("hidden")
    assert types(load_network(str(tmp_path), "net")) == ["list"]
