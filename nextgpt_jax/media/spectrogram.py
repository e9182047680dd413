"""Audio at the encoder's rate to log-mel spectrograms."""

import functools
from fractions import Fraction

import numpy as np
from jaxtyping import Float

from nextgpt_jax.errors import UserError
from nextgpt_jax.media.audio import ENCODER_RATE
from nextgpt_jax.media.streams import clip_starts

_FRAME = 400  # samples
_BANDS = 16  # mel bands of one product
_MEAN, _STD = -4.268, 9.138  # of log-mel bands in AudioSet, as in ImageBind


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
    only, each without its mean, pre-emphasized by 0.97, power spectrum of the next power of two, triangles at even
    distances in mel from 20 Hz to half the rate. Samples in [-1, 1] are not scaled. Audio shorter than a frame gives no
    frames. transformers.audio_utils.spectrogram gives the same values and takes three times as long.
    """
    length, shift = int(sample_rate * frame_length_ms / 1000), int(sample_rate * frame_shift_ms / 1000)
    if len(waveform) < length:
        return np.zeros((0, num_mel_bins), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(waveform, np.float64), length)[::shift]
    frames = frames - frames.mean(1, keepdims=True)
    first = frames[:, 0] - 0.97 * frames[:, 0]
    frames[:, 1:] -= 0.97 * frames[:, :-1]
    frames[:, 0] = first
    frames *= np.hanning(length)
    size = 1 << (length - 1).bit_length()
    spectrum = np.fft.rfft(frames, size)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    energies = np.empty((len(frames), num_mel_bins))
    for bands, bins, weights in _filters(sample_rate, size, num_mel_bins):
        energies[:, bands] = power[:, bins] @ weights
    return np.log(np.maximum(energies, np.finfo(np.float32).eps)).astype(np.float32)


@functools.cache
def _filters(
    sample_rate: int, size: int, num_mel_bins: int
) -> list[tuple[slice, slice, Float[np.ndarray, "bins mel"]]]:
    """The triangles of some bands at a time, and the bins in which they are not 0.

    All at once are almost only zeros, and so large a product that BLAS starts threads, beside those of the data loader.
    """
    triangles, found = _triangles(sample_rate, size, num_mel_bins), []
    for start in range(0, num_mel_bins, _BANDS):
        group = triangles[start : start + _BANDS]
        used = np.flatnonzero(group.any(0))
        bins = slice(used[0], used[-1] + 1) if len(used) else slice(0, 0)
        found.append((slice(start, start + _BANDS), bins, group[:, bins].T.copy()))
    return found


def _triangles(sample_rate: int, size: int, num_mel_bins: int) -> Float[np.ndarray, "mel bins"]:
    def mel(hertz):
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    edges = np.linspace(mel(20.0), mel(sample_rate / 2), num_mel_bins + 2)
    left, center, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    at = mel(np.arange(size // 2) * sample_rate / size)  # Kaldi leaves out the last bin
    return np.maximum(0.0, np.minimum((at - left) / (center - left), (right - at) / (right - center)))


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
    """Spectrograms of clips of `seconds`, evenly spaced over 16 kHz audio: float32.

    The mean of each clip is subtracted; its filter bank is zero-padded on the right, or cut, to `target_length` frames;
    then all values, the padding too, are normalized by `mean` and `std`. Audio shorter than a clip is repeated as every
    clip. Matches load_and_transform_audio_data of ImageBind.

    Raises:
      UserError: the audio is shorter than one frame of the filter bank, 25 ms.
    """
    if len(samples) < _FRAME:
        raise UserError(f"audio of {1000 * len(samples) / ENCODER_RATE:g} ms is too short: at least 25 ms")
    spectrograms = []
    for start in clip_starts(len(samples) / ENCODER_RATE, seconds, clips):
        begin, end = int(start * ENCODER_RATE), int((start + Fraction(seconds)) * ENCODER_RATE)
        clip = samples[begin:end].astype(np.float64)
        bands = fbank(clip - clip.mean(), num_mel_bins=num_mel_bins)[:target_length].T
        spectrograms.append(np.pad(bands, ((0, 0), (0, target_length - bands.shape[1]))))
    return ((np.stack(spectrograms) - mean) / std).astype(np.float32)
