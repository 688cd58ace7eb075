"""A small plugin in plain shell for others to delegate to: it leases addresses, records its calls, fails on demand."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .sandbox import Sandbox

HOME = Path("/run/cnisdk-testing")
"""Directory of stubs on their host; its ``bin`` belongs in ``CNI_PATH``."""

# It starts few programs: a test calls it often, and each program takes longer than all of the shell's own work.
# Leases are directories with the owner in them, which rename(2) puts in place or refuses in one step: killed at any
# point, the stub leaves no lease without owner, which no DEL would find.
SCRIPT = r"""#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
cd '@HOME@' || exit 70
config=
while IFS= read -r line || [ -n "$line" ]; do config="$config$line
"; done
me="$CNI_CONTAINERID/$CNI_IFNAME"
printf '%s' "$config" >"stdin.$CNI_COMMAND"
printf '%s %s\n' "$CNI_COMMAND" "$me" >>calls
set -- /proc/$$/fd/* # the standard streams, this file, and the directory
{ [ $# -le 5 ] || ls -l /proc/self/fd; } >"fds.$CNI_COMMAND"
[ -p "$CNI_COMMAND.hang" ] && read -r _ <"$CNI_COMMAND.hang"
if [ -f "$CNI_COMMAND.answer" ]; then
    [ -f "$CNI_COMMAND.delay" ] && sleep "$(cat "$CNI_COMMAND.delay")"
    cat "$CNI_COMMAND.stderr" >&2
    cat "$CNI_COMMAND.answer"
    exit "$(cat "$CNI_COMMAND.status")"
fi
version=
start=$config
# A long text before the key would take this shell minutes: it looks at each beginning of the text again.
[ ${#config} -le 10000 ] || start=$(printf '%s' "$config" | grep -o '"cniVersion"[^"]*"[^"]*"' | head -n 1)
case $start in *'"cniVersion"'*)
    version=${start#*'"cniVersion"'}
    version=${version#*'"'}
    version=${version%%'"'*}
    case $version in *[!0-9.]*) version= ;; esac
    ;;
esac
fail() {
    printf '{"cniVersion": "%s", "code": %s, "msg": "%s"}\n' "${version:-0.1.0}" "$1" "$2"
    exit 1
}
owned() {
    for each in leases/*; do
        [ -f "$each/owner" ] && read -r owner <"$each/owner" && [ "$owner" = "$me" ] && echo "$each"
    done
}
case $CNI_COMMAND in
VERSION)
    echo '{"cniVersion": "1.1.0", "supportedVersions": ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]}'
    ;;
ADD)
    n=2
    mkdir "new.$$" && echo "$me" >"new.$$/owner"
    until [ ! -d "leases/@PREFIX@.$n" ] && mv -T "new.$$" "leases/@PREFIX@.$n" 2>/dev/null; do
        n=$((n + 1))
        [ $n -gt @LAST@ ] && rm -r "new.$$" && fail 11 "no address is left"
    done
    address=@PREFIX@.$n/24 gateway=@PREFIX@.1 routes='"routes": [@ROUTES@]'
    case $version in 0.*) family='"version": "4", ' ;; *) family= ;; esac
    case $version in
    '' | 0.1.* | 0.2.*) body="\"ip4\": {\"ip\": \"$address\", \"gateway\": \"$gateway\", $routes}" ;;
    *) body="\"ips\": [{$family\"address\": \"$address\", \"gateway\": \"$gateway\"}], $routes" ;;
    esac
    printf '{"cniVersion": "%s", %s}\n' "${version:-0.1.0}" "$body"
    ;;
DEL)
    for each in $(owned); do rm -r "$each"; done
    ;;
CHECK)
    [ -n "$(owned)" ] || fail 100 "no address is leased to $me"
    ;;
STATUS)
    n=2
    while [ -d "leases/@PREFIX@.$n" ]; do n=$((n + 1)); done
    [ $n -gt @LAST@ ] && fail 50 "no address is left"
    ;;
GC)
    valid=$(printf '%s' "$config" | tr -d '\n ' | grep -o '{"containerID":"[^"]*","ifname":"[^"]*"}' |
        sed 's/{"containerID":"\([^"]*\)","ifname":"\([^"]*\)"}/\1\/\2/')
    for each in leases/*; do
        [ -f "$each/owner" ] && read -r owner <"$each/owner" || continue
        printf '%s\n' "$valid" | grep -qxF "$owner" || rm -r "$each"
    done
    ;;
esac
exit 0
"""
"""The program, with ``@HOME@``, ``@PREFIX@``, ``@LAST@`` and ``@ROUTES@`` to be filled in."""


class Call(NamedTuple):
    """One call of a stub."""

    verb: str
    container_id: str
    ifname: str


class StubPlugin:
    """An IPAM plugin on a host, which answers every verb properly until it is told otherwise.

    Args:
        host: The host.
        name: Its type, and the name of its executable in ``/run/cnisdk-testing/bin``.
        prefix: The first three numbers of the addresses it leases, ``.2`` first.
        size: How many addresses it has, at most 253.
        routes: The routes it asks for, as results have them.
        note: Called with each shell command that does what is done to it; None means not to.
    """

    def __init__(
        self,
        host: Sandbox,
        name: str = "stub-ipam",
        *,
        prefix: str = "10.9.0",
        size: int = 253,
        routes: Sequence[Mapping[str, str]] = (),
        note: Callable[[str], object] | None = None,
    ) -> None:
        self.host = host
        self._note = note or (lambda command: None)
        self.name = name
        self.directory = HOME / name
        text = SCRIPT.replace("@HOME@", str(self.directory))
        text = text.replace("@PREFIX@", prefix).replace("@LAST@", str(size + 1))
        text = text.replace("@ROUTES@", ", ".join(json.dumps(dict(each)) for each in routes))
        host.call(_install, name, text)
        program = HOME / "bin" / name
        self._note(
            f"mkdir -p {self.directory}/leases {program.parent} && touch {self.directory}/calls\n"
            f"cat >{program} <<'STUB'\n{text}STUB\nchmod 755 {program}"
        )

    @property
    def conf(self) -> dict[str, str]:
        """Value of the key ``ipam`` in a network configuration."""
        return {"type": self.name}

    @property
    def calls(self) -> list[Call]:
        """Every call so far, in order."""
        lines = self.host.call(_read, self.directory / "calls").splitlines()
        return [Call(verb, *owner.split("/", 1)) for verb, _, owner in (line.partition(" ") for line in lines)]

    @property
    def verbs(self) -> list[str]:
        """The verbs of the calls so far, in order."""
        return [call.verb for call in self.calls]

    @property
    def leases(self) -> dict[str, str]:
        """Leased addresses with their owners: ``{"10.9.0.2": "c1/eth0"}``."""
        return self.host.call(read_leases, self.directory)

    def configuration(self, verb: str) -> Any:
        """Return the parsed configuration of the last call with this verb."""
        return json.loads(self.host.call(_read, self.directory / f"stdin.{verb}"))

    def descriptors(self, verb: str) -> list[str]:
        """Return what the last call with this verb had open beside its standard streams: ``["3 -> socket:[4711]"]``."""
        lines = self.host.call(_read, self.directory / f"fds.{verb}").splitlines()
        found = [match for match in map(re.compile(r" (\d+) -> (.*)").search, lines) if match]
        # The listing itself has the directory open that it lists.
        return [each[0].strip() for each in found if int(each[1]) > 2 and not re.fullmatch(r"/proc/\d+/fd", each[2])]

    def answer(
        self, verb: str, document: Mapping[str, Any] | str = "", *, status: int = 0, stderr: str = "", delay: float = 0
    ) -> None:
        """Give this answer to a verb from now on.

        Args:
            verb: ``ADD`` and so on.
            document: What to print: an object, or text as it is.
            status: The exit status.
            stderr: What to print there.
            delay: Seconds to wait before.
        """
        text = document if isinstance(document, str) else json.dumps(document)
        parts = {"answer": text, "status": str(status), "stderr": stderr, "delay": str(delay)}
        texts = {str(self.directory / f"{verb}.{part}"): value for part, value in parts.items()}
        self.host.call(_write, texts)
        self._note("\n".join(f"printf %s {shlex.quote(value)} >{path}" for path, value in texts.items()))

    def fail(self, verb: str, code: int = 11, msg: str = "the stub was told to fail") -> None:
        """Fail a verb from now on, with a proper error object."""
        self.answer(verb, {"cniVersion": "1.0.0", "code": code, "msg": msg}, status=1)

    def hang(self, verb: str) -> None:
        """Do not answer a verb from now on, until it recovers."""
        self.host.call(os.mkfifo, self.directory / f"{verb}.hang")
        self._note(f"mkfifo {self.directory}/{verb}.hang")

    def recover(self, verb: str) -> None:
        """Answer a verb properly again; calls that hang go on."""
        self.host.call(_release, self.directory / f"{verb}.hang")
        self.host.call(_remove, self.directory / f"{verb}.answer")
        self._note(f"rm -f {self.directory}/{verb}.answer {self.directory}/{verb}.hang")

    def forget(self) -> None:
        """Lose every lease, as after a crash of the daemon that keeps them."""
        self.host.run(["sh", "-c", f"rm -rf {self.directory}/leases/*"])
        self._note(f"rm -rf {self.directory}/leases/*")


def _install(name: str, text: str) -> None:
    (HOME / name / "leases").mkdir(parents=True, exist_ok=True)
    (HOME / name / "calls").touch()
    program = HOME / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(text)
    program.chmod(0o755)


def _read(path: Path) -> str:
    return path.read_text()


def _write(texts: Mapping[str, str]) -> None:
    for path, text in texts.items():
        Path(path).write_text(text)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _release(fifo: Path) -> None:
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))  # who waits for a writer reads the end
    except OSError:
        pass  # no call waits, or it does not hang
    fifo.unlink(missing_ok=True)


def read_leases(directory: Path) -> dict[str, str]:
    """Return the addresses that the stub with this directory has leased on this process's host, with their owners."""
    return {path.parent.name: path.read_text().strip() for path in sorted(directory.glob("leases/*/owner"))}
