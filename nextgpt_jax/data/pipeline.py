"""Samples to batches with Grain: shuffled anew each epoch, read ahead by threads, with a position to resume from."""

import functools
from collections.abc import Iterator, Sequence

import grain
import jax
import numpy as np

from nextgpt_jax.config import DataConfig
from nextgpt_jax.data.examples import ExampleBuilder
from nextgpt_jax.data.readers import Conversation


def batches(
    samples: Sequence[Conversation],
    encoder: ExampleBuilder,
    config: DataConfig,
    seed: int,
    *,
    first: int = 0,
    rows: Sequence[int] | None = None,
) -> Iterator[dict]:
    """An endless iterator of batches (data/batches.py) from number `first` on; of their `rows` only, if given.

    Which samples a batch has depends on the seed and its number alone, so that a number is all there is to a position.
    """
    dataset = grain.MapDataset.source(BatchSource(samples, encoder, config, seed, rows))[first:]
    options = grain.ReadOptions(num_threads=config.num_workers, prefetch_buffer_size=config.num_workers)
    return iter(dataset.to_iter_dataset(options))


class BatchSource:
    """The batches of one epoch after the other, by number. Every epoch has every sample.

    With `config.bucket_boundaries`, examples are batched by length and padded to the end of their bucket: one compiled
    step per bucket, and little padding. The remainder of a bucket goes to the next longer one, and the last batch of an
    epoch is filled up from the epoch's beginning.
    """

    def __init__(
        self,
        samples: Sequence[Conversation],
        encoder: ExampleBuilder,
        config: DataConfig,
        seed: int,
        rows: Sequence[int] | None = None,
    ):
        self._rows = np.arange(config.batch_size) if rows is None else np.asarray(rows)
        self._samples, self._encoder, self._size, self._seed = samples, encoder, config.batch_size, seed
        self._lengths = np.array([*sorted(config.bucket_boundaries), encoder.max_length])
        self._bucket = np.zeros(len(samples), int)
        if config.bucket_boundaries:
            self._bucket = np.searchsorted(self._lengths, [encoder.length(sample) for sample in samples])
        self._plan = functools.lru_cache(4)(self._plan)

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, number: int) -> dict:
        epoch, at = divmod(number, -(-len(self._samples) // self._size))
        length, members = self._plan(epoch)[at]
        batch = jax.tree.map(lambda *x: np.stack(x), *[self._encoder(self._samples[i]) for i in members[self._rows]])
        return batch | {name: batch[name][:, :length] for name in ("tokens", "loss_mask")}

    def _plan(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """Length and sample numbers of each batch of an epoch."""
        rng = np.random.default_rng((self._seed, epoch))
        order, plan = rng.permutation(len(self._samples)), []
        left = order[:0]
        for bucket, length in enumerate(self._lengths):
            rows = np.concatenate([left, order[self._bucket[order] == bucket]])
            if bucket == len(self._lengths) - 1:
                rows = np.concatenate([rows, np.resize(order, -len(rows) % self._size)])
            full = len(rows) // self._size * self._size
            plan += [(int(length), some) for some in rows[:full].reshape(-1, self._size)]
            left = rows[full:]
        return [plan[i] for i in rng.permutation(len(plan))]
