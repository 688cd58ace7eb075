"""Errors quote what a plugin printed, and nothing of what it was given."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from cnisdk.errors import CNIError, IOFailureError, TryAgainLaterError
from cnisdk.invoke import process, run
from cnisdk.invoke._excerpt import quote

from ..clocks import Clock
from .conftest import Script

SECRETS = ["s3cr3t-t0ken", "abc", 'pass"wörd\n2', "81726354", "eyJhbGciOiJIUzI1NiJ9." * 300]
CONFIG = {
    "cniVersion": "1.0.0",
    "name": "mynet",
    "type": "vpn",
    "token": SECRETS[0],
    "auth": [{"short": SECRETS[1], "password": SECRETS[2]}],
    "pin": int(SECRETS[3]),
    "jwt": SECRETS[4],
}
STDIN = json.dumps(CONFIG).encode()
ENVIRON = {"PATH": "/usr/bin:/bin", "CNI_COMMAND": "ADD", "CNI_ARGS": "K8S_TOKEN=from-the-args"}


def check_clean(error: CNIError) -> None:
    text = str(error)
    for secret in SECRETS[:4]:
        for spelled in (secret, json.dumps(secret)[1:-1]):
            assert spelled not in text
    assert SECRETS[4][:8] not in text
    assert "from-the-args" not in text
    assert len(text) < 4000


@pytest.mark.parametrize(
    "body",
    [
        "cat; exit 1",
        "cat",
        "cat >&2; exit 1",
        "cat >&2; echo no",
        "tee /dev/stderr; exit 3",
        "tr -d '\\n' | head -c 60; exit 1",
        "tail -c +100 >&2; exit 1",
        "sed 's/,/,\\n    /g; s/:/ =>/g'; exit 1",
        "python3 -c 'import json, sys; print(json.load(sys.stdin))'; exit 1",
        "python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin), indent=1))' >&2; exit 1",
        "env; exit 1",
    ],
)
def test_a_plugin_that_prints_its_configuration_puts_no_secret_into_an_error(script: Script, body: str) -> None:
    environ = {**ENVIRON, "CNI_COMMAND": "DEL"} if body == "cat" else ENVIRON
    if body == "cat":
        run(script(body), environ=environ, stdin=STDIN, on_stderr=lambda _: None)
        return
    with pytest.raises(CNIError) as caught:
        run(script(body), environ=environ, stdin=STDIN, on_stderr=lambda _: None)
    check_clean(caught.value)


def test_nor_does_one_that_is_stopped(script: Script, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    said = bytearray()

    def listen(chunk: bytes) -> None:
        said.extend(chunk)
        if b"slow" in said:
            clock.put_forward()

    with pytest.raises(TryAgainLaterError) as late:
        run(
            script("cat >&2; echo slow >&2; exec sleep 60"),
            environ=ENVIRON,
            stdin=STDIN,
            timeout=60,
            on_stderr=listen,
        )
    check_clean(late.value)
    assert "slow" in late.value.details
    monkeypatch.setattr(process, "STDOUT_LIMIT", 1000)
    with pytest.raises(IOFailureError) as much:
        run(script("cat; cat /dev/zero"), environ=ENVIRON, stdin=STDIN)
    check_clean(much.value)


def test_what_the_plugin_says_itself_is_quoted(script: Script) -> None:
    body = "echo 'vpn: cannot reach the gateway of mynet with token s3cr3t-t0ken: timeout after 10s' >&2; exit 1"
    with pytest.raises(CNIError) as caught:
        run(script(body), environ=ENVIRON, stdin=STDIN, on_stderr=lambda _: None)
    assert "vpn: cannot reach the gateway of mynet with token […]: timeout after 10s" in caught.value.msg


@given(st.text(min_size=1, max_size=30), st.text(max_size=20), st.text(max_size=20))
def test_no_value_of_four_letters_is_ever_quoted(value: str, before: str, after: str) -> None:
    request = json.dumps({"x": {"y": [value]}}).encode()
    printed = f"{before} {value} {after}".encode(errors="replace")
    quoted = quote(printed, request, {})
    if len(value) >= 4 and value not in "[…]" and value.isalnum() and quoted:
        assert value not in json.loads(quoted)


@given(st.integers(0, 4200), st.booleans())
def test_the_rest_of_a_value_at_the_edge_is_hidden(length: int, tail: bool) -> None:
    request = b'{"token": "Zebra-Quagga"}'
    filler = b". " * length
    printed = b"Zebra-Quagga" + filler if tail else filler + b"Zebra-Quagga"
    quoted = quote(printed, request, {}, tail=tail)
    assert not set(quoted.partition(" (")[0]) & set("ZebrQuag")
