"""cnitool: what it takes from options and variables, what it prints, and how it ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cnisdk._cli import cnitool
from cnisdk._cli.cnitool import container_id, main

NETNS = "/var/run/netns/testing1"
ID = "cnitool-49346948b0d506e05f2d"
ROOT = Path(__file__).resolve().parents[2]

# Leaves the environment and the input of each call beside itself; fails if there is a file fail.VERB.
PLUGIN = """#!/bin/sh
here=${0%/*}
env > "$here/$CNI_COMMAND.env"
cat > "$here/$CNI_COMMAND.stdin"
echo "$CNI_COMMAND" >> "$here/log"
if [ -e "$here/fail.$CNI_COMMAND" ]; then
    echo '{"code":11,"msg":"full","details":"try tomorrow"}'
    exit 1
fi
if [ "$CNI_COMMAND" = ADD ]; then
    echo '{"dns":{}, "ips":[{"version":"4","address":"192.0.2.2/24"}],"cniVersion":"0.4.0"}'
fi
"""

# As the Go tool prints a result of 0.4.0: four spaces, no newline at the end.
PRINTED = """{
    "cniVersion": "0.4.0",
    "ips": [
        {
            "version": "4",
            "address": "192.0.2.2/24"
        }
    ],
    "dns": {}
}"""


class Tool:
    """A directory with a plugin and a network, and the variables that lead there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.conf = directory / "net.d"
        self.cache = directory / "cache"
        self.bin.mkdir()
        self.conf.mkdir()
        plugin = self.bin / "fake"
        plugin.write_text(PLUGIN)
        plugin.chmod(0o755)
        self.configure()

    def configure(self, **more: object) -> None:
        document = {"cniVersion": "0.4.0", "name": "mynet", "type": "fake", "capabilities": {"ips": True}, **more}
        (self.conf / "10-mynet.conf").write_text(json.dumps(document))

    def __call__(self, *arguments: str) -> int:
        return main(["--cache-dir", str(self.cache), *arguments])

    @property
    def log(self) -> list[str]:
        path = self.bin / "log"
        return path.read_text().split() if path.exists() else []

    def environ(self, verb: str) -> dict[str, str]:
        lines = (self.bin / f"{verb}.env").read_text().splitlines()
        return {key: value for key, value in (line.split("=", 1) for line in lines) if key.startswith("CNI_")}

    def config(self, verb: str) -> Any:
        return json.loads((self.bin / f"{verb}.stdin").read_bytes())

    @property
    def cached(self) -> list[str]:
        results = self.cache / "results"
        return sorted(os.listdir(results)) if results.exists() else []


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    tool = Tool(tmp_path)
    for name in ("CNI_ARGS", "CAP_ARGS", "CNI_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CNI_PATH", str(tool.bin))
    monkeypatch.setenv("NETCONFPATH", str(tool.conf))
    return tool


def test_container_ids_are_those_of_the_go_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    assert container_id(NETNS) == ID
    assert container_id("/var/run/netns/x") == "cnitool-4acf487154af9777be71"
    monkeypatch.chdir("/")
    assert container_id("var/run/../run//netns/testing1/") == ID


def test_add_prints_what_the_go_tool_prints(tool: Tool, capfd: pytest.CaptureFixture[str]) -> None:
    assert tool("add", "mynet", NETNS) == 0
    assert capfd.readouterr() == (PRINTED, "")
    assert tool.environ("ADD") == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": ID,
        "CNI_NETNS": NETNS,
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "",
        "CNI_PATH": str(tool.bin),
    }
    assert tool.cached == [f"mynet-{ID}-eth0"]


def test_a_person_gets_a_newline(tool: Tool) -> None:
    leader, follower = os.openpty()
    code = "import sys; from cnisdk._cli.cnitool import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", code, "--cache-dir", str(tool.cache), "add", "mynet", NETNS]
    subprocess.run(argv, stdout=follower, check=True, cwd=ROOT)
    os.close(follower)
    assert os.read(leader, 1000).endswith(b"}\r\n")
    os.close(leader)


def test_the_other_verbs_print_nothing(tool: Tool, capfd: pytest.CaptureFixture[str]) -> None:
    tool.configure(cniVersion="1.1.0")
    assert tool("add", "mynet", NETNS) == 0
    capfd.readouterr()
    for verb in ("check", "status", "del", "del", "gc"):
        assert tool(verb, "mynet", NETNS) == 0
    assert capfd.readouterr() == ("", "")
    assert tool.log == ["ADD", "CHECK", "STATUS", "DEL", "DEL", "GC"]
    assert tool.config("CHECK")["prevResult"]["ips"][0]["address"] == "192.0.2.2/24"
    assert tool.cached == []


def test_variables_and_options(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNI_ARGS", "A=1;B=2")
    monkeypatch.setenv("CAP_ARGS", '{"ips":["192.0.2.9/24"],"other":1}')
    monkeypatch.setenv("CNI_IFNAME", "net1")
    assert tool("add", "mynet", NETNS) == 0
    given = tool.environ("ADD")
    assert (given["CNI_ARGS"], given["CNI_IFNAME"]) == ("A=1;B=2", "net1")
    assert tool.config("ADD")["runtimeConfig"] == {"ips": ["192.0.2.9/24"]}

    monkeypatch.setenv("CNI_PATH", "/nowhere")
    monkeypatch.setenv("NETCONFPATH", "/nowhere")
    options = ["--cni-path", str(tool.bin), "--conf-dir", str(tool.conf), "--cni-args", "C=3", "--cap-args", "{}"]
    assert tool("add", "mynet", "-i", "net2", NETNS, *options, "--container-id", "c1", "--timeout=5") == 0
    given = tool.environ("ADD")
    assert (given["CNI_ARGS"], given["CNI_IFNAME"], given["CNI_CONTAINERID"]) == ("C=3", "net2", "c1")
    assert "runtimeConfig" not in tool.config("ADD")
    assert tool.cached == sorted([f"mynet-{ID}-net1", "mynet-c1-net2"])


def test_an_empty_ifname_is_the_default(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNI_IFNAME", "")
    assert tool("add", "mynet", NETNS) == 0
    assert tool.environ("ADD")["CNI_IFNAME"] == "eth0"


def test_del_uses_the_arguments_of_add(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNI_ARGS", "A=1")
    assert tool("add", "mynet", NETNS) == 0
    monkeypatch.delenv("CNI_ARGS")
    assert tool("del", "mynet", NETNS) == 0
    assert tool.environ("DEL")["CNI_ARGS"] == "A=1"


@pytest.mark.parametrize(
    "broken",
    [
        '{"cniVersion": "1.0.0", "name": "mynet", "type": "fake",}',
        '{"cniVersion": "7.0.0", "name": "mynet", "type": "fake"}',
    ],
)
def test_del_works_when_the_configuration_became_unusable(
    tool: Tool, capfd: pytest.CaptureFixture[str], broken: str
) -> None:
    assert tool("add", "mynet", NETNS) == 0
    (tool.conf / "10-mynet.conf").write_text(broken)
    assert tool("check", "mynet", NETNS) == 1
    capfd.readouterr()
    assert tool("del", "mynet", NETNS) == 0
    assert tool.log == ["ADD", "DEL"]
    assert tool.cached == []
    assert "using the configuration of the add" in capfd.readouterr().err
    assert tool("del", "mynet", NETNS) == 1  # nothing is remembered any more: its error is the answer


def test_a_fifo_in_place_of_the_cached_result_is_not_waited_for(tool: Tool, capfd: pytest.CaptureFixture[str]) -> None:
    assert tool("add", "mynet", NETNS) == 0
    path = tool.cache / "results" / tool.cached[0]
    path.unlink()
    os.mkfifo(path)
    assert tool("check", "mynet", NETNS) == 1
    assert "it is a FIFO, not a regular file" in capfd.readouterr().err
    assert tool("del", "mynet", NETNS) == 0
    assert tool.cached == []


def test_del_works_when_the_configuration_is_gone(tool: Tool, capfd: pytest.CaptureFixture[str]) -> None:
    assert tool("add", "mynet", NETNS) == 0
    (tool.conf / "10-mynet.conf").unlink()
    assert tool("check", "mynet", NETNS) == 1
    capfd.readouterr()
    assert tool("del", "mynet", NETNS) == 0
    assert tool.log == ["ADD", "DEL"]
    assert "using the configuration of the add" in capfd.readouterr().err
    assert tool.cached == []
    assert tool("del", "mynet", NETNS) == 1


def test_errors_go_to_stderr_with_code_and_status_1(tool: Tool, capfd: pytest.CaptureFixture[str]) -> None:
    (tool.bin / "fail.ADD").touch()
    assert tool("add", "mynet", NETNS) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err == 'cnitool: plugin type="fake" name="mynet" failed (add): full (code 11); try tomorrow\n'
    assert tool.log == ["ADD", "DEL"]
    assert tool.cached == []


@pytest.mark.parametrize("options", [[], ["-v"]])
def test_what_plugins_say_stands_after_the_error_it_belongs_to(
    tool: Tool, capfd: pytest.CaptureFixture[str], options: list[str]
) -> None:
    for name in ("first", "last"):
        program = tool.bin / name
        program.write_text(PLUGIN.replace("#!/bin/sh\n", f'#!/bin/sh\necho "{name}: $CNI_COMMAND" >&2\n'))
        program.chmod(0o755)
    (tool.conf / "10-mynet.conflist").write_text(
        json.dumps({"cniVersion": "0.4.0", "name": "chain", "plugins": [{"type": "first"}, {"type": "last"}]})
    )
    (tool.bin / "last").write_text((tool.bin / "last").read_text().replace("$here/fail.", "$here/last.fail."))
    (tool.bin / "last.fail.ADD").touch()
    assert tool(*options, "add", "chain", NETNS) == 1
    lines = capfd.readouterr().err.splitlines()
    error = lines.index('cnitool: plugin type="last" failed (add): full (code 11); try tomorrow')
    said = [line for line in lines if line.startswith(("first: ", "last: "))]
    assert said == ["first: ADD", "last: ADD", "last: DEL", "first: DEL"]
    if options:  # here the error stands first where the call ends
        answers = [line for line in lines if line.startswith(("< ", "first: ", "last: "))]
        assert [answers[0][:7], answers[1], answers[2][:13], answers[3]] == (
            ["< first", "first: ADD", "< last failed", "last: ADD"]
        )
    else:
        assert lines[0] == "first: ADD"  # what belongs to no error is not kept back
        assert error == 1


def test_what_a_plugin_says_at_length_comes_at_once(tool: Tool, capfd: pytest.CaptureFixture[str]) -> None:
    (tool.bin / "fail.ADD").touch()
    plugin = tool.bin / "fake"
    plugin.write_text(PLUGIN.replace("#!/bin/sh\n", "#!/bin/sh\nprintf %070000d 0 >&2\n"))
    assert tool("--no-rollback", "add", "mynet", NETNS) == 1
    assert capfd.readouterr().err.startswith("0000")


def test_no_rollback(tool: Tool) -> None:
    (tool.bin / "fail.ADD").touch()
    assert tool("--no-rollback", "add", "mynet", NETNS) == 1
    assert tool.log == ["ADD"]


@pytest.mark.parametrize(
    ("variables", "arguments", "text"),
    [
        ({"CNI_PATH": ""}, ["add", "mynet", NETNS], "no paths provided"),
        ({"CNI_PATH": "/nowhere"}, ["add", "mynet", NETNS], 'failed to find plugin "fake" in path [/nowhere]'),
        ({"NETCONFPATH": "/nowhere"}, ["add", "mynet", NETNS], "no net configurations found in /nowhere"),
        ({}, ["add", "other", NETNS], 'no net configuration with name "other" in '),
        ({"CAP_ARGS": "[1]"}, ["add", "mynet", NETNS], "CAP_ARGS is [1], expected a JSON object"),
        ({"CAP_ARGS": "{"}, ["add", "mynet", NETNS], "CAP_ARGS is not JSON"),
        ({"CNI_ARGS": "A"}, ["add", "mynet", NETNS], "CNI_ARGS has the invalid pair 'A'"),
        ({"CNI_ARGS": "A=1=2"}, ["add", "mynet", NETNS], "CNI_ARGS cannot carry 'A' = '1=2'"),
        ({"CNI_IFNAME": "much-too-long-name"}, ["add", "mynet", NETNS], "invalid interface name in CNI_IFNAME"),
        ({}, ["add", "mynet"], "add needs NETNS"),
        ({}, ["add"], "the following arguments are required: NETWORK"),
        ({}, ["destroy", "mynet", NETNS], "argument COMMAND: invalid choice: 'destroy'"),
        ({}, ["add", "mynet", NETNS, "more"], "unrecognized arguments: more"),
        ({}, ["add", "mynet", NETNS, "--timeout", "-1"], "argument --timeout: expected a number of seconds, not '-1'"),
        ({}, ["add", "mynet", NETNS, "--valid", "a/b"], "--valid is for gc"),
        ({}, ["gc", "mynet", "--valid", "a"], "argument --valid: expected ID/IFNAME"),
    ],
)
def test_mistakes(
    tool: Tool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    variables: dict[str, str],
    arguments: list[str],
    text: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    try:
        status: object = tool(*arguments)
    except SystemExit as exc:
        status = {2: 1}[int(str(exc.code))]  # a mistake in the arguments: 2; in the environment: 1
    out, err = capfd.readouterr()
    assert status == 1
    assert out == ""
    assert text in err
    assert tool.log == []


@pytest.mark.parametrize("verb", ["add", "check", "del"])
def test_the_name_of_a_namespace_is_not_its_path(
    tool: Tool, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """DEL would find nothing to do, and say nothing."""
    named = tmp_path / "named"
    (named / "blue").mkdir(parents=True)
    monkeypatch.setattr(cnitool, "_NAMED", str(named))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        tool(verb, "mynet", "blue")
    assert f"there is no file blue here: did you mean {named}/blue?" in capfd.readouterr().err
    assert tool.log == []
    assert tool("del", "mynet", "./blue") == 0
    assert tool("del", "mynet", "red") == 0


@pytest.mark.parametrize(("attached", "named"), [("/run", "/var/run"), ("/var/run", "/run")])
@pytest.mark.parametrize("verb", ["check", "del"])
def test_the_other_path_of_a_namespace_that_is_attached_is_noted(
    tool: Tool, attached: str, named: str, verb: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The Go tool makes an id from the path: DEL by the other one finds nothing to do, and says nothing."""
    added, other = (f"{each}/netns/blue" for each in (attached, named))
    tool(verb, "mynet", other)
    assert "attached as" not in capfd.readouterr().err
    assert tool("add", "mynet", added) == 0
    tool(verb, "mynet", other)
    assert f"cnitool: warning: {other} was attached as {added}: name it by that path\n" in capfd.readouterr().err
    tool("add", "mynet", other)
    tool(verb, "mynet", other)
    tool(verb, "mynet", added)
    tool(verb, "mynet", other, "--container-id", "c1")
    assert "attached as" not in capfd.readouterr().err


def test_an_argument_that_reaches_no_plugin_is_noted(tool: Tool, capfd: pytest.CaptureFixture[str]) -> None:
    assert tool("add", "mynet", NETNS, "--cap-args", '{"ips": [], "portMappings": [], "mac": null}') == 0
    said = (
        'cnitool: warning: capability argument "portMappings" is passed to no plugin: none has it in its "capabilities"'
    )
    assert said in capfd.readouterr().err
    assert tool.config("ADD")["runtimeConfig"] == {"ips": []}
    assert tool("del", "mynet", NETNS) == 0
    assert "capability" not in capfd.readouterr().err


def test_gc(tool: Tool, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("c1", "c2"):
        assert tool("add", "mynet", NETNS, "--container-id", name) == 0
    capfd.readouterr()
    assert tool("gc", "mynet", "--valid", "c2/eth0") == 0
    assert tool.cached == ["mynet-c2-eth0"]
    out, err = capfd.readouterr()
    assert out == ""
    assert "which does not know GC" in err
    assert tool("gc", "mynet", NETNS) == 0  # as the Go tool is called
    assert tool.cached == []


def test_status_of_an_old_network_is_not_silent(tool: Tool, capfd: pytest.CaptureFixture[str]) -> None:
    assert tool("status", "mynet") == 0
    assert "no plugin was asked" in capfd.readouterr().err
    assert tool.log == []
    tool.configure(cniVersion="1.1.0")
    (tool.bin / "fail.STATUS").touch()
    assert tool("status", "mynet") == 1
    assert 'plugin type="fake" name="mynet" failed (status): full' in capfd.readouterr().err


def test_a_broken_file_of_another_network_is_a_warning(tool: Tool, capfd: pytest.CaptureFixture[str]) -> None:
    (tool.conf / "00-other.conflist").write_text("{")
    assert tool("add", "mynet", NETNS) == 0
    out, err = capfd.readouterr()
    assert out == PRINTED
    assert err.startswith("cnitool: warning: network configuration ")
    assert "00-other.conflist is not JSON" in err


def test_sigterm_takes_a_started_add_back(tool: Tool) -> None:
    (tool.bin / "fake").write_text(PLUGIN.replace("= ADD ]; then\n", "= ADD ]; then\nsleep 60\n"))
    argv = [sys.executable, "-m", "cnisdk._cli.cnitool", "--cache-dir", str(tool.cache), "add", "mynet", NETNS]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE) as process:
        while not tool.log:
            assert process.poll() is None
            os.sched_yield()
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert out == b""
    assert tool.log == ["ADD", "DEL"]
    assert tool.cached == []


def test_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    bare = capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert capfd.readouterr() == bare
    assert bare.err == ""
    for word in ("CNI_PATH", "NETCONFPATH", "CNI_ARGS", "CAP_ARGS", "CNI_IFNAME", *cnitool._VERBS):
        assert word in bare.out
    assert bare.out.isascii()


def test_signal_handlers_are_put_back(tool: Tool) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert tool("add", "mynet", NETNS) == 0
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_check_of_what_was_never_added_says_that_it_is_not_attached(
    tool: Tool, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tool("check", "mynet", NETNS) == 1
    err = capfd.readouterr().err
    assert (
        f'interface "eth0" on network "mynet" is not attached (code 3); there is no cached result {tool.cache}/results/'
        in err
    )
    assert "(code 3)" in err
    assert tool.log == []


def test_verbose_shows_what_each_plugin_is_sent_and_returns(tool: Tool, capfd: pytest.CaptureFixture[str]) -> None:
    assert tool("-v", "add", "mynet", NETNS, "--cap-args", '{"ips": ["10.1.2.3"]}') == 0
    out, err = capfd.readouterr()
    assert out == PRINTED
    variables, request, answer = err.splitlines()
    assert variables.startswith(f"> {tool.bin}/fake CNI_ARGS= CNI_COMMAND=ADD CNI_CONTAINERID={ID} CNI_IFNAME=eth0 ")
    assert json.loads(request.removeprefix("> ")) == tool.config("ADD")
    assert json.loads(answer.removeprefix("< fake returned ")) == json.loads(PRINTED)
