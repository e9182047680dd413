"""Media between files and arrays, and the preprocessing of the encoder: numpy in, numpy out.

`load` (which is `read`, then `preprocess`) and `write` do it for a modality by name; each has a file with the functions
behind them.
"""

import os
from typing import Any

import numpy as np

from nextgpt_jax.errors import UserError
from nextgpt_jax.media.audio import Audio, fbank, preprocess_audio, read_audio, resample, write_wav
from nextgpt_jax.media.image import CLIP_MEAN, CLIP_STD, MAX_PIXELS, preprocess_image, read_image, write_png
from nextgpt_jax.media.sensors import preprocess_grayscale, preprocess_imu, read_grayscale, read_imu
from nextgpt_jax.media.video import Video, preprocess_clips, read_clips, read_video, sample_clips, write_mp4

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "MAX_PIXELS",
    "Audio",
    "Video",
    "fbank",
    "load",
    "preprocess",
    "preprocess_audio",
    "preprocess_clips",
    "preprocess_grayscale",
    "preprocess_image",
    "preprocess_imu",
    "read",
    "read_audio",
    "read_clips",
    "read_grayscale",
    "read_image",
    "read_imu",
    "read_video",
    "resample",
    "sample_clips",
    "write",
    "write_mp4",
    "write_png",
    "write_wav",
]

_READERS = {
    "image": lambda path, cfg: read_image(path),
    "video": lambda path, cfg: read_clips(
        path, clips=cfg.video_clips, frames=cfg.video_frames, seconds=cfg.clip_seconds
    ),
    "audio": lambda path, cfg: read_audio(path),
    "depth": lambda path, cfg: read_grayscale(path),
    "thermal": lambda path, cfg: read_grayscale(path),
    "imu": lambda path, cfg: read_imu(path),
}

_PREPROCESSORS = {
    "image": lambda image, cfg: preprocess_image(image, cfg.image_size),
    "video": lambda clips, cfg: preprocess_clips(clips, cfg.image_size, cfg.video_crops),
    "audio": lambda samples, cfg: preprocess_audio(
        samples,
        clips=cfg.audio_clips,
        seconds=cfg.clip_seconds,
        num_mel_bins=cfg.audio_num_mel_bins,
        target_length=cfg.audio_target_len,
    ),
    "depth": lambda image, cfg: preprocess_grayscale(image, cfg.image_size),
    "thermal": lambda image, cfg: preprocess_grayscale(image, cfg.image_size),
    "imu": lambda samples, cfg: preprocess_imu(samples),
}

_WRITERS = {
    "image": lambda path, image: write_png(path, image),
    "video": lambda path, video: write_mp4(path, video.frames, video.fps),
    "audio": lambda path, audio: write_wav(path, audio.samples, audio.sample_rate),
}


def read(modality: str, path: str | os.PathLike, cfg: Any) -> np.ndarray:
    """What the encoder (an ImageBindConfig) is shown of a file: the input of `preprocess`.

    image uint8 [H, W, 3], video uint8 [clips, frames, H, W, 3], audio float32 [n] at 16 kHz, depth and thermal float32
    [H, W], imu float32 [T, 6].

    Raises:
      UserError: the file cannot be read as that modality; one line names it and says why.
    """
    return _READERS[modality](path, cfg)


def load(modality: str, path: str | os.PathLike, cfg: Any) -> np.ndarray:
    """One input of the encoder (an ImageBindConfig) from a file: float32 of shape `cfg.input_shape(modality)`.

    Raises:
      UserError: the file cannot be read as that modality, or shows too little; one line names it and says why.
    """
    content = read(modality, path, cfg)
    try:
        return preprocess(modality, content, cfg)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def preprocess(modality: str, content: np.ndarray, cfg: Any) -> np.ndarray:
    """From `read` to one input of the encoder, float32 of shape `cfg.input_shape(modality)`.

    Raises:
      UserError: what is seen is too narrow, what is heard too short.
    """
    return _PREPROCESSORS[modality](content, cfg)


def write(modality: str, path: str | os.PathLike, content: Any) -> None:
    """Writes a PNG, an MP4 of a `Video` or a WAV of an `Audio`: whole or not at all.

    Raises:
      UserError: the file can't be written.
    """
    _WRITERS[modality](path, content)
