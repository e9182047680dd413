"""Which samples make up each batch of a run: a function of the seed and of the batch's number.

So all processes of a job agree, and can go on at any batch, without state or communication. Grain's shuffle and mix
take 12 us an index, of which every process needs those of the whole global batch, and round weights to 1 %.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

_WINDOW = 2**16  # examples that are grouped at a time, at most


class Stream:
    """Samples without end: each once an epoch, and every epoch in another order."""

    def __init__(self, members: np.ndarray, seed: tuple[int, ...]):
        """
        Args:
          members: the numbers of the samples.
          seed: of the orders, not negative.
        """
        self._members, self._seed = members, seed
        self._epoch = functools.lru_cache(2)(self._epoch)

    def __len__(self) -> int:
        return len(self._members)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The samples at positions."""
        epochs, places = np.divmod(positions, len(self._members))
        found = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = self._epoch(int(epoch))[places[here]]
        return found

    def _epoch(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((*self._seed, epoch)).permutation(self._members)


def interleave(positions: np.ndarray, shares: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Mixes endless sources evenly: of the first n elements each gives its share, for all n, up to rounding.

    Args:
      positions: in the mixture.
      shares: parts of the sum of all; together below 2**30.

    Returns:
      The sources of the elements at `positions`, and their positions in these sources.
    """
    before, after = positions.astype(np.int64), positions.astype(np.int64) + 1  # left for this source and the next ones
    source, place = np.zeros_like(before), np.zeros_like(before)
    total = sum(shares)
    for number, share in enumerate(shares):
        if not share:
            continue
        rest = before * (total - share) // total, after * (total - share) // total
        here = before - rest[0] != after - rest[1]
        source[here], place[here] = number, (before - rest[0])[here]
        before, after = rest
        total -= share
    return source, place


class _Batches:
    """Consecutive samples of a stream, or, of windows of it, samples that are alike."""

    def __init__(
        self, stream: Callable[[np.ndarray], np.ndarray], count: int, size: int, groups: np.ndarray | None, seed: tuple
    ):
        self._stream, self._size, self._groups, self._seed = stream, size, groups, seed
        self._window_batches = max(1, min(-(-count // size), _WINDOW // size))
        self._window = functools.lru_cache(4)(self._window)

    def __call__(self, number: int) -> np.ndarray:
        if self._groups is None:
            return self._stream(np.arange(number * self._size, (number + 1) * self._size))
        window, i = divmod(number, self._window_batches)
        return self._window(window)[i]

    def _window(self, number: int) -> np.ndarray:
        length = self._window_batches * self._size
        members = self._stream(np.arange(number * length, (number + 1) * length))
        assert self._groups is not None
        members = members[np.argsort(self._groups[members], kind="stable")]  # a group's remainder joins the next one
        return np.random.default_rng((*self._seed, number)).permutation(members.reshape(-1, self._size))


class BatchOrder:
    """The samples of the batches of a run."""

    def __init__(
        self,
        sources: np.ndarray,
        size: int,
        seed: int,
        *,
        shares: Sequence[int] | None = None,
        alternate: bool = False,
        groups: np.ndarray | None = None,
    ):
        """
        Args:
          sources: the source of each sample.
          size: of a batch.
          seed: not negative.
          shares: of the examples that each source gives, as parts of their sum; None: samples count alike, whatever
            their source.
          alternate: each batch is from one source.
          groups: of each sample: batches are made of samples of one group, and what remains of it joins the next one,
            from windows of an epoch or 65,536 examples. None: consecutive samples.
        """

        def batches(stream: Callable[[np.ndarray], np.ndarray], count: int, name: int) -> _Batches:
            return _Batches(stream, count, size, groups, (seed, name, 1))

        if shares is None and not alternate:
            self._parts, self._shares = [batches(Stream(np.arange(len(sources)), (seed, 0, 0)), len(sources), 0)], [1]
            return
        streams = [
            Stream(np.flatnonzero(sources == number), (seed, number, 0))
            for number in range(len(shares) if shares is not None else int(sources.max()) + 1)
        ]
        given = [len(stream) for stream in streams] if shares is None else [*shares]
        if alternate:
            self._parts = [batches(stream, len(stream), number) for number, stream in enumerate(streams)]
            self._shares = given
            return

        def mixed(positions: np.ndarray) -> np.ndarray:
            source, place = interleave(positions, given)
            found = np.empty(len(positions), np.int64)
            for number in np.unique(source):
                here = source == number
                found[here] = streams[number](place[here])
            return found

        self._parts, self._shares = [batches(mixed, len(sources), 0)], [1]

    def __call__(self, number: int) -> np.ndarray:
        """The samples of a batch, int64 [size]."""
        (source,), (place,) = interleave(np.array([number]), self._shares)
        return self._parts[source](int(place))
