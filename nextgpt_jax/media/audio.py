"""Audio files and in-memory audio to one channel at the encoder's rate, and WAV files.

soundfile reads WAV, FLAC, OGG and similar files. PyAV reads MP3, AAC and the sound of videos; it could read all files,
but takes 8 times as long for WAV and returns the padding at the end of Vorbis.
"""

import io
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

import av
import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_write, reading
from nextgpt_jax.media.content import checked
from nextgpt_jax.media.streams import open_container

MAX_AUDIO_SECONDS = 3600
ENCODER_RATE = 16_000  # Hz
_RATES = range(1_000, 384_001)  # Hz, of inputs
_MAX_CHANNELS = 64
_BLOCK = 1 << 20  # samples of all channels that are read at once
_SCALES = {"uint8": (128, 2**7), "int16": (0, 2**15), "int32": (0, 2**31)}  # of integers: zero, full scale


class Audio(NamedTuple):
    samples: Float[np.ndarray, " n"]  # in [-1, 1]
    sample_rate: int  # Hz


class _Source(NamedTuple):
    """Audio before it is resampled, in blocks, so that memory does not grow with its rate."""

    rate: int  # Hz
    length: float  # samples, as far as it is known beforehand, else 0
    blocks: Iterable[Float[np.ndarray, "n channels"]]


def read_audio(
    path: str | os.PathLike, *, sample_rate: int = ENCODER_RATE, max_seconds: float = MAX_AUDIO_SECONDS
) -> Float[np.ndarray, " n"]:
    """Reads an audio file, or the sound of a video, as one channel at `sample_rate`: float32, the mean of its channels.

    Raises:
      UserError: the file is missing, has no sound, is damaged, empty, longer than max_seconds, or has samples that are
        not finite.
    """
    path = pathlib.Path(path)
    with reading(path, "audio file"), path.open("rb") as file:
        sound = _open_sound(file)
        if sound is None:
            with open_container(file) as container:
                return _resampled(_container_source(container), str(path), sample_rate, max_seconds)
        with sound:
            return _resampled(_sound_source(sound), str(path), sample_rate, max_seconds)


def _open_sound(file: IO[bytes]) -> soundfile.SoundFile | None:
    """None for files that are left to PyAV."""
    head = file.read(3)
    file.seek(0)
    if head == b"ID3" or head[:2] >= b"\xff\xe0":  # MP3, about which libsndfile prints warnings
        return None
    try:
        return soundfile.SoundFile(file)
    except soundfile.LibsndfileError:
        return None


def audio_from_content(
    content: Any, *, sample_rate: int = ENCODER_RATE, max_seconds: float = MAX_AUDIO_SECONDS
) -> Float[np.ndarray, " n"]:
    """As `read_audio`, of (samples, rate in Hz), such as an Audio: samples [n] or [n, channels].

    Floats are in [-1, 1]; integers of 8 (unsigned), 16 or 32 bits are scaled to it.

    Raises:
      UserError: the content is something else, empty, longer than max_seconds, or has samples that are not finite.
    """
    with checked("audio"):
        return _resampled(_array_source(content), "the audio", sample_rate, max_seconds)


def _sound_source(sound: soundfile.SoundFile) -> _Source:
    known = 0 <= sound.frames < 2**60  # libsndfile's largest number means unknown

    def blocks() -> Iterator[np.ndarray]:
        seen = 0
        while len(block := sound.read(_BLOCK // sound.channels, dtype="float32", always_2d=True)):
            seen += len(block)
            yield block
        if known and seen < sound.frames:
            raise ValueError("it is cut off or damaged")

    return _Source(sound.samplerate, sound.frames if known else 0, blocks())


def _container_source(container: av.container.InputContainer) -> _Source:
    if not container.streams.audio:
        raise ValueError("it has no sound")
    stream = container.streams.audio[0]

    def blocks() -> Iterator[np.ndarray]:
        resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)  # to floats
        for frame in itertools.chain(container.decode(stream), [None]):
            for part in resampler.resample(frame):
                yield part.to_ndarray().T

    return _Source(stream.rate, float((stream.duration or 0) * (stream.time_base or 0) * stream.rate), blocks())


def _array_source(content: Any) -> _Source:
    if not isinstance(content, tuple | list) or len(content) != 2 or np.ndim(content[1]):
        raise ValueError("give a pair of samples and their rate in Hz")
    samples, rate = np.asarray(content[0]), content[1]
    samples = samples[:, None] if samples.ndim == 1 else samples
    if samples.ndim != 2 or not 0 < samples.shape[1] <= _MAX_CHANNELS:
        raise ValueError(f"samples are [n] or [n, channels], got {list(samples.shape)}")
    if int(rate) != rate:
        raise ValueError(f"a rate of {rate} Hz is not supported")
    if samples.dtype.name not in _SCALES and not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"samples are floats, {', '.join(_SCALES)}, got {samples.dtype}")
    zero, scale = _SCALES.get(samples.dtype.name, (0, 1))
    size = _BLOCK // samples.shape[1]

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(samples), size):
            with np.errstate(over="ignore"):
                yield (samples[start : start + size].astype(np.float32) - zero) / np.float32(scale)

    return _Source(int(rate), len(samples), blocks())


def _resampled(source: _Source, name: str, target: int, max_seconds: float) -> Float[np.ndarray, " n"]:
    """The mean of the channels at the rate `target`, float32."""
    rate, seen, made = source.rate, 0, []
    if rate not in _RATES:
        raise ValueError(f"a rate of {rate} Hz is not supported")

    def check_length(count: float) -> None:
        if count > max_seconds * rate:
            raise UserError(f"{name} is too long: {count / rate:.1f} seconds, the limit is {max_seconds:g}")

    check_length(source.length)
    resampler = None if rate == target else soxr.ResampleStream(rate, target, 1, dtype="float32")
    for block in source.blocks:
        seen += len(block)
        check_length(seen)
        with np.errstate(over="ignore", invalid="ignore"):  # reported below, once
            mono = block.mean(-1)
        if not np.isfinite(mono).all():
            raise ValueError("it has samples that are not finite")
        made.append(mono if resampler is None else resampler.resample_chunk(mono))
    if not seen:
        raise ValueError("it has no samples")
    if resampler is not None:
        made.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    return np.concatenate(made)


def resample(samples: Float[np.ndarray, " n"], rate: int, target: int) -> Float[np.ndarray, " m"]:
    """The samples at another rate, float32: n * target / rate of them, rounded.

    soxr's high quality: frequencies above half the lower rate are attenuated by more than 100 dB, those below 0.9 of it
    are kept to 0.1 %.
    """
    samples = np.asarray(samples, np.float32)
    return samples if rate == target else soxr.resample(samples, rate, target)


def write_wav(path: str | os.PathLike, samples: np.ndarray, sample_rate: int) -> None:
    """Writes 16-bit PCM atomically. Samples [n] are int16, or floats in [-1, 1] (values outside are clipped).

    Raises:
      ValueError: another shape or dtype, no samples, values that are not finite, or a rate that is not positive.
      UserError: the file can't be written.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or not len(samples) or sample_rate < 1:
        raise ValueError(f"audio is [n] samples at a positive rate, got {list(samples.shape)} at {sample_rate}")
    if samples.dtype != np.int16:
        if not np.issubdtype(samples.dtype, np.floating):
            raise ValueError(f"audio is float or int16, got {samples.dtype}")
        if not np.isfinite(samples).all():
            raise ValueError("the audio has samples that are not finite")
        samples = np.round(np.clip(samples.astype(np.float64) * 32768.0, -32768, 32767)).astype(np.int16)
    content = io.BytesIO()
    soundfile.write(content, samples, sample_rate, format="WAV", subtype="PCM_16")
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())
