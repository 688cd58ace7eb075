from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cnisdk.ipam._bitmap import NODE_BITS, NODE_SIZE, Bitmap, MemoryBitmap

# Around the edges of nodes, of their parents, and far away.
EDGES = [0, 1, NODE_SIZE - 1, NODE_SIZE, NODE_SIZE + 1, NODE_SIZE**2 - 1, NODE_SIZE**2, 2**64 - 1, 2**127]
numbers = st.one_of(st.sampled_from(EDGES), st.integers(0, 300), st.integers(0, 2**128 - 1))


class Against(RuleBasedStateMachine):
    """A bitmap and a set must agree."""

    def __init__(self) -> None:
        super().__init__()
        self.bitmap = MemoryBitmap()
        self.model: set[int] = set()

    @rule(number=numbers)
    def add(self, number: int) -> None:
        self.bitmap.add(number)
        self.model.add(number)

    @rule(number=numbers)
    def discard(self, number: int) -> None:
        self.bitmap.discard(number)
        self.model.discard(number)

    @rule(node=st.integers(0, 2), level=st.integers(0, 1))
    def fill_a_node(self, node: int, level: int) -> None:
        if level == 0:
            fill = range(node * NODE_SIZE, (node + 1) * NODE_SIZE)
            self.bitmap = MemoryBitmap({*self.model, *fill})
            self.model.update(fill)

    @rule(first=numbers, length=st.integers(0, NODE_SIZE + 9))
    def find(self, first: int, length: int) -> None:
        last = first + length
        expected = next((each for each in range(first, last + 1) if each not in self.model), None)
        assert self.bitmap.find_unused(first, last) == expected

    @invariant()
    def holds_the_same(self) -> None:
        if len(self.model) < 100:  # the searches tell enough of the others
            assert set(self.bitmap) == self.model


TestAgainst = Against.TestCase
TestAgainst.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)


def test_adding_one_by_one_and_at_once_is_the_same() -> None:
    at_once = MemoryBitmap(range(2 * NODE_SIZE))
    one_by_one = MemoryBitmap()
    for number in range(2 * NODE_SIZE):
        one_by_one.add(number)
    assert at_once.nodes == one_by_one.nodes
    one_by_one.discard(NODE_SIZE + 7)
    assert one_by_one.find_unused(0, 2 * NODE_SIZE) == NODE_SIZE + 7


class Counting(Bitmap):
    """Everything below a number is used; counts how often it is asked."""

    def __init__(self, used: int) -> None:
        self.used = used
        self.loads = 0

    def load(self, level: int, node: int) -> bytes:
        self.loads += 1
        first = node * NODE_SIZE
        used = self.used >> NODE_BITS * level  # whole children only
        bits = min(max(0, used - first), NODE_SIZE)
        return ((1 << bits) - 1).to_bytes(NODE_SIZE // 8, "little")

    def store(self, level: int, node: int, offset: int, value: int) -> None:
        raise AssertionError("a search writes nothing")


@given(st.integers(0, 2**64 - 1))
def test_a_search_reads_a_handful_of_nodes_however_full(used: int) -> None:
    bitmap = Counting(used)
    assert bitmap.find_unused(0, 2**64 - 1) == used
    assert bitmap.loads <= 9  # up to the root of a /64 and down again


def test_half_full_slash_8() -> None:
    bitmap = MemoryBitmap()
    full = bytearray(b"\xff" * (NODE_SIZE // 8))
    bitmap.nodes = {(0, node): full for node in range(256)}
    bitmap.nodes[1, 0] = bytearray(b"\xff" * 32).ljust(NODE_SIZE // 8, b"\0")
    assert bitmap.find_unused(1, 2**24) == 2**23
    assert bitmap.find_unused(1, 2**23 - 1) is None
