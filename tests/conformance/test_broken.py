"""Every broken plugin is caught by the case made for it, and the correct ones pass it."""

from __future__ import annotations

import pytest

from cnisdk.testing.conformance import Outcome, Verdict
from cnisdk.testing.conformance.case import Kind

from .conftest import BRIDGE, Make, run

pytestmark = pytest.mark.kernel

WIRES = [
    # (what is wrong, the case that catches it, what is replaced, by what)
    (
        "logs to stdout",
        "success-prints-one-document",
        '    printf \'{"cniVersion": "%s", "int',
        '    echo working; printf \'{"cniVersion": "%s", "int',
    ),
    ("exits 0 on errors", "failure-has-a-non-zero-status", "    exit 1\n", "    exit 0\n"),
    ("prints errors as text", "failure-prints-one-error-object", "    printf '{", "    echo failed; printf '{"),
    ("prints errors without a code", "failure-prints-one-error-object", '"code": %s, "msg"', '"number": %s, "msg"'),
    ("has no VERSION", "version-lists-what-it-supports", '"$CNI_COMMAND" = VERSION', '"$CNI_COMMAND" = NO'),
    (
        "wants more for VERSION",
        "version-needs-only-the-command",
        "    echo '{",
        '    [ -n "$CNI_PATH" ] || exit 1\n    echo \'{',
    ),
    ("takes any container ID", "hostile-container-ids", "case $CNI_CONTAINERID in", "case x in"),
    (
        "cuts interface names",
        "hostile-interface-names",
        '    [ ${#CNI_IFNAME} -le 15 ] || fail 4 "CNI_IFNAME is too long"',
        '    CNI_IFNAME=$(printf %.15s "$CNI_IFNAME")',
    ),
    ("names no variable", "required-variables", "$each is missing", "a variable is missing"),
    ("uses code 999 for all", "missing-variables-have-code-4", '"$1" "$2"\n    exit', '999 "$2"\n    exit'),
    ("knows no unknown verb", "unknown-commands", '*) fail 4 "CNI_COMMAND is unknown" ;;', "*) ;;"),
    ("takes any network name", "hostile-network-names", "case $name in", "case x in"),
    ("takes any version", "unsupported-version", "case $version in 1", "case 1.0.0 in 1"),
    ("answers in one version", "every-version-it-claims", '        "$version" "$end"', '        1.1.0 "$end"'),
    ("forgets to delete", "del-leaves-nothing", '|| ip link del "$end" >&2 2>/dev/null', "|| exit 0"),
    (
        "deletes only once",
        "del-twice",
        '[ ! -e "/sys/class/net/$end" ] && ! ip link show "$end" >/dev/null 2>&1 ||',
        'ip link show "$end" >/dev/null 2>&1 || fail 5 gone;',
    ),
    (
        "wants a netns to delete",
        "del-without-netns",
        "    require CNI_CONTAINERID CNI_IFNAME\n",
        "    require CNI_CONTAINERID CNI_IFNAME CNI_NETNS\n",
    ),
    (
        "opens the netns to delete",
        "del-with-a-netns-that-is-a-plain-file",
        "    require CNI_CONTAINERID CNI_IFNAME\n",
        '    [ ! -e "$CNI_NETNS" ] || inside true || fail 8 netns\n',
    ),
    ("uses another name inside", "add-creates-the-interface", 'peer name "$CNI_IFNAME"', "peer name eth7"),
    (
        "tells no sandbox",
        "add-creates-the-interface",
        '"$(inside ip link show "$CNI_IFNAME" | mac)" "$CNI_NETNS"',
        '"$(inside ip link show "$CNI_IFNAME" | mac)" ""',
    ),
    (
        "tells another host end",
        "interfaces-of-the-result-exist",
        '        "$version" "$end"',
        '        "$version" vethX',
    ),
    (
        "replaces what exists",
        "the-interface-exists-already",
        "    ip link add",
        '    inside ip link del "$CNI_IFNAME" 2>/dev/null\n    ip link add',
    ),
    ("checks nothing", "check-notices-a-missing-link", "CHECK)\n", "CHECK)\n    exit 0\n"),
    (
        "does not see that it is down",
        "check-notices-a-link-that-is-down",
        'inside ip link show up "$CNI',
        'inside ip link show "$CNI',
    ),
    (
        "repairs in CHECK",
        "check-changes-nothing",
        "CHECK)\n",
        'CHECK)\n    inside ip addr add 192.0.2.1/24 dev "$CNI_IFNAME"\n',
    ),
    ("collects everything", "gc-keeps-what-is-valid", 'printf \'%s\\n\' "$valid" | grep -qxF "$end" ||', "false ||"),
    ("is never ready", "status-is-ready", "STATUS) ;;", 'STATUS) fail 50 "not ready" ;;'),
    (
        "leaves a process",
        "no-processes-are-left",
        "    { ip link set",
        "    sleep 60 </dev/null >/dev/null 2>&1 &\n    { ip link set",
    ),
    (
        "leaves temporary files",
        "no-temporary-files-and-mounts",
        "    { ip link set",
        "    mktemp >/dev/null\n    { ip link set",
    ),
    ("logs its configuration", "secrets-stay-secret", "config=$(cat)\n", 'config=$(cat)\necho "$config" >&2\n'),
    (
        "keeps its configuration",
        "secrets-stay-secret",
        "config=$(cat)\n",
        'config=$(cat)\necho "$config" >/run/wire.conf\n',
    ),
    ("works on the host", "the-plugins-own-netns-is-refused", '[ "$(stat -L -c %i "$CNI_NETNS")" !=', "[ x !="),
    ("prints two documents", "the-plugins-own-netns-gets-one-document", "    exit 1\n", "    echo '{}'\n    exit 1\n"),
    ("reads one buffer", "a-configuration-of-a-megabyte", "config=$(cat)", "config=$(head -c 65536)"),
    (
        "works one at a time",
        "parallel-attachments",
        "    { ip link set",
        "    mkdir /run/wire.lock || fail 11 busy\n    sleep 0.1\n    rmdir /run/wire.lock\n    { ip link set",
    ),
    ("mixes up interfaces", "two-attachments-of-one-container", '"$(number "$1/$2")"', '"$(number "$1")"'),
    (
        "remembers names too late",
        "killed-in-add",
        '    ip link add "$end"',
        '    ip link add "x$$" type veth peer name "y$$"; sleep 0.1; ip link del "x$$"\n    ip link add "$end"',
    ),
]
POOLS = [
    (
        "frees what is another's",
        "a-second-del-frees-nothing-of-others",
        "for each in $(owned); do",
        "for each in leases/*; do",
    ),
    (
        "is always ready",
        "status-of-an-exhausted-pool",
        '    [ $n -gt 50 ] && fail 50 "no address is left"\n    ;;',
        "    ;;",
    ),
    (
        "tells interfaces",
        "ipam-result-is-abbreviated",
        '    *) body="',
        '    *) body="\\"interfaces\\": [{\\"name\\": \\"eth0\\"}], ',
    ),
    ("checks nothing", "check-notices-a-missing-lease", "CHECK)\n", "CHECK)\n    exit 0\n"),
    (
        "collects everything",
        "gc-keeps-what-is-valid",
        '! printf \'%s\\n\' "$valid" | grep -qxF "$(cat "$each/owner")"',
        "true",
    ),
    ("collects nothing", "gc-drops-what-is-stale", "GC)\n", "GC)\n    exit 0\n"),
    (
        "looks before it leaps",
        "parallel-attachments",
        'until mkdir "leases/10.31.0.$n" 2>/dev/null; do',
        'until [ ! -d "leases/10.31.0.$n" ] && sleep 0.1 && mkdir -p "leases/10.31.0.$n"; do',
    ),
    ("frees nothing", "addresses-are-used-again", "DEL)\n", "DEL)\n    exit 0\n"),
]
ECHOES = [
    ("ignores prevResult", "prev-result-is-passed-through", 'conf["prevResult"]', '{"cniVersion": conf["cniVersion"]}'),
    (
        "loses name servers",
        "every-part-of-prev-result-survives",
        "    print(json",
        '    result["dns"] = {"nameservers": ["10.24.0.1"]}\n    print(json',
    ),
]
BRIDGES = [
    ("keeps GC to itself", "gc-reaches-the-delegate", "def gc(self, request):\n        pass"),
    ("keeps STATUS to itself", "status-asks-the-delegate", "def status(self, request):\n        pass"),
    ("leaves addresses leased", "del-and-check-reach-the-delegate", "def delete(self, request):\n        pass"),
    (
        "swallows errors",
        "errors-of-the-delegate-are-returned",
        "def delete(self, request):\n        try: super().delete(request)\n        except Exception: pass",
    ),
    (
        "does not see the bridge",
        "check-notices-a-port-without-bridge",
        "def check(self, request):\n        request.ipam.check()",
    ),
]


def caught(outcomes: list[Outcome]) -> bool:
    (outcome,) = outcomes
    assert outcome.verdict in (Verdict.FAILED, Verdict.PASSED), outcome
    return outcome.verdict is Verdict.FAILED


def named(rows: list[tuple[str, str, str, str]]) -> list[str]:
    return [row[0] for row in rows]


@pytest.mark.parametrize(("what", "case", "old", "new"), WIRES, ids=named(WIRES))
def test_interface_plugins(make: Make, what: str, case: str, old: str, new: str) -> None:
    assert caught(run(make(Kind.INTERFACE, (old, new)), case)), what


@pytest.mark.parametrize(("what", "case", "old", "new"), POOLS, ids=named(POOLS))
def test_ipam_plugins(make: Make, what: str, case: str, old: str, new: str) -> None:
    assert caught(run(make(Kind.IPAM, (old, new)), case)), what


@pytest.mark.parametrize(("what", "case", "old", "new"), ECHOES, ids=named(ECHOES))
def test_chained_plugins(make: Make, what: str, case: str, old: str, new: str) -> None:
    assert caught(run(make(Kind.CHAINED, (old, new)), case)), what


@pytest.mark.parametrize(("what", "case", "method"), BRIDGES, ids=[row[0] for row in BRIDGES])
def test_delegating_plugins(make: Make, what: str, case: str, method: str) -> None:
    subject = make(Kind.INTERFACE, ("    pass", f"    {method}"), text=BRIDGE, name="bridge")
    assert caught(run(subject, case)), what


def test_the_correct_ones_pass(make: Make) -> None:
    """A minimal plugin in plain shell passes all that applies; what catches broken plugins lets right ones pass."""
    outcomes = run(make(Kind.INTERFACE))
    assert [each for each in outcomes if each.verdict in (Verdict.FAILED, Verdict.ERROR)] == []
    assert sum(each.verdict is Verdict.PASSED for each in outcomes) > 40
    for kind, rows in ((Kind.IPAM, POOLS), (Kind.CHAINED, ECHOES)):
        for outcome in run(make(kind), *{row[1] for row in rows}):
            assert outcome.verdict is Verdict.PASSED, outcome
    for outcome in run(make(Kind.INTERFACE, text=BRIDGE, name="bridge"), *{row[1] for row in BRIDGES}):
        assert outcome.verdict is Verdict.PASSED, outcome
