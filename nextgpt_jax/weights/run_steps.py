"""Which checkpoint of a run is meant: a step's number, "latest" or "best"."""

import re
from collections.abc import Mapping, Sequence

from nextgpt_jax.errors import UserError, nearest

LATEST, BEST = "latest", "best"
LOSS, VALIDATION = "loss", "validation_loss"
SCORE = "score"  # the figure eval.best of an evaluation, negative if a higher one is better
Losses = Mapping[str, float]


def parse_step(value: str | int, name: str = "step") -> str | int:
    """A step's number, LATEST or BEST.

    Args:
      value: one of them, or a number as text.
      name: what the user calls it, for the message.

    Raises:
      UserError: it is something else.
    """
    text = str(value)
    if text in (LATEST, BEST):
        return text
    if not isinstance(value, bool) and re.fullmatch(r"0*[1-9][0-9]{0,17}", text):
        return int(text)
    raise UserError(f"{name}: {text!r} is not {BEST}, {LATEST} or the number of a step{nearest(text, [BEST, LATEST])}")


def rank(losses: Losses) -> tuple[int, float]:
    """Orders checkpoints by their losses, lower is better; any score of an evaluation before the losses on held-out
    samples, and these before those in training."""
    kinds = (SCORE, VALIDATION, LOSS)
    kind = next((kind for kind in kinds if kind in losses), LOSS)
    return kinds.index(kind), losses[kind]


def best_step(losses: Mapping[int, Losses]) -> int | None:
    """The step with the lowest loss, of equal ones the latest; None: no losses are known."""
    return min(losses, key=lambda step: (rank(losses[step]), -step), default=None)


def describe_steps(steps: Sequence[int]) -> str:
    """The steps that a run has, for messages."""
    return f"there are {', '.join(map(str, sorted(steps)))}"
