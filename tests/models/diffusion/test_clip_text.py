"""CLIP's text encoder against transformers' CLIPTextModel."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import torch
import transformers
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.diffusion.clip_text import CLIPTextConfig, CLIPTextModel
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.tables.stable_diffusion import TEXT_ENCODER
from nextgpt_jax.weights.torch_checkpoint import Checkpoint
from tests.parity import checkpoint_of, compiled, exported, load_into, manifest, parameters, randomise, relative_error

SMALL = CLIPTextConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4)


def make(config):
    return lambda: CLIPTextModel(config, rngs=make_rngs(0))


def pair(activation):
    config = dataclasses.replace(SMALL, hidden_act=activation)
    hub = transformers.CLIPTextConfig(**dataclasses.asdict(config))
    assert CLIPTextConfig.from_dict(hub.to_dict()) == config
    torch.manual_seed(0)
    original = randomise(transformers.CLIPTextModel(hub))
    return original, load_into(make(config), TEXT_ENCODER, original)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("length", [77, 9])
def test_hidden_states(activation, length):
    original, model = pair(activation)
    ids = torch.randint(0, 99, (2, length))
    with torch.no_grad():
        expected = original(ids).last_hidden_state
    assert relative_error(compiled(model)(ids.numpy()), expected) < 1e-4


def test_export_loads_strictly():
    original, model = pair("gelu")
    tensors = exported(model, TEXT_ENCODER)
    assert all(key.startswith("text_model.") for key in tensors)
    bare = {key.removeprefix("text_model."): value for key, value in tensors.items()}
    current = "text_model." in next(iter(original.state_dict()))  # transformers before 5
    original.load_state_dict(tensors if current else bare, strict=True)


def test_both_spellings_load():
    original, model = pair("gelu")
    tensors = exported(model, TEXT_ENCODER) | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    arrays = {key: value.numpy() for key, value in tensors.items()}
    old = Checkpoint.of("old", arrays)
    state = nnx.state(nnx.eval_shape(make(model.config)))
    for checkpoint in (old, checkpoint_of(original)):
        loaded = matching.load(checkpoint, state, TEXT_ENCODER)
        assert all(map(jnp.array_equal, jax.tree.leaves(loaded), jax.tree.leaves(nnx.state(model))))


@pytest.mark.parametrize(
    "config,count,name",
    [
        (CLIPTextConfig.clip_l(), 123060480, "sd15_text_encoder"),
        (CLIPTextConfig.openclip_h(), 340387840, "sd2_text_encoder"),
    ],
)
def test_full_size(config, count, name):
    state = nnx.state(nnx.eval_shape(make(config)))
    assert parameters(state) == count
    assert matching.torch_shapes(state, TEXT_ENCODER) == manifest(name)


def test_errors():
    with pytest.raises(UserError, match="hidden_act='relu'"):
        CLIPTextConfig.from_dict({"hidden_act": "relu"})
    with pytest.raises(UserError, match="model_type='bert'"):
        CLIPTextConfig.from_dict({"model_type": "bert"})
    with pytest.raises(ValueError, match="78 tokens"):
        nnx.eval_shape(lambda: make(SMALL)()(jnp.zeros((1, 78), jnp.int32)))
