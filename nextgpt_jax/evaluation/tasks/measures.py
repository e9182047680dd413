"""The metrics of the tasks, whose figures are called as in the paper; networks are loaded when metrics are made."""

from collections.abc import Callable, Sequence

from nextgpt_jax.config import EvalConfig
from nextgpt_jax.evaluation.metrics.captions import Bleu, Cider, RougeL
from nextgpt_jax.evaluation.types import Metric, Sample

Metrics = Callable[[Sequence[Sample], EvalConfig], Sequence[Metric]]


def captions(samples: Sequence[Sample], settings: EvalConfig) -> Sequence[Metric]:
    """BLEU, ROUGE-L and CIDEr in percent, as tables of captions of images and videos have them."""
    return Bleu(samples), RougeL(samples), Cider(samples)


def sound_captions(samples: Sequence[Sample], settings: EvalConfig) -> Sequence[Metric]:
    """CIDEr and BLEU, not in percent, as tables of AudioCaps have them."""
    return Cider(samples, scale=1.0), Bleu(samples, scale=1.0)
