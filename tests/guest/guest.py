"""Run a command under a kernel that has every link kind: Debian's, in a virtual machine without hardware support.

The guest sees this machine's files, read-only, below a layer in memory: same paths, same virtual environment, and
nothing that the guest does lasts. The command's output and exit status are this program's::

    python tests/guest/guest.py pytest -q -m kinds

Several commands, with the word ``--and`` between them, run at the same time, each in a guest of its own: a guest has
one processor. On a machine whose own kernel has all the kinds, they run there, one after the other, without a guest.
After the option ``--systemd``, the command runs in a guest anyway, as a service of this machine's systemd.

The theory: qemu emulates a machine (``-accel tcg``) and starts the kernel of Debian's linux-image-amd64 with a small
initial file system. Its init loads the modules for virtio and 9p, mounts the host's root over 9p, puts an overlay in
memory on it, moves there, and runs the second stage: the command. What the command prints goes out through one
serial port of virtio, its exit status through another. Everything ends with the guest; a guest that hangs is killed
when its time is over.

Needs Debian's packages qemu-system-x86, busybox-static, kmod and, for the kernel's package, apt-get and dpkg;
systemd too for ``--systemd``.
"""

from __future__ import annotations

import itertools
import lzma
import os
import platform
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO

PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "/sbin/modprobe": "kmod",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
}
MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
AND, SYSTEMD_OPTION = "--and", "--systemd"
MEMORY = "3072"
# norandmaps: what was translated for one process serves the next, since code has the same addresses. Each of the others
# leaves out work that no test is about: mitigations, security modules, zeroing each page twice.
FASTER = (
    *("no_timer_check", "mitigations=off", "nowatchdog", "random.trust_cpu=on", "norandmaps", "init_on_alloc=0"),
    *("lsm=none", "audit=0", "transparent_hugepage=always", "rcupdate.rcu_expedited=1"),
)
SPARE_CARD = "02:00:00:00:0e:01"
LIMIT = float(os.environ.get("CNISDK_GUEST_SECONDS", "2400"))

FIRST_STAGE = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /modules); do /bin/busybox insmod /lib/$module; done
mount() { /bin/busybox mount "$@"; }
mkdir() { /bin/busybox mkdir "$@"; }
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro hostroot /lower
mount -t tmpfs -o size=90% tmpfs /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/lower,upperdir=/memory/upper,workdir=/memory/work overlay /new
mkdir -p /new/lib/modules
/bin/busybox ln -sfn @MODULES@ /new/lib/modules/@RELEASE@
/bin/busybox cp /second /new/.guest
/bin/busybox cp /command /new/.command
exec /bin/busybox switch_root /new /.guest
"""

SECOND_STAGE = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts devpts /dev/pts
for each in /dev/shm /run; do mount -t tmpfs tmpfs $each; done
ln -sf /proc/self/fd /dev/fd
echo /sbin/modprobe >/proc/sys/kernel/modprobe
/sbin/modprobe tun
ip link set lo up
@INIT@
"""

# systemd as PID 1, which runs the command as a service; those that this machine enables for itself do not start.
SYSTEMD = """
units=/run/systemd/system
mkdir -p $units
[ -s /etc/machine-id ] || tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
for each in @MASKED@; do ln -s /dev/null $units/$each; done
cat >$units/guest.service <<END
[Service]
Type=oneshot
ExecStart=/.command
TimeoutStartSec=infinity
END
exec /lib/systemd/systemd --unit=guest.service --show-status=no
"""
# Left out: the first would empty /tmp, and for what the others do has no test a use.
MASKED = (
    *("systemd-tmpfiles-setup.service", "systemd-tmpfiles-setup-dev.service", "kmod-static-nodes.service"),
    *(
        "systemd-binfmt.service",
        "proc-sys-fs-binfmt_misc.automount",
        "systemd-sysctl.service",
        "systemd-sysusers.service",
    ),
    *("systemd-journal-flush.service", "systemd-random-seed.service", "systemd-remount-fs.service"),
    *("systemd-modules-load.service", "systemd-update-utmp.service", "dev-hugepages.mount", "dev-mqueue.mount"),
    *("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount", "sys-fs-fuse-connections.mount"),
)

COMMAND = """#!/bin/sh
cd @DIRECTORY@ || exit
@ENVIRONMENT@
setsid --wait sh -c @COMMAND@ </dev/null >/dev/hvc0 2>&1
status=$?
for port in /dev/vport*p2; do echo $status >$port; done
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


# One link of each kind that small kernels lack, and a bridge that filters VLANs.
KINDS = """
ip link add d0 type dummy &&
ip link add v0 link d0 type vlan id 5 &&
ip link add i0 link d0 type ipvlan mode l2 &&
ip link add r0 type vrf table 10 &&
ip link add b0 type bridge vlan_filtering 1
"""


def has_every_kind() -> bool:
    """Does the kernel of this machine have every link kind that the tests want, and SCTP?"""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        return False
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    return subprocess.run([*unshare, "sh", "-c", KINDS], capture_output=True, check=False).returncode == 0


def missing_packages(*, systemd: bool) -> list[str]:
    """The Debian packages this needs and this machine lacks."""
    needed = PROGRAMS | ({"/lib/systemd/systemd": "systemd"} if systemd else {})
    return sorted({package for program, package in needed.items() if shutil.which(program) is None})


def cache() -> Path:
    """Where the kernel is kept between runs."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "cnisdk" / "guest"


def fetch_kernel() -> Path:
    """Fetch and unpack Debian's kernel package; return the folder it is unpacked in."""
    depends = subprocess.run(
        ["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True, check=True
    ).stdout
    package = next(line.split()[-1] for line in depends.splitlines() if "Depends: linux-image" in line)
    target = cache() / package
    if not (target / "ready").exists():
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target) as scratch:
            subprocess.run(["apt-get", "download", "-qq", package], cwd=scratch, check=True)
            (archive,) = Path(scratch).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, target], check=True)
        (release,) = (each.name for each in (target / "lib" / "modules").iterdir())
        subprocess.run(["/sbin/depmod", "-b", target, release], check=True)
        # Unpacked, the kernel starts without an emulated machine having to do it: 40 s less.
        packed = (target / "boot" / f"vmlinuz-{release}").read_bytes()
        start = packed.index(b"\xfd7zXZ\x00")
        (target / "vmlinux").write_bytes(lzma.LZMADecompressor().decompress(packed[start:]))
        (target / "ready").touch()
    return target


def release_of(kernel: Path) -> str:
    """The kernel's release, such as 6.1.0-40-amd64."""
    return next((kernel / "lib" / "modules").iterdir()).name


def module_files(kernel: Path) -> list[Path]:
    """The modules that the first stage loads, in order."""
    found: dict[Path, None] = {}
    for module in MODULES:
        command = ["/sbin/modprobe", "-d", str(kernel), "-S", release_of(kernel), "--show-depends", module]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        found |= {Path(line.split()[1]): None for line in lines if line.startswith("insmod")}
    return list(found)


def archive(files: dict[str, tuple[int, bytes]]) -> bytes:
    """Write an initial file system (cpio, "newc"): mode and content by name."""
    parts = []
    for number, (name, (mode, content)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]
    return b"".join(parts)


def initial_files(kernel: Path, command: list[str], directory: str, environ: dict[str, str], *, systemd: bool) -> bytes:
    """The initial file system for a command, which a service of systemd may run."""
    release = release_of(kernel)
    modules = module_files(kernel)
    first = FIRST_STAGE.replace("@MODULES@", str(kernel / "lib" / "modules" / release)).replace("@RELEASE@", release)
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in environ.items())
    init = SYSTEMD.replace("@MASKED@", " ".join(MASKED)) if systemd else "exec /.command"
    script = (
        COMMAND.replace("@DIRECTORY@", shlex.quote(directory))
        .replace("@ENVIRONMENT@", exports)
        .replace("@COMMAND@", shlex.quote(shlex.join(command)))
    )
    busybox = shutil.which("busybox") or ""
    folders = ("bin", "dev", "lib", "lower", "memory", "new", "proc")
    files: dict[str, tuple[int, bytes]] = dict.fromkeys(folders, (0o40755, b""))
    files |= {
        "bin/busybox": (0o100755, Path(busybox).read_bytes()),
        "init": (0o100755, first.encode()),
        "second": (0o100755, SECOND_STAGE.replace("@INIT@", init).encode()),
        "command": (0o100755, script.encode()),
        "modules": (0o100644, "\n".join(each.name for each in modules).encode()),
    }
    files |= {f"lib/{each.name}": (0o100644, each.read_bytes()) for each in modules}
    return archive(files)


class Guest:
    """A guest that runs a command.

    Args:
        command: The command.
        systemd: It runs as a service of systemd.
        directory: Where to run it.
        environ: Its environment.
        scratch: A folder for files of the guest.
        output: Where the guest's output goes; None means this program's standard output.
    """

    def __init__(
        self,
        command: list[str],
        directory: str,
        environ: dict[str, str],
        scratch: Path,
        output: IO[bytes] | None,
        *,
        systemd: bool,
    ) -> None:
        kernel = fetch_kernel()
        initrd, self._status, self._log = (scratch / name for name in ("initrd", "status", "log"))
        initrd.write_bytes(initial_files(kernel, command, directory, environ, systemd=systemd))
        qemu = [
            *("qemu-system-x86_64", "-accel", "tcg", "-machine", "pc", "-cpu", "Nehalem,+rdrand", "-smp", "1"),
            *("-m", MEMORY, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-kernel", str(kernel / "vmlinux"), "-initrd", str(initrd)),
            "-append",
            f"console=ttyS0 quiet panic=-1 {' '.join(FASTER)}",
            *("-serial", f"file:{self._log}"),
            *("-virtfs", "local,path=/,mount_tag=hostroot,security_model=none,readonly=on,multidevs=remap"),
            # A network card that the tests may move about: its address is how they find it.
            *("-device", f"e1000,mac={SPARE_CARD}"),
            *("-device", "virtio-serial"),
            *("-chardev", "stdio,id=out,signal=off", "-device", "virtconsole,chardev=out,nr=1"),
            *("-chardev", f"file,id=status,path={self._status}", "-device", "virtserialport,chardev=status,nr=2"),
        ]
        # The guest ends with this process, however that ends (setpriv sets what the kernel calls PDEATHSIG).
        argv = ["setpriv", "--pdeathsig", "KILL", *qemu]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output)

    def wait(self, deadline: float) -> int:
        """Wait for its end; return the command's exit status, or 125 if the guest did not get that far."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            print(f"the guest was stopped after {LIMIT:g} s", file=sys.stderr)
        finally:
            self._process.kill()
            self._process.wait()
        answer = self._status.read_text().strip() if self._status.exists() else ""
        if answer:
            return int(answer)
        sys.stderr.write(self._log.read_text(errors="replace")[-4000:] if self._log.exists() else "")
        print("the guest did not run the command to its end", file=sys.stderr)
        return 125


def run(commands: list[list[str]], directory: str, environ: dict[str, str], *, systemd: bool) -> int:
    """Run each command in a guest of its own, all at the same time; return the highest exit status.

    The first prints as it goes, the others when they are through.
    """
    deadline = time.monotonic() + LIMIT
    with ExitStack() as stack:
        outputs = [None, *(stack.enter_context(tempfile.TemporaryFile()) for _ in commands[1:])]
        guests, statuses = [], []
        for command, output in zip(commands, outputs, strict=True):
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            guests.append(Guest(command, directory, environ, scratch, output, systemd=systemd))
        for guest, output in zip(guests, outputs, strict=True):
            statuses.append(guest.wait(deadline))
            if output is not None:
                output.seek(0)
                sys.stdout.flush()
                sys.stdout.buffer.write(output.read())
                sys.stdout.flush()
        return max(statuses)


def main() -> int:
    """Run the commands of the arguments."""
    systemd = sys.argv[1:2] == [SYSTEMD_OPTION]
    words = sys.argv[2:] if systemd else sys.argv[1:]
    commands = [list(each) for is_and, each in itertools.groupby(words, AND.__eq__) if not is_and]
    if not systemd and has_every_kind():
        return max(subprocess.run(command, check=False).returncode for command in commands)
    if platform.machine() != "x86_64":
        print("the guest's kernel is for x86_64", file=sys.stderr)
        return 125
    if missing := missing_packages(systemd=systemd):
        print(f"missing: apt-get install --no-install-recommends {' '.join(missing)}", file=sys.stderr)
        return 125
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    kept = (
        "CI",
        "CNISDK_TEST_KILLS",
        "CNISDK_TEST_WHOLE",
        "HOME",
        "LANG",
        "NO_COLOR",
        "PATH",
        "PYTEST_ADDOPTS",
        "VIRTUAL_ENV",
    )
    environ = {name: os.environ[name] for name in kept if name in os.environ}
    environ["CNISDK_SPARE_CARD"] = SPARE_CARD
    return run(commands, os.getcwd(), environ, systemd=systemd)


if __name__ == "__main__":
    sys.exit(main())
