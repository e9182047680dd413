"""The video UNet against diffusers' UNet3DConditionModel."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.diffusion.blocks import chunk_feed_forward
from nextgpt_jax.models.diffusion.unet_3d import UNet3DConditionModel, UNet3DConfig
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.tables.text_to_video import UNET
from tests.parity import compiled, exported, load_into, manifest, parameters, randomise, relative_error

SMALL = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
}
VARIANTS = {
    "zeroscope": {},
    "plain_first": {  # the order of block kinds reversed, two layers, other channels and eps
        "down_block_types": ("DownBlock3D", "CrossAttnDownBlock3D"),
        "up_block_types": ("CrossAttnUpBlock3D", "UpBlock3D"),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "in_channels": 3,
        "out_channels": 5,
        "norm_eps": 1e-3,
    },
}


def make(config):
    return lambda: UNet3DConditionModel(config, rngs=make_rngs(0))


def pair(variant):
    torch.manual_seed(0)
    original = randomise(diffusers.UNet3DConditionModel(**{**SMALL, **VARIANTS[variant]}))
    with torch.no_grad():
        for name, parameter in original.named_parameters():
            if ".conv4.3.weight" in name:  # zero until trained
                parameter.normal_(std=0.1)
    config = UNet3DConfig.from_dict(original.config)
    return original, load_into(make(config), UNET, original)


@pytest.fixture(scope="module")
def small():
    return pair("zeroscope")


def inputs(batch, frames, height, width, channels=4):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, frames, height, width, channels)).astype(np.float32)
    return x, rng.standard_normal((batch, 7, 24)).astype(np.float32)


def expected(original, x, t, context):
    with torch.no_grad():
        x = torch.from_numpy(x.transpose(0, 4, 1, 2, 3).copy())
        return original(x, torch.from_numpy(t), torch.from_numpy(context)).sample.permute(0, 2, 3, 4, 1)


# Sizes that halving rounds, one frame alone, one timestep a row and one for all.
@pytest.mark.parametrize("frames,height,width,t", [(3, 8, 6, [1, 981]), (4, 5, 7, 500.5), (1, 4, 4, [999, 3])])
def test_prediction(small, frames, height, width, t):
    original, model = small
    x, context = inputs(2, frames, height, width)
    t = np.array(t, np.float32)
    assert relative_error(compiled(model)(x, t, context), expected(original, x, t, context)) < 1e-4


def test_other_layout():
    original, model = pair("plain_first")
    x, context = inputs(1, 2, 6, 7, channels=3)
    t = np.array([321])
    assert relative_error(compiled(model)(x, t, context), expected(original, x, t, context)) < 1e-4


def test_export_loads_strictly(small):
    original, model = small
    original.load_state_dict(exported(model, UNET), strict=True)


def test_chunked_feed_forward(small):
    original, model = small
    x, context = inputs(1, 3, 4, 4)
    t = np.array([10])
    model = nnx.merge(*nnx.split(model))

    def program():
        return str(jax.make_jaxpr(lambda *args: model(*args))(x, t, context))

    chunk_feed_forward(model, 10)  # of 48 tokens, and of 12: neither divides
    assert relative_error(compiled(model)(x, t, context), expected(original, x, t, context)) < 1e-4
    assert "f32[10,128]" in program() and "f32[3,16,128]" not in program() and "f32[16,3,128]" not in program()
    chunk_feed_forward(model, None)
    assert "f32[10,128]" not in program() and "f32[3,16,128]" in program() and "f32[16,3,128]" in program()
    with pytest.raises(ValueError, match="at least 1 token"):
        chunk_feed_forward(model, 0)


def test_rows_do_not_mix(small):
    _, model = small
    run = compiled(model)
    x, context = inputs(2, 3, 4, 4)
    t = np.array([10, 700])
    both = run(x, t, context)
    for i in range(2):
        row = slice(i, i + 1)
        assert relative_error(run(x[[i, i]], t[[i, i]], context[[i, i]])[:1], both[row]) < 1e-5


def test_bfloat16_stays_bfloat16():
    config = UNet3DConfig(**SMALL)
    inputs = jnp.zeros((1, 2, 8, 8, 4), jnp.bfloat16), jnp.zeros((1,), jnp.int32), jnp.zeros((1, 7, 24))
    out = nnx.eval_shape(lambda: make(config)()(*inputs))
    assert out.dtype == jnp.bfloat16 and out.shape == (1, 2, 8, 8, 4)


def test_untrained_layers_are_zero():
    def last():
        model = make(UNet3DConfig(**SMALL))()
        return nnx.state(model.conv_out), nnx.state(model.mid_block.temp_convs[0].convs[-1])

    assert not any(leaf.any() for leaf in jax.tree.leaves(jax.jit(last)()))


@pytest.mark.slow
def test_full_size():
    state = nnx.state(nnx.eval_shape(make(UNet3DConfig.zeroscope())))
    assert parameters(state) == 1411233860
    assert matching.torch_shapes(state, UNET) == manifest("zeroscope_unet")


@pytest.mark.parametrize(
    "option,message",
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name='UNet2DConditionModel'"),
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
        ({"downsample_padding": 0}, "downsample_padding=0"),
        ({"mid_block_scale_factor": 2}, "mid_block_scale_factor=2"),
        ({"num_attention_heads": 8}, "num_attention_heads=8"),
        ({"time_cond_proj_dim": 32}, "time_cond_proj_dim=32"),
        ({"norm_num_groups": None}, "norm_num_groups=None"),
        ({"cross_attention_dim": None}, "cross_attention_dim=None"),
        ({"cross_attention_dim": [24, 32]}, "cross_attention_dim"),
        ({"attention_head_dim": [4, 8]}, "attention_head_dim"),
        ({"down_block_types": ["CrossAttnDownBlock2D"] * 2}, "CrossAttnDownBlock2D"),
        ({"up_block_types": ["UpBlock3D"]}, "1 up_block_types, but 2"),
        ({"attention_head_dim": 5}, "16 channels do not divide into heads of 5"),
        ({"norm_num_groups": 32}, "16 channels do not divide into 32 groups"),
    ],
)
def test_unsupported(option, message):
    with pytest.raises(UserError, match=message):
        UNet3DConfig.from_dict({**SMALL, **option})
