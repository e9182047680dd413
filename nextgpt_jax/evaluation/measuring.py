"""The numbers of each outcome, metric by metric, in RUN/numbers/METRIC.npy, and the figures that they make."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.types import KeepsReplies, Metric, Outcome
from nextgpt_jax.files import atomic_write

NUMBERS = "numbers"
_PART = 256  # outcomes that a metric measures at a time


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a metric says of a run.

    Attributes:
      figures: by name, the main one first; not finite, where it could not be computed; empty, if there are none.
      error: why it could not be computed; "": it was.
      numbers: the file of the numbers of each outcome.
    """

    metric: Metric
    figures: dict[str, float]
    error: str = ""
    numbers: pathlib.Path | None = None


def measure(
    metrics: Sequence[Metric],
    count: int,
    outcome: Callable[[int], Outcome],
    folder: pathlib.Path,
    on_measured: Callable[[str, int], None] = lambda name, count: None,
) -> list[Measured]:
    """Measures all outcomes with each metric; one that cannot be computed says why in its place.

    Args:
      count: of outcomes.
      outcome: gives one by its index.
      folder: of the run.
      on_measured: called with the metric's name and the number of outcomes that it has just measured.
    """

    def one(metric: Metric) -> Measured:
        file = folder / NUMBERS / f"{metric.name}.npy"
        try:
            if isinstance(metric, KeepsReplies):
                metric.keep_in(folder / NUMBERS)
            _write_numbers(metric, count, outcome, file, lambda n: on_measured(metric.name, n))
            return Measured(metric, aggregate(metric, read_numbers(file)), numbers=file)
        except UserError as error:
            return Measured(metric, {}, f"not computed: {error}")

    return [one(metric) for metric in metrics]


def aggregate(metric: Metric, numbers: np.ndarray) -> dict[str, float]:
    """The figures of a metric, as Python's floats. Raises UserError as it does."""
    return {name: float(value) for name, value in metric.aggregate(numbers).items()}


def read_numbers(file: pathlib.Path) -> np.ndarray:
    """The numbers [n, s] of a file, mapped into memory.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    try:
        return np.load(file, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def _write_numbers(
    metric: Metric, count: int, outcome: Callable[[int], Outcome], file: pathlib.Path, on_part: Callable[[int], None]
) -> None:
    with atomic_write(file) as temporary:
        found: np.ndarray | None = None
        for start in range(0, count, _PART):
            part = metric.measure([outcome(i) for i in range(start, min(start + _PART, count))])
            if found is None:
                shape = (count, *part.shape[1:])
                found = np.lib.format.open_memmap(temporary, "w+", dtype=part.dtype, shape=shape)
            found[start : start + len(part)] = part
            on_part(len(part))
        assert found is not None
        found.flush()
