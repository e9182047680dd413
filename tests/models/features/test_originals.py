"""The torch definitions that the tests compare with, and the metrics, against the packages that they stand for."""

import types

import numpy as np
import pytest
import torch
from PIL import Image

from nextgpt_jax.evaluation.features.inception import RESIZES
from nextgpt_jax.evaluation.metrics.fid import FID
from nextgpt_jax.evaluation.metrics.gaussians import FrechetDistance, Gaussian
from nextgpt_jax.evaluation.types import Outcome, Sample
from tests.models.features import originals
from tests.originals import fid_weights, package
from tests.parity import relative_error

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inception():
    return originals.randomised(originals.Inception())


def test_inception(inception):
    with fid_weights(inception.state_dict()) as module:
        theirs = module.InceptionV3([3], resize_input=False, normalize_input=False).eval()
    images = torch.rand(2, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert relative_error(theirs(images)[0][:, :, 0, 0], inception(images)) < 1e-5


def test_fid_of_a_folder(inception, tmp_path):
    """pytorch-fid's command and this metric give the same figure."""
    package("torchvision")
    package("pytorch_fid.inception")
    score = package("pytorch_fid.fid_score")
    rng = np.random.default_rng(0)
    for kind in ("made", "real"):
        (tmp_path / kind).mkdir()
        for i in range(12):
            small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
            small.resize((256, 200)).save(tmp_path / kind / f"{i:02}.png")
    torch.save(inception.state_dict(), tmp_path / "inception.pth")
    with fid_weights(inception.state_dict()):
        folders = [str(tmp_path / kind) for kind in ("made", "real")]
        expected = score.calculate_fid_given_paths(folders, 6, "cpu", 2048, num_workers=0)
    metric = FID(tmp_path / "inception.pth", [], references=tmp_path / "real")
    files = sorted((tmp_path / "made").iterdir())
    numbers = metric.measure([Outcome(Sample(file.name, ""), media={"image": [file]}) for file in files])
    assert metric.aggregate(numbers)["FID"] == pytest.approx(expected, rel=1e-4)


def test_clean_fid():
    resizer = package("cleanfid.resize").build_resizer("clean")
    image = np.random.default_rng(0).integers(0, 256, (200, 310, 3), np.uint8)
    ours = RESIZES["clean-fid"](image)
    np.testing.assert_allclose(128 + 128 * ours, resizer(image), atol=1e-3)
    rng = np.random.default_rng(0)
    a, b = (Gaussian.of([rng.standard_normal((300, 64)) @ rng.uniform(0, 1, (64, 64))]) for _ in range(2))
    expected = package("cleanfid.fid").frechet_distance(*a, *b)
    assert FrechetDistance(a)(b) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("settings", [{}, dict(sample_rate=32_000, n_fft=1024, hop=320, fmax=14_000)])
def test_log_mel_of_cnn14(settings):
    """The front end is torchlibrosa's, which is in the published file."""
    stft = package("torchlibrosa.stft")
    network = originals.Cnn14(**settings, divisor=16)
    ours = types.SimpleNamespace(**{"sample_rate": 16_000, "n_fft": 512, "hop": 160, "fmax": 8_000} | settings)
    spectrogram = stft.Spectrogram(ours.n_fft, ours.hop, ours.n_fft)
    bands = stft.LogmelFilterBank(ours.sample_rate, ours.n_fft, 64, 50, ours.fmax, top_db=None)
    for a, b in (
        (spectrogram.stft.conv_real, network.spectrogram_extractor.stft.conv_real),
        (spectrogram.stft.conv_imag, network.spectrogram_extractor.stft.conv_imag),
    ):
        assert relative_error(b.weight.detach(), a.weight) < 1e-5
    assert relative_error(network.logmel_extractor.melW.detach(), bands.melW) < 1e-5
