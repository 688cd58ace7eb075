"""Delegation: what a delegate gets, and that a failed ADD is followed by its DEL."""

import json
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest

from cnisdk.errors import (
    CNIError,
    DecodingError,
    IncompatibleVersionError,
    InvalidConfigError,
    InvalidEnvironmentError,
    PluginNotAvailableError,
    TryAgainLaterError,
)
from cnisdk.invoke import Delegate, plugin_versions
from cnisdk.spec.result import IPConfig

from ..clocks import Clock
from .conftest import Script

CONFIG = b'{"cniVersion":"0.4.0","name":"net","type":"main","ipam":{"type":"ipam"},  "odd": 12345678901234567890}'


class Recorder:
    """A scripted IPAM plugin that writes down each call."""

    def __init__(self, script: Script, tmp_path: Path, **answers: str) -> None:
        self.log = tmp_path / "log"
        self.log.touch()
        cases = "".join(f"{verb}) {body} ;;\n" for verb, body in answers.items())
        script(
            f'echo "$CNI_COMMAND" >> {self.log}; env > {tmp_path}/env.$CNI_COMMAND; cat > {tmp_path}/in.$CNI_COMMAND\n'
            f"case $CNI_COMMAND in\n{cases}esac",
            name="ipam",
        )
        self.environ = {
            "PATH": "/usr/bin:/bin",
            "CNI_COMMAND": "NOPE",
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": "/run/netns/x",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "A=1",
            "CNI_PATH": f"/nowhere:{tmp_path}",
            "TRACEPARENT": "00-1-2-3",
        }
        self.delegate = Delegate("ipam", self.environ, CONFIG, timeout=10)
        self._tmp_path = tmp_path

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().split()

    def environ_of(self, verb: str) -> dict[str, str]:
        lines = (self._tmp_path / f"env.{verb}").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def stdin_of(self, verb: str) -> bytes:
        return (self._tmp_path / f"in.{verb}").read_bytes()


def test_only_the_command_is_replaced(script: Script, tmp_path: Path) -> None:
    recorder = Recorder(script, tmp_path, ADD="echo '{}'", VERSION='echo \'{"cniVersion":"0.2.0"}\'')
    delegate = recorder.delegate
    delegate.add()
    delegate.check()
    delegate.delete()
    delegate.gc()
    delegate.status()
    assert delegate.version().supported == ("0.1.0", "0.2.0")
    assert recorder.calls == ["ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION"]
    for verb in recorder.calls:
        given = recorder.environ_of(verb)
        given.pop("PWD", None)
        given.pop("_", None)
        given.pop("SHLVL", None)
        assert given == {**recorder.environ, "CNI_COMMAND": verb}
        assert recorder.stdin_of(verb) == CONFIG
    assert recorder.environ["CNI_COMMAND"] == "NOPE"


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", None])
def test_the_result_is_upgraded(script: Script, tmp_path: Path, version: str | None) -> None:
    """A result that names no version has that of the configuration."""
    printed = {
        **({"cniVersion": version} if version else {}),
        "ips": [{"version": "4", "address": "192.0.2.5/24", "gateway": "192.0.2.1"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }
    result = Recorder(script, tmp_path, ADD=f"echo '{json.dumps(printed)}'").delegate.add()
    assert result.cni_version == "1.1.0"
    assert result.ips == (IPConfig(address=IPv4Interface("192.0.2.5/24"), gateway=IPv4Address("192.0.2.1")),)
    assert result.dns.nameservers == ("192.0.2.53",)


def test_a_failed_add_is_followed_by_its_del(script: Script, tmp_path: Path) -> None:
    recorder = Recorder(script, tmp_path, ADD="""echo '{"code":11,"msg":"full"}'; exit 1""")
    with pytest.raises(TryAgainLaterError) as caught:
        recorder.delegate.add()
    assert (caught.value.msg, caught.value.details) == ("full", "")
    assert recorder.calls == ["ADD", "DEL"]


def test_both_errors_are_told(script: Script, tmp_path: Path) -> None:
    recorder = Recorder(
        script,
        tmp_path,
        ADD="""echo '{"code":11,"msg":"full","details":"10.0.0.0/30"}'; exit 1""",
        DEL="""echo '{"code":5,"msg":"disk"}'; exit 1""",
    )
    with pytest.raises(TryAgainLaterError) as caught:
        recorder.delegate.add()
    assert caught.value.details == '10.0.0.0/30; DEL of plugin "ipam" after it failed too: disk (code 5)'


@pytest.mark.parametrize(
    ("printed", "kind"),
    [
        ("", DecodingError),
        ("garbage", DecodingError),
        ('{"ips":[{"version":"4","address":"nonsense"}]}', DecodingError),
        ('{"cniVersion":"7.0.0"}', IncompatibleVersionError),
    ],
)
def test_an_unusable_result_is_taken_back(script: Script, tmp_path: Path, printed: str, kind: type[CNIError]) -> None:
    recorder = Recorder(script, tmp_path, ADD=f"echo '{printed}'")
    with pytest.raises(kind):
        recorder.delegate.add()
    assert recorder.calls == ["ADD", "DEL"]


def test_an_add_that_hangs_is_taken_back(script: Script, tmp_path: Path, clock: Clock) -> None:
    recorder = Recorder(script, tmp_path, ADD="echo working >&2; sleep 1000")
    with pytest.raises(TryAgainLaterError):
        Delegate("ipam", recorder.environ, CONFIG, timeout=60, on_stderr=clock.put_forward).add()
    assert recorder.calls == ["ADD", "DEL"]


def test_an_interrupted_add_is_taken_back(script: Script, tmp_path: Path) -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(_: bytes) -> None:
        raise Interrupt

    recorder = Recorder(script, tmp_path, ADD="echo working >&2; sleep 60")
    with pytest.raises(Interrupt):
        Delegate("ipam", recorder.environ, CONFIG, on_stderr=interrupt).add()
    assert recorder.calls == ["ADD"]  # the caller has more urgent things to take back, and then this:
    Delegate("ipam", recorder.environ, CONFIG).delete_soon()
    assert recorder.calls == ["ADD", "DEL"]


def test_a_plugin_that_is_not_there_needs_no_del(script: Script, tmp_path: Path) -> None:
    recorder = Recorder(script, tmp_path)
    with pytest.raises(InvalidConfigError, match='failed to find plugin "other"'):
        Delegate("other", recorder.environ, CONFIG).add()
    with pytest.raises(InvalidEnvironmentError, match="no paths provided"):
        Delegate("ipam", {**recorder.environ, "CNI_PATH": ""}, CONFIG).add()
    with pytest.raises(InvalidConfigError):
        Delegate("../ipam", recorder.environ, CONFIG).add()
    assert recorder.calls == []


def test_status_keeps_its_code(script: Script, tmp_path: Path) -> None:
    recorder = Recorder(script, tmp_path, STATUS="""echo '{"code":50,"msg":"exhausted"}'; exit 1""")
    with pytest.raises(PluginNotAvailableError, match="exhausted"):
        recorder.delegate.status()


# --- VERSION ----------------------------------------------------------------------------------------------------------


def test_versions_as_a_runtime_asks(script: Script, tmp_path: Path) -> None:
    path = script(
        f"env > {tmp_path}/env; cat > {tmp_path}/in\n"
        """echo '{"cniVersion":"0.42.0","supportedVersions":["0.1.0","x"]}'"""
    )
    assert plugin_versions(path, environ={"PATH": "/bin", "CNI_NETNS": "real"}) == ("0.42.0", ("0.1.0", "x"))
    assert (tmp_path / "in").read_text() == '{"cniVersion":"1.1.0"}'
    assert {line for line in (tmp_path / "env").read_text().splitlines() if line.startswith("CNI_")} == {
        "CNI_COMMAND=VERSION",
        "CNI_CONTAINERID=",
        "CNI_NETNS=dummy",
        "CNI_IFNAME=dummy",
        "CNI_ARGS=",
        "CNI_PATH=dummy",
    }


def test_plugins_of_the_first_version(script: Script) -> None:
    path = script("""echo '{"code":4,"msg":"unknown CNI_COMMAND: VERSION"}'; exit 1""")
    assert plugin_versions(path, environ={}).supported == ("0.1.0",)
    path = script("""echo '{"code":4,"msg":"unknown CNI_COMMAND: VERSION","details":"x"}'; exit 1""")
    with pytest.raises(CNIError):
        plugin_versions(path, environ={})


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("[]", "expected one JSON object"),
        ("{}", r"\$\.cniVersion is None"),
        ('{"cniVersion":""}', r"\$\.cniVersion is ''"),
        ('{"cniVersion":"0.4.0"}', r"\$\.supportedVersions is missing"),
        ('{"cniVersion":"0.4.0","supportedVersions":[1]}', r"\$\.supportedVersions is \[1\]"),
        ('{"cniVersion":"0.4.0","supportedVersions":"0.4.0"}', r"\$\.supportedVersions is '0\.4\.0'"),
    ],
)
def test_wrong_answers_to_version(script: Script, answer: str, text: str) -> None:
    with pytest.raises(DecodingError, match=text):
        plugin_versions(script(f"echo '{answer}'"), environ={})


@pytest.mark.interop
@pytest.mark.skipif(not Path("/usr/lib/cni/bridge").exists(), reason="needs Debian's containernetworking-plugins")
def test_versions_of_the_reference_plugins() -> None:
    versions = plugin_versions("/usr/lib/cni/bridge", environ={})
    assert {"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"} <= set(versions.supported)
