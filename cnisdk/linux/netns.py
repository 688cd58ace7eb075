"""Network namespaces, opened by path. No function here creates a namespace or a file.

Theory of operation. ``setns(2)`` moves one thread into a namespace. An exception between entering and leaving would
leave the caller's thread in the wrong place. So work inside a namespace runs in a thread made for it, which ends with
the work (:meth:`NetNS.call`), and no thread ever has to come back.
"""

from __future__ import annotations

import _thread
import errno
import os
from collections.abc import Callable

from .._light import ParamSpec, TypeVar, cast
from ..errors import InvalidNetNSError, IOFailureError, cause_of

_P = ParamSpec("_P")
_T = TypeVar("_T")

_CLONE_NEWNET = 0x40000000
# ioctl_nsfs(2), Linux 4.11: tells the kind of a namespace, and fails with ENOTTY for any other file.
_NS_GET_NSTYPE = 0xB703
_SO_NETNS_COOKIE = 71


class NetNSNotFoundError(InvalidNetNSError):
    """Code 8: there is no file at the path. DEL then has nothing to do in the namespace."""


class NetNS:
    """An open network namespace. The kernel keeps it until it is closed, even if its path is deleted.

    It is equal to every other handle of the same namespace.

    Attributes:
        path: The path it was opened by, verbatim.
    """

    __slots__ = ("_fd", "_identity", "_kept", "path")

    def __init__(self, path: str, fd: int) -> None:
        status = os.fstat(fd)
        self.path = path
        self._fd = fd
        self._kept = False
        self._identity = (status.st_dev, status.st_ino)

    @property
    def fd(self) -> int:
        """The file descriptor, for IFLA_NET_NS_FD.

        Raises:
            ValueError: It was closed.
        """
        if self._fd < 0:
            raise ValueError(f"network namespace {self.path} was closed")
        return self._fd

    @property
    def inode(self) -> int:
        """The inode number, as ``lsns`` and ``readlink /proc/self/ns/net`` show it."""
        return self._identity[1]

    def identify(self) -> str:
        """Return an identifier that no other namespace has until the next boot: its cookie (SO_NETNS_COOKIE).

        Before Linux 5.14 it is device and inode. The kernel uses inode numbers again, as it does process ids in paths
        such as ``/proc/4711/ns/net``.

        Raises:
            IOFailureError: (5) The kernel does not let this process enter, or refused to tell.
        """

        def cookie() -> bytes:
            from . import _sockets

            with _sockets.Socket(_sockets.AF_UNIX, _sockets.SOCK_DGRAM | _sockets.SOCK_CLOEXEC) as sock:
                return sock.getsockopt(_sockets.SOL_SOCKET, _SO_NETNS_COOKIE, 8)

        try:
            return self.call(cookie).hex()
        except OSError as exc:
            if exc.errno != errno.ENOPROTOOPT:  # else one namespace would have two identifiers
                raise IOFailureError(f"cannot identify {self.path}: {cause_of(exc)}") from exc
            return ":".join(map(str, self._identity))

    def __eq__(self, other: object) -> bool:
        return self._identity == other._identity if isinstance(other, NetNS) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        return f"<NetNS {self.path} net:[{self.inode}]{' closed' if self._fd < 0 else ''}>"

    def __enter__(self) -> NetNS:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._kept:
            self.close()

    def keep(self) -> None:
        """Leave the namespace open at the end of a ``with``. Only :meth:`close` closes it from here on."""
        self._kept = True

    def close(self) -> None:
        """Close the namespace. Closing twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function in a new thread inside the namespace; return its value, or raise its exception.

        Sockets it opens stay in this namespace and may be used by any thread; files below ``/proc/sys/net`` and
        ``/proc/thread-self/net`` are this namespace's when opened in there.

        When a signal handler raises meanwhile, that exception waits until the function has ended.

        Raises:
            IOFailureError: (5) The kernel does not let this process enter, or open one more file.
        """
        fd = self.fd
        returned: list[_T] = []
        raised: list[BaseException] = []
        # Thread.join() and locks were rejected: after an exception from a signal handler, both may look as if the
        # thread had ended. Each read of a pipe sees its end again.
        try:
            reading, writing = os.pipe()
        except OSError as error:
            raise IOFailureError(f"cannot enter network namespace {self.path}: {cause_of(error)}") from error

        def work() -> None:
            try:
                _setns(fd, self.path)
                returned.append(function(*args, **kwargs))
            except BaseException as error:
                raised.append(error)
            finally:
                os.close(writing)

        interruption: BaseException | None = None
        try:
            _thread.start_new_thread(work, ())
        except RuntimeError as error:  # the process may have no more threads
            os.close(reading)
            os.close(writing)
            raise IOFailureError(f"cannot enter network namespace {self.path}: {error}") from error
        except BaseException as error:
            interruption = error
        ended = False
        while not ended:
            try:
                ended = os.read(reading, 1) == b""
            except BaseException as error:
                interruption = error
        os.close(reading)
        if interruption is not None:
            raise interruption
        if raised:
            try:
                raise raised[0]
            finally:
                raised.clear()  # no cycle of frame, exception and traceback
        return returned[0]


def open(path: str) -> NetNS:
    """Open the network namespace at a path such as ``/run/netns/blue`` or ``/proc/4711/ns/net``.

    Raises:
        NetNSNotFoundError: (8) There is no file.
        InvalidNetNSError: (8) The path is empty, or the file is no network namespace.
        IOFailureError: (5) The kernel does not let this process open it.
    """
    if not path:
        raise InvalidNetNSError("the path of the network namespace is empty")
    try:
        # stat() first: opening a device or a named pipe can have effects, or block.
        look = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        named = f"/var/run/netns/{path}"
        known = "/" not in path and os.path.exists(named)
        details = f"expected a path; a namespace of that name is at {named}" if known else ""
        raise NetNSNotFoundError(f"network namespace {path} does not exist", details=details) from error
    except (OSError, ValueError) as error:
        raise _cannot_open(path, error) from error
    try:
        kind = os.fstat(look).st_mode & 0o170000
        if kind != 0o100000:
            raise InvalidNetNSError(f"{path} is not a network namespace", details=f"it is {_KINDS.get(kind, 'a file')}")
        fd = os.open(f"/proc/self/fd/{look}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_open(path, error) from error
    finally:
        os.close(look)
    try:
        _check_is_netns(path, fd)
        return NetNS(path, fd)
    except BaseException:
        os.close(fd)
        raise


def find(path: str) -> NetNS | None:
    """Open the network namespace at a path, or return None when there is none, for DEL.

    None stands for an empty path, for a path without a file, and for a file that is no namespace: unmounting
    ``/run/netns/blue`` leaves an empty file.

    Raises:
        IOFailureError: (5) The kernel does not let this process open it.
    """
    try:
        return open(path)
    except InvalidNetNSError:
        return None


def enter(netns: NetNS) -> None:
    """Move the calling thread into a namespace. It does not return: call it only in a process made for this work.

    Raises:
        IOFailureError: (5) The kernel does not let it enter.
    """
    _setns(netns.fd, netns.path)


def current() -> NetNS:
    """Open the network namespace the calling thread is in."""
    return open("/proc/thread-self/ns/net")


_KINDS = {
    0o010000: "a named pipe",
    0o020000: "a device",
    0o040000: "a directory",
    0o060000: "a device",
    0o140000: "a socket",
}


# Errors of open(2) for a path that leads to no namespace. Other errors mean that this process or the machine lacks
# memory, descriptors or permission.
_NO_NETNS = frozenset({errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.EISDIR})


def _cannot_open(path: str, error: Exception) -> InvalidNetNSError | IOFailureError:
    number = getattr(error, "errno", None)
    if number is None or number in _NO_NETNS:
        return InvalidNetNSError(f"{path} is not a network namespace", details=cause_of(error))
    return IOFailureError(f"cannot open network namespace {path}: {cause_of(error)}")


def _check_is_netns(path: str, fd: int) -> None:
    import fcntl

    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError as error:
        raise InvalidNetNSError(f"{path} is not a network namespace", details="it is an ordinary file") from error
    if kind != _CLONE_NEWNET:
        raise InvalidNetNSError(f"{path} is not a network namespace", details="it is a namespace of another kind")


def _setns(fd: int, path: str) -> None:
    global _system_call
    if _system_call is None:
        _system_call = _load_setns()
    try:
        _system_call(fd, _CLONE_NEWNET)
    except OSError as error:
        raise IOFailureError(
            f"cannot enter network namespace {path}: {cause_of(error)}",
            details="it takes CAP_SYS_ADMIN in this user namespace and in the one that owns the network namespace",
        ) from error


_system_call: Callable[[int, int], None] | None = None


def _load_setns() -> Callable[[int, int], None]:
    if hasattr(os, "setns"):  # Python 3.12
        return cast("Callable[[int, int], None]", os.setns)
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def setns(fd: int, kind: int) -> None:
        if libc.setns(fd, kind) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return setns
