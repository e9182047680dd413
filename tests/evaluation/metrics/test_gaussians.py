"""Moments of features and their Fréchet distance against numpy, scipy and torchmetrics."""

import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import torch

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.metrics.gaussians import FrechetDistance, Gaussian, blocks

fid = pytest.importorskip("torchmetrics.image.fid")


def features(n, d, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) @ rng.uniform(0, 1, (d, d)) + shift).astype(np.float32)


def test_moments():
    x = features(1300, 12, 0, shift=50.0)
    for size in (1, 7, 400, 5000):
        found = Gaussian.of(x[start : start + size] for start in range(0, len(x), size))
        np.testing.assert_allclose(found.mean, x.astype(np.float64).mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9)


@pytest.mark.parametrize("n,m", [(500, 300), (500, 20), (20, 30)])  # covariances of rank 40, and less
def test_distance(n, m):
    a, b = (Gaussian.of([features(count, 40, seed, seed)]) for seed, count in enumerate((n, m)))
    found = FrechetDistance(a)(b)
    assert found == pytest.approx(FrechetDistance(b)(a), rel=1e-6)
    theirs = fid._compute_fid(*(torch.from_numpy(part) for gaussian in (a, b) for part in gaussian))
    assert found == pytest.approx(float(theirs), rel=1e-4)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real  # as pytorch-fid, clean-fid and audioldm_eval
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert found == pytest.approx(expected, rel=1e-4)
    assert FrechetDistance(a)(a) == pytest.approx(0, abs=1e-5 * np.trace(a.covariance))


def test_memory_is_flat(tmp_path):
    """Of 30,000 features in a file as much as of 3,000."""
    peaks = []
    for n in (3_000, 30_000):
        file = np.lib.format.open_memmap(tmp_path / f"{n}.npy", "w+", np.float32, (n, 96))
        file[:] = np.random.default_rng(0).standard_normal(file.shape, np.float32)
        numbers = np.load(tmp_path / f"{n}.npy", mmap_mode="r")
        tracemalloc.start()
        Gaussian.of(blocks(numbers, 96))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0] < 2 * 2**20


def test_blocks():
    numbers = np.arange(12.0).reshape(3, 4)
    numbers[1] = np.nan
    (found,) = blocks(numbers, 2)
    assert found.tolist() == [[0, 1], [2, 3], [8, 9], [10, 11]]


def test_files(tmp_path):
    saved = Gaussian.of([features(30, 3, 0)])
    saved.save(tmp_path / "a.npz")
    read = Gaussian.read(tmp_path / "a.npz")
    assert all(map(np.array_equal, saved, read))
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    np.savez(tmp_path / "lacks.npz", mu=np.zeros(3))
    for name, message in (
        ("none", "no such statistics"),
        ("text", "is no file of statistics"),
        ("lacks", "is no file of statistics, mu and sigma: .*sigma"),
        ("other", r"mu is \[3\] and sigma \[2, 2\]"),
    ):
        with pytest.raises(UserError, match=message):
            Gaussian.read(tmp_path / f"{name}.npz")


def test_errors():
    with pytest.raises(UserError, match="at least 2 samples, and there are 1"):
        Gaussian.of([np.zeros((1, 3)), np.zeros((0, 3))])
    with pytest.raises(UserError, match="not finite"):
        Gaussian.of([np.full((2, 3), np.inf)])
    a, b = (Gaussian.of([features(9, d, 0)]) for d in (2, 3))
    with pytest.raises(UserError, match="features of 3 and 2 numbers can't be compared"):
        FrechetDistance(a)(b)
