"""MCD: the mel-cepstral distance of speech (Kubichek 1993), after dynamic time warping."""

import functools
import math
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from nextgpt_jax.evaluation.metrics.outputs import mean, missing, of_made, reference
from nextgpt_jax.evaluation.types import Outcome
from nextgpt_jax.media.audio import read_audio

SAMPLE_RATE = 16_000  # Hz
_FRAME, _HOP = 512, 128  # samples: 32 and 8 ms
_BANDS, _FIRST, _END = 20, 1, 16  # mel bands; the coefficients that are compared
_MAX_SECONDS = 60.0  # of a sound: the alignment takes a byte for each pair of frames


class MCD:
    """The distance of the cepstra of what was made and of the reference, mean over the aligned frames.

    As compare_audio_files of mel-cepstral-distance 0.0.4 with its defaults at 16 kHz, but for the alignment, which is
    the best one (dtw_radius=None there). Other packages (pymcd) use the WORLD vocoder's envelopes and a factor of
    10 sqrt(2) / ln 10: their figures can't be compared with these.
    """

    name = "mcd"
    higher_is_better = False
    protocol = (
        f"{_END - _FIRST} mel cepstra of {_BANDS} bands, frames of 32 ms every 8 ms at 16 kHz, exact DTW over the "
        "bands, as mel-cepstral-distance"
    )

    def measure(self, outcomes: Sequence[Outcome]) -> Float[np.ndarray, "n 1"]:
        """The distance of each answer; NaN of one without a sound. Raises UserError if a file cannot be read."""

        def distances(some: list[Outcome], files: list[os.PathLike]) -> Float[np.ndarray, "n 1"]:
            pairs = [(file, reference(outcome.sample, "audio")) for outcome, file in zip(some, files)]
            return np.array([[mel_cepstral_distance(*map(_read, pair))] for pair in pairs], np.float32)

        return of_made(outcomes, "audio", 1, distances)

    def aggregate(self, numbers: Float[np.ndarray, "n 1"]) -> dict[str, float]:
        """The mean."""
        return {"MCD": mean(numbers[:, 0])} | missing(numbers)

    def scores(self, numbers: Float[np.ndarray, "n 1"]) -> Float[np.ndarray, " n"]:
        """The distances."""
        return np.asarray(numbers[:, 0])


def _read(path: str | os.PathLike) -> Float[np.ndarray, " n"]:
    return read_audio(path, sample_rate=SAMPLE_RATE, max_seconds=_MAX_SECONDS)


def mel_cepstral_distance(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> float:
    """The distance of two sounds at SAMPLE_RATE, whose loudness is made equal; of at least one frame, with silence."""
    bands = [_log_mel(sound) for sound in (a, b)]
    path = align(*bands)
    aligned = [_cepstra(x)[path[:, i]] for i, x in enumerate(bands)]
    return float(np.linalg.norm(aligned[0] - aligned[1], axis=1).mean())


def _log_mel(sound: Float[np.ndarray, " n"]) -> Float[np.ndarray, "t {_BANDS}"]:
    """Decadic logarithms of the energy of bands."""
    sound = np.pad(sound.astype(np.float64), (0, max(0, _FRAME + 1 - len(sound))))
    sound = sound / (np.abs(sound).max() or 1.0)
    starts = np.arange(0, len(sound) - _FRAME, _HOP)
    spectra = np.abs(np.fft.rfft(sound[starts[:, None] + np.arange(_FRAME)] * np.hanning(_FRAME))) ** 2
    return np.log10(spectra @ _filters().T + np.finfo(np.float64).eps)


@functools.cache
def _filters() -> Float[np.ndarray, "{_BANDS} bins"]:
    """Triangles whose corners are whole bins, evenly spaced in mel."""
    highest = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, highest, _BANDS + 2) / 2595) - 1)
    corners = np.floor((_FRAME + 1) * hertz / SAMPLE_RATE).astype(int)
    filters = np.zeros((_BANDS, _FRAME // 2 + 1))
    for row, (left, center, right) in zip(filters, zip(corners, corners[1:], corners[2:])):
        row[left:center] = (np.arange(left, center) - left) / (center - left)
        row[center:right] = (right - np.arange(center, right)) / (right - center)
    return filters


def _cepstra(bands: Float[np.ndarray, "t {_BANDS}"]) -> Float[np.ndarray, "t c"]:
    index = np.arange(1, _BANDS + 1)
    cosines = np.cos(index[:, None] * (index - 0.5) * np.pi / _BANDS)[_FIRST:_END]
    return bands @ cosines.T


def align(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Int[np.ndarray, "p 2"]:
    """The pairs of rows of the path with the least sum of Euclidean distances, from the first rows to the last ones."""
    n, m = len(x), len(y)
    steps: UInt8[np.ndarray, "n m"] = np.zeros((n, m), np.uint8)  # index into _STEPS of the step to a pair
    before, last = np.full(n + 1, np.inf), np.full(n + 1, np.inf)  # costs on two diagonals, by row + 1
    for diagonal in range(n + m - 1):
        rows = np.arange(max(0, diagonal - m + 1), min(n, diagonal + 1))
        cost = np.linalg.norm(x[rows] - y[diagonal - rows], axis=1)
        choices = np.stack([last[rows], last[rows + 1], before[rows]])
        chosen = choices.argmin(0)
        current = np.full(n + 1, np.inf)
        current[rows + 1] = cost + (choices[chosen, np.arange(len(rows))] if diagonal else 0.0)
        steps[rows, diagonal - rows] = chosen
        before, last = last, current
    path = [(n - 1, m - 1)]
    while path[-1] != (0, 0):
        row, column = path[-1]
        step = _STEPS[steps[row, column]]
        path.append((row - step[0], column - step[1]))
    return np.array(path[::-1])


_STEPS = ((1, 0), (0, 1), (1, 1))  # in rows of x and y; the earlier one of equal ones, as in fastdtw
