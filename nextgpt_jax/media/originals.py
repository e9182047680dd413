"""Media at the size of a decoder, to be edited by it."""

import os
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from nextgpt_jax.media.audio import audio_from_content, read_audio
from nextgpt_jax.media.image import check_aspect, image_from_content, read_image
from nextgpt_jax.media.video import pick_from_content
from nextgpt_jax.media.video_decoding import MAX_FRAME_PIXELS, read_picked

_TOLERANCE = 1e-6  # seconds, for the rounding of sums of floats


def original_image(source: Any, *, height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """An image from a path or content (see `media.from_content`), scaled to cover height x width, center crop.

    Raises:
      UserError: it cannot be read, or is more than MAX_ASPECT times as long as wide.
    """
    image = read_image(source) if isinstance(source, str | os.PathLike) else image_from_content(source)
    return _cover(image, height, width)


def original_video(
    source: Any, *, frames: int, fps: float, height: int, width: int
) -> UInt8[np.ndarray, "{frames} {height} {width} 3"]:
    """The first `frames` / `fps` seconds of a video from a path or content, at `fps`, each frame as `original_image`.

    A shorter video stands still at its end.

    Raises:
      UserError: it cannot be read, or is more than MAX_ASPECT times as long as wide.
    """

    def pick(times: Float[np.ndarray, " t"], _: float) -> Int[np.ndarray, "1 {frames}"]:
        shown = np.searchsorted(times, np.arange(frames) / fps + _TOLERANCE, side="right") - 1
        return np.maximum(shown, 0)[None]

    read = read_picked if isinstance(source, str | os.PathLike) else pick_from_content
    return np.stack([_cover(frame, height, width) for frame in read(source, pick, MAX_FRAME_PIXELS)[0]])


def original_audio(source: Any, *, samples: int, sample_rate: int) -> Float[np.ndarray, " {samples}"]:
    """The first samples of a sound from a path or content, as one channel at `sample_rate`, with silence at its end.

    Raises:
      UserError: it cannot be read.
    """
    read = read_audio if isinstance(source, str | os.PathLike) else audio_from_content
    found = read(source, sample_rate=sample_rate)[:samples]
    return np.pad(found, (0, samples - len(found)))


def _cover(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    picture = Image.fromarray(image)
    check_aspect(*picture.size)
    scale = max(width / picture.width, height / picture.height)
    size = max(width, round(scale * picture.width)), max(height, round(scale * picture.height))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.asarray(picture.crop((left, top, left + width, top + height)))
