"""CLAP's text encoder against transformers' ClapTextModelWithProjection."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.diffusion.clap_text import ClapTextConfig, ClapTextModelWithProjection
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.tables.audioldm import TEXT_ENCODER
from tests.parity import compiled, exported, load_into, manifest, parameters, randomise, relative_error

SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 18,
    "projection_dim": 20,
}


def make(config):
    return lambda: ClapTextModelWithProjection(config, rngs=make_rngs(0))


def pair(**options):
    hub = transformers.ClapTextConfig(**SMALL, **options)
    torch.manual_seed(0)
    original = randomise(transformers.ClapTextModelWithProjection(hub))
    with torch.no_grad():
        for name, parameter in original.named_parameters():
            if "embeddings.weight" in name:  # small, and zero at the padding: positions would hardly show
                parameter.normal_()
    return original, load_into(make(ClapTextConfig.from_dict(hub.to_dict())), TEXT_ENCODER, original)


@pytest.fixture(scope="module")
def small():
    return pair()


def expected(original, ids):
    ids = torch.from_numpy(ids)
    with torch.no_grad():
        return original(ids, attention_mask=(ids != original.config.pad_token_id).int()).text_embeds


def random_ids(length, padding=1):
    """Rows of several lengths, the first without padding."""
    ids = np.random.default_rng(0).integers(3, 99, (3, length))
    ids[1, length // 2 :] = padding
    ids[2, 1:] = padding
    return ids


@pytest.mark.parametrize("length", [16, 5])
def test_embeddings(small, length):
    original, model = small
    ids = random_ids(length)
    assert relative_error(compiled(model)(ids), expected(original, ids)) < 1e-4


def test_other_padding_and_activation():
    original, model = pair(pad_token_id=2, hidden_act="quick_gelu", layer_norm_eps=1e-5)
    assert model.config.max_tokens == 15
    ids = random_ids(9, padding=2)
    assert relative_error(compiled(model)(ids), expected(original, ids)) < 1e-4


def test_padding_does_not_show(small):
    _, model = small
    short = random_ids(6)
    long = np.pad(short, ((0, 0), (0, 7)), constant_values=1)
    left = np.pad(short, ((0, 0), (2, 0)), constant_values=1)
    assert relative_error(compiled(model)(long), compiled(model)(short)) < 1e-5
    assert relative_error(compiled(model)(left), compiled(model)(short)) > 1e-3  # the first token is what is pooled


def test_export_loads_strictly(small):
    original, model = small
    buffers = {key: value for key, value in original.state_dict().items() if key.endswith("_ids")}
    original.load_state_dict(exported(model, TEXT_ENCODER) | buffers, strict=True)


def test_full_size():
    config = ClapTextConfig()
    state = nnx.state(nnx.eval_shape(make(config)))
    assert config.max_tokens == 512
    assert parameters(state) == 125302016
    assert matching.torch_shapes(state, TEXT_ENCODER) == manifest("audioldm_l_text_encoder")


def test_bfloat16_stays_bfloat16():
    def run():
        model = make(ClapTextConfig(**SMALL))()
        nnx.update(model, nnx.map_state(lambda _, leaf: leaf.astype(jnp.bfloat16), nnx.state(model)))
        return model(jnp.zeros((2, 5), jnp.int32))

    assert nnx.eval_shape(run).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "option,message",
    [
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"model_type": "clip_text_model"}, "model_type='clip_text_model'"),
        ({"projection_hidden_act": "gelu"}, "projection_hidden_act='gelu'"),
        ({"num_attention_heads": 5}, "width 32 does not divide into 5 heads"),
        ({"max_position_embeddings": 2}, "2 positions leave none"),
    ],
)
def test_unsupported(option, message):
    with pytest.raises(UserError, match=message):
        ClapTextConfig.from_dict({**SMALL, **option})


def test_too_many_tokens():
    with pytest.raises(ValueError, match="17 tokens, but the text encoder takes 16"):
        nnx.eval_shape(lambda: make(ClapTextConfig(**SMALL))()(jnp.zeros((1, 17), jnp.int32)))
