"""What happens on real nodes: many at once, signals, slow peers, low limits, secrets."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time

from .bench import Bench
from .case import Chapter
from .judgement import Broken, Kind, Level, Unprepared
from .sentences import CONCURRENT, DEL_UNDOES, ERROR, STDIN, STREAMED, SUCCESS

chapter = Chapter()
case = chapter.case

MUST, SHOULD, OPINION = Level.MUST, Level.SHOULD, Level.OPINION

_PARALLEL = 16
# An ADD is ended at so many points at the most; and where it has fewer than this, the work is another process's.
_ROUNDS = 12
_FEW = 4
# What every container has.
_SHARED = ("", "00:00:00:00:00:00", "127.0.0.1/8", "::1/128")
SECRET = "cnisdk-conform-hunter2"


def _together(bench: Bench, verb: str, names: list[str]) -> list[tuple[str, int, bytes]]:
    """One request for each container, all at the same time."""
    running = []
    for name in names:
        container = bench.containers[name]
        data = json.dumps(bench.document(container)).encode()
        process = bench.start(verb, container, data=data)
        running.append((container, process))
        assert process.stdin is not None
        try:
            process.stdin.write(data)
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.stdin = None
    answers = []
    for container, process in running:
        try:
            stdout, _ = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, _ = process.communicate()
        answers.append((container.id, process.returncode, stdout))
    return answers


@case(
    MUST,
    CONCURRENT,
    means="Pods that start at the same time (every node after a reboot) fail, or get the same address.",
)
def parallel_attachments(bench: Bench) -> None:
    before = bench.warm()
    names = [f"p{number}" for number in range(_PARALLEL)]
    for name in names:
        bench.container(name)
    counts = _counts(bench)
    known = before | bench.footprint()
    seen: dict[str, str] = {}
    for name, status, stdout in _together(bench, "ADD", names):
        if status != 0:
            raise Broken(f"{_PARALLEL} ADDs at once to succeed", f"{name}: exit status {status}, {stdout[:300]!r}")
        result = json.loads(stdout)
        bench.results[name, bench.subject.ifname] = result
        macs = [each.get("mac", "") for each in result.get("interfaces", []) if each.get("sandbox")]
        for thing in [each["address"] for each in result.get("ips", [])] + macs:
            if thing in seen and thing not in _SHARED and counts:
                raise Broken("an address for each container", f"{thing} for {seen[thing]} and {name}")
            seen[thing] = name
    with bench.leaving_nothing(f"after {_PARALLEL} DELs at once", known):
        for name, status, stdout in _together(bench, "DEL", names):
            if status != 0:
                raise Broken(f"{_PARALLEL} DELs at once to succeed", f"{name}: exit status {status}, {stdout[:300]!r}")


def _counts(bench: Bench) -> bool:
    """Tell whether it gives different containers different addresses at all; static does not."""
    if bench.subject.kind is not Kind.IPAM:
        return True
    containers = bench.container("u1"), bench.container("u2")
    first, second = (bench.add(container) for container in containers)
    for container in containers:
        bench.delete(container)
    return first.ips != second.ips


def _interrupt(bench: Bench, number: signal.Signals) -> None:
    """End an ADD before each of its changes, or before some of them, if there are many; always the same."""
    before = bench.warm()
    container = bench.container()
    known = before | bench.footprint()
    waits = False
    whole = bench.trace(container)
    if len(whole.points) < _FEW:  # another process does the work
        bench.request("DEL", container, prevResult=bench.prev_result(container))
        waits, whole = True, bench.trace(container, waits=True)
    if whole.status != 0:
        raise Unprepared(f"it needs an ADD that works, and this one ended with status {whole.status}")
    bench.request("DEL", container, prevResult=bench.prev_result(container))
    known |= bench.footprint()  # what a whole ADD leaves is another case's
    many = len(whole.points)
    rounds = min(many, _ROUNDS)
    for at in [1 + each * (many - 1) // max(rounds - 1, 1) for each in range(rounds)]:
        traced = bench.trace(container, at=at, number=number, waits=waits)
        where = f"at change {at} of {many} ({whole.points[at - 1]})"
        bench.script.append(f"# the ADD above was ended with {number.name} {where}")
        if traced.status is None:
            raise Broken(f"an end within 30 seconds of {number.name}", "it went on")
        with bench.leaving_nothing(f"after an ADD that {number.name} ended {where}, and DEL", known):
            bench.request("DEL", container, prevResult=bench.prev_result(container)).must_succeed(
                f"success after an ADD that was ended by {number.name} {where}"
            )


@case(
    SHOULD,
    DEL_UNDOES,
    means="Each runtime time-out or OOM kill in the middle of an ADD leaks a link, a rule or an address.",
)
def killed_in_add(bench: Bench) -> None:
    _interrupt(bench, signal.SIGKILL)


@case(
    SHOULD,
    DEL_UNDOES,
    means="A node shutdown in the middle of an ADD leaks a link, a rule or an address.",
)
def terminated_in_add(bench: Bench) -> None:
    _interrupt(bench, signal.SIGTERM)


@case(
    MUST,
    STREAMED,
    note="A pipe: it comes in pieces, whenever the runtime has time.",
    means="On a loaded node, configurations are taken for damaged.",
)
def slow_stdin(bench: Bench) -> None:
    container = bench.container()
    data = json.dumps(bench.document(container)).encode()
    process = bench.start("ADD", container, data=data)
    assert process.stdin is not None
    for part in (data[:1], data[1:20], data[20:]):
        process.stdin.write(part)
        process.stdin.flush()
        time.sleep(0.1)
    stdout, _ = process.communicate(timeout=60)
    if process.returncode != 0:
        raise Broken("success with a configuration in pieces", f"exit status {process.returncode}, {stdout[:300]!r}")


@case(
    OPINION,
    STDIN,
    note="The specification sets no limit to it.",
    means="Long lists of ranges, rules or annotations do not work.",
)
def a_configuration_of_a_megabyte(bench: Bench) -> None:
    big = {"labels": {f"key{number}": "x" * 1000 for number in range(1000)}}
    bench.request("ADD", bench.container(), args={"org.example": big}).must_succeed("success with 1 MB of args")


@case(
    OPINION,
    SUCCESS,
    note="A runtime that has died gets none.",
    means="A runtime that restarts in the middle of an ADD does not know of the attachment, and never sends DEL.",
)
def stdout_is_closed(bench: Bench) -> None:
    before = bench.warm()
    container = bench.container()
    known = before | bench.footprint()
    data = json.dumps(bench.document(container)).encode()
    reading, writing = os.pipe()
    process = bench.start("ADD", container, data=data, stdout=writing)
    os.close(reading)
    os.close(writing)
    process.communicate(data, timeout=60)
    if process.returncode == 0:
        raise Broken("an error, since nobody can read the result", "exit status 0")
    with bench.leaving_nothing("after an ADD whose result nobody could read, and DEL", known):
        bench.request("DEL", container, prevResult=bench.prev_result(container)).must_succeed()


@case(
    OPINION,
    ERROR,
    note="A low limit of open files is one reason to fail.",
    means="On a node that is short of files, containers start half attached.",
)
def few_open_files(bench: Bench) -> None:
    before = bench.warm()
    container = bench.container()
    known = before | bench.footprint()
    for limit in (64, 16, 6):
        answer = bench.request("ADD", container, limits=[(resource.RLIMIT_NOFILE, limit)])
        if answer.status == 0 and not isinstance(answer.try_document(), dict):
            raise Broken(f"a result or an error with {limit} open files", answer.show())
        with bench.leaving_nothing(f"after an ADD with {limit} open files and DEL", known):
            bench.request("DEL", container, prevResult=bench.prev_result(container)).must_succeed()


@case(
    OPINION,
    STDIN,
    note="So that it may hold what must not be seen; standard error is for logs.",
    means="Credentials in network configurations end up in the node's log, or in a file.",
)
def secrets_stay_secret(bench: Bench) -> None:
    container = bench.container()
    secret = {"org.example": {"password": SECRET}}
    requests = [
        bench.request("ADD", container, args=secret),
        bench.request("ADD", container, args=secret, environ={"CNI_IFNAME": "a/b"}),
        bench.request("ADD", container, args=secret, cniVersion="99.0.0"),
        bench.request("ADD", container, stdin=json.dumps(bench.document(args=secret)).encode()[:-1]),
    ]
    requests += [bench.request("DEL", container, args=secret)]
    for answer in requests:
        for name, text in (("stdout", answer.stdout), ("stderr", answer.stderr)):
            if SECRET.encode() in text:
                raise Broken(f"nothing of the configuration's secret on {name}", answer.show())
    for path, content in bench.read_host_files().items():
        if SECRET.encode() in content:
            raise Broken("nothing of the configuration's secret in a file", path)
