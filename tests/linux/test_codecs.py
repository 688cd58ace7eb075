"""pyroute2's codec of routes loads alone, and a program that uses pyroute2 does not notice.

These fail loudly when a release of pyroute2 moves what is relied on.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def python(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_rest_of_pyroute2_stays_out() -> None:
    loaded = python(
        """
import sys
from cnisdk.linux import codecs, veth, bridge, layer3
assert not any(name.split(".")[0] == "pyroute2" for name in sys.modules), "loaded before the first message"
before = list(sys.meta_path), list(sys.path)
codecs.load()
assert (sys.meta_path, sys.path) == before
print(*sys.modules)
"""
    ).split()
    assert not [name for name in loaded if name.split(".")[0] == "pyroute2"]
    assert not {"asyncio", "multiprocessing", "ssl", "subprocess", "pyroute2.iproute"} & set(loaded)


USE = """
def use():
    from ipaddress import ip_network
    from cnisdk.linux import route, rtnetlink
    request = route.add_request(1, "lo", dst=ip_network("2001:db8::/64"), mtu=1300)
    (parsed,) = route.parse(rtnetlink._encode(request, 7))
    assert (str(parsed.dst), parsed.mtu) == ("2001:db8::/64", 1300)
    return parsed
"""


def test_pyroute2_imported_later_is_the_real_one() -> None:
    python(
        USE
        + """
before = use()
import pyroute2, pyroute2.netlink.rtnl.rtmsg, pyroute2.netlink.rtnl.ifinfmsg
from cnisdk.linux import codecs
assert pyroute2.IPRoute and pyroute2.__file__
assert codecs.load() is not pyroute2.netlink.rtnl.rtmsg.rtmsg
with pyroute2.IPRoute() as ipr:
    assert ipr.link("get", ifname="lo")[0].get_attr("IFLA_IFNAME") == "lo"
assert use() == before
"""
    )


def test_pyroute2_imported_before_is_used() -> None:
    python(
        USE
        + """
import sys, pyroute2
modules = {name for name in sys.modules if name.startswith("pyroute2")}
from cnisdk.linux import codecs
assert codecs.load() is pyroute2.netlink.rtnl.rtmsg.rtmsg
assert use()
assert modules <= set(sys.modules)
"""
    )


@pytest.mark.parametrize("first", ["codecs", "pyroute2"])
def test_pyroute2_imported_at_the_same_moment(first: str) -> None:
    python(
        USE
        + f"""
import sys, threading
sys.setswitchinterval(1e-6)
failed = []
start = threading.Barrier(2)
def load_codecs():
    from cnisdk.linux import codecs
    start.wait()
    codecs.load()
def import_pyroute2():
    start.wait()
    import pyroute2
    assert pyroute2.IPRoute
def guarded(function):
    try:
        function()
    except BaseException as error:
        failed.append(repr(error))
functions = [load_codecs, import_pyroute2]
if {first!r} == "pyroute2":
    functions.reverse()
threads = [threading.Thread(target=guarded, args=[each]) for each in functions]
for each in threads: each.start()
for each in threads: each.join()
assert not failed, failed
import pyroute2
assert sys.modules["pyroute2"] is pyroute2 and pyroute2.IPRoute
assert use()
"""
    )


def test_threads_load_once() -> None:
    python(
        """
import threading
from cnisdk.linux import codecs
seen = []
threads = [threading.Thread(target=lambda: seen.append(codecs.load())) for _ in range(8)]
for each in threads: each.start()
for each in threads: each.join()
assert len(seen) == 8 and len({id(each) for each in seen}) == 1
"""
    )


def test_without_pyroute2_the_error_says_so() -> None:
    python(
        """
import sys
sys.path[:] = [each for each in sys.path if "packages" not in each]
import cnisdk.linux.codecs as codecs
try:
    codecs.load()
except ImportError as error:
    assert "pyroute2" in str(error)
else:
    raise AssertionError
"""
    )
