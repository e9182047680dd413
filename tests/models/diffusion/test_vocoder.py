"""The vocoder against transformers' SpeechT5HifiGan."""

import copy

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.diffusion.vocoder import HifiGan, VocoderConfig
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.matching import ConversionError
from nextgpt_jax.weights.tables.audioldm import VOCODER
from tests.parity import checkpoint_of, compiled, exported, load_into, manifest, parameters, randomise, relative_error

SMALL = {  # upsamplers whose kernel is and is not a multiple of the rate, blocks of different depths
    "model_in_dim": 8,
    "upsample_initial_channel": 32,
    "upsample_rates": (5, 4, 2),
    "upsample_kernel_sizes": (16, 16, 3),
    "resblock_kernel_sizes": (3, 7),
    "resblock_dilation_sizes": ((1, 3, 5), (1, 2)),
    "normalize_before": False,
}


def make(config):
    return lambda: HifiGan(config, rngs=make_rngs(0))


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    original = transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig(**SMALL))
    with torch.no_grad():
        for parameter in original.parameters():  # large enough that every activation and the tanh matter
            parameter.copy_(torch.randn(parameter.shape) / max(parameter[0].numel(), 1) ** 0.5)
    return randomise(original)


@pytest.fixture(scope="module")
def model(original):
    return load_into(make(VocoderConfig.from_dict(original.config.to_dict())), VOCODER, original)


@pytest.mark.parametrize("frames", [1, 2, 7, 12])
def test_waveform(original, model, frames):
    mel = np.random.default_rng(0).standard_normal((2, frames, 8)).astype(np.float32)
    with torch.no_grad():
        expected = original(torch.from_numpy(mel))
    assert relative_error(compiled(model)(mel), expected) < 1e-4
    assert expected.shape == (2, model.config.num_samples(frames)) and expected.abs().max() > 0.2


def test_export_loads_strictly(original, model):
    tensors = exported(model, VOCODER)
    buffers = {key: original.state_dict()[key] for key in ("mean", "scale")}
    original.load_state_dict(tensors | buffers, strict=True)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("spelling", ["weight_g", "parametrizations"])
def test_weight_norm(original, model, spelling):
    norm = torch.nn.utils.weight_norm if spelling == "weight_g" else torch.nn.utils.parametrizations.weight_norm
    normed = copy.deepcopy(original)
    for layer in [m for m in normed.modules() if isinstance(m, (torch.nn.Conv1d, torch.nn.ConvTranspose1d))]:
        norm(layer)
    with torch.no_grad():
        for name, parameter in normed.named_parameters():
            if name.endswith(("weight_g", "original0")):
                parameter.mul_(1.1)
    assert sum(spelling in key for key in normed.state_dict()) >= 20
    loaded = load_into(make(model.config), VOCODER, normed)
    mel = np.random.default_rng(0).standard_normal((1, 5, 8)).astype(np.float32)
    with torch.no_grad():
        expected = normed(torch.from_numpy(mel))
    assert relative_error(compiled(loaded)(mel), expected) < 1e-4
    assert relative_error(compiled(model)(mel), expected) > 1e-2
    assert "upsampler.0.weight" in exported(loaded, VOCODER)


def test_incomplete_weight_norm(model):
    normed = transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig(**SMALL))
    torch.nn.utils.parametrizations.weight_norm(normed.conv_post)
    state = nnx.state(nnx.eval_shape(make(model.config)))
    whole = checkpoint_of(normed)
    lost = "conv_post.parametrizations.weight.original1"
    magnitude = np.ones((2, 1, 1), np.float32)
    for arrays in (
        {key: value for key, value in whole.items() if key != lost},
        {**whole, "conv_post.parametrizations.weight.original0": magnitude},
    ):
        broken = whole.of("broken", arrays)
        with pytest.raises(ConversionError, match=r"missing conv_post.weight .* unexpected conv_post.parametrizations"):
            matching.load(broken, state, VOCODER)
    twice = whole.of("twice", {**whole, "conv_post.weight": np.zeros((1, 4, 7), np.float32)})
    with pytest.raises(ConversionError, match="unexpected conv_post.parametrizations.weight.original0"):
        matching.load(twice, state, VOCODER)


def test_bfloat16_stays_bfloat16(model):
    out = nnx.eval_shape(lambda: make(model.config)()(jnp.zeros((1, 3, 8), jnp.bfloat16)))
    assert out.dtype == jnp.bfloat16


def test_full_size():
    config = VocoderConfig.audioldm()
    state = nnx.state(nnx.eval_shape(make(config)))
    assert config.num_samples(900) == 160 * 900 + 32 and config.sampling_rate == 16000
    assert parameters(state) == 55264897
    wanted = manifest("audioldm_l_vocoder")
    assert matching.torch_shapes(state, VOCODER) == {k: v for k, v in wanted.items() if k not in ("mean", "scale")}


@pytest.mark.parametrize(
    "option,message",
    [
        ({"normalize_before": True}, "normalize_before=True"),
        ({"model_type": "univnet"}, "model_type='univnet'"),
        ({"upsample_rates": [4]}, "1 upsample_rates, but 3"),
        ({"upsample_rates": [5, 4, 4]}, "kernel 3 cannot have the rate 4"),
        ({"resblock_kernel_sizes": [3]}, "1 resblock_kernel_sizes, but 2"),
        ({"resblock_kernel_sizes": [3, 4]}, "odd, got 4"),
        ({"upsample_initial_channel": 4}, "4 channels cannot be halved 3 times"),
    ],
)
def test_unsupported(option, message):
    with pytest.raises(UserError, match=message):
        VocoderConfig.from_dict({**SMALL, **option})


def test_normalisation_is_the_default_of_the_original():
    with pytest.raises(UserError, match="normalize_before=True"):
        VocoderConfig.from_dict({})
