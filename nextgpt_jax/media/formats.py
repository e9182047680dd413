"""The table of media: how each modality is read, preprocessed and written.

A modality with a new row in `FORMATS` can be read and written by name like the others.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from nextgpt_jax.errors import UserError
from nextgpt_jax.media.audio import audio_from_content, read_audio, write_wav
from nextgpt_jax.media.image import image_from_content, preprocess_image, read_image, read_picture, write_png
from nextgpt_jax.media.sensors import (
    grayscale_from_content,
    imu_from_content,
    preprocess_grayscale,
    preprocess_imu,
    read_grayscale,
    read_imu,
)
from nextgpt_jax.media.spectrogram import preprocess_audio
from nextgpt_jax.media.video import clips_from_content, preprocess_clips, read_clips, write_mp4

Path = str | os.PathLike


@dataclasses.dataclass(frozen=True)
class MediaFormat:
    """How one modality is read, preprocessed and written. `config` is the encoder's (an ImageBindConfig).

    Attributes:
      read: (path, config) to the content of a file, an array. Raises UserError, naming the file.
      from_content: (content, config) to what `read` returns for a file of the same content. Raises UserError.
      preprocess: (what `read` returns, config) to one input of the encoder, float32. Raises UserError.
      write: (path, content) to a file. None: the modality is never an output.
      decode: as `read`, but to whatever `preprocess` takes fastest. None: `read` itself.
      fill: as `preprocess`, with an array to write the result into. None: it is copied there.
    """

    read: Callable[[Path, Any], np.ndarray]
    from_content: Callable[[Any, Any], np.ndarray]
    preprocess: Callable[[np.ndarray, Any], np.ndarray]
    write: Callable[[Path, Any], None] | None = None
    decode: Callable[[Path, Any], Any] | None = None
    fill: Callable[[Any, Any, np.ndarray], Any] | None = None


def _clips(config: Any) -> dict[str, Any]:
    return {"clips": config.video_clips, "frames": config.video_frames, "seconds": config.clip_seconds}


def _preprocess_audio(samples: np.ndarray, config: Any) -> np.ndarray:
    return preprocess_audio(
        samples,
        clips=config.audio_clips,
        seconds=config.clip_seconds,
        num_mel_bins=config.audio_num_mel_bins,
        target_length=config.audio_target_len,
    )


_GRAYSCALE = MediaFormat(
    read=lambda path, config: read_grayscale(path),
    from_content=lambda content, config: grayscale_from_content(content),
    preprocess=lambda image, config: preprocess_grayscale(image, config.image_size),
)

FORMATS: dict[str, MediaFormat] = {
    "image": MediaFormat(
        read=lambda path, config: read_image(path),
        from_content=lambda content, config: image_from_content(content),
        preprocess=lambda image, config: preprocess_image(image, config.image_size),
        write=write_png,
        decode=lambda path, config: read_picture(path),
        fill=lambda image, config, out: preprocess_image(image, config.image_size, out),
    ),
    "video": MediaFormat(
        read=lambda path, config: read_clips(path, **_clips(config)),
        from_content=lambda content, config: clips_from_content(content, **_clips(config)),
        preprocess=lambda clips, config: preprocess_clips(clips, config.image_size, config.video_crops),
        write=lambda path, video: write_mp4(path, video.frames, video.fps),
        fill=lambda clips, config, out: preprocess_clips(clips, config.image_size, config.video_crops, out),
    ),
    "audio": MediaFormat(
        read=lambda path, config: read_audio(path),
        from_content=lambda content, config: audio_from_content(content),
        preprocess=_preprocess_audio,
        write=lambda path, audio: write_wav(path, audio.samples, audio.sample_rate),
    ),
    "depth": _GRAYSCALE,
    "thermal": _GRAYSCALE,
    "imu": MediaFormat(
        read=lambda path, config: read_imu(path, config.input_shape("imu")[0]),
        from_content=lambda content, config: imu_from_content(content, config.input_shape("imu")[0]),
        preprocess=lambda samples, config: preprocess_imu(samples, config.input_shape("imu")[1]),
    ),
}


def _format(modality: str) -> MediaFormat:
    if modality not in FORMATS:
        raise UserError(f"no files of {modality!r} can be read (only {', '.join(FORMATS)}): add a row to media.FORMATS")
    return FORMATS[modality]


def read(modality: str, path: Path, config: Any) -> np.ndarray:
    """The content of a file, the input of `preprocess`. `config` is the encoder's (an ImageBindConfig).

    image uint8 [H, W, 3], video uint8 [clips, frames, H, W, 3], audio float32 [n] at 16 kHz, depth and thermal float32
    [H, W], imu float32 [T, 6].

    Raises:
      UserError: the file cannot be read as that modality, in one line with its name and the reason; or the modality has
        no row in FORMATS.
    """
    return _format(modality).read(path, config)


def from_content(modality: str, content: Any, config: Any) -> np.ndarray:
    """As `read`, of content in memory instead of a file.

    image: a PIL image of any mode, or an array: uint8 [H, W], [H, W, 3 or 4] or uint16 [H, W].
    video: (frames, fps); frames are an array [T, H, W, 3], uint8 or floats in [0, 1], or images in a list.
    audio: (samples, rate in Hz); samples are [n] or [n, channels], floats in [-1, 1] or 8-, 16- or 32-bit integers.
    depth, thermal: an array [H, W], floats (kept) or uint8 or uint16 (scaled to 0 .. 1), or an image (its luma).
    imu: an array [T, 6].

    Raises:
      UserError: the content is something else, or exceeds the limits for files; or the modality has no row in FORMATS.
    """
    return _format(modality).from_content(content, config)


def preprocess(modality: str, content: np.ndarray, config: Any) -> np.ndarray:
    """From `read` or `from_content` to one input of the encoder: float32 of shape `config.input_shape(modality)`.

    Raises:
      UserError: an image or video is too narrow, an audio too short; or the modality has no row in FORMATS.
    """
    return _format(modality).preprocess(content, config)


def load(modality: str, source: Any, config: Any, out: np.ndarray | None = None) -> np.ndarray:
    """One input of the encoder from a path (a str or PathLike) or from content in memory: `read`, then `preprocess`.

    Args:
      out: an array of the result's shape and dtype to write it into.

    Raises:
      UserError: as `read`, `from_content` and `preprocess`; the line names the file.
    """
    row, is_file = _format(modality), isinstance(source, Path)
    content = (row.decode or row.read)(source, config) if is_file else row.from_content(source, config)
    try:
        if out is None:
            return row.preprocess(content, config)
        if row.fill is None:
            out[...] = row.preprocess(content, config)
        else:
            row.fill(content, config, out)
        return out
    except UserError as error:
        raise UserError(f"{source}: {error}") if is_file else error from None


def write(modality: str, path: Path, content: Any) -> None:
    """Writes a PNG, an MP4 of a `Video` or a WAV of an `Audio`, atomically.

    Raises:
      UserError: the file can't be written, or the modality has no writer in FORMATS.
    """
    writer = _format(modality).write
    if writer is None:
        raise UserError(f"{path}: files of {modality!r} cannot be written: add a writer to media.FORMATS")
    writer(path, content)
