"""Survey a host: its network namespaces, the links and addresses in them, and the plugins at work at this moment.

Theory of operation. The survey reads ``/proc`` to find network namespaces in three ways: by the threads that are in
them, by the descriptors that processes have of them, and by the places where they are mounted, in each mount namespace
of the host. A namespace that one process does not see at ``/run/netns``, another may see. The survey then opens each
namespace once. It compares the inode, since another namespace may have the path by now, and lists links and addresses
in a thread of its own. Nothing is changed.

A socket keeps its network namespace, too. It is not looked for: without a process, a descriptor or a mount, no program
can enter the namespace any more, so no container runs in it; a program that left a socket open keeps the links of
the dead ones.

Processes and namespaces come and go meanwhile. So ``/proc`` is read again until no new process appears, and a namespace
that has gone is no error. Anything that this process may not look at becomes a doubt, and with a doubt no attachment is
judged dead (:mod:`.liveness`).
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping

from .._light import NamedTuple
from ..errors import CNIError, InvalidNetNSError
from ..linux import netns, rtnetlink
from ..linux.ip import address
from ..linux.links import link, messages
from ..linux.netns import NetNS, NetNSNotFoundError
from ..spec.addresses import IPAddress
from .hostview import Contents, HostLink, Look, Survey

_PROC = "/proc"
# include/linux/proc_ns.h: PROC_PID_INIT_INO, the same on every Linux since 3.8.
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
# include/uapi/linux/nsfs.h: the namespaces in which the kernel starts process 1, since Linux 6.18 with fixed numbers.
_FIRST_NAMESPACES = {"mnt": 0xEFFFFFF8, "net": 0xEFFFFFF9}
# include/linux/proc_ns.h: PROC_USER_INIT_INO, the same on every Linux since 3.8.
_FIRST_USER_NAMESPACE = 0xEFFFFFFD
# include/uapi/linux/nsfs.h
_NS_GET_USERNS = 0xB701
_VARIABLE = b"CNI_CONTAINERID="
_NAMESPACE = re.compile(r"net:\[(\d+)\]")
# Looking up a path on these may hang, or a container may answer.
_SLOW_FILE_SYSTEMS = ("fuse", "nfs", "autofs", "9p", "cifs", "smb", "ceph", "afs", "virtiofs")
_ROUNDS = 5


class _Mount(NamedTuple):
    """A network namespace that is mounted somewhere.

    Attributes:
        inode: The namespace's.
        pid: A process that sees the mount.
        path: The place, as that process sees it.
        safe: If true, to look up the path asks no other program or machine.
        view: The mount namespace and the root of that process; others that have both see the mount, too.
    """

    inode: int
    pid: str
    path: str
    safe: bool
    view: tuple[str, str] = ("", "")

    @property
    def ways(self) -> list[tuple[str, str]]:
        """The path by which this process reaches it, and the place in words; empty if that might take for ever."""
        if self.pid == "self":
            return [(self.path, self.path)]
        return [(f"{_PROC}/{self.pid}/root{self.path}", f"{self.path} of process {self.pid}")] if self.safe else []


class _Processes:
    """Namespaces, mounts and plugins at work, from all processes of the host."""

    def __init__(self) -> None:
        self.spaces: dict[int, list[str]] = {}
        self.mounts: list[_Mount] = []
        self.working: dict[str, str] = {}
        self.names: list[str] = []
        self.refused: list[str] = []
        self.views: dict[tuple[str, str], list[str]] = {}
        self._device = os.stat(f"{_PROC}/self/ns/net").st_dev  # the one of all namespaces

    def read(self) -> None:
        """Read all processes. A daemon starts as the child of a process that ends: so read again until none is new."""
        seen: set[str] = set()
        for _ in range(_ROUNDS):
            new = {name for name in os.listdir(_PROC) if name.isdigit()} - seen
            if not new:
                return
            for pid in new:
                try:
                    self._read_one(pid)
                except (FileNotFoundError, ProcessLookupError):
                    continue  # it has ended
                except OSError as exc:
                    if pid == "1" and in_first_namespaces():
                        continue  # the namespaces it was started in are looked at anyway
                    self.refused.append(f"process {pid} cannot be looked at: {exc.strerror}")
            seen |= new

    def _read_one(self, pid: str) -> None:
        directory = f"{_PROC}/{pid}"
        for thread in os.listdir(f"{directory}/task"):
            path = f"{directory}/task/{thread}/ns/net"
            try:
                match = _NAMESPACE.fullmatch(os.readlink(path))
            except (FileNotFoundError, ProcessLookupError):
                continue  # the thread has ended
            if match is not None:
                self.spaces.setdefault(int(match[1]), []).append(path)
        if int(pid) == os.getpid():
            self._read_mounts("self")
            return
        self._read_descriptors(f"{directory}/fd")
        for part in _read(f"{directory}/environ").split(b"\0"):
            if part.startswith(_VARIABLE) and len(part) > len(_VARIABLE):
                program = _read(f"{directory}/comm").decode(errors="replace").strip()
                self.working[os.fsdecode(part[len(_VARIABLE) :])] = f"process {pid} ({program})"
        self.names.append(os.fsdecode(_read(f"{directory}/cmdline") + b"\0" + _read(f"{directory}/cgroup")))
        self._read_mounts(pid)

    def _read_descriptors(self, directory: str) -> None:
        # One that was opened by a path leads to that path, and to "/" once it is unmounted. Only such files are looked
        # at: a host has very many descriptors, and a look at a file of a network file system may hang.
        for number in os.listdir(directory):
            path = f"{directory}/{number}"
            try:
                target = os.readlink(path)
                if not (target == "/" or "net:[" in target or "netns" in target):
                    continue
                if os.stat(path).st_dev == self._device:
                    with netns.open(path) as space:
                        self.spaces.setdefault(space.inode, []).append(path)
            except (FileNotFoundError, ProcessLookupError, InvalidNetNSError):
                continue  # it has been closed, or is a namespace of another kind
            except CNIError as exc:
                self.refused.append(exc.msg)

    def _read_mounts(self, pid: str) -> None:
        # The kernel leaves out what lies outside the root of a process: others in its mount namespace see more.
        view = os.readlink(f"{_PROC}/{pid}/ns/mnt"), os.readlink(f"{_PROC}/{pid}/root")
        if view not in self.views:
            self.mounts += [each._replace(view=view) for each in _mounts_of(pid)]
            self.views[view] = []
        self.views[view].append(pid)


def _mounts_of(pid: str) -> list[_Mount]:
    return [each._replace(pid=pid) for each in parse_mounts(os.fsdecode(_read(f"{_PROC}/{pid}/mountinfo")))]


def _search(mount: _Mount, pids: Iterable[str]) -> tuple[Contents | None, str]:
    """Look into a mounted namespace to which the first process that sees the mount does not lead.

    Returns:
        The contents, or None and the reason; the reason is empty if the namespace is not mounted there any more.
    """
    tries = 0
    for pid in pids:
        try:
            if not any((each.inode, each.path) == (mount.inode, mount.path) for each in _mounts_of(pid)):
                return None, ""
        except OSError:
            continue  # this process has ended, and another one may live
        here = mount._replace(pid=pid)
        contents, problem = _look_into(mount.inode, here.ways)
        if contents is not None or problem:
            return contents, problem
        tries += 1
        if tries == _ROUNDS:
            break
    buried = f"a network namespace is mounted at {mount.path}, where something else lies over it"
    return None, buried if tries else ""


def parse_mounts(text: str) -> Iterator[_Mount]:
    """Find the network namespaces in a ``/proc/<pid>/mountinfo`` (see proc(5))."""
    kinds: dict[str, str] = {}
    parents: dict[str, str] = {}
    found: list[tuple[str, int, str]] = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.partition(" ")[0]
        if len(fields) < 5:
            continue
        number, parents[fields[0]], root, path = fields[0], fields[1], fields[3], _unescape(fields[4])
        kinds[number] = kind
        match = _NAMESPACE.fullmatch(root)
        if kind == "nsfs" and match is not None:
            found.append((number, int(match[1]), path))
    for number, inode, path in found:
        safe, above, seen = True, parents.get(number, ""), {number}
        while above in kinds and above not in seen:
            safe = safe and not kinds[above].startswith(_SLOW_FILE_SYSTEMS)
            seen.add(above)
            above = parents[above]
        yield _Mount(inode, "", path, safe)


def survey_host(
    paths: Iterable[str] = (), *, places: Iterable[str] = (), hidden: Iterable[str] = (), inside: bool = False
) -> Survey:
    """Survey the host.

    Read leases and cached results before this call, not after it. The survey then also sees an attachment that was
    being made at that time.

    Args:
        paths: Paths of network namespaces to look at.
        places: Directories of cached results that were read.
        hidden: Directories of cached results that could not be read, each with the reason.
        inside: If true, the namespaces of this process count as the host's, and a process it may not look at belongs to
            another host, unless the pid namespace is that of this host alone.
    """
    doubts = list(hidden)
    obstacle = None if inside else find_obstacle()
    if obstacle:
        doubts.append(obstacle)
    processes, unreadable = _Processes(), list[str]()
    try:
        processes.read()
    except OSError as exc:
        unreadable = [f"{_PROC} cannot be read: {exc.strerror}"]
        doubts += unreadable
    looks = {path: look_at(path) for path in dict.fromkeys(paths)}
    own = os.stat(f"{_PROC}/thread-self/ns/net").st_ino
    namespaces, closed, buried = _visit(_list_ways(processes, looks), processes, own)
    closed += buried
    if inside and not owns_processes():
        doubts += buried
    with rtnetlink.connect() as sock:
        host = [link.parse(data) for data in sock.dump(messages.get_request(what="cannot list links"))]
        namespaces[own] = _contents(sock, "the host's network namespace")
    refused = [*processes.refused, *closed]
    if refused and not obstacle and (not inside or owns_processes()):
        doubts.append(refused[0] + (f" (nor can {len(refused) - 1} others)" if refused[1:] else ""))
    return Survey(
        own=own,
        links=[HostLink(each.name, each.kind, each.mac, each.alias) for each in host],
        namespaces=namespaces,
        mounted={mount.path: mount.inode for mount in processes.mounts},
        paths=looks,
        working=processes.working,
        names="\n".join(processes.names),
        doubts=doubts,
        unseen=[*unreadable, *([] if inside else _unseen(processes.refused, closed, obstacle))],
        places=places,
        booted=boot_time(),
    )


def _list_ways(processes: _Processes, looks: Mapping[str, Look]) -> dict[int, list[tuple[str, str]]]:
    """List the ways into each network namespace: paths, and the namespace in words, by its inode."""
    ways: dict[int, list[tuple[str, str]]] = {}
    for path, look in looks.items():
        if look.found == "there":
            ways.setdefault(look.inode, []).append((path, path))
    for mount in processes.mounts:
        ways.setdefault(mount.inode, []).extend(mount.ways)
    for inode, found in processes.spaces.items():
        # Some of the processes may end before their namespace is looked into.
        named = [(path, _describe(path)) for path in found]
        ways.setdefault(inode, []).extend(named)
    return ways


def _describe(path: str) -> str:
    """Say in words which namespace a file of a process in ``/proc`` is."""
    pid, kind = path.split("/")[2:4]
    return f"a namespace that process {pid} has open" if kind == "fd" else f"the namespace of process {pid}"


def _visit(
    ways: Mapping[int, list[tuple[str, str]]], processes: _Processes, own: int
) -> tuple[dict[int, Contents], list[str], list[str]]:
    """Look into all network namespaces but the host's own.

    Returns:
        The contents by inode; then in words those that cannot be looked into, and those that are mounted where no path
        leads.
    """
    namespaces: dict[int, Contents] = {}
    closed: list[str] = []
    lost: set[int] = set()
    for inode, each in ways.items():
        if inode == own:
            continue
        contents, problem = _look_into(inode, each)
        if contents is not None:
            namespaces[inode] = contents
        elif problem:
            closed.append(problem)
        else:
            lost.add(inode)
    buried: list[str] = []
    for mount in processes.mounts:
        if mount.inode in lost and mount.inode not in namespaces:
            contents, problem = _search(mount, processes.views[mount.view])
            if contents is not None:
                namespaces[mount.inode] = contents
            elif problem:
                buried.append(problem)
    return namespaces, closed, buried


def _unseen(refused: list[str], closed: list[str], obstacle: str | None) -> list[str]:
    """Return those processes and namespaces that could be a container's on this process's host.

    Args:
        refused: The processes that this one may not look at. With an obstacle, the system's are among them, too, and
            they tell nothing.
        closed: The namespaces that it cannot look into. In a user namespace of its own those are of the host above.
        obstacle: The obstacle.
    """
    owns_all = os.stat(f"{_PROC}/self/ns/user").st_ino == _FIRST_USER_NAMESPACE
    return [*([] if obstacle else refused), *(closed if owns_all or not obstacle else [])]


def owns_processes() -> bool:
    """Return True if the pid namespace belongs to this process's user namespace, so that all processes are this host's.

    False also means that it is not known. In a user namespace alone, processes of the host above are listed, too.
    """
    try:
        with open(f"{_PROC}/self/ns/pid", "rb") as file:
            owner = fcntl.ioctl(file, _NS_GET_USERNS)
    except OSError:  # it belongs to a user namespace that this process does not see
        return False
    try:
        return os.path.samestat(os.fstat(owner), os.stat(f"{_PROC}/self/ns/user"))
    finally:
        os.close(owner)


def boot_time(devices: str = "/dev") -> float:
    """Return the time at which this machine was started, in seconds since the epoch; or an earlier time.

    The clock may have been set forward since: where a machine has no clock of its own, until it asks the network; after
    a snapshot of a virtual machine is resumed. What was written before that looks as if it was of an earlier boot. But
    so do the files that the kernel made as it started. The oldest one is taken, if it is older than the boot seems.

    Args:
        devices: Directory of such files.
    """
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    try:
        with os.scandir(devices) as listing:
            return min([started, *(each.stat(follow_symlinks=False).st_mtime for each in listing)])
    except OSError:  # a device has just gone, or there is no such directory
        return started


def find_other_uses(identities: Mapping[IPAddress, str], *, inside: bool = False) -> dict[IPAddress, str]:
    """Survey the host for other containers that have the addresses of some.

    Args:
        identities: For each address the identifier of the container's own network namespace: see
            :meth:`.NetNS.identify`.
        inside: As of :func:`survey_host`.

    Returns:
        The addresses that are seen in another namespace, which is not the host's, and their places in words.
    """
    survey, found = survey_host(inside=inside), dict[IPAddress, str]()
    for inode, each in survey.namespaces.items():
        there = [address for address in identities if address in each.addresses]
        if inode == survey.own or not there:
            continue
        try:
            with netns.open(each.path) as space:
                identity = space.identify() if space.inode == inode else None
        except CNIError:
            continue  # it has gone meanwhile
        found |= {
            address: f"{each.addresses[address]} in {each.place}"
            for address in there
            if identity not in (None, identities[address])
        }
    return found


def find_working(container_id: str) -> str | None:
    """Return the process of a plugin that is at work for a container, in words; None when there is none.

    Processes that this one may not look at are passed over.
    """
    wanted = _VARIABLE + os.fsencode(container_id)
    for pid in os.listdir(_PROC):
        if not pid.isdigit() or int(pid) == os.getpid():
            continue
        try:
            if wanted in _read(f"{_PROC}/{pid}/environ").split(b"\0"):
                program = _read(f"{_PROC}/{pid}/comm").decode(errors="replace").strip()
                return f"process {pid} ({program})"
        except OSError:
            continue
    return None


def find_obstacle() -> str | None:
    """Find the reason why this process does not see all of the host; None when it does.

    The host's namespaces are those of process 1 of the first pid namespace, in which runtimes run.
    """
    try:
        if os.stat(f"{_PROC}/self/ns/pid").st_ino != _FIRST_PID_NAMESPACE:
            return "this command is in a pid namespace of its own, as in a container, and does not see all processes"
        for kind, what in (("mnt", "mount"), ("net", "network")):
            ours = os.stat(f"{_PROC}/self/ns/{kind}")
            try:
                host = os.stat(f"{_PROC}/1/ns/{kind}")
            except PermissionError:  # it has a capability that this process lacks
                if in_first_namespaces():
                    return None
                raise
            if not os.path.samestat(host, ours):
                return f"this command is in a {what} namespace of its own, and not in that of process 1, the host's"
        if not os.path.samestat(os.stat(f"{_PROC}/1/root"), os.stat("/")):
            return "this command has another root directory (chroot) than process 1, the host's"
    except OSError as exc:
        return f"this user cannot see what the host sees: {exc.filename}: {exc.strerror}"
    return None


def in_first_namespaces() -> bool:
    """Return True if this process is in the mount and network namespaces in which the kernel started process 1.

    False also means that it is not known: before Linux 6.18 they have no fixed numbers.
    """
    return all(os.stat(f"{_PROC}/self/ns/{kind}").st_ino == number for kind, number in _FIRST_NAMESPACES.items())


def look_at(path: str) -> Look:
    """Look at the path of a network namespace."""
    resolved = os.path.realpath(path)
    parent = os.path.dirname(resolved)
    try:
        with netns.open(path) as found:
            return Look("there", found.inode, resolved=resolved)
    except NetNSNotFoundError:
        pass
    except InvalidNetNSError:
        # Unmounting /run/netns/blue leaves an ordinary file. A mount in another mount namespace looks like one, too.
        return Look("absent", resolved=resolved)
    except CNIError as exc:
        return Look("hidden", why=exc.msg, resolved=resolved)
    if path.startswith(f"{_PROC}/") and os.path.exists(f"{_PROC}/self"):
        return Look("absent", resolved=resolved)
    if not os.path.isdir(parent):
        return Look("hidden", why=f"there is no directory {parent}", resolved=resolved, parent_missing=True)
    return Look("absent", resolved=resolved)


def _look_into(inode: int, ways: list[tuple[str, str]]) -> tuple[Contents | None, str]:
    """List a namespace by the first of the ways that leads there.

    Returns:
        The contents, or None and the reason; the reason is empty if the namespace is gone.
    """
    problem = "" if ways else "a network namespace is mounted where it cannot be looked at"
    for path, place in ways:
        try:
            with netns.open(path) as space:
                if space.inode == inode:
                    return _contents_of(space, place)._replace(path=path), ""
        except NetNSNotFoundError:
            continue
        except CNIError as exc:
            problem = f"{place} cannot be looked into: {exc.msg}"
    return None, problem


def _contents_of(space: NetNS, place: str) -> Contents:
    with rtnetlink.connect(space) as sock:
        return _contents(sock, place)


def _contents(sock: rtnetlink.Socket, place: str) -> Contents:
    links = [link.parse(data) for data in sock.dump(messages.get_request(what="cannot list links"))]
    names = {each.index: each.name for each in links}
    return Contents(
        place,
        {each.name: each.mac for each in links if each.name != "lo"},
        {
            each.interface.ip: names.get(each.index, "?")
            for each in address.list_all(sock)
            if not each.interface.ip.is_loopback
        },
    )


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
