import pytest
from cable import Cable

from cnisdk import CNIError, PluginNotAvailableError, TryAgainLaterError
from cnisdk.testing import Host, PluginUnderTest, kill


@pytest.fixture
def cable(host: Host) -> PluginUnderTest:
    host.shell("ip link add cni0 address 02:00:00:00:00:01 type bridge; ip link set cni0 up")
    return host.plugin(Cable, {"ipam": host.stub(size=2).conf})


def test_two_containers_talk(host: Host, cable: PluginUnderTest) -> None:
    web, client = host.container("web"), host.container("client")
    before = host.state()
    cable.add(web)
    cable.add(client)
    assert client.reaches(web)
    cable.delete(web)
    cable.delete(client)
    assert host.state() == before


def test_a_failed_add_leaves_nothing(host: Host, cable: PluginUnderTest) -> None:
    one, two, three = (host.container(name) for name in ("one", "two", "three"))
    cable.add(one)
    cable.add(two)
    before = host.state()
    with pytest.raises(TryAgainLaterError, match="no address is left"):
        cable.add(three)
    assert host.state() == before


def test_a_killed_add_leaves_nothing_after_del(host: Host, cable: PluginUnderTest) -> None:
    container = host.container()
    before = host.state()
    for answer in cable.at_each_step(kill, "ADD", container):
        cable.delete(container)
        assert host.state() == before, answer


@pytest.mark.parametrize("damage", ["ip addr flush dev eth0", "ip link set eth0 down", "ip link del eth0"])
def test_check_notices(host: Host, cable: PluginUnderTest, damage: str) -> None:
    container = host.container()
    cable.add(container)
    cable.check(container)
    container.shell(damage)
    with pytest.raises(CNIError):
        cable.check(container)


def test_del_needs_nothing(host: Host, cable: PluginUnderTest) -> None:
    container = host.container()
    cable.delete(container)
    cable.add(container)
    container.destroy()
    cable.delete(container)
    cable.delete(container)


def test_gc_keeps_what_is_valid(host: Host, cable: PluginUnderTest) -> None:
    kept, lost = host.container("kept"), host.container("lost")
    cable.add(kept)
    before = host.state()
    cable.add(lost)
    lost.destroy()
    cable.gc(kept)
    cable.check(kept)
    assert host.state().of("") == before.of("")


def test_status(host: Host, cable: PluginUnderTest) -> None:
    cable.status()
    host.shell("ip link del cni0")
    with pytest.raises(PluginNotAvailableError, match="no bridge cni0"):
        cable.status()
