"""The history of bursts."""

from cnisdk._thick.bursts import Burst, BurstHistory, peak_concurrency


def test_the_largest_burst_of_the_last_minute() -> None:
    bursts = BurstHistory(Burst(0, 5, frozenset()))
    seen = []
    for at, size in ((10, 50), (11, 1), (40, 20), (41, 1), (69, 2), (70, 1), (99, 0), (100, 0), (159, 0)):
        bursts.add(Burst(at, size, frozenset()))
        seen.append(bursts.largest.size)
    assert seen == [50, 50, 50, 50, 50, 20, 20, 2, 0]


def test_peak_concurrency() -> None:
    assert peak_concurrency([]) == 0
    assert peak_concurrency([(0, 1), (1, 2), (2, 3)]) == 1
    assert peak_concurrency([(0, 9), (1, 2), (3, 4), (3.5, 10)]) == 3
