"""The files that metrics of media compare: what was made, and the references."""

import math
import os
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.types import Outcome, Sample


def made(outcome: Outcome, modality: str) -> os.PathLike | None:
    """The first medium of a modality in an answer; None: it has none."""
    return next(iter(outcome.media.get(modality, ())), None)


def reference(sample: Sample, name: str):
    """What a sample's answer is compared with. Raises UserError if it has none."""
    if not (found := sample.references.get(name)):
        raise UserError(f"sample {sample.id} has no reference {name!r}")
    return found


def of_made(
    outcomes: Sequence[Outcome],
    modality: str,
    width: int,
    measure: Callable[[list[Outcome], list[os.PathLike]], Float[np.ndarray, "m {width}"]],
) -> Float[np.ndarray, "n {width}"]:
    """The numbers of outcomes by `measure(outcomes, files)`, which gets those that have a medium; NaN for others."""
    files = {i: file for i, outcome in enumerate(outcomes) if (file := made(outcome, modality)) is not None}
    numbers = np.full((len(outcomes), width), math.nan, np.float32)
    if files:
        numbers[[*files]] = measure([outcomes[i] for i in files], [*files.values()])
    return numbers


def missing(numbers: Float[np.ndarray, "n s"]) -> dict[str, float]:
    """The number of answers without a medium, as a figure, if there are any: they are left out of the others."""
    count = int(np.isnan(numbers[:, 0]).sum())
    return {"missing": float(count)} if count else {}


def mean(numbers: Float[np.ndarray, " n"]) -> float:
    """The mean over answers that have a medium. Raises UserError if none has."""
    known = numbers[~np.isnan(numbers)]
    if not len(known):
        raise UserError("no answer has a medium")
    return float(known.astype(np.float64).mean())
