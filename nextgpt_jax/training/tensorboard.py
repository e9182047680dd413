"""Metrics and samples of a run for TensorBoard."""

import io
import math
import pathlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from nextgpt_jax.files import is_remote
from nextgpt_jax.training.sampling import Sample

_COPY_SECONDS = 60


class TensorBoard:
    """Writes event files in a folder. To a remote one they are copied, at most once a minute and in the end."""

    def __init__(self, folder: pathlib.Path, start: int, enabled: bool):
        """
        Args:
          start: the step where the run goes on: what was written for later ones is hidden.
          enabled: False: nothing is written.
        """
        self._remote = folder if enabled and is_remote(folder) else None
        self._local = pathlib.Path(tempfile.mkdtemp()) if self._remote else folder
        self._copied = time.monotonic()
        suffix = f".{uuid.uuid4().hex[:8]}" if self._remote else ""
        options = {"purge_step": start + 1, "write_to_disk": enabled, "filename_suffix": suffix}
        self._writer = SummaryWriter(str(self._local), **options)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        if self._remote and time.monotonic() - self._copied > _COPY_SECONDS:
            self._copy()

    def write_samples(self, step: int, samples: Sequence[Sample], group: str = "samples") -> None:
        """Writes answers to prompts: texts, images, sounds, and videos as animated images; and a grid of all images.

        Args:
          group: the beginning of their names.
        """
        images = [m.content for sample in samples for m in sample.media if m.modality == "image"]
        if len(images) > 1:
            self._writer.add_image(f"{group}/images", _grid(images), step, dataformats="HWC")
        for i, sample in enumerate(samples):
            self._writer.add_text(f"{group}/{i}", f"{sample.prompt}\n\n---\n\n{sample.text}", step)
            for k, medium in enumerate(sample.media):
                tag = f"{group}/{i}_{k}_{medium.modality}"
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
        if self._remote:
            self._copy()
            shutil.rmtree(self._local, ignore_errors=True)

    def _copy(self) -> None:
        self._writer.flush()
        for file in self._local.iterdir():
            assert self._remote
            (self._remote / file.name).write_bytes(file.read_bytes())
        self._copied = time.monotonic()


def _grid(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images [H, W, 3] of the size of the first one in rows, as square as they fit, on black."""
    height, width, _ = images[0].shape
    images = [image for image in images if image.shape == images[0].shape]
    columns = math.ceil(math.sqrt(len(images)))
    grid = np.zeros((-(-len(images) // columns) * height, columns * width, 3), np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * height, i % columns * width
        grid[top : top + height, left : left + width] = image
    return grid


def _animation(tag: str, video: Any) -> Summary:
    """A GIF: TensorBoard has no videos."""
    frames, encoded = [Image.fromarray(frame) for frame in video.frames], io.BytesIO()
    options = {"save_all": True, "append_images": frames[1:], "duration": 1000 / video.fps, "loop": 0}
    frames[0].save(encoded, "GIF", **options)
    width, height = frames[0].size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded.getvalue())
    return Summary(value=[Summary.Value(tag=tag, image=image)])
