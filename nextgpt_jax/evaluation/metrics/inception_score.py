"""The inception score of logits."""

from collections.abc import Callable

import numpy as np
import scipy.special
from jaxtyping import Float

from nextgpt_jax.errors import UserError

SPLITS, SEED = 10, 2020  # of torch-fidelity and audioldm_eval


def inception_score(
    logits: Callable[[np.ndarray], Float[np.ndarray, "m classes"]], count: int, splits: int = SPLITS
) -> tuple[float, float]:
    """exp of the mean divergence of a sample's classes from those of all: mean and deviation over splits.

    As calculate_isc of audioldm_eval and torch-fidelity, in float64: samples in the random order of SEED, cut into
    `splits` parts; of fewer samples, each is a part, whose score is 1.

    Args:
      logits: of some samples, by their indices. Called once for each split.
      count: of samples.

    Raises:
      UserError: there is none.
    """
    if not count:
        raise UserError("the inception score needs samples")
    order, splits = np.random.RandomState(SEED).permutation(count), min(splits, count)
    scores = []
    for i in range(splits):
        part = logits(order[i * count // splits : (i + 1) * count // splits])
        log_p = scipy.special.log_softmax(part.astype(np.float64), axis=1)
        p = np.exp(log_p)
        divergence = (p * (log_p - np.log(p.mean(0)))).sum(1)
        scores.append(np.exp(divergence.mean()))
    return float(np.mean(scores)), float(np.std(scores))
