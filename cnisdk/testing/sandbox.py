"""Throw-away hosts: a private user, network and mount namespace, for root and for ordinary users alike.

Example:
    >>> from cnisdk.testing import Sandbox
    >>> with Sandbox() as host:                                                            # doctest: +SKIP
    ...     path = host.add_netns("testing1")
    ...     host.run(["ip", "link", "add", "cni0", "type", "bridge"])
    ...     host.ip("link", "show", "cni0")[0]["linkinfo"]["info_kind"]
    'bridge'
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self

_P = ParamSpec("_P")
_T = TypeVar("_T")

_PR_SET_PDEATHSIG = 1

# What plugins, runtimes and their tools write to. /run also holds iptables' lock and the names of namespaces.
_PRIVATE = ("/run", "/var/lib", "/etc/cni")

# In the order they are entered.
_KINDS = ("user", "mnt", "net")

# Why an unprivileged user namespace may be refused, and what to do about it.
_SWITCHES = {
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": ("1", "kernel.apparmor_restrict_unprivileged_userns=0"),
    "/proc/sys/kernel/unprivileged_userns_clone": ("0", "kernel.unprivileged_userns_clone=1"),
    "/proc/sys/user/max_user_namespaces": ("0", "user.max_user_namespaces=1000"),
}


class SandboxUnavailable(RuntimeError):
    """This machine does not let this user make namespaces; the message says which setting forbids it."""


class ProcessEndedError(RuntimeError):
    """A process forked by :meth:`Sandbox.call` ended before it could answer; ``status`` is its wait status."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(f"{what} ended its process, wait status {status:#x}")
        self.status = status


class Sandbox:
    """A host of its own, with the files and programs of this machine but nothing of its network.

    Private and empty: the network (only ``lo``, up), ``/run``, ``/var/lib`` and, where it exists, ``/etc/cni``.
    Shared: all else, ``/tmp`` included. Everything vanishes when the sandbox is closed, or when the process that opened
    it ends in whatever way: what still runs in it, as daemons do, is killed.

    Args:
        beside: An open sandbox whose user namespace the new host shares, so that links can lead from one to the other.
        watched: Directories such as ``/tmp`` whose files are hidden, and those made in them private. The directories in
            them stay shared.

    Raises:
        SandboxUnavailable: On entering, when namespaces are forbidden.
    """

    def __init__(self, *, beside: Sandbox | None = None, watched: Iterable[str] = ()) -> None:
        self._beside = beside
        self._watched = list(watched)
        self._holder: subprocess.Popen[str] | None = None
        self._namespaces: list[int] = []

    # -- life ----------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        visible = {os.getcwd(), sys.prefix, sys.base_prefix, tempfile.gettempdir(), *filter(os.path.isabs, sys.path)}
        wanted = [
            *(["user"] if self._beside is None else []),
            *(f"private={path}" for path in _PRIVATE),
            *(f"keep={path}" for path in sorted({os.path.realpath(path) for path in visible})),
            *(f"watched={path}" for path in self._watched),
        ]
        with _forking():
            self._holder = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).with_name("_holder.py")), *wanted],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd="/",
                start_new_session=True,  # a signal to the whole group of its opener, as ^C is, must not end it early
                preexec_fn=None if self._beside is None else self._beside._enter_user_namespace,  # noqa: PLW1509
            )
        try:
            assert self._holder.stdout is not None
            answer = self._holder.stdout.readline().rstrip("\n")
            if answer != "ready":
                raise SandboxUnavailable(f"cannot make a sandbox: {answer or 'the holder process died'}{_advice()}")
            # The user namespace first: the capabilities it brings are what the others ask for. It is left out where
            # the holder made none, since a process cannot enter the one it is in.
            for kind in _KINDS:
                fd = os.open(f"/proc/{self._holder.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
                if os.path.samestat(os.fstat(fd), os.stat(f"/proc/self/ns/{kind}")):
                    os.close(fd)
                else:
                    self._namespaces.append(fd)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the host vanish. Closing twice is fine."""
        for fd in self._namespaces:
            os.close(fd)
        self._namespaces.clear()
        if self._holder is not None:
            holder, self._holder = self._holder, None
            holder.communicate()  # the end of its input tells it to clear up

    @property
    def pid(self) -> int:
        """The process that holds the namespaces, for ``/proc/<pid>/ns`` and ``nsenter``."""
        return self._check_open().pid

    # -- running things inside -----------------------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
        check: bool = True,
        timeout: float | None = 60,
        cwd: str | os.PathLike[str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on this host, capturing what it prints.

        Args:
            argv: Program and arguments.
            env: Its whole environment; None hands on the caller's.
            input: Text for its standard input; None means an empty one.
            check: Raise when it exits with another status than 0.
            timeout: Seconds before it is killed; None means never.
            cwd: Working directory; None means the caller's.

        Raises:
            AssertionError: It failed and `check` is set; the message holds all it printed.
            subprocess.TimeoutExpired: It took too long.
        """
        done = self._popen_run(argv, env=env, input=input, timeout=timeout, cwd=cwd)
        if check and done.returncode != 0:
            raise AssertionError(
                f"{' '.join(map(str, argv))} exited with {done.returncode}\n{done.stdout}{done.stderr}".rstrip()
            )
        return done

    def popen(self, argv: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.Popen[str]:
        """Start a program on this host; the options are those of :class:`subprocess.Popen`.

        It is killed when the thread that started it ends.
        """
        self._check_open()
        enter, directory = self._enter, os.fspath(options.pop("cwd", None) or os.getcwd())
        parent = os.getpid()

        def prepare() -> None:
            enter(directory)
            _die_with(parent)

        options.setdefault("text", True)
        with _forking():
            return subprocess.Popen(list(argv), preexec_fn=prepare, **options)  # noqa: PLW1509

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function on this host, in a forked process, and return its value or raise its exception.

        Args:
            function: Any callable; what it changes in memory is lost.
            *args: Its arguments, which need not be picklable.
            **kwargs: Its keyword arguments.

        Returns:
            What it returned, pickled and unpickled.
        """
        self._check_open()
        directory = os.getcwd()
        pipe, pid = fork_call(lambda: function(*args, **kwargs), lambda: self._enter(directory))
        answer: _T = take_answer(pipe, pid, repr(function))
        return answer

    # -- conveniences --------------------------------------------------------------------------------------------------

    def add_netns(self, name: str) -> str:
        """Make a network namespace as ``ip netns add`` does; return its path ``/run/netns/<name>``."""
        self.run(["ip", "netns", "add", name])
        return f"/run/netns/{name}"

    def del_netns(self, name: str) -> None:
        """Remove a network namespace's name."""
        self.run(["ip", "netns", "del", name])

    def ip(self, *args: str, netns: str | None = None) -> Any:
        """Run ``ip -j -d`` with these arguments and return what it printed, parsed (None when it printed nothing).

        Args:
            *args: As for ``ip``: ``"addr", "show", "dev", "eth0"``.
            netns: Name of a network namespace of this host to run it in.
        """
        inside = ["-n", netns] if netns else []
        printed = self.run(["ip", *inside, "-j", "-d", *args]).stdout
        return json.loads(printed) if printed.strip() else None

    # -- inner ---------------------------------------------------------------------------------------------------------

    def _check_open(self) -> subprocess.Popen[str]:
        if self._holder is None:
            raise RuntimeError("the sandbox is not open")
        return self._holder

    def _enter_user_namespace(self) -> None:
        """Move this process, which must have one thread only, into the user namespace of the host, if it has one."""
        if len(self._namespaces) == len(_KINDS):
            self._setns(self._namespaces[0])

    def _enter(self, directory: str) -> None:
        """Move this process, which must have one thread only, into the host."""
        for fd in self._namespaces:
            self._setns(fd)
        os.chdir(directory)  # entering a mount namespace leaves a process in /

    @staticmethod
    def _setns(fd: int) -> None:
        if _libc().setns(fd, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "setns")

    def _popen_run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None,
        input: str | None,
        timeout: float | None,
        cwd: str | os.PathLike[str] | None,
    ) -> subprocess.CompletedProcess[str]:
        process = self.popen(
            argv,
            env=dict(env) if env is not None else None,
            stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
        )
        with process:
            try:
                stdout, stderr = process.communicate(input, timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)


def fork_call(work: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> tuple[int, int]:
    """Call a function in a forked process, which is killed when the thread that forked it ends.

    Args:
        work: What to call; what it changes in memory is lost.
        prepare: Called before, as long as the process may still change its credentials.

    Returns:
        A pipe that can be read when there is an answer, and the process: for :func:`take_answer`.
    """
    reading, writing = os.pipe()
    parent = os.getpid()
    with _forking():
        child = os.fork()
    if child == 0:
        _call_in_child(writing, parent, prepare, work)
    os.close(writing)
    return reading, child


def take_answer(pipe: int, pid: int, what: str = "a function") -> Any:
    """Wait for the end of :func:`fork_call`, and return what the function returned, or raise what it raised.

    Raises:
        ProcessEndedError: The process ended without an answer.
    """
    try:
        with open(pipe, "rb") as file:
            answer = file.read()
    finally:
        _, status = os.waitpid(pid, 0)
    if not answer:
        raise ProcessEndedError(what, status)
    returned, value = pickle.loads(answer)
    if returned:
        return value
    raise value


def _call_in_child(pipe: int, parent: int, prepare: Callable[[], object], work: Callable[[], object]) -> NoReturn:
    status = 1
    gc.freeze()  # looking for garbage would copy all the memory that is shared with the parent
    try:
        try:
            prepare()
            _die_with(parent)
            answer: tuple[bool, object] = (True, work())
        except BaseException as error:
            answer = (False, error)
        try:
            data = pickle.dumps(answer)
            pickle.loads(data)
        except Exception as error:
            data = pickle.dumps((False, RuntimeError(f"cannot hand over {answer[1]!r}: {error}")))
        with open(pipe, "wb") as writer:
            writer.write(data)
        status = 0
    finally:
        # No atexit handlers, no flushing of the parent's buffers, no pytest in the child.
        os._exit(status)


class _forking(warnings.catch_warnings):
    """Fork without Python 3.12's warning: the children only enter namespaces and exec, or run a test's function."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message=".*multi-threaded.*", category=DeprecationWarning)


def _libc() -> ctypes.CDLL:
    # dlopen of the C library that is already there: cheap, and os.setns is only in Python 3.12.
    return ctypes.CDLL(None, use_errno=True)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends. To be set after credentials changed, which clears it."""
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _advice() -> str:
    for path, (forbidding, cure) in _SWITCHES.items():
        try:
            value = Path(path).read_text().strip()
        except OSError:
            continue
        if value == forbidding:
            return f" (sysctl {cure} allows it)"
    return ""
