"""FID's Inception against torch: features, logits, and what is refused."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.features.inception import Inception, InceptionConfig
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights.feature_networks import load_inception
from nextgpt_jax.weights.tables.inception import INCEPTION
from tests.models.features import originals
from tests.parity import compiled, exported, load_into, relative_error


def make(divisor):
    return lambda: Inception(InceptionConfig(divisor=divisor), rngs=make_rngs(0))


def compare(divisor, pixels):
    """Errors of features and logits. What is exported loads strictly."""
    original = originals.randomised(originals.Inception(divisor))
    model = load_into(make(divisor), INCEPTION, original)
    counts = {key: value for key, value in original.state_dict().items() if key.endswith("num_batches_tracked")}
    original.load_state_dict(exported(model, INCEPTION) | counts, strict=True)
    images = np.random.default_rng(0).uniform(-1, 1, (2, pixels, pixels, 3)).astype(np.float32)
    with torch.no_grad():
        features = original(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        logits = features @ original.fc.weight.T
    found = compiled(model)(images)
    return relative_error(found, features), relative_error(model.logits(found), logits)


@pytest.mark.parametrize("pixels", [80])
def test_features_and_logits(pixels):
    assert max(compare(16, pixels)) < 1e-4


@pytest.mark.slow
def test_full_size():
    assert max(compare(1, 299)) < 1e-4


def test_files(tmp_path):
    original = originals.randomised(originals.Inception(16))
    tensors = original.state_dict()
    torch.save(tensors, tmp_path / "inception.pth", _use_new_zipfile_serialization=False)  # as it is published
    model = load_inception(tmp_path / "inception.pth")
    assert jnp.array_equal(model.fc.kernel[...], tensors["fc.weight"].numpy().T)
    assert model.config == dataclasses.replace(InceptionConfig(), divisor=16)

    with pytest.raises(UserError, match=r"needs FID's InceptionV3.*pt_inception-2015.*--config.eval.inception"):
        load_inception("")
    with pytest.raises(UserError, match=r"--config.eval.inception: .*none.pth does not exist. Needed: .*download http"):
        load_inception(tmp_path / "none.pth")

    def refused(tensors, message):
        torch.save(tensors, tmp_path / "other.pth")
        with pytest.raises(UserError, match=message) as error:
            load_inception(tmp_path / "other.pth")
        assert "\n" not in str(error.value)

    refused(tensors | {"fc.weight": torch.zeros(1000, 2048)}, "torchvision's Inception, not the one of FID")
    tensors["extra"] = torch.zeros(1)
    tensors["Mixed_6a.branch3x3.bn.bias"] = torch.zeros(5)
    del tensors["fc.bias"]
    refused(tensors, r"bn.bias has shape \[5\], .*; missing fc.bias \[1008\]; unexpected extra")
