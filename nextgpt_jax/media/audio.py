"""Audio between files and arrays, and the preprocessing of the encoder."""

import functools
import io
import itertools
import math
import os
import pathlib
from collections.abc import Iterator
from fractions import Fraction
from typing import IO, NamedTuple

import av
import numpy as np
import scipy.signal
import soundfile
from jaxtyping import Float, Int16

from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_write, reading
from nextgpt_jax.media.streams import clip_starts, open_container

MAX_AUDIO_SECONDS = 3600
ENCODER_RATE = 16_000  # Hz
_FRAME = 400  # samples
_RATES = range(1_000, 384_001)  # Hz, of files
_BLOCK = 1 << 20  # samples of all channels that are read at once
_MEAN, _STD = -4.268, 9.138  # of log-mel bands in AudioSet, as ImageBind has them
_LOBES, _CUTOFF, _BETA = 32, 0.92, 7.857  # of the resampling filter: half its length, its edge, 80 dB


class Audio(NamedTuple):
    samples: Float[np.ndarray, " n"]  # in [-1, 1]
    sample_rate: int  # Hz


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
        samples = _resample_blocks(_read_samples(path, file, max_seconds), sample_rate)
        if not len(samples):
            raise ValueError("it has no samples")
        return samples


_Blocks = Iterator[tuple[np.ndarray, int]]  # samples of one channel, and their rate: what is read is not held


def _read_samples(path: pathlib.Path, file: IO[bytes], max_seconds: float) -> _Blocks:
    head = file.read(3)
    file.seek(0)
    if head == b"ID3" or head[:2] >= b"\xff\xe0":  # MP3, about which libsndfile prints warnings
        yield from _read_container(path, file, max_seconds)
        return
    try:
        sound = soundfile.SoundFile(file)
    except soundfile.LibsndfileError:
        yield from _read_container(path, file, max_seconds)
        return
    with sound:
        yield from _read_sound(path, sound, max_seconds)


def _read_sound(path: pathlib.Path, sound: soundfile.SoundFile, max_seconds: float) -> _Blocks:
    count, rate, channels = sound.frames, sound.samplerate, sound.channels
    if known := 0 <= count < 2**60:  # libsndfile's largest number says that it cannot tell
        _check_length(path, count, rate, max_seconds)
    seen = 0
    while len(block := sound.read(_BLOCK // channels, dtype="float32", always_2d=True)):
        seen += len(block)
        _check_length(path, seen, rate, max_seconds)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is reported later, once
            mean = block.mean(-1)
        yield mean, rate
    if known and seen < count:
        raise ValueError("it is cut off or damaged")


def _read_container(path: pathlib.Path, file: IO[bytes], max_seconds: float) -> _Blocks:
    with open_container(file) as container:
        if not container.streams.audio:
            raise ValueError("it has no sound")
        stream = container.streams.audio[0]
        rate, seen = stream.rate, 0
        _check_length(path, float((stream.duration or 0) * (stream.time_base or 0) * rate), rate, max_seconds)
        resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=rate)
        for frame in itertools.chain(container.decode(stream), [None]):
            for part in resampler.resample(frame):
                block = part.to_ndarray()  # [channels, n]
                seen += block.shape[1]
                _check_length(path, seen, rate, max_seconds)
                yield block.mean(0), rate


def _check_length(path: pathlib.Path, count: float, rate: int, max_seconds: float) -> None:
    if rate not in _RATES:
        raise ValueError(f"a rate of {rate} Hz is not supported")
    if count > max_seconds * rate:
        raise UserError(f"{path} is too long: {count / rate:.1f} seconds, the limit is {max_seconds:g}")


def _resample_blocks(blocks: _Blocks, target: int) -> np.ndarray:
    """`resample` of the blocks laid end to end, of which little more than the result is held.

    Raises:
      ValueError: samples are not finite.
    """
    made, held, size, first = [], [], 0, 0  # first: samples at the target rate, of what is held, that are made already
    for block, rate in blocks:
        if not np.isfinite(block).all():
            raise ValueError("it has samples that are not finite")
        held.append(block)
        size += len(block)
        up, down = _ratio(rate, target)
        margin = -(-_LOBES * max(up, down) // (up * down)) * down  # samples that one depends on, either side of it
        if size < 2 * margin + down + _BLOCK:
            continue
        samples = np.concatenate(held)
        ready = (size - margin) // down * down
        made.append(resample(samples[: ready + margin], rate, target)[first : ready * up // down])
        held, first = [samples[ready - margin :]], margin * up // down
        size = len(held[0])
    if held:
        made.append(resample(np.concatenate(held), rate, target)[first:])
    return np.concatenate(made) if made else np.zeros(0, np.float32)


def resample(samples: Float[np.ndarray, " n"], rate: int, target: int) -> Float[np.ndarray, " m"]:
    """The samples at another rate, float32: ceil(n * target / rate) of them.

    A polyphase filter with a Kaiser window: frequencies that the lower rate cannot hold are attenuated by 80 dB, those
    below 0.84 of its half are kept to 0.1 %.
    """
    samples = np.asarray(samples, np.float32)
    if rate == target:
        return samples
    up, down = _ratio(rate, target)
    return scipy.signal.resample_poly(samples, up, down, window=_taps(max(up, down)))


def _ratio(rate: int, target: int) -> tuple[int, int]:
    divisor = math.gcd(rate, target)
    return target // divisor, rate // divisor


@functools.lru_cache(2)
def _taps(most: int) -> Float[np.ndarray, " taps"]:
    """The filter, float32: with more precise ones, all that it touches would be held in float64."""
    return scipy.signal.firwin(2 * _LOBES * most + 1, _CUTOFF / most, window=("kaiser", _BETA)).astype(np.float32)


def write_wav(
    path: str | os.PathLike, samples: Float[np.ndarray, " n"] | Int16[np.ndarray, " n"], sample_rate: int
) -> None:
    """Writes 16-bit PCM that is either whole or not there; floats are in [-1, 1], values outside are clipped.

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


def fbank(
    waveform: Float[np.ndarray, " n"],
    *,
    sample_rate: int = ENCODER_RATE,
    num_mel_bins: int = 128,
    frame_length_ms: float = 25.0,
    frame_shift_ms: float = 10.0,
) -> Float[np.ndarray, "frames mel"]:
    """Log-mel filter bank energies, float32, as Kaldi computes them.

    Numerics of torchaudio.compliance.kaldi.fbank with htk_compat, a Hann window, no dither and no energy: whole frames
    only, each without its mean, pre-emphasised by 0.97, power spectrum of the next power of two, triangles that are
    even in mel from 20 Hz to half the rate. Samples in [-1, 1] are not scaled. No frames if there is less than one.
    """
    length, shift = int(sample_rate * frame_length_ms / 1000), int(sample_rate * frame_shift_ms / 1000)
    if len(waveform) < length:
        return np.zeros((0, num_mel_bins), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(waveform, np.float64), length)[::shift]
    frames = frames - frames.mean(1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    size = 1 << (length - 1).bit_length()
    spectrum = np.fft.rfft((frames - 0.97 * before) * np.hanning(length), size)
    power = np.square(np.abs(spectrum))[:, : size // 2]  # Kaldi leaves out the last bin
    energies = power @ _triangles(sample_rate, size, num_mel_bins).T
    return np.log(np.maximum(energies, np.finfo(np.float32).eps)).astype(np.float32)


@functools.cache
def _triangles(sample_rate: int, size: int, num_mel_bins: int) -> Float[np.ndarray, "mel bins"]:
    def mel(hertz):
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    edges = np.linspace(mel(20.0), mel(sample_rate / 2), num_mel_bins + 2)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    at = mel(np.arange(size // 2) * sample_rate / size)
    return np.maximum(0.0, np.minimum((at - left) / (centre - left), (right - at) / (right - centre)))


def preprocess_audio(
    samples: Float[np.ndarray, " n"],
    *,
    clips: int = 3,
    seconds: float = 2.0,
    num_mel_bins: int = 128,
    target_length: int = 204,
    mean: float = _MEAN,
    std: float = _STD,
) -> Float[np.ndarray, "{clips} {num_mel_bins} {target_length}"]:
    """Spectrograms of clips of `seconds` spread evenly over 16 kHz audio: float32.

    A clip has its mean taken away; its filter bank is filled up with zeros on the right, or cut, to `target_length`
    frames; then `mean` and `std` normalise it, the filling too. Of audio that is shorter than a clip each clip is the
    whole. Matches load_and_transform_audio_data of ImageBind.

    Raises:
      UserError: the audio is shorter than one frame of the filter bank.
    """
    check_audio(samples)
    spectrograms = []
    for start in clip_starts(len(samples) / ENCODER_RATE, seconds, clips):
        begin, end = int(start * ENCODER_RATE), int((start + Fraction(seconds)) * ENCODER_RATE)
        clip = samples[begin:end].astype(np.float64)
        bands = fbank(clip - clip.mean(), num_mel_bins=num_mel_bins)[:target_length].T
        spectrograms.append(np.pad(bands, ((0, 0), (0, target_length - bands.shape[1]))))
    return ((np.stack(spectrograms) - mean) / std).astype(np.float32)


def check_audio(samples: Float[np.ndarray, " n"]) -> None:
    """Raises UserError if 16 kHz audio is shorter than one frame of the filter bank, 25 ms."""
    if len(samples) < _FRAME:
        raise UserError(f"audio of {1000 * len(samples) / ENCODER_RATE:g} ms is too short: at least 25 ms")
