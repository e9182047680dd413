"""FD, IS and KL of sound files against torch: the formulas of audioldm_eval 0.0.3."""

import numpy as np
import pytest
import scipy.linalg
import torch

from nextgpt_jax import media
from nextgpt_jax.evaluation.metrics.sound import SoundQuality
from nextgpt_jax.evaluation.types import Outcome, Sample
from tests.feature_networks import write_cnn14

SECONDS = (1.0, 2.3, 5.2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of sounds of several lengths; the network."""
    folder, rng = tmp_path_factory.mktemp("sound"), np.random.default_rng(0)
    for kind in ("made", "real"):
        for i, seconds in enumerate(SECONDS):
            samples = rng.uniform(-0.5, 0.5, round(16_000 * seconds)).astype(np.float32) * rng.uniform()
            media.write("audio", folder / f"{kind}{i}.wav", media.Audio(samples, 16_000))
    return folder, write_cnn14(folder / "cnn14.pth")


def by_torch(network, path):
    """As audioldm_eval reads a file: mean 0, at least 32,000 samples."""
    sound = media.read_audio(path)
    sound = torch.from_numpy(np.pad(sound - sound.mean(), (0, max(0, 32_000 - len(sound)))))
    with torch.no_grad():
        return network(sound[None])


def test_figures(files):
    folder, network = files
    samples = [Sample(str(i), "", references={"audio": folder / f"real{i}.wav"}) for i in range(len(SECONDS))]
    some = [Outcome(sample, media={"audio": [folder / f"made{sample.id}.wav"]}) for sample in samples]
    metric = SoundQuality(folder / "cnn14.pth", samples)
    numbers = metric.measure([*some, Outcome(samples[0])])
    figures = metric.aggregate(numbers)

    made, real = ([by_torch(network, folder / f"{kind}{i}.wav") for i in range(3)] for kind in ("made", "real"))
    a, b = (torch.cat([x["2048"] for x in features]).numpy().astype(float) for features in (made, real))
    root = scipy.linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    distance = ((a.mean(0) - b.mean(0)) ** 2).sum()
    distance += np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root)
    made, real = (torch.cat([x["logits"] for x in features]) for features in (made, real))
    kl = torch.nn.functional.kl_div
    softmax = kl((made.softmax(1) + 1e-6).log(), real.softmax(1), reduction="sum") / 3
    sigmoid = kl((made.sigmoid() + 1e-6).log(), real.sigmoid(), reduction="sum") / 3

    np.testing.assert_allclose(numbers[:3, :128], a, rtol=1e-4, atol=1e-4 * a.max())
    assert figures.pop("IS") == pytest.approx(1.0) and figures.pop("IS deviation") == pytest.approx(0.0)
    expected = {"FD": distance, "KL": float(softmax), "KL sigmoid": float(sigmoid), "missing": 1.0}
    assert figures == {name: pytest.approx(value, rel=1e-4) for name, value in expected.items()}
    assert next(iter(metric.aggregate(numbers))) == "FD"
    np.testing.assert_array_equal(metric.scores(numbers)[:3], numbers[:3, -2])
    assert "16,000 Hz" in metric.protocol
