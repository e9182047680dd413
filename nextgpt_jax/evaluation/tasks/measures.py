"""The metrics of the tasks, whose figures are called as in the paper; networks are loaded when metrics are made."""

from collections.abc import Callable, Sequence

from nextgpt_jax.config import EvalConfig
from nextgpt_jax.evaluation.metrics.captions import Bleu, Cider, RougeL
from nextgpt_jax.evaluation.metrics.java import Meteor, Spider
from nextgpt_jax.evaluation.types import Metric, Sample

Metrics = Callable[[Sequence[Sample], EvalConfig], Sequence[Metric]]


def captions(samples: Sequence[Sample], settings: EvalConfig) -> Sequence[Metric]:
    """BLEU, METEOR, CIDEr and ROUGE-L in percent, as tables of captions of images and videos have them."""
    return Bleu(samples), Meteor(samples), Cider(samples), RougeL(samples)


def sound_captions(samples: Sequence[Sample], settings: EvalConfig) -> Sequence[Metric]:
    """SPIDEr, CIDEr, METEOR and BLEU, not in percent, as tables of AudioCaps have them."""
    return Spider(samples), Cider(samples, scale=1.0), Meteor(samples, scale=1.0), Bleu(samples, scale=1.0)


def fid(samples: Sequence[Sample], settings: EvalConfig) -> Sequence[Metric]:
    """FID of images with the samples' references."""
    from nextgpt_jax.evaluation.metrics.fid import FID

    return (FID(settings.inception, samples),)


def video_quality(samples: Sequence[Sample], settings: EvalConfig) -> Sequence[Metric]:
    """FID of frames, CLIPSIM."""
    from nextgpt_jax.evaluation.metrics.clip import CLIPSIM
    from nextgpt_jax.evaluation.metrics.fid import FID

    return FID(settings.inception, samples, modality="video"), CLIPSIM(settings.clip)


def sound_quality(samples: Sequence[Sample], settings: EvalConfig) -> Sequence[Metric]:
    """FD, IS and KL of sounds."""
    from nextgpt_jax.evaluation.metrics.sound import SoundQuality

    return (SoundQuality(settings.cnn14, samples),)


def image_edits(samples: Sequence[Sample], settings: EvalConfig) -> Sequence[Metric]:
    """CLIP score and FID of edited images."""
    from nextgpt_jax.evaluation.metrics.clip import CLIPScore
    from nextgpt_jax.evaluation.metrics.fid import FID

    return CLIPScore(settings.clip), FID(settings.inception, samples)


def video_edits(samples: Sequence[Sample], settings: EvalConfig) -> Sequence[Metric]:
    """CLIP-T and CLIP-I of edited videos."""
    from nextgpt_jax.evaluation.metrics.clip import CLIPSIM, FrameConsistency

    return CLIPSIM(settings.clip, figure="CLIP-T"), FrameConsistency(settings.clip)


def speech_edits(samples: Sequence[Sample], settings: EvalConfig) -> Sequence[Metric]:
    """MCD of edited speech."""
    from nextgpt_jax.evaluation.metrics.mcd import MCD

    return (MCD(),)
