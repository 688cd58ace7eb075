"""Conditions of real nodes: many requests at once, signals, slow peers, low limits, secrets."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from itertools import takewhile
from typing import Any

from . import _sentences as spec
from ._processes import feed
from .case import Chapter
from .case_run import CaseRun
from .judgement import Broken, NotApplicable, Unprepared

chapter = Chapter()

# Containers that are attached at the same time; fewer if the pool has fewer addresses.
_PARALLEL = 16
# Changes of an ADD before which it gets a signal, at most.
_MAX_POINTS = 12
# An ADD with fewer changes than this has another process do the work.
_MIN_CHANGES = 4
# Addresses that every container has: they are no duplicates.
_SHARED = {"", "00:00:00:00:00:00", "127.0.0.1/8", "::1/128"}


def _together(run: CaseRun, verb: str, names: list[str]) -> list[tuple[str, int, bytes]]:
    """Send one request for each container, all at the same time."""
    running = []
    for name in names:
        container = run.containers[name]
        data = json.dumps(run.document(container)).encode()
        process = run.start(verb, container, data=data)
        running.append((container, process))
        feed(process, data)
    responses = []
    for container, process in running:
        try:
            stdout, _ = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, _ = process.communicate()
        responses.append((container.id, process.returncode, stdout))
    return responses


@chapter.must(
    spec.CONCURRENT, means="Pods that start at the same time (every node after a reboot) fail, or get the same address."
)
def parallel_attachments(run: CaseRun) -> None:
    before = run.warm()
    names = [f"p{number}" for number in range(_PARALLEL)]
    for name in names:
        run.container(name)
    known = before | run.footprint()
    holders: dict[str, str] = {}
    doubles: dict[str, str] = {}
    responses = _together(run, "ADD", names)
    if any(status != 0 for _, status, _ in responses):
        fitting = _attach_in_turn(run, names)
        if len(fitting) < 2:
            raise NotApplicable(f"only {len(fitting)} containers can be attached one after the other")
        if len(fitting) < len(names):  # its pool is small, which is no fault
            names = fitting
            responses = _together(run, "ADD", names)
    for name, status, stdout in responses:
        if status != 0:
            raise Broken(f"{len(names)} ADDs at once to succeed", f"{name}: exit status {status}, {stdout[:300]!r}")
        result = json.loads(stdout)
        run.results[name, run.subject.ifname] = result
        for address in _addresses(result):
            if address in holders:
                doubles[address] = f"{address} for {holders[address]} and {name}"
            holders[address] = name
    with run.leaving_nothing(f"after {len(names)} DELs at once", known):
        for name, status, stdout in _together(run, "DEL", names):
            if status != 0:
                raise Broken(f"{len(names)} DELs at once to succeed", f"{name}: exit status {status}, {stdout[:300]!r}")
    if doubles and (wrong := doubles.keys() - _addresses_of_all(run)):
        raise Broken("an address for each container", doubles[min(wrong)])


def _addresses(result: dict[str, Any]) -> set[str]:
    """Return the addresses and hardware addresses of a container, but for those that every container has."""
    macs = {each.get("mac", "") for each in result.get("interfaces", []) if each.get("sandbox")}
    return (macs | {each["address"] for each in result.get("ips", [])}) - _SHARED


def _addresses_of_all(run: CaseRun) -> set[str]:
    """Return what two containers attached one after the other both get: ipvlan's hardware address, static's address."""
    containers = run.container("u1"), run.container("u2")
    replies = [run.request("ADD", container) for container in containers]
    for container in containers:
        run.request("DEL", container)
    if any(reply.status != 0 for reply in replies):
        return set()
    first, second = (_addresses(json.loads(reply.stdout)) for reply in replies)
    return first & second


def _attach_in_turn(run: CaseRun, names: list[str]) -> list[str]:
    """Detach all containers, attach one after another until one fails, and detach all. Return the attached ones."""
    every = [run.containers[name] for name in names]
    for container in every:
        run.request("DEL", container)
    fitting = list(takewhile(lambda container: run.request("ADD", container).status == 0, every))
    for container in every:
        run.request("DEL", container)
    return [container.id for container in fitting]


def _interrupt(run: CaseRun, number: signal.Signals) -> None:
    """Send a signal to an ADD before each of its changes, or before _MAX_POINTS of them, evenly spread."""
    container, known = run.fresh_container()
    waits = False
    whole = run.trace(container)
    if len(whole.points) < _MIN_CHANGES:  # another process does the work
        run.request("DEL", container, prevResult=run.prev_result(container))
        waits, whole = True, run.trace(container, waits=True)
    if whole.status != 0:
        raise Unprepared(f"it needs an ADD that works, and this one ended with status {whole.status}")
    run.request("DEL", container, prevResult=run.prev_result(container))
    known |= run.footprint()  # what a whole ADD leaves is another case's
    many = len(whole.points)
    rounds = min(many, _MAX_POINTS)
    for at in [1 + each * (many - 1) // max(rounds - 1, 1) for each in range(rounds)]:
        traced = run.trace(container, at=at, number=number, waits=waits)
        where = f"at change {at} of {many} ({whole.points[at - 1]})"
        run.script.append(f"# the ADD above was ended with {number.name} {where}")
        if traced.status is None:
            raise Broken(f"an end within 30 seconds of {number.name}", "it went on")
        run.undo(container, known, f"an ADD that {number.name} ended {where}")


@chapter.should(
    spec.DEL_UNDOES,
    means="Each runtime time-out or OOM kill in the middle of an ADD leaks a link, a rule or an address.",
)
def killed_in_add(run: CaseRun) -> None:
    _interrupt(run, signal.SIGKILL)


@chapter.should(spec.DEL_UNDOES, means="A node shutdown in the middle of an ADD leaks a link, a rule or an address.")
def terminated_in_add(run: CaseRun) -> None:
    _interrupt(run, signal.SIGTERM)


@chapter.must(
    spec.STREAMED.with_note("A pipe: it comes in pieces, whenever the runtime has time."),
    means="On a loaded node, configurations are taken for damaged.",
)
def slow_stdin(run: CaseRun) -> None:
    container = run.container()
    data = json.dumps(run.document(container)).encode()
    process = run.start("ADD", container, data=data)
    for part in (data[:1], data[1:20], data[20:]):
        feed(process, part, close=False)
        time.sleep(0.1)
    stdout, _ = process.communicate(timeout=60)
    if process.returncode != 0:
        raise Broken("success with a configuration in pieces", f"exit status {process.returncode}, {stdout[:300]!r}")


@chapter.opinion(
    spec.STDIN.with_note("The specification sets no limit to it."),
    means="Long lists of ranges, rules or annotations do not work.",
)
def a_configuration_of_a_megabyte(run: CaseRun) -> None:
    big = {"labels": {f"key{number}": "x" * 1000 for number in range(1000)}}
    run.request("ADD", run.container(), args={"org.example": big}).must_succeed("success with 1 MB of args")


@chapter.opinion(
    spec.SUCCESS.with_note("A runtime that has died gets none."),
    means="A runtime that restarts in the middle of an ADD does not know of the attachment, and never sends DEL.",
)
def stdout_is_closed(run: CaseRun) -> None:
    container, known = run.fresh_container()
    data = json.dumps(run.document(container)).encode()
    reading, writing = os.pipe()
    process = run.start("ADD", container, data=data, stdout=writing)
    os.close(reading)
    os.close(writing)
    process.communicate(data, timeout=60)
    if process.returncode == 0:
        raise Broken("an error, since the result cannot be read", "exit status 0")
    run.undo(container, known, "an ADD whose result could not be read")


@chapter.opinion(
    spec.ERROR.with_note("A low limit of open files is one reason to fail."),
    means="On a node that is short of files, containers start half attached.",
)
def few_open_files(run: CaseRun) -> None:
    container, known = run.fresh_container()
    for limit in (64, 16, 6):
        response = run.request("ADD", container, limits=[(resource.RLIMIT_NOFILE, limit)])
        if response.status == 0 and not isinstance(response.try_document(), dict):
            raise Broken(f"a result or an error with {limit} open files", response.show())
        run.undo(container, known, f"an ADD with {limit} open files")


@chapter.opinion(
    spec.STDIN.with_note("So that it may hold what must not be seen; standard error is for logs."),
    means="Credentials in network configurations end up in the node's log, or in a file.",
)
def secrets_stay_secret(run: CaseRun) -> None:
    container = run.container()
    password = os.urandom(16).hex()  # new each time: in a directory below /tmp, files of other programs are seen too
    secret = {"org.example": {"password": password}}
    requests = [
        run.request("ADD", container, args=secret),
        run.request("ADD", container, args=secret, environ={"CNI_IFNAME": "a/b"}),
        run.request("ADD", container, args=secret, cniVersion="99.0.0"),
        run.request("ADD", container, stdin=json.dumps(run.document(args=secret)).encode()[:-1]),
    ]
    requests += [run.request("DEL", container, args=secret)]
    for response in requests:
        for name, text in (("stdout", response.stdout), ("stderr", response.stderr)):
            if password.encode() in text:
                raise Broken(f"nothing of the configuration's secret on {name}", response.show())
    for path, content in run.read_host_files().items():
        if password.encode() in content:
            raise Broken("nothing of the configuration's secret in a file", path)
