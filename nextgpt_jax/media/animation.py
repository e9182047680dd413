"""Animated WebP and AVIF as video, by Pillow; FFmpeg reads neither as a whole."""

import contextlib
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from nextgpt_jax.media.heif import is_avif, refuse_still
from nextgpt_jax.media.image import quiet, to_rgb, upright

_SHORTEST, _USUAL = 10, 100  # ms: frames of at most the former are shown for the latter, as in browsers


class Animation:
    """The frames of an animation. Raises ValueError or OSError where it is damaged."""

    def __init__(self, image: Image.Image):
        self._image = image
        self.count: int = getattr(image, "n_frames", 1)
        self.width, self.height = image.size

    def times(self) -> tuple[Float[np.ndarray, " t"], float]:
        """Seconds since the first frame, and the average rate."""
        lengths = np.zeros(self.count)
        for i in range(self.count):
            self._image.seek(i)
            self._image.load()  # what sets the duration
            lengths[i] = self._image.info.get("duration", 0)
        lengths[lengths <= _SHORTEST] = _USUAL
        if np.ptp(lengths) <= 1:  # a constant rate, rounded
            lengths[:] = lengths.mean()
        return (np.cumsum(lengths) - lengths) / 1000, 1000 * self.count / float(lengths.sum())

    def frame(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """RGB, upright, transparent pixels composited over white."""
        self._image.seek(index)
        self._image.load()
        return to_rgb(upright(self._image))


@contextlib.contextmanager
def opened_animation(path: pathlib.Path) -> Iterator[Animation | None]:
    """None if the file is no WebP or AVIF. Nothing is decoded yet. Raises ValueError if it is a HEIC image."""
    with path.open("rb") as file:
        head = file.read(12)
    if not (head[:4] == b"RIFF" and head[8:] == b"WEBP" or is_avif(path)):
        refuse_still(path)
        yield None
        return
    with quiet(), Image.open(path, formats=("WEBP", "AVIF")) as image:
        yield Animation(image)
