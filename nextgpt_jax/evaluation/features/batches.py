"""Files through a network: decoded ahead in threads, computed in batches of one shape."""

import collections
import concurrent.futures
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

_AHEAD = 2  # batches whose inputs are decoded, or whose results are computed, before they are needed


def compute(
    items: Sequence[Any],
    read: Callable[[Any], Shaped[np.ndarray, "k ..."]],
    network: Callable[[np.ndarray], jax.Array],
    *,
    batch: int,
    rows: int = 1,
) -> np.ndarray:
    """The network's results for all rows of all items, in order: [rows, ...].

    Args:
      items: what `read` takes, such as paths; at least one.
      read: gives the rows of an item, all of one shape and dtype. Called in threads.
      network: from a batch of rows to their results. Always called with `batch` rows; the last ones may be zeros.
      batch: rows that are computed together.
      rows: of an item, for the number of items that are read ahead.
    """
    found: list[np.ndarray] = []
    pending: collections.deque[tuple[jax.Array, int]] = collections.deque()
    ahead = max(_AHEAD, _AHEAD * batch // rows)
    every = (row for item in read_ahead(items, read, ahead) for row in item)
    while some := list(itertools.islice(every, batch)):
        inputs = np.zeros((batch, *some[0].shape), some[0].dtype)
        np.stack(some, out=inputs[: len(some)])
        pending.append((network(inputs), len(some)))
        if len(pending) >= _AHEAD:
            result, count = pending.popleft()
            found.append(np.asarray(result)[:count])
    found += [np.asarray(result)[:count] for result, count in pending]
    return np.concatenate(found)


def read_ahead(items: Sequence[Any], read: Callable[[Any], Any], ahead: int) -> Iterator[Any]:
    """`read(item)` of each item in order, of up to `ahead` items at a time in threads."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        left = iter(items)
        try:
            waiting.extend(pool.submit(read, item) for item in itertools.islice(left, ahead))
            while waiting:
                done = waiting.popleft().result()
                waiting.extend(pool.submit(read, item) for item in itertools.islice(left, 1))
                yield done
        finally:
            for future in waiting:
                future.cancel()
