"""Frames of videos."""

import os

import numpy as np
from jaxtyping import Float, Int, UInt8

from nextgpt_jax.media.video_decoding import MAX_FRAME_PIXELS, read_picked


def evenly(path: str | os.PathLike, count: int) -> UInt8[np.ndarray, "{count} h w 3"]:
    """`count` frames of a video, evenly from its first to its last; of a shorter one some are repeated.

    Raises:
      UserError: the file is missing, not a video, or damaged.
    """

    def pick(times: Float[np.ndarray, " t"], _: float) -> Int[np.ndarray, "1 {count}"]:
        return np.linspace(0, len(times) - 1, count).round().astype(np.int64)[None]

    return read_picked(path, pick, MAX_FRAME_PIXELS)[0]
