"""The autoencoder against diffusers' AutoencoderKL."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.diffusion.vae import AutoencoderKL, AutoencoderKLConfig
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.tables.stable_diffusion import VAE
from nextgpt_jax.weights.torch_checkpoint import Checkpoint
from tests.parity import compiled, exported, load_into, manifest, parameters, randomise, relative_error

OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def make(config):
    return lambda: AutoencoderKL(config, rngs=make_rngs(0))


def pair(**options):
    small = {
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 2,
        "norm_num_groups": 8,
    }
    torch.manual_seed(0)
    original = randomise(diffusers.AutoencoderKL(**small, **options))
    config = AutoencoderKLConfig.from_dict(original.config)
    return original, load_into(make(config), VAE, original)


@pytest.mark.parametrize("options", [{}, {"in_channels": 1, "out_channels": 1, "latent_channels": 8}])
def test_encode_and_decode(options):
    original, model = pair(**options)
    x = np.random.default_rng(0).uniform(-1, 1, (2, 16, 20, original.config.in_channels)).astype(np.float32)
    mean, logvar = compiled(model, "encode")(x)
    with torch.no_grad():
        expected = original.encode(torch.from_numpy(x).permute(0, 3, 1, 2)).latent_dist
        pixels = original.decode(expected.mean).sample
    assert relative_error(mean, expected.mean.permute(0, 2, 3, 1)) < 1e-4
    assert relative_error(logvar, expected.logvar.permute(0, 2, 3, 1)) < 1e-4
    latents = expected.mean.permute(0, 2, 3, 1).numpy()
    assert relative_error(compiled(model, "decode")(latents), pixels.permute(0, 2, 3, 1)) < 1e-4


def test_log_variance_is_clamped():
    _, model = pair()
    model.quant_conv.bias[...] = jnp.asarray([0, 0, 0, 0, -99, 99, -99, 99], jnp.float32)
    _, logvar = compiled(model, "encode")(jnp.zeros((1, 8, 8, 3)))
    assert logvar.min() == -30 and logvar.max() == 20


def test_export_loads_strictly():
    original, model = pair()
    original.load_state_dict(exported(model, VAE), strict=True)


def test_keys_of_old_files():
    _, model = pair()
    arrays = {}
    for key, value in exported(model, VAE).items():
        for new, old in OLD.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        arrays[key] = value.numpy()
    assert sum("proj_attn" in key for key in arrays) == 4
    old = Checkpoint.of("old", arrays)
    loaded = matching.load(old, nnx.state(nnx.eval_shape(make(model.config))), VAE)
    assert all(map(jnp.array_equal, jax.tree.leaves(loaded), jax.tree.leaves(nnx.state(model))))


def test_full_size():
    config = AutoencoderKLConfig.sd()
    state = nnx.state(nnx.eval_shape(make(config)))
    assert config.scaling_factor == 0.18215 and config.downscale == 8
    assert parameters(state) == 83653863
    assert matching.torch_shapes(state, VAE) == manifest("sd15_vae")


@pytest.mark.parametrize(
    "option,message",
    [
        ({"down_block_types": ["AttnDownEncoderBlock2D"]}, "AttnDownEncoderBlock2D"),
        ({"shift_factor": 0.1}, "shift_factor=0.1"),
        ({"use_quant_conv": False}, "use_quant_conv=False"),
        ({"block_out_channels": [48]}, "48 channels do not divide into 32 groups"),
    ],
)
def test_unsupported(option, message):
    with pytest.raises(UserError, match=message):
        AutoencoderKLConfig.from_dict(option)
