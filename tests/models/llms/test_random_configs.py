"""LLaMAs of random configs against transformers: the same logits, or a refusal."""

import numpy as np
import pytest
import transformers
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.llms.causal_lm import SHARDING
from nextgpt_jax.models.llms.llama import Llama, LlamaConfig
from nextgpt_jax.models.llms.rope import DynamicScaling
from nextgpt_jax.models.lora import LoRAConfig
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.sharding import logical_axes
from nextgpt_jax.weights import tables
from tests.models.llms import reference
from tests.models.llms.reference import IDS, SIZES, expected, run
from tests.models.llms.test_rope import ropes
from tests.parity import exported, load_into, relative_error

BIASED = {"attention_bias": True, "mlp_bias": True}
HARMLESS = ({}, {"attention_dropout": 0.1}, {"pretraining_tp": 2}, {"id2label": {"0": "x"}}, {"is_causal": True})
REFUSED = (
    {"is_causal": False},
    {"sliding_window": 4},
    {"per_layer_config": {"0": {"rms_norm_eps": 0.1}}},
    {"partial_rotary_factor": 0.5},
    {"original_max_position_embeddings": 8},
    {"new_feature": True},
    {"rms_norm_eps": "1e-5"},
)


@st.composite
def configs(draw) -> dict:
    heads = draw(st.sampled_from([2, 4]))
    rope = draw(ropes)
    config = {
        "model_type": "llama",
        "vocab_size": 60,
        "hidden_size": heads * 8,
        "intermediate_size": draw(st.sampled_from([16, 48])),
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([None, 1, 2])),
        "head_dim": draw(st.sampled_from([None, 16])),
        "max_position_embeddings": draw(st.sampled_from([8, 64])),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-2])),
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        **draw(st.sampled_from(HARMLESS)),
    }
    if draw(st.booleans()):
        return config | {"rope_parameters": {**rope, "rope_theta": 500.0}}
    return config | {"rope_theta": 500.0, "rope_scaling": rope}


@settings(max_examples=6, derandomize=True, deadline=None)
@given(configs())
def test_logits_are_those_of_transformers(config):
    """Beyond the context of a dynamic embedding a model refuses to run."""
    options = {key: value for key, value in config.items() if key != "model_type"}
    ours = LlamaConfig.from_dict(config)
    model = reference.original(transformers.LlamaForCausalLM, **options)
    table = tables.language_model(ours).whole(ours)
    converted = load_into(lambda: Llama(ours, rngs=make_rngs(0)), table, model)
    if isinstance(ours.rope_scaling, DynamicScaling) and ours.max_position_embeddings < IDS.shape[1]:
        with pytest.raises(UserError, match="sequences of 9 tokens, but with rope_type='dynamic' at most 8"):
            run(converted, IDS)
        return
    assert relative_error(run(converted, IDS)[1], expected(model, IDS)[1]) < 1e-5


@settings(max_examples=100, deadline=None)
@given(configs(), st.sampled_from(REFUSED))
def test_what_may_change_the_numbers_is_refused(config, change):
    with pytest.raises(UserError) as error:
        LlamaConfig.from_dict(config | change)
    assert next(iter(change)) in str(error.value) and "\n" not in str(error.value)


def test_biases_are_converted_both_ways():
    model = reference.original(transformers.LlamaForCausalLM, **BIASED, num_key_value_heads=2)
    ours = reference.ours(model)
    assert relative_error(run(ours, IDS)[1], expected(model, IDS)[1]) < 1e-5
    tensors, wanted = exported(ours, tables.language_model(ours.config).base), model.state_dict()
    assert tensors.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)


def test_biases_have_sharding_rows():
    lora, config = LoRAConfig(rank=2, alpha=2.0), LlamaConfig(**SIZES, **BIASED)
    axes = {}
    for quantization in ("", "int8"):
        model = nnx.eval_shape(lambda q=quantization: Llama(config, lora=lora, quantization=q, rngs=make_rngs(0)))
        for path, leaf in nnx.to_flat_state(nnx.state(model)):
            name = ".".join(map(str, path))
            axes[name] = logical_axes(name, leaf.shape, SHARDING)
    biases = {name: found for name, found in axes.items() if name.endswith("bias")}
    assert len(biases) == 7
    assert biases["layers.self_attn.q_proj.bias"] == (None, "heads")
    assert biases["layers.mlp.up_proj.bias"] == (None, "mlp")
    assert biases["layers.mlp.down_proj.bias"] == biases["layers.self_attn.o_proj.bias"] == (None, None)
