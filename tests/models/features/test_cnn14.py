"""PANNs' Cnn14 against torch: sounds of several lengths, both rates, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.features.cnn14 import Cnn14, Cnn14Config, pad
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights.feature_networks import load_cnn14
from nextgpt_jax.weights.tables.cnn14 import CNN14
from tests.models.features import originals
from tests.parity import compiled, exported, load_into, relative_error

FRONT_ENDS = {
    16_000: (Cnn14Config(), {}),
    32_000: (Cnn14Config.of_32_khz(), dict(sample_rate=32_000, n_fft=1024, hop=320, fmax=14_000)),
}


def pair(rate, divisor):
    config, settings = FRONT_ENDS[rate]
    config = dataclasses.replace(config, widths=tuple(width // divisor for width in config.widths))
    original = originals.randomised(originals.Cnn14(**settings, divisor=divisor))
    return original, load_into(lambda: Cnn14(config, rngs=make_rngs(0)), CNN14, original)


def compare(original, model, lengths):
    """The largest error of the embeddings and logits of sounds of several lengths, computed together."""
    rng, config = np.random.default_rng(0), model.config
    sounds = [(0.3 * rng.standard_normal(n)).astype(np.float32) for n in lengths]
    padded = np.stack([pad(sound, config, max(lengths)) for sound in sounds])
    found = compiled(model)(padded, np.array([config.frames(n) for n in lengths]))
    errors = []
    for i, sound in enumerate(sounds):
        with torch.no_grad():
            expected = original(torch.from_numpy(sound)[None])
        for ours, name in zip(found, ("2048", "logits")):
            errors.append(relative_error(ours[i], expected[name][0]))
    return max(errors)


@pytest.mark.parametrize("rate", FRONT_ENDS)
def test_embeddings_and_logits(rate):
    hop = FRONT_ENDS[rate][0].hop
    assert compare(*pair(rate, 16), [80 * hop + 17, 33 * hop, 63 * hop - 1]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("rate", FRONT_ENDS)
def test_full_size(rate):
    assert compare(*pair(rate, 1), [10 * rate, 7 * rate + 123]) < 1e-4


def test_pad():
    config = Cnn14Config()
    with pytest.raises(ValueError, match="a sound of 100 samples: between 4960 and 16000 are needed"):
        pad(np.zeros(100, np.float32), config, 16_000)
    with pytest.raises(ValueError, match="a sound of 20000 samples"):
        pad(np.zeros(20_000, np.float32), config, 16_000)


def test_files(tmp_path):
    original, model = pair(32_000, 16)
    tensors = exported(model, CNN14)
    counts = {key: value for key, value in original.state_dict().items() if key.endswith("num_batches_tracked")}
    original.load_state_dict(tensors | counts, strict=True)
    torch.save({"iteration": 3, "model": original.state_dict()}, tmp_path / "cnn14.pth")
    assert load_cnn14(tmp_path / "cnn14.pth").config == model.config

    with pytest.raises(UserError, match=r"needs PANNs' Cnn14.*zenodo.*--config.eval.cnn14"):
        load_cnn14("")
    front = "spectrogram_extractor.stft.conv_real.weight"
    torch.save({"model": tensors | {front: torch.zeros(129, 1, 256)}}, tmp_path / "8k.pth")
    with pytest.raises(UserError, match="has frames of 256 samples. Needed: PANNs' Cnn14 for 16 kHz"):
        load_cnn14(tmp_path / "8k.pth")
    del tensors["bn0.running_var"]
    torch.save({"model": tensors}, tmp_path / "lacks.pth")
    with pytest.raises(UserError, match=r"does not fit the model: missing bn0.running_var \[64\]"):
        load_cnn14(tmp_path / "lacks.pth")
