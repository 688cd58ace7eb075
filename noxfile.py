"""Every check of this project: `python3 -m nox -l` lists them, `python3 -m nox -s tests` runs one."""

import itertools
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.sessions = ["lint", "types", "tests", "docs"]
nox.options.reuse_venv = "yes"

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHON_CODE = ["cnisdk", "examples", "tests"]

# Many tests wait, for the kernel or for other processes: two workers for each processor.
WORKERS = str(len(os.sched_getaffinity(0)) * 2)

# Not part of `nox -s bench` alone: those that take long, and what draws the figures of another.
ON_DEMAND = {"cluster_scale", "pool", "runtimes", "soak", "plot"}


def files_with(session: nox.Session, marks: str, among: Sequence[str] = ()) -> list[str]:
    """The files that have tests with these marks, among some files or all.

    Every process of pytest would look for them in all files, and would hold all files' modules and tests in memory. A
    test that needs a host forks its process often, which then takes twice the time. And each would compile them, where
    the environment forbids to keep what was compiled. In a guest, that takes minutes.
    """
    argv = ["pytest", "-p", "no:cacheprovider", "--collect-only", "-q", "-m", marks, *among]
    listed = str(session.run(*argv, silent=True, env={"PYTHONDONTWRITEBYTECODE": ""})).splitlines()
    return sorted({line.partition("::")[0] for line in listed if "::" in line})


def build_shim() -> None:
    """Put the shims' program where `cnisdk install` looks for it in a checkout, as it is in the wheel.

    Without it, each of the hundred installations that tests make compiles it, in 0.2 s. `cnisdk install` takes none
    that was made from another source. Without a compiler, none is made.
    """
    build = runpy.run_path("cnisdk/_thick/shim_build.py")
    machine = os.uname().machine
    if machine not in build["MACHINES"]:
        return
    target = Path("cnisdk/_thick/prebuilt") / build["file_name"](machine)
    if target.exists() and build["source_digest"]().encode() in target.read_bytes():
        return
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        output = Path(work) / target.name
        for compiler in build["compilers_for"](machine):
            try:
                made = subprocess.run(build["compiler_command"](compiler, str(output)), check=False)
            except FileNotFoundError:
                continue
            if made.returncode == 0:
                output.replace(target)
                return


def group(name: str) -> list[str]:
    """The requirements of one dependency group of pyproject.toml."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format with ruff (`-- --fix` repairs what it can)."""
    session.install(*group("lint"))
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", *([] if "--fix" in session.posargs else ["--check"]), ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types strictly, over the package, the examples and the tests."""
    session.install(".[cli,testing]", *group("types"))
    session.run("mypy", "--strict", *(session.posargs or PYTHON_CODE))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests but the long ones, as root or as an ordinary user (`-- -k netns` and so on go to pytest)."""
    session.install(".[cli,testing]", "./examples", *group("test"))
    build_shim()
    args = ["-n", WORKERS, "--dist", "worksteal", "--timeout", "300", "-m", "not slow and not kinds and not runtimes"]
    session.run("pytest", *(session.posargs or args))


@nox.session
def long(session: nox.Session) -> None:
    """Run the tests that are long by nature: kills at every system call, whole tables of conformance and versions."""
    session.install(".[cli,testing]", "./examples", *group("test"))
    build_shim()
    marks = "slow and not kinds and not runtimes"
    args = ["-n", WORKERS, "--dist", "worksteal", "--timeout", "900", "-m", marks]
    session.run("pytest", *(session.posargs or [*args, *files_with(session, marks)]))


@nox.session
def runtimes(session: nox.Session) -> None:
    """Run Podman, buildah and containerd on our plugins alone; as root (`-- -m "runtimes and not slow"`: a part)."""
    session.install(".[cli,testing]", "./examples", *group("test"), *group("runtimes"))
    args = ["-n", "2", "--dist", "loadfile", "--timeout", "600", "tests/runtimes"]
    session.run("pytest", *args, *(session.posargs or ["-m", "runtimes"]))


@nox.session
def kernel(session: nox.Session) -> None:
    """Run the tests of link kinds that small kernels lack; in a guest, with Debian's kernel, if this one lacks them."""
    session.install(".[cli,testing]", "./examples", *group("test"))
    build_shim()  # before a guest reads this checkout
    pytest = ["pytest", "-p", "no:cacheprovider"]
    if session.posargs:
        commands = [*pytest, *session.posargs]
    else:
        # These tests have no use for Hypothesis, which an emulated processor imports in three seconds.
        pytest += ["--timeout", "600", "-p", "no:hypothesispytest"]
        files = files_with(session, "kinds")
        # A guest has one processor. What is long in both modes is one-shot there: a server knows no kinds of links.
        short, slow = (
            [*pytest, "-m", marks, *files_with(session, marks, files)]
            for marks in ("kinds and not slow", "kinds and slow and not resident")
        )
        commands = [*short, "--and", *slow]
    session.run("python", "tests/guest/guest.py", *commands)


@nox.session
def systemd(session: nox.Session) -> None:
    """Run the resident server under a real systemd, which is the first process of a guest."""
    session.install(".[cli,testing]", "./examples", *group("test"))
    session.run("python", "tests/guest/guest.py", "--systemd", "python", "-m", "tests.guest.systemd_units")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    session.install(".[docs,cli,testing]", "./examples")
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")


@nox.session
def conformance(session: nox.Session) -> None:
    """Judge the reference plugins (in /usr/lib/cni) and ours, and write docs/conformance.md."""
    session.install(".[cli,testing]", "./examples")
    session.run("python", "docs/publish_conformance.py", *session.posargs)


@nox.session
def man(session: nox.Session) -> None:
    """Write the manual pages in docs/man, made from the parsers."""
    session.install(".[cli]", *group("test"))
    session.run("python", "docs/publish_man.py", env={"COLUMNS": "80"})


@nox.session
def demo(session: nox.Session) -> None:
    """Attach three namespaces to a bridge network inside a private sandbox and show each step."""
    session.install(".[cli]", "./examples")
    session.run("python", "examples/demo.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks (`-- ipam` runs only benchmarks/ipam.py; options after the names are for the scripts)."""
    scripts = sorted(path.stem for path in Path("benchmarks").glob("[!_]*.py"))
    options = list(itertools.dropwhile(lambda word: not word.startswith("-"), session.posargs))
    wanted = session.posargs[: len(session.posargs) - len(options)]
    if unknown := sorted(set(wanted) - set(scripts)):
        session.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(scripts)}")
    session.install(".", "./examples", *group("bench"))
    if "runtimes" in wanted:  # it runs on the nodes of the tests
        session.install(".[testing]", *group("test"), *group("runtimes"))
    for script in wanted or [name for name in scripts if name not in ON_DEMAND]:
        session.run("python", f"benchmarks/{script}.py", *options)


if __name__ == "__main__":
    sys.exit("run it through nox: python3 -m nox -l")
