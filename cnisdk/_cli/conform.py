"""``cnisdk conform``: judge CNI plugins in any language by the specification, without root."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidConfigError, IOFailureError, cause_of
from .stopping import Stopped, stoppable

if TYPE_CHECKING:
    from ..conformance.case import Case
    from ..conformance.report import Report
    from ..conformance.runner import Outcome
    from ..conformance.subject import Subject

Advance = Callable[["Outcome"], None]


DESCRIPTION = (
    "Judge plugins by a catalogue of cases, each keyed to a sentence of the CNI specification. "
    "Each case runs on a throw-away host of its own; root is not needed, and the host's network is not touched."
)

EPILOG = (
    "exit status: 0 no case at the --fail-on level or above failed; 1 one did; 2 wrong use; "
    "3 the suite itself could not finish, or was stopped by SIGTERM or SIGINT; 4 a plugin was not judged, since it "
    "cannot be started, or its ADD does not work with this configuration"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("plugin", nargs="*", metavar="PLUGIN", help="executable of a plugin")
    parser.add_argument(
        "--conf",
        metavar="FILE",
        help="network configuration (JSON); by default the one the plugin declares, or a known one for its name",
    )
    parser.add_argument(
        "--ipam", metavar="DIR", action="append", default=[], help="directory with plugins it delegates to (repeatable)"
    )
    parser.add_argument(
        "--kind", choices=["interface", "chained", "ipam"], help="kind of plugin; by default found out by running it"
    )
    parser.add_argument("--ifname", default="", help="CNI_IFNAME of the requests (default: eth0)")
    parser.add_argument("--setup", metavar="COMMANDS", help="shell commands that prepare each host")
    parser.add_argument(
        "--container-setup",
        metavar="COMMANDS",
        help="shell commands on the host that prepare each container; {container} becomes the name of its namespace",
    )
    parser.add_argument(
        "--only", metavar="PATTERN", action="append", default=[], help="only cases of this name; * and ? (repeatable)"
    )
    parser.add_argument(
        "-j", "--jobs", type=_positive, metavar="N", help="cases at the same time (default: the number of processors)"
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="print each case as it ends, and why cases do not apply"
    )
    parser.add_argument("--list", action="store_true", help="list the cases, and do nothing")
    parser.add_argument("--fail-on", choices=["must", "should", "opinion"], default="must", help="default: must")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON")
    parser.add_argument("--junit", metavar="FILE", help="write JUnit XML")
    parser.add_argument("--html", metavar="FILE", help="write a web page with the matrix")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def run(args: argparse.Namespace) -> int:
    """Judge the plugins, print and write the reports, and return the exit status."""
    try:
        from ..conformance.catalogue import select
        from ..conformance.identify import identify
        from ..conformance.judgement import Kind, Level
        from ..conformance.runner import UNFINISHED, UNJUDGED, exit_status
        from ..testing.sandbox import SandboxUnavailable
    except ModuleNotFoundError as exc:
        package = str(exc.name).partition(".")[0]
        if package == __package__.partition(".")[0]:
            raise
        raise IOFailureError(
            f"the package {package} is missing", details="install the extra cnisdk[testing], which has it"
        ) from exc

    kind = Kind(args.kind) if args.kind else None
    if args.list:
        for case in select(kind, args.only):
            kinds = "/".join(sorted(map(str, case.kinds)))
            print(f"{case.id:46} {case.level!s:8} {kinds}\n    {case.section}: {case.sentence}")
        return 0
    if not args.plugin:
        print("cnisdk conform: name the executable of a plugin, or ask for --list", file=sys.stderr)
        return 2
    if args.only and not select(None, args.only):
        print(f"cnisdk conform: no case is named {', '.join(args.only)}; see --list", file=sys.stderr)
        return 2
    for path in filter(None, (args.json, args.junit, args.html)):
        if not _can_be_written(path):
            print(f"cnisdk conform: cannot write a report to {path}", file=sys.stderr)
            return 2
    try:
        conf = _read_conf(args.conf) if args.conf else None
    except InvalidConfigError as exc:
        print(f"cnisdk conform: {exc}", file=sys.stderr)
        return 2
    reports: list[Report] = []
    waiting = list(args.plugin)
    try:
        with stoppable(signal.SIGTERM, signal.SIGINT):
            while waiting:
                started = time.monotonic()
                subject = identify(
                    waiting[0],
                    conf=conf,
                    kind=kind,
                    search=args.ipam,
                    ifname=args.ifname,
                    setup=args.setup,
                    container_setup=args.container_setup,
                )
                reports.append(_judge(subject, select(subject.kind, args.only), args, started))
                del waiting[0]
                if reports[-1].stopped:
                    raise Stopped(signal.Signals[reports[-1].stopped])
    except Stopped as stopped:
        rest = f"; not judged: {', '.join(waiting)}" if waiting else ""
        print(f"cnisdk conform: stopped by {signal.Signals(stopped.number).name}{rest}", file=sys.stderr)
        return UNFINISHED
    except (SandboxUnavailable, InvalidConfigError) as exc:
        print(f"cnisdk conform: {exc}", file=sys.stderr)
        return UNFINISHED if isinstance(exc, SandboxUnavailable) else UNJUDGED
    finally:
        _write(args, reports)
    level = {"must": Level.MUST, "should": Level.SHOULD, "opinion": Level.OPINION}[args.fail_on]
    return max(UNJUDGED if each.subject.problem else exit_status(each.outcomes, level) for each in reports)


def _described(args: argparse.Namespace) -> str:
    """Return the options that describe the plugin, for the command lines in a report."""
    given = [("--conf", args.conf), *(("--ipam", each) for each in args.ipam), ("--kind", args.kind)]
    given += [("--ifname", args.ifname), ("--setup", args.setup), ("--container-setup", args.container_setup)]
    return shlex.join(word for option, value in given if value for word in (option, value))


def _judge(subject: Subject, cases: Sequence[Case], args: argparse.Namespace, started: float) -> Report:
    from ..conformance.catalogue import place_of
    from ..conformance.report import Report, as_text
    from ..conformance.runner import judge

    outcomes: list[Outcome] = []
    stopped = ""
    if not subject.problem:
        jobs = args.jobs or len(os.sched_getaffinity(0))
        title = f"{subject.name} ({subject.kind})"
        try:
            with (
                _progress(title, len(cases), args.verbose) as advance,
                closing(judge(subject, cases, jobs=jobs)) as found,
            ):
                for outcome in found:
                    outcomes.append(outcome)
                    advance(outcome)
        except Stopped as exc:
            stopped = signal.Signals(exc.number).name
    ended = {each.case.id for each in outcomes}
    report = Report(
        subject,
        sorted(outcomes, key=lambda each: place_of(each.case)),
        _described(args),
        seconds=time.monotonic() - started,
        stopped=stopped,
        unrun=[each for each in cases if stopped and each.id not in ended],
    )
    print(as_text(report, reasons=args.verbose), flush=True)
    return report


@contextmanager
def _progress(title: str, cases: int, verbose: bool) -> Iterator[Advance]:
    """Show progress on standard error: a line for each case, or a bar on a terminal."""
    if verbose:
        ended = 0

        def tell(outcome: Outcome) -> None:
            nonlocal ended
            ended += 1
            text = f"{ended:3}/{cases} {outcome.verdict!s:14} {outcome.case.id} [{outcome.case.level}]"
            print(f"{text}, {outcome.seconds:.1f} s", file=sys.stderr, flush=True)

        print(f"{title}, {cases} cases", file=sys.stderr, flush=True)
        yield tell
        return
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        try:
            from rich.console import Console
            from rich.progress import Progress
        except ImportError:
            pass
        else:
            with Progress(console=Console(stderr=True), transient=True) as progress:
                task = progress.add_task(title, total=cases)
                yield lambda outcome: progress.update(task, advance=1, description=f"{title} {outcome.case.id}")
            return
    print(f"{title}, {cases} cases; -v tells of each as it ends", file=sys.stderr, flush=True)
    yield lambda outcome: None


def _read_conf(path: str) -> dict[str, Any]:
    try:
        document = json.loads(Path(path).read_text())
    except OSError as exc:
        raise InvalidConfigError(f"cannot read {path}: {cause_of(exc)}") from exc
    except ValueError as exc:
        raise InvalidConfigError(f"{path} is not JSON: {exc}") from exc
    if not isinstance(document, dict) or "plugins" in document:
        raise InvalidConfigError(
            f"{path} must hold the configuration of one plugin, an object", details="not of a list"
        )
    return document


def _can_be_written(path: str) -> bool:
    if os.path.exists(path):
        return not os.path.isdir(path) and os.access(path, os.W_OK)
    return os.access(os.path.dirname(os.path.abspath(path)), os.W_OK)


def _write(args: argparse.Namespace, reports: Sequence[Report]) -> None:
    from ..conformance.report import as_html, as_json, as_junit

    for path, render in ((args.json, as_json), (args.junit, as_junit), (args.html, as_html)):
        if path:
            Path(path).write_text(render(reports), encoding="utf-8")
