"""The image UNet against diffusers' UNet2DConditionModel."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.diffusion.blocks import timestep_embedding
from nextgpt_jax.models.diffusion.unet_2d import UNet2DConditionModel, UNet2DConfig
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.tables.stable_diffusion import unet_table
from tests.parity import compiled, exported, load_into, manifest, parameters, randomise, relative_error

SMALL = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
}
VARIANTS = {
    "sd15": {},
    "sd2": {
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        "attention_head_dim": (2, 8),
        "use_linear_projection": True,
    },
    "plain_first": {  # the order of block kinds reversed, other channels, sines first
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "in_channels": 3,
        "out_channels": 5,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
    "audioldm": {  # no text but a class embedding beside that of the time
        "cross_attention_dim": (16, 32, 32),
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": 12,
        "class_embeddings_concat": True,
        "in_channels": 8,
        "out_channels": 8,
    },
    "class_added": {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 12},
}


def make(config):
    return lambda: UNet2DConditionModel(config, rngs=make_rngs(0))


def pair(variant):
    torch.manual_seed(0)
    original = randomise(diffusers.UNet2DConditionModel(**{**SMALL, **VARIANTS[variant]}))
    config = UNet2DConfig.from_dict(original.config)
    return original, load_into(make(config), unet_table(config), original)


@pytest.mark.parametrize("variant", VARIANTS)
def test_prediction(variant):
    original, model = pair(variant)
    run = compiled(model)
    rng = np.random.default_rng(0)
    context = rng.standard_normal((2, 7, 24)).astype(np.float32) if model.config.context_width else None
    classes = rng.standard_normal((2, 12)).astype(np.float32) if model.config.class_embed_type else None
    # The second size is not divisible by 4; one timestep a row, and one for all.
    for size, t in [((8, 8), np.array([1, 981])), ((7, 10), np.array(500.5, np.float32))]:
        x = rng.standard_normal((2, *size, original.config.in_channels)).astype(np.float32)
        with torch.no_grad():
            inputs = [x.transpose(0, 3, 1, 2), t, context, classes]
            expected = original(*(v if v is None else torch.from_numpy(v) for v in inputs)).sample.permute(0, 2, 3, 1)
        assert relative_error(run(x, t, context, classes), expected) < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_export_loads_strictly(variant):
    original, model = pair(variant)
    original.load_state_dict(exported(model, unet_table(model.config)), strict=True)


@pytest.mark.parametrize("flip,shift,width", [(True, 0, 32), (False, 1, 32), (True, 0, 33)])
def test_timestep_embedding(flip, shift, width):
    t = torch.tensor([0.0, 1.0, 500.5, 999.0])
    expected = diffusers.models.embeddings.get_timestep_embedding(t, width, flip, shift)
    actual = timestep_embedding(jnp.asarray(t.numpy()), width, flip_sin_to_cos=flip, freq_shift=shift)
    assert relative_error(actual, expected) < 1e-4


def test_bfloat16_stays_bfloat16():
    config = UNet2DConfig(**SMALL)
    inputs = jnp.zeros((1, 8, 8, 4), jnp.bfloat16), jnp.zeros((1,), jnp.int32), jnp.zeros((1, 7, 24))
    out = nnx.eval_shape(lambda: make(config)()(*inputs))
    assert out.dtype == jnp.bfloat16 and out.shape == (1, 8, 8, 4)


def test_untrained_prediction_is_zero():
    conv_out = jax.jit(lambda: nnx.state(make(UNet2DConfig(**SMALL))().conv_out))()
    assert not any(leaf.any() for leaf in jax.tree.leaves(conv_out))


@pytest.mark.parametrize(
    "config,count,name",
    [
        (UNet2DConfig.sd15(), 859520964, "sd15_unet"),
        pytest.param(UNet2DConfig.sd2(), 865910724, "sd2_unet", marks=pytest.mark.slow),
    ],
)
def test_full_size(config, count, name):
    state = nnx.state(nnx.eval_shape(make(config)))
    assert parameters(state) == count
    assert matching.torch_shapes(state, unet_table(config)) == manifest(name)


@pytest.mark.parametrize(
    "option,message",
    [
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        ({"class_embed_type": "simple_projection"}, "needs projection_class_embeddings_input_dim"),
        ({"class_embeddings_concat": True}, "class_embeddings_concat=True"),
        ({"cross_attention_dim": [16, 32, 64]}, r"cross_attention_dim=\(16, 32, 64\) .* \[16, 32, 32\]"),
        ({"cross_attention_dim": None}, "cross_attention_dim=None .*(16, 32, 32)"),
        ({"layers_per_block": [1, 2, 2]}, "layers_per_block"),
        ({"transformer_layers_per_block": [1, 2, 10]}, "transformer_layers_per_block"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type"),
        ({"down_block_types": ["AttnDownBlock2D"] * 3}, "AttnDownBlock2D"),
        ({"attention_head_dim": [2, 4]}, "2 entries of attention_head_dim"),
        ({"attention_head_dim": 5}, "16 channels do not divide into 5 heads"),
    ],
)
def test_unsupported(option, message):
    with pytest.raises(UserError, match=message):
        UNet2DConfig.from_dict({**SMALL, **option})


def test_text_and_classes_are_given_where_they_are_used():
    audio = UNet2DConfig.from_dict(SMALL | VARIANTS["audioldm"])
    x, t, context, classes = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros((1, 7, 24)), jnp.zeros((1, 12))
    for config, given, message in (
        (UNet2DConfig(**SMALL), (None,), "needs encoder_hidden_states"),
        (UNet2DConfig(**SMALL), (context, classes), "takes no class_labels"),
        (audio, (None, None), "needs class_labels"),
        (audio, (context, classes), "takes no encoder_hidden_states"),
    ):
        with pytest.raises(ValueError, match=message):
            nnx.eval_shape(lambda config=config, given=given: make(config)()(x, t, *given))
