"""Sound to the log-mel spectrograms that vocoders read."""

import functools

import numpy as np
from jaxtyping import Float

_LINEAR = 200 / 3  # Hz per mel of Slaney's scale, up to _BREAK; above, mels are steps of a constant ratio
_BREAK = 1000.0
_LOG_STEP = np.log(6.4) / 27


def log_mel(
    samples: Float[np.ndarray, " n"],
    frames: int,
    *,
    sample_rate: int,
    hop: int,
    num_mel_bins: int,
    n_fft: int = 1024,
    center: bool = True,
    fmin: float = 0.0,
    fmax: float | None = None,
    mel_scale: str = "slaney",
    floor: float = 1e-5,
    gain: float = 1.0,
    peak: float = 0.5,
) -> Float[np.ndarray, "{frames} {num_mel_bins}"]:
    """Natural logarithms of mel bands of magnitudes, float32, of `frames` frames that are `hop` samples apart.

    With the defaults as AudioLDM computes them from a file: the mean is subtracted, the loudest sample scaled to
    `peak`, and silence appended up to, or what is longer cut to, the last frame.

    Args:
      n_fft: samples of a frame, under a periodic Hann window.
      center: frame i is around sample i * hop, as in torch.stft; otherwise its middle is half a hop later. The sound is
        mirrored at its ends.
      fmin, fmax: the ends of the bands in Hz; `fmax` None is half the rate.
      mel_scale: "slaney", triangles over hertz of area 1 (librosa's default), or "htk", triangles over mel of height 1.
      floor: smallest magnitude of a band.
      gain: of magnitudes.
    """
    wave = np.zeros(frames * hop)
    given = np.asarray(samples, np.float64)
    given = given - given.mean()
    given *= peak / (np.abs(given).max() + 1e-8)
    wave[: len(given)] = given[: len(wave)]
    edge = n_fft // 2 if center else max(0, (n_fft - hop) // 2)
    padded = np.pad(wave, (edge, edge + 1), mode="reflect")
    starts = hop * np.arange(frames)[:, None] + np.arange(n_fft)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    magnitudes = np.abs(np.fft.rfft(padded[starts] * window)) * gain
    bands = magnitudes @ mel_filters(sample_rate, n_fft, num_mel_bins, fmin, fmax, mel_scale)
    return np.log(np.maximum(bands, floor)).astype(np.float32)


@functools.cache
def mel_filters(
    sample_rate: int, n_fft: int, num_mel_bins: int, fmin: float, fmax: float | None, mel_scale: str
) -> Float[np.ndarray, "bins {num_mel_bins}"]:
    """Triangular bands of the magnitudes of `n_fft` samples; arguments as `log_mel`."""
    to_mel, to_hertz = _SCALES[mel_scale]
    ends = to_mel(np.array([fmin, sample_rate / 2 if fmax is None else fmax]))
    edges = np.linspace(*ends, num_mel_bins + 2)
    at = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    if mel_scale == "slaney":
        edges = to_hertz(edges)
        scale = 2.0 / (edges[2:] - edges[:-2])
    else:
        at, scale = to_mel(at), 1.0
    rise = (at - edges[:-2]) / np.diff(edges)[:-1]
    fall = (edges[2:] - at) / np.diff(edges)[1:]
    return np.maximum(np.minimum(rise, fall), 0.0) * scale


def _slaney(hertz: np.ndarray) -> np.ndarray:
    above = np.log(np.maximum(hertz, _BREAK) / _BREAK) / _LOG_STEP
    return np.where(hertz < _BREAK, hertz / _LINEAR, _BREAK / _LINEAR + above)


def _from_slaney(mel: np.ndarray) -> np.ndarray:
    above = _BREAK * np.exp(_LOG_STEP * (mel - _BREAK / _LINEAR))
    return np.where(mel < _BREAK / _LINEAR, mel * _LINEAR, above)


def _htk(hertz: np.ndarray) -> np.ndarray:
    return 2595.0 * np.log10(1.0 + hertz / 700.0)


def _from_htk(mel: np.ndarray) -> np.ndarray:
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


_SCALES = {"slaney": (_slaney, _from_slaney), "htk": (_htk, _from_htk)}
