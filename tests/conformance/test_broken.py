"""Every broken plugin is caught by the case made for it, and the correct ones pass it."""

from __future__ import annotations

import pytest

from cnisdk.conformance import Outcome, Verdict
from cnisdk.conformance.judgement import Kind

from .conftest import BRIDGE, Make, run

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

PEER = 'ip link add "$end" type veth peer name "$CNI_IFNAME" netns "$CNI_NETNS"'
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
        "the-sandbox-is-the-netns",
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
    (
        "logs its configuration",
        "secrets-stay-secret",
        "case $config in '{'",
        "echo \"$config\" >&2\ncase $config in '{'",
    ),
    (
        "keeps its configuration",
        "secrets-stay-secret",
        "case $config in '{'",
        "echo \"$config\" >/run/wire.conf\ncase $config in '{'",
    ),
    (
        "logs its configuration to a file",
        "secrets-stay-secret",
        "case $config in '{'",
        "echo \"$config\" >>/var/log/wire\ncase $config in '{'",
    ),
    ("makes up codes", "codes-are-of-the-table", 'fail 4 "CNI_IFNAME is invalid"', 'fail 40 "CNI_IFNAME is invalid"'),
    (
        "does not say what it does not support",
        "unsupported-fields-are-named",
        "case $config in '{'",
        "case $config in *unsupported*) fail 2 \"a field is not supported\" ;; esac\ncase $config in '{'",
    ),
    (
        "says there is nothing to clean up",
        "after-code-3-nothing-is-left",
        '|| fail 4 "CNI_NETNS is no',
        '|| { ip link add wire7 type veth peer name wire8; fail 3 gone; }; true || fail 4 "CNI_NETNS is no',
    ),
    ("does not see that it cannot read", "unreadable-stdin-has-code-5", ' || fail 5 "stdin cannot be read"', ""),
    (
        "deletes on the host",
        "del-spares-the-plugins-own-netns",
        "DEL)\n",
        'DEL)\n    inside ip link del "$CNI_IFNAME"\n',
    ),
    (
        "takes a DEL for the last word",
        "del-before-add-has-finished",
        "DEL)\n",
        "DEL)\n    [ $CNI_CONTAINERID = warm ] || mkdir /run/wire.deleted 2>/dev/null || exit 0\n",
    ),
    (
        "collects those of other networks",
        "gc-leaves-other-networks-alone",
        '    network=$(printf \'s%04d\' "$(($(number "$name") % 10000))")\n',
        "    network=s\n",
    ),
    (
        "leaves what was in /tmp",
        "no-temporary-files-and-mounts",
        "    { ip link set",
        "    : >/tmp/wire-$CNI_CONTAINERID\n    { ip link set",
    ),
    (
        "leaves mounts",
        "no-temporary-files-and-mounts",
        "    { ip link set",
        "    mkdir -p /run/wire && mount -t tmpfs wire /run/wire\n    { ip link set",
    ),
    (
        "leaves a daemon",
        "no-processes-are-left",
        "    { ip link set",
        "    setsid sleep 60 </dev/null >/dev/null 2>&1 &\n    { ip link set",
    ),
    (
        "leaves a process that holds stdout",
        "no-descriptors-are-left-open",
        "    { ip link set",
        "    sleep 60 &\n    { ip link set",
    ),
    (
        "cannot delete what it could not note",
        "a-full-disk-while-attaching",
        'DEL)\n    require CNI_CONTAINERID CNI_IFNAME\n    end=$(host_end "$CNI_CONTAINERID" "$CNI_IFNAME")\n',
        'DEL)\n    require CNI_CONTAINERID CNI_IFNAME\n    end=$(cat "/var/lib/cni/$CNI_CONTAINERID") || exit 0\n',
    ),
    (
        "changes what it refuses",
        "a-refused-add-changes-nothing",
        '    ip link add "$end"',
        '    inside ip link del "$CNI_IFNAME" 2>/dev/null\n    ip link add "$end"',
    ),
    ("works on the host", "the-plugins-own-netns-is-refused", '[ "$(stat -L -c %i "$CNI_NETNS")" !=', "[ x !="),
    ("prints two documents", "the-plugins-own-netns-gets-one-document", "    exit 1\n", "    echo '{}'\n    exit 1\n"),
    (
        "makes something in DEL",
        "del-of-a-container-never-added-changes-nothing",
        "DEL)\n",
        "DEL)\n    [ $CNI_CONTAINERID = warm ] || ip link add wire7 type veth peer name wire8\n",
    ),
    (
        "works in one version",
        "every-version-it-claims-works",
        "case $version in 1",
        "case $version in 1.0.0) fail 1 no ;; 1",
    ),
    (
        "wants a netns or a result to delete",
        "del-without-netns-and-prev-result",
        "DEL)\n",
        'DEL)\n    [ -n "$CNI_NETNS" ] || case $config in *prevResult*) ;; *) fail 7 "what is it?" ;; esac\n',
    ),
    ("reads one buffer", "a-configuration-of-a-megabyte", "config=$(cat)", "config=$(head -c 65536)"),
    (
        "works one at a time",
        "parallel-attachments",
        "    { ip link set",
        "    mkdir /run/wire.lock || fail 11 busy\n    sleep 0.1\n    rmdir /run/wire.lock\n    { ip link set",
    ),
    (
        "counts hardware addresses with a race",
        "parallel-attachments",
        PEER,
        (
            "mkdir /run/wire.n 2>/dev/null && { sleep 0.1; rmdir /run/wire.n; } || set address 02:00:00:00:00:01\n"
            f'    {PEER} "$@"'
        ),
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
    ("leases nothing", "ipam-returns-addresses", '\\"ips\\": [{', '\\"pis\\": [{'),
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
        'printf \'%s\\n\' "$valid" | grep -qxF "$owner" ||',
        "false ||",
    ),
    ("collects nothing", "gc-drops-what-is-stale", "GC)\n", "GC)\n    exit 0\n"),
    (
        "looks before it leaps",
        "parallel-attachments",
        'until [ ! -d "leases/10.31.0.$n" ] && mv -T "new.$$" "leases/10.31.0.$n" 2>/dev/null; do',
        (
            'until [ ! -d "leases/10.31.0.$n" ] && sleep 0.1 && mkdir -p "leases/10.31.0.$n" &&\n'
            '        cp "new.$$/owner" "leases/10.31.0.$n"; do'
        ),
    ),
    (
        "tells no code when it is exhausted",
        "an-exhausted-pool-can-be-noticed",
        '    [ $n -gt 50 ] && fail 50 "no address is left"\n    ;;',
        "    fail 100 exhausted\n    ;;",
    ),
    (
        "knows containers only",
        "two-interfaces-of-one-container",
        'me="$CNI_CONTAINERID/$CNI_IFNAME"',
        'me="$CNI_CONTAINERID/"',
    ),
    (
        "leases in CHECK",
        "check-changes-nothing",
        '    [ -n "$(owned)" ] || fail',
        '    [ -n "$(owned)" ] || { mkdir leases/x && echo "$me" >leases/x/owner; exit; }\n    [ 1 ] || fail',
    ),
    ("frees nothing", "addresses-are-used-again", "DEL)\n", "DEL)\n    exit 0\n"),
]
ECHOES = [
    ("ignores prevResult", "prev-result-is-passed-through", 'conf["prevResult"]', '{"cniVersion": conf["cniVersion"]}'),
    (
        "loses routes",
        "every-part-of-prev-result-survives",
        "    print(json",
        '    result["routes"] = result["routes"][:1]\n    print(json',
    ),
    (
        "loses name servers",
        "every-part-of-prev-result-survives",
        "    print(json",
        '    result["dns"] = {"nameservers": ["10.24.0.1"]}\n    print(json',
    ),
    (
        "leaves the MTU it set",
        "del-undoes-changes",
        "    print(json",
        '    os.system("nsenter --net=$CNI_NETNS ip link set $CNI_IFNAME mtu 1400")\n    print(json',
    ),
]


def method(name: str, *body: str) -> str:
    return "\n        ".join([f"def {name}(self, request):", *body])


_SWALLOWED = ("try: super().status(request)", "except Exception: pass")
BRIDGES = [
    ("keeps GC to itself", "gc-reaches-the-delegate", method("gc", "pass")),
    ("keeps STATUS to itself", "status-asks-the-delegate", method("status", "pass")),
    ("is ready whatever its delegate says", "the-delegates-status-is-returned", method("status", *_SWALLOWED)),
    ("leaves addresses leased", "del-and-check-reach-the-delegate", method("delete", "pass")),
    (
        "swallows errors",
        "errors-of-the-delegate-are-returned",
        method("delete", "try: super().delete(request)", "except Exception: pass"),
    ),
    (
        "waits on when it is told to end",
        "a-delegate-that-hangs",
        method(
            "add",
            "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])",
            "return super().add(request)",
        ),
    ),
    (
        "lets its delegate live on",
        "a-delegate-that-hangs",
        method("add", "import signal; signal.signal(signal.SIGTERM, signal.SIG_DFL)", "return super().add(request)"),
    ),
    (
        "needs what it noted last",
        "killed-while-the-delegate-hangs",
        method(
            "delete",
            "if request.prev_result is None and request.attachment.container_id == 'c1': return",
            "super().delete(request)",
        ),
    ),
    (
        "hands its locks on",
        "the-delegate-inherits-no-descriptors",
        method(
            "add",
            "import os; os.set_inheritable(os.open('/run/lock', os.O_CREAT | os.O_RDWR), True)",
            "from cnisdk.invoke import process; process._inheritable = lambda: []",
            "return super().add(request)",
        ),
    ),
    (
        "takes back what failed early only",
        "an-add-that-fails-late-leaves-nothing",
        method("add", "request.undo = lambda *_: None", "return super().add(request)"),
    ),
    (
        "knows no mac",
        "declared-capabilities-are-used",
        method("add", "object.__setattr__(request.conf.runtime_config, 'mac', '')", "return super().add(request)"),
    ),
    (
        "does not see that there is none",
        "check-notices-a-missing-bridge",
        method("check", "request.ipam.check()"),
    ),
    (
        "does not see the bridge",
        "check-notices-a-port-without-bridge",
        method("check", "request.ipam.check()"),
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


@pytest.mark.parametrize("size", [1, 5])
def test_a_small_pool_is_no_fault(make: Make, size: int) -> None:
    outcomes = run(make(Kind.IPAM, *pool_of(size)), "parallel-attachments", "status-is-ready")
    assert [each.verdict for each in outcomes if each.case.id == "status-is-ready"] == [Verdict.PASSED]
    together = Verdict.SKIPPED if size == 1 else Verdict.PASSED
    assert [each.verdict for each in outcomes if each.case.id == "parallel-attachments"] == [together], outcomes


def test_a_small_pool_is_shared_without_a_race(make: Make) -> None:
    _, case, old, new = next(row for row in POOLS if row[0] == "looks before it leaps")
    assert caught(run(make(Kind.IPAM, (old, new), *pool_of(5)), case))


def test_one_hardware_address_for_all_is_no_fault(make: Make) -> None:
    outcomes = run(make(Kind.INTERFACE, (PEER, f"{PEER} address 02:00:00:00:00:01")), "parallel-attachments")
    assert [each.verdict for each in outcomes] == [Verdict.PASSED], outcomes


def pool_of(size: int) -> list[tuple[str, str]]:
    return [(f"-gt 50 ] && {what}", f"-gt {size + 1} ] && {what}") for what in ("rm", "fail 50")]


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
