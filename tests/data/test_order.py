"""Which samples make up batches: epochs, shares, groups."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.data.order import BatchOrder, interleave


def members(order, numbers):
    return [order(number).tolist() for number in numbers]


@given(shares=st.lists(st.integers(0, 2**20), min_size=1, max_size=6).filter(any), first=st.integers(0, 10**8))
def test_sources_are_interleaved_by_their_shares(shares, first):
    """For any number of elements, and each source's elements in order, without gaps."""
    length = 200
    source, place = interleave(np.arange(first, first + length), shares)
    for number, share in enumerate(shares):
        places = place[source == number]
        assert (np.diff(places) == 1).all()
        if len(places):
            assert abs(places[-1] + 1 - (first + length) * share / sum(shares)) <= length * share / sum(shares) + 6
    start, _ = interleave(np.arange(length), shares)
    for n in (1, 7, length):
        counts = np.bincount(start[:n], minlength=len(shares))
        assert (np.abs(counts - n * np.array(shares) / sum(shares)) < len(shares)).all()


@settings(max_examples=40)
@given(
    count=st.integers(1, 40),
    size=st.integers(1, 7),
    kinds=st.integers(0, 4),
    alternate=st.booleans(),
    shares=st.none() | st.just((3, 1)),
    seed=st.integers(0, 2**31 - 1),
)
def test_batches_hold_each_sample_of_a_source_equally_often(count, size, kinds, alternate, shares, seed):
    """Whatever the shares, the groups, and the number from which a run goes on."""
    sources = np.arange(2 * count) // count
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, kinds, 2 * count) if kinds else None

    def order():
        return BatchOrder(sources, size, seed, shares=shares, alternate=alternate, groups=groups)

    windows = -(-2 * count // size)  # an epoch of all; each source's own epoch is shorter
    numbers = range(4 * windows)
    found = members(order(), numbers)
    assert members(order(), numbers[5:]) == found[5:]
    times = collections.Counter(np.concatenate(found).tolist())
    drawn = np.bincount(sources[np.concatenate(found)], minlength=2)
    # A source's samples are drawn equally often, but for those of batches not made yet: of a batch, or of a window.
    ahead = 0 if groups is None and not alternate else size * (1 if groups is None else windows)
    if shares is None and not alternate:  # samples are drawn equally often, whatever their source
        ahead = max(ahead, size)
    for source in range(2):
        seen = [times[int(i)] for i in np.flatnonzero(sources == source)]
        assert max(seen) - min(seen) <= 1 + -(-ahead // count)
        share = (shares or (1, 1))[source] / sum(shares or (1, 1))
        assert abs(drawn[source] - share * len(numbers) * size) <= 2 * max(ahead, size)
    if alternate:
        assert all(len(set(sources[batch])) == 1 for batch in found)


def test_groups_share_batches_but_for_their_remainders():
    groups = np.array([0] * 21 + [1] * 9 + [2] * 6)
    found = members(BatchOrder(np.zeros(36, int), 4, 0, groups=groups), range(9))
    assert sorted(np.concatenate(found)) == [*range(36)]
    assert sum(len(set(groups[batch])) > 1 for batch in found) == 2
    assert [groups[batch[0]] for batch in found] != sorted(groups[batch[0]] for batch in found)  # shuffled


def test_every_epoch_has_another_order():
    order = BatchOrder(np.zeros(50, int), 50, 0)
    first, second = order(0), order(1)
    assert sorted(first) == sorted(second) == [*range(50)] and not np.array_equal(first, second)
    assert not np.array_equal(first, BatchOrder(np.zeros(50, int), 50, 1)(0))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_draw_the_same_examples_together(processes):
    """The multiset of an epoch is exact after a run that went on with another number of processes."""
    order, size = BatchOrder(np.zeros(24, int), 8, 3), 8
    seen = []
    for number, parts in ((0, 2), (1, processes), (2, processes)):
        for part in range(parts):
            seen += order(number)[part * size // parts : (part + 1) * size // parts].tolist()
    assert sorted(seen) == [*range(24)]
