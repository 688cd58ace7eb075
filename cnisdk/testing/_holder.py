"""Process that keeps a sandbox's namespaces alive. Run as a script by an isolated interpreter, never imported.

It makes the namespaces, prepares the mounts, writes one line that says ``ready`` or what went wrong, and then waits for
its standard input to close: which it does when the program that asked for the sandbox closes it, exits or is killed.
(PR_SET_PDEATHSIG would do that too, but fires when the creating *thread* ends.) Then it kills what was left running in
the sandbox, and ends.

Test suites make thousands of sandboxes, and what this imports takes most of the time of one. So it does without the
modules json, signal and socket, which bring in many others.
"""

import ctypes
import fcntl
import os
import struct
import sys

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
SIGKILL = 9
AF_INET = 2
SOCK_DGRAM = 2
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 1

libc = ctypes.CDLL(None, use_errno=True)
libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def check(status: int, what: str) -> None:
    """Raise OSError when a libc call failed."""
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def mount(source: str, target: str, kind: str | None, flags: int = 0, options: str = "") -> None:
    """Mount something, or raise OSError."""
    check(
        libc.mount(
            os.fsencode(source), os.fsencode(target), kind.encode() if kind else None, flags, options.encode() or None
        ),
        f"mount {target}",
    )


def become_root() -> None:
    """Enter a user namespace where this user is root: needed by ordinary users, and harmless for root."""
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER) != 0:
        if uid == 0:
            return  # user namespaces are off, but root can make the others without
        check(-1, "unshare user")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def make_private(directory: str, keep: list[str]) -> None:
    """Mount an empty tmpfs over a directory, with what lies below it and must stay visible bound in again."""
    directory = os.path.realpath(directory)
    if not os.path.isdir(directory):
        return
    kept = [path for path in keep if path.startswith(directory + "/") and os.path.isdir(path)]
    held = []
    for path in kept:
        try:
            held.append((path, os.open(path, os.O_PATH | os.O_DIRECTORY)))
        except FileNotFoundError:
            continue  # directories of others come and go
    mount("tmpfs", directory, "tmpfs", options="mode=0755")
    for path, fd in held:
        os.makedirs(path, exist_ok=True)
        try:
            mount(f"/proc/self/fd/{fd}", path, None, MS_BIND | MS_REC)
        except FileNotFoundError:
            os.rmdir(path)
        os.close(fd)


def keep_what_is_new(directory: str) -> None:
    """Mount an empty tmpfs over a directory, with every directory in it bound in again."""
    inside = []
    for entry in os.scandir(directory) if os.path.isdir(directory) else ():
        if entry.is_dir(follow_symlinks=False):
            inside.append(os.path.realpath(entry.path))
    make_private(directory, inside)


def set_up_loopback() -> None:
    """Set lo up, as on any host."""
    sock = libc.socket(AF_INET, SOCK_DGRAM, 0)
    check(min(sock, 0), "socket")
    request = struct.pack("16sH14x", b"lo", 0)
    (flags,) = struct.unpack_from("H", fcntl.ioctl(sock, SIOCGIFFLAGS, request), 16)
    fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
    os.close(sock)


def mount_namespace(pid: int | str) -> int:
    """Return the number of a process's mount namespace; 0 if it is gone, or of another user."""
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except OSError:
        return 0


def run_device(pid: int | str) -> int:
    """Return the device of what a process sees as /run; 0 if the process is gone, or of another user."""
    try:
        return os.stat(f"/proc/{pid}/root/run").st_dev
    except OSError:
        return 0


def kill_the_rest(run_outside: int) -> None:
    """Kill everything else in this sandbox, with what it starts meanwhile.

    That is what is in this mount namespace, and what sees the tmpfs that is /run here and nowhere else: `ip netns exec`
    gives what it starts a copy of this mount namespace.
    """
    own, killed, left = mount_namespace("self"), {os.getpid()}, {0}
    run = run_device("self")
    runs = {run} - {0, run_outside}
    while left:
        processes = {int(entry) for entry in os.listdir("/proc") if entry.isdigit()} - killed
        left = {pid for pid in processes if mount_namespace(pid) == own or run_device(pid) in runs}
        for pid in left:
            try:
                os.kill(pid, SIGKILL)
            except OSError:
                pass  # it ended by itself
        killed |= left


def main() -> None:
    """Make the sandbox that the arguments describe, and hold it.

    An argument is ``user``, for a user namespace of its own, or a directory: ``private=/run``, ``keep=/tmp`` or
    ``watched=/tmp``.
    """
    wanted: dict[str, list[str]] = {"user": [], "private": [], "keep": [], "watched": []}
    for argument in sys.argv[1:]:
        what, _, directory = argument.partition("=")
        wanted[what].append(directory)
    outside, run_outside = mount_namespace("self"), run_device("self")
    try:
        if wanted["user"]:
            become_root()
        check(libc.unshare(CLONE_NEWNS | CLONE_NEWNET), "unshare mount, network")
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        for directory in wanted["private"]:
            make_private(directory, wanted["keep"])
        for directory in wanted["watched"]:
            keep_what_is_new(directory)
        os.makedirs("/run/netns", exist_ok=True)
        set_up_loopback()
    except OSError as error:
        answer = f"{error.filename or 'setup'}: {error.strerror}"
    else:
        answer = "ready"
    sys.stdout.write(answer + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    if mount_namespace("self") != outside:
        kill_the_rest(run_outside)


if __name__ == "__main__":
    main()
