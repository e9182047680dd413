"""Metrics and samples of a run for TensorBoard."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from nextgpt_jax.training.sampling import Sample


class TensorBoard:
    """Writes event files in a folder."""

    def __init__(self, folder: os.PathLike, start: int, enabled: bool):
        """
        Args:
          start: the step where the run goes on: what was written for later ones is hidden.
          enabled: False: nothing is written.
        """
        self._writer = SummaryWriter(str(folder), purge_step=start + 1, write_to_disk=enabled)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def write_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Writes answers to prompts: texts, images, sounds, and videos as animated images."""
        for i, sample in enumerate(samples):
            self._writer.add_text(f"samples/{i}", f"{sample.prompt}\n\n---\n\n{sample.text}", step)
            for k, medium in enumerate(sample.media):
                tag = f"samples/{i}_{k}_{medium.modality}"
                if medium.modality == "image":
                    self._writer.add_image(tag, medium.content, step, dataformats="HWC")
                elif medium.modality == "video":
                    self._writer.file_writer.add_summary(_animation(tag, medium.content), step)
                elif medium.modality == "audio":
                    content = medium.content
                    self._writer.add_audio(tag, content.samples, step, sample_rate=content.sample_rate)
        self._writer.flush()

    def close(self) -> None:
        """Closes the files."""
        self._writer.close()


def _animation(tag: str, video: Any) -> Summary:
    """A GIF: TensorBoard has no videos."""
    frames, encoded = [Image.fromarray(frame) for frame in video.frames], io.BytesIO()
    options = {"save_all": True, "append_images": frames[1:], "duration": 1000 / video.fps, "loop": 0}
    frames[0].save(encoded, "GIF", **options)
    width, height = frames[0].size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded.getvalue())
    return Summary(value=[Summary.Value(tag=tag, image=image)])
