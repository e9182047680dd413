"""Which samples a run answers, with which seeds, and which of them a process of several does."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.selection import number, subset
from nextgpt_jax.evaluation.types import Sample


def sample_seed(seed: int, sample_id: str) -> int:
    """The seed of a sample's answer, in [0, 2^31): it follows from the run's seed and the sample alone, so that
    neither batches, nor shards, nor a subset change it."""
    return number(f"answer {seed} {sample_id}") >> 33


def choose(samples: Iterable[Sample], limit: int | None, seed: int) -> tuple[list[Sample], int]:
    """`limit` of the samples in their order, and how many there are; all of them, if it is None or there are no more.

    A subset with a smaller limit is a part of one with a larger limit and the same seed.

    Raises:
      UserError: the limit is not positive, two samples have the same id, or there are none.
    """
    samples = list(samples)
    if limit is not None and limit < 1:
        raise UserError(f"--limit={limit}: give at least 1 sample")
    if not samples:
        raise UserError("the data holds no samples of this task")
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise UserError(f"two samples of the data have the id {sample.id!r}")
        seen.add(sample.id)
    if limit is None or limit >= len(samples):
        return samples, len(samples)
    return subset(samples, limit, lambda sample: f"choose {seed} {sample.id}"), len(samples)


class Shard(NamedTuple):
    """One of `count` processes that share the batches of a run."""

    index: int = 0
    count: int = 1

    @property
    def file(self) -> str:
        """The name of the file of its answers."""
        return "answers.jsonl" if self.count == 1 else f"answers-{self.index:05d}-of-{self.count:05d}.jsonl"

    def part(self, batches: Sequence[range]) -> list[range]:
        """The batches that it answers."""
        return [batch for number, batch in enumerate(batches) if number % self.count == self.index]


WHOLE = Shard()


def batches(count: int, size: int) -> list[range]:
    """The batches of a run: consecutive samples. They are the same however many processes answer them, because the
    size of a batch may change the last bit of a medium.

    Raises:
      UserError: the size is not positive.
    """
    if size < 1:
        raise UserError(f"eval.batch is {size}: give at least 1")
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
