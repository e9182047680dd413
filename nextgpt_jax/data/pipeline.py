"""Samples to batches with Grain: reshuffled every epoch, prefetched by threads, resumable at any batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import grain
import jax
import numpy as np

from nextgpt_jax.config import DataConfig
from nextgpt_jax.data.examples import BatchSpec, ExampleBuilder
from nextgpt_jax.data.layouts import Layouts, similarity
from nextgpt_jax.data.lengths import lengths
from nextgpt_jax.data.order import BatchOrder
from nextgpt_jax.data.pairs import Conversation
from nextgpt_jax.data.readers import Problem, Samples, problem_of
from nextgpt_jax.data.sources import Mixture
from nextgpt_jax.errors import UserError

_FIRST_EXAMPLES = 2**15  # of a run; the layouts of its batches are chosen by these


def batches(
    samples: Sequence[Conversation],
    builder: ExampleBuilder,
    config: DataConfig,
    seed: int,
    numbers: range,
    indices: Sequence[int] | None = None,
    on_problem: Callable[[int, Problem], None] | None = None,
) -> Iterator[dict]:
    """The batches (see examples.py) of a run by their numbers (see order.py).

    A batch depends on the seed and its number alone, so the number is enough to resume.

    Args:
      numbers: consecutive numbers; epochs follow each other.
      indices: the examples of each batch that this process loads; None: all.
      on_problem: called with the number of the batch for each sample that cannot be read, from several threads; the
        batch has an example without tokens in its place. None: the error is raised.
    """
    source = shuffled(samples, builder, config, seed, numbers.stop, indices, on_problem)
    return _read_ahead(grain.MapDataset.source(source)[numbers.start :], config)


def ordered_batches(
    samples: Sequence[Conversation], builder: ExampleBuilder, config: DataConfig, indices: Sequence[int] | None = None
) -> Iterator[dict]:
    """All samples once, in order; the last batch is filled up with examples without tokens.

    Args:
      indices: see `batches`.
    """
    size, count = config.batch_size, len(samples)

    def members(number: int) -> np.ndarray:
        return np.arange(number * size, min((number + 1) * size, count))

    numbers = range(-(-count // size))
    layouts = _layouts(samples, builder, map(members, numbers[: _first_batches(size)]))
    indices = np.arange(size) if indices is None else indices
    mixture = samples.mixture() if isinstance(samples, Samples) else None
    source = BatchSource(samples, builder, members, len(numbers), indices, layouts, mixture=mixture)
    return _read_ahead(grain.MapDataset.source(source), config)


def _read_ahead(dataset: grain.MapDataset, config: DataConfig) -> Iterator[dict]:
    options = grain.ReadOptions(num_threads=config.num_workers, prefetch_buffer_size=config.num_workers)
    return iter(dataset.to_iter_dataset(options))


def shuffled(
    samples: Sequence[Conversation],
    builder: ExampleBuilder,
    config: DataConfig,
    seed: int,
    num_batches: int,
    indices: Sequence[int] | None = None,
    on_problem: Callable[[int, Problem], None] | None = None,
) -> "BatchSource":
    """The first `num_batches` batches of a run, by number. The other arguments are those of `batches`.

    With `config.bucket_boundaries`, examples are batched by length and padded to the end of their bucket: one compiled
    step per bucket, and little padding. With `config.group_by_modality` they are batched by the media they have, and
    with `config.alternate` by source.
    """
    padded, groups = None, np.zeros(len(samples), int)
    if config.bucket_boundaries:
        ends = np.array([*sorted(config.bucket_boundaries), builder.max_length])
        groups = np.searchsorted(ends, lengths(samples, builder))
        padded = ends[groups]
    media, mixture = None, Mixture(("all",), None, np.zeros(len(samples), int))
    if isinstance(samples, Samples):
        media, mixture = samples.media, samples.mixture()
    if config.group_by_modality and media is not None:
        kinds = similarity(media, builder)
        groups = groups * (int(kinds.max(initial=0)) + 1) + kinds
    grouped = bool(config.bucket_boundaries or config.group_by_modality)
    members = BatchOrder(
        mixture.sources,
        config.batch_size,
        seed,
        shares=mixture.shares,
        alternate=config.alternate,
        groups=groups if grouped else None,
    )
    layouts = _layouts(samples, builder, map(members, range(_first_batches(config.batch_size))))
    indices = np.arange(config.batch_size) if indices is None else indices
    return BatchSource(samples, builder, members, num_batches, indices, layouts, padded, on_problem, mixture)


def _first_batches(size: int) -> int:
    return min(1000, -(-_FIRST_EXAMPLES // size))


def _layouts(
    samples: Sequence[Conversation], builder: ExampleBuilder, batches: Iterable[np.ndarray]
) -> Callable[[np.ndarray], BatchSpec]:
    """The layout for the samples of a batch. That of the builder for all, where media have not been counted."""
    if isinstance(samples, Samples) and samples.media is not None:
        return Layouts(samples.media, builder, batches)
    return lambda _: builder.spec


class BatchSource:
    """Batches by number, for Grain."""

    def __init__(
        self,
        samples: Sequence[Conversation],
        builder: ExampleBuilder,
        members: Callable[[int], np.ndarray],
        num_batches: int,
        indices: Sequence[int] | np.ndarray,
        layouts: Callable[[np.ndarray], BatchSpec],
        lengths: np.ndarray | None = None,
        on_problem: Callable[[int, Problem], None] | None = None,
        mixture: Mixture | None = None,
    ):
        """
        Args:
          members: the numbers of the samples of a global batch. The places of those that are missing stay empty.
          num_batches: that there are.
          indices, on_problem: see `batches`.
          layouts: the room for media, by the samples of a global batch.
          lengths: that each sample should be padded to, at least; None: all to the builder's maximum.
          mixture: of the samples: if it has several sources, batches say of each example where it is from.
        """
        self._samples, self._builder, self._members, self._num_batches = samples, builder, members, num_batches
        self._indices, self._layouts, self._lengths = np.asarray(indices), layouts, lengths
        self._on_problem = on_problem
        self._mixture = mixture if mixture and len(mixture.names) > 1 else None

    def __len__(self) -> int:
        return self._num_batches

    def __getitem__(self, number: int) -> dict:
        members = self._members(number)
        spec = self._layouts(members)
        places = [int(members[i]) if i < len(members) else None for i in self._indices]
        batch = self._builder.empty(spec, len(places))
        for i, member in enumerate(places):
            if member is not None:
                self._fill(batch, i, number, member)
        if self._mixture:
            batch["sources"] = np.zeros((len(places), len(self._mixture.names)), bool)
            for row, member in zip(batch["sources"], places, strict=True):
                if member is not None:
                    row[self._mixture.sources[member]] = True
        if self._lengths is None:
            return batch
        length = self._lengths[members].max()
        return batch | {name: batch[name][:, :length] for name in ("tokens", "loss_mask")}

    def _fill(self, batch: dict, place: int, number: int, member: int) -> None:
        example = jax.tree.map(lambda array: array[place, ...], batch)  # views
        try:
            self._builder.fill(example, self._samples[member])
        except UserError as error:
            # Not raised here: a resumed Grain iterator would meet it again for ever.
            if self._on_problem is None:
                raise
            self._on_problem(number, problem_of(self._samples, member, error))
