"""What `data.max_length` cuts off. Signal tokens stand at the end of an example, so they go first."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from nextgpt_jax.data.examples import ExampleBuilder
from nextgpt_jax.data.lengths import tokenize_all
from nextgpt_jax.data.readers import Samples
from nextgpt_jax.errors import UserError

_SAMPLES = 5000  # that are looked at; of more, as many at equal distances


@dataclasses.dataclass
class Truncation:
    """What is cut off the samples of one source.

    Attributes:
      samples: that were looked at.
      cut: of them, those longer than the maximum.
      longest: tokens of the longest sample.
      targets, lost_targets: training targets (tokens of replies) of all, and those cut off.
      media, lost_media: inputs and groups of signal tokens of all, and those cut off.
    """

    samples: int = 0
    cut: int = 0
    longest: int = 0
    targets: int = 0
    lost_targets: int = 0
    media: int = 0
    lost_media: int = 0

    @property
    def share(self) -> float:
        """The larger share lost, of targets or of media."""
        return max(self.lost_targets / max(self.targets, 1), self.lost_media / max(self.media, 1))

    def describe(self, source: str, max_length: int) -> str:
        """One line."""
        media = f", {self.lost_media} of {self.media} media" if self.media else ""
        return (
            f"{source}: {self.cut} of {self.samples} samples are longer than data.max_length={max_length} (the longest "
            f"has {self.longest} tokens), which cuts off {self.lost_targets} of {self.targets} target tokens{media}"
        )


def measure(samples: Samples, builder: ExampleBuilder) -> dict[str, Truncation]:
    """What is cut off, by source; of more than 5,000 samples, an estimate from as many."""
    found: dict[str, Truncation] = {}
    step = -(-len(samples) // _SAMPLES)
    numbers = range(0, len(samples), step)
    for index, tokenized in zip(numbers, tokenize_all((samples[i] for i in numbers), builder), strict=True):
        row = found.setdefault(samples.source(index), Truncation())
        length = len(tokenized.ids)
        row.samples += 1
        row.cut += length > builder.max_length
        row.longest = max(row.longest, length)
        row.targets += int(np.sum(tokenized.loss))
        row.lost_targets += int(np.sum(tokenized.loss[builder.max_length :]))
        row.media += len(tokenized.inputs) + len(tokenized.outputs)
        row.lost_media += builder.lost_media(tokenized)
    return found


def check(found: Mapping[str, Truncation], max_length: int, max_share: float) -> None:
    """Checks that no source loses more than a share of its targets or of its media.

    Raises:
      UserError: one does.
    """
    for source, row in found.items():
        if row.share > max_share:
            raise UserError(
                f"{row.describe(source, max_length)}: raise data.max_length, or data.max_truncated (now {max_share:g}) "
                "to train like this"
            )
