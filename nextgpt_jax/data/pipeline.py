"""Samples to batches with Grain: reshuffled every epoch, prefetched by threads, resumable at any batch."""

import functools
from collections.abc import Callable, Iterator, Sequence

import grain
import jax
import numpy as np

from nextgpt_jax.config import DataConfig
from nextgpt_jax.data.examples import ExampleBuilder
from nextgpt_jax.data.lengths import lengths
from nextgpt_jax.data.pairs import Conversation
from nextgpt_jax.data.readers import Problem, problem_of
from nextgpt_jax.errors import UserError


def batches(
    samples: Sequence[Conversation],
    builder: ExampleBuilder,
    config: DataConfig,
    seed: int,
    numbers: range,
    indices: Sequence[int] | None = None,
    on_problem: Callable[[int, Problem], None] | None = None,
) -> Iterator[dict]:
    """The batches (see examples.py) of a run by their numbers.

    A batch depends on the seed and its number alone, so the number is enough to resume.

    Args:
      numbers: consecutive numbers; epochs follow each other.
      indices: the examples of each batch that this process loads; None: all.
      on_problem: called with the number of the batch for each sample that cannot be read, from several threads; the
        batch has an example without tokens in its place. None: the error is raised.
    """
    source = BatchSource(samples, builder, config, seed, numbers.stop, indices, on_problem)
    return _read_ahead(grain.MapDataset.source(source)[numbers.start :], config)


def ordered_batches(
    samples: Sequence[Conversation], builder: ExampleBuilder, config: DataConfig, indices: Sequence[int] | None = None
) -> Iterator[dict]:
    """All samples once, in order; the last batch is filled up with examples without tokens.

    Args:
      indices: see `batches`.
    """
    return _read_ahead(grain.MapDataset.source(_OrderedSource(samples, builder, config.batch_size, indices)), config)


def _read_ahead(dataset: grain.MapDataset, config: DataConfig) -> Iterator[dict]:
    options = grain.ReadOptions(num_threads=config.num_workers, prefetch_buffer_size=config.num_workers)
    return iter(dataset.to_iter_dataset(options))


class _OrderedSource:
    def __init__(self, samples: Sequence[Conversation], builder: ExampleBuilder, size: int, indices):
        self._samples, self._builder, self._size = samples, builder, size
        self._indices = range(size) if indices is None else indices

    def __len__(self) -> int:
        return -(-len(self._samples) // self._size)

    def __getitem__(self, number: int) -> dict:
        members = [number * self._size + int(i) for i in self._indices]
        count = len(self._samples)
        examples = [self._builder(self._samples[m]) if m < count else self._builder.empty() for m in members]
        return _stacked(examples)


def _stacked(examples: Sequence[dict]) -> dict:
    return jax.tree.map(lambda *x: np.stack(x), *examples)


class BatchSource:
    """The first `num_batches` batches of a run by number, epoch after epoch. Every epoch contains every sample.

    With `config.bucket_boundaries`, examples are batched by length and padded to the end of their bucket: one compiled
    step per bucket, and little padding. The remainder of a bucket goes to the next longer one, and the last batch of an
    epoch is filled up from the epoch's beginning.
    """

    def __init__(
        self,
        samples: Sequence[Conversation],
        builder: ExampleBuilder,
        config: DataConfig,
        seed: int,
        num_batches: int,
        indices: Sequence[int] | None = None,
        on_problem: Callable[[int, Problem], None] | None = None,
    ):
        self._on_problem = on_problem
        self._indices = np.arange(config.batch_size) if indices is None else np.asarray(indices)
        self._samples, self._builder, self._seed = samples, builder, seed
        self._batch_size, self._num_batches = config.batch_size, num_batches
        self._lengths = np.array([*sorted(config.bucket_boundaries), builder.max_length])
        self._bucket = np.zeros(len(samples), int)  # of each sample
        if config.bucket_boundaries:
            self._bucket = np.searchsorted(self._lengths, lengths(samples, builder))
        self._epoch_batches = functools.lru_cache(4)(self._epoch_batches)

    def __len__(self) -> int:
        return self._num_batches

    def __getitem__(self, number: int) -> dict:
        epoch, i = divmod(number, -(-len(self._samples) // self._batch_size))
        length, members = self._epoch_batches(epoch)[i]
        examples = [self._example(number, int(member)) for member in members[self._indices]]
        batch = _stacked(examples)
        return batch | {name: batch[name][:, :length] for name in ("tokens", "loss_mask")}

    def _example(self, number: int, member: int) -> dict:
        try:
            return self._builder(self._samples[member])
        except UserError as error:
            # Not raised here: a resumed Grain iterator would meet it again for ever.
            if self._on_problem is None:
                raise
            self._on_problem(number, problem_of(self._samples, member, error))
            return self._builder.empty()

    def _epoch_batches(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """Padded length and sample numbers of each batch of an epoch."""
        rng = np.random.default_rng((self._seed, epoch))
        order, found = rng.permutation(len(self._samples)), []
        remainder = order[:0]
        for bucket, length in enumerate(self._lengths):
            members = np.concatenate([remainder, order[self._bucket[order] == bucket]])
            if bucket == len(self._lengths) - 1:
                members = np.concatenate([members, np.resize(order, -len(members) % self._batch_size)])
            full = len(members) // self._batch_size * self._batch_size
            found += [(int(length), batch) for batch in members[:full].reshape(-1, self._batch_size)]
            remainder = members[full:]
        return [found[i] for i in rng.permutation(len(found))]
