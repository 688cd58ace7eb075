"""One process, one request: file descriptors, signals and the exit status around :func:`.reply.respond`."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress

from .._light import TYPE_CHECKING
from ..errors import CNIError, IOFailureError
from ..invoke import _local
from ..spec.codec import dumps, loads
from ..spec.versions import SpecVersion, Verb
from ._launch import Launcher, this_launcher
from ._signals import Signals, Terminated
from .reply import Reply, check_may_begin, ended_by_signal, mark_spent, print_error, respond, version_written
from .undo import UndoStack

if TYPE_CHECKING:
    from ..invoke.process import Finished
    from ._program import Program

_CHUNK = 1 << 16
_CLOSED = -1


def serve(
    main: Program,
    launcher: Launcher | None = None,
    signals: Signals | None = None,
    announce: Callable[[], object] | None = None,
) -> int:
    """Answer the request this process was started with.

    Args:
        main: The program around the plugin.
        launcher: A launcher of this installation; None means the one that started this process, if one did.
        signals: This process's handlers of signals; None makes them.
        announce: Called right before anything is written to standard output.

    Returns:
        The exit status.
    """
    command = os.environ.get("CNI_COMMAND", "")
    announce = announce or bool
    if not command:
        announce()
        if sys.orig_argv[-1] == "--conformance":
            _declare(main)
        else:
            _say(main.about)
        return 0
    signals = signals or Signals()
    chunks: list[bytes] = []
    error: CNIError | None = None
    try:
        # VERSION takes no input: a runtime may leave a terminal or an open pipe as standard input.
        with signals:
            while command != Verb.VERSION and (chunk := os.read(0, _CHUNK)):
                chunks.append(chunk)
    except OSError as exc:
        error = IOFailureError(
            f"error reading from stdin: {exc.strerror}", details="expected the network configuration"
        )
    except Terminated as exc:
        mark_spent()
        error = ended_by_signal(exc, None)
    stdin = b"".join(chunks)
    if error is not None:
        reply = Reply(print_error(error, version_written(stdin)), 1, "", UndoStack())
        return _answer(reply, _take_stdout(), signals, announce)
    stdout = _take_stdout()
    run_delegates_here(signals, launcher)
    reply = respond(main.plugin, os.environ, stdin, guard=check_may_begin, interruptible=signals)
    return _answer(reply, stdout, signals, announce)


def run_delegates_here(signals: Signals, launcher: Launcher | None = None) -> None:
    """Let this process itself run the delegates that its own installation put into ``CNI_PATH``.

    Args:
        signals: Those of this process.
        launcher: A launcher of this installation; None means the one that started this process, if one did.
    """
    ours = launcher or this_launcher()
    if ours is None:
        return

    def run(path: str, environ: Mapping[str, str], stdin: bytes, timeout: float | None) -> Finished | None:
        from ._within import run_within

        return run_within(ours, signals, path, environ, stdin, timeout)

    _local.runner = run


def _take_stdout() -> int:
    """Keep standard output for the reply alone: all other output, of child processes too, goes to standard error.

    Returns:
        A descriptor for the reply; one that cannot be written to when the runtime closed standard output.
    """
    try:
        stdout = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:
        stdout = _CLOSED
    for fd in (0, 2):
        try:
            os.fstat(fd)
        except OSError:  # closed by the runtime: a socket opened later must not take its number
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, fd)
            if null != fd:
                os.close(null)
    os.dup2(2, 1)
    return stdout


def _say(text: str) -> None:
    """Write a text for people to standard error, if there is one: the runtime may have closed it."""
    try:
        os.write(2, text.encode(errors="backslashreplace"))
    except OSError:
        pass


def _take_back(reply: Reply, exc: Terminated) -> Reply:
    """Undo an ADD whose result was not written yet, and answer that a signal ended the request."""
    mark_spent()
    problems = reply.undo.unwind()
    error = ended_by_signal(exc, None)
    if problems:
        error.details = "; ".join(f"cleaning up failed: {problem}" for problem in problems)
    version = SpecVersion.parse(str(loads(reply.stdout)["cniVersion"]))
    return Reply(print_error(error, version), 1, reply.stderr, reply.undo)


def _declare(main: Program) -> None:
    """Tell ``cnisdk conform``, which asks with an argument that no runtime gives, how to try the plugin."""
    os.write(1, dumps(dict(main.plugin.conformance())))


def _answer(reply: Reply, stdout: int, signals: Signals, announce: Callable[[], object]) -> int:
    """Write the reply, and close the descriptor: the end of the answer must not wait for that of the process."""
    try:
        return _deliver(reply, stdout, signals, announce)
    finally:
        with suppress(OSError):
            os.close(stdout)


def _deliver(reply: Reply, stdout: int, signals: Signals, announce: Callable[[], object]) -> int:
    """Write the reply. If the result of an ADD cannot be delivered, undo the ADD."""
    if reply.status == 0 and reply.stdout:
        try:
            with signals:
                pass  # raises a signal that came since the handler ended: there is still time to answer with an error
        except Terminated as exc:
            reply = _take_back(reply, exc)
    try:
        # A failed request has been undone already: a signal could ask for nothing more.
        with signals if reply.status == 0 and reply.stdout else nullcontext():
            rest = memoryview(reply.stdout)
            announce()
            while rest:
                rest = rest[os.write(stdout, rest) :]
            if reply.stderr:
                _say(reply.stderr)  # after the document it belongs to
    except (OSError, Terminated) as exc:
        mark_spent()
        _say(reply.stderr)
        for problem in (exc, *reply.undo.unwind()):
            _say(f"the reply could not be delivered, its work is taken back: {problem}\n")
        return 1
    reply.undo.commit()
    return reply.status
