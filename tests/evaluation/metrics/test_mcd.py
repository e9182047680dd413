"""MCD against mel-cepstral-distance."""

import numpy as np
import pytest
import soundfile

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.metrics.mcd import MCD, align, mel_cepstral_distance
from nextgpt_jax.evaluation.types import Outcome, Sample


def glide(seconds, hertz, seed):
    at = np.arange(int(16_000 * seconds)) / 16_000
    noise = np.random.default_rng(seed).standard_normal(len(at))
    return (0.4 * np.sin(2 * np.pi * hertz * at * (1 + 0.2 * np.sin(9 * at))) + 0.02 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mcd")
    for name, sound in {"made": glide(0.4, 300, 0), "real": glide(0.6, 250, 1)}.items():
        soundfile.write(folder / f"{name}.wav", sound, 16_000, subtype="FLOAT")
    return folder


def test_as_the_package(files):
    package = pytest.importorskip("mel_cepstral_distance")
    expected, _ = package.compare_audio_files(files / "made.wav", files / "real.wav", dtw_radius=None)
    sample = Sample("0", "", references={"audio": files / "real.wav"})
    numbers = MCD().measure([Outcome(sample, media={"audio": [files / "made.wav"]}), Outcome(sample)])
    assert MCD().aggregate(numbers) == {"MCD": pytest.approx(expected, rel=1e-6), "missing": 1.0}
    assert MCD().scores(numbers)[0] == numbers[0, 0]


def test_edges(files):
    sound = glide(0.3, 300, 0)
    assert mel_cepstral_distance(sound, sound / 2) == pytest.approx(0, abs=1e-5)
    assert np.isfinite(mel_cepstral_distance(sound, np.zeros(5, np.float32)))
    soundfile.write(files / "long.wav", np.zeros(61 * 8000), 8000)
    outcome = Outcome(Sample("0", "", references={"audio": files / "long.wav"}), media={"audio": [files / "made.wav"]})
    with pytest.raises(UserError, match="too long: .* the limit is 60"):
        MCD().measure([outcome])


def test_alignment():
    """The sum of distances along the path is the least, by the recursion over all pairs."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((7, 3)), rng.standard_normal((9, 3))
    costs = np.full((8, 10), np.inf)
    costs[0, 0] = 0
    for i in range(7):
        for j in range(9):
            before = min(costs[i, j], costs[i, j + 1], costs[i + 1, j])
            costs[i + 1, j + 1] = np.linalg.norm(x[i] - y[j]) + before
    path = align(x, y)
    assert path[0].tolist() == [0, 0] and path[-1].tolist() == [6, 8] and np.diff(path, axis=0).max() == 1
    assert np.linalg.norm(x[path[:, 0]] - y[path[:, 1]], axis=1).sum() == pytest.approx(costs[-1, -1])
