"""Rotary position embedding against transformers, and the settings in config files."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.llms.rope import SCALINGS, LinearScaling, apply_rope, read_rope, rope_frequencies
from tests.parity import relative_error

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_rotation_depends_on_distance_only():
    q, k = jnp.asarray(random(1, 1, 1, 16)), jnp.asarray(random(1, 1, 1, 16, seed=1))
    frequencies = rope_frequencies(16, 10000.0)

    def score(i, j):
        a, b = (apply_rope(x, jnp.array([[p]]), frequencies) for x, p in ((q, i), (k, j)))
        return float((a * b).sum())

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert abs(score(7, 3) - score(9, 3)) > 1e-2
    np.testing.assert_array_equal(apply_rope(q, jnp.zeros((1, 1), jnp.int32), frequencies), q)


@pytest.mark.parametrize(
    "theta, scaling",
    [
        (10000.0, {}),
        (500000.0, LLAMA3),
        (500000.0, {**LLAMA3, "factor": 32.0}),
        (10000.0, {**LLAMA3, "low_freq_factor": 3.0}),
    ],
)
def test_frequencies_of_released_models_match_transformers(theta, scaling):
    parameters = {"rope_type": "llama3" if scaling else "default", "rope_theta": theta, **scaling}
    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=2, max_position_embeddings=131072, rope_parameters=parameters
    )
    expected = LlamaRotaryEmbedding(config).inv_freq
    settings = read_rope(config.to_dict(), "LlamaConfig")
    found = rope_frequencies(128, settings["rope_theta"], settings["rope_scaling"])
    assert relative_error(found, expected) < 1e-6
    assert float(np.abs(np.asarray(found) / expected.numpy() - 1).max()) < 1e-5


ropes = st.one_of(
    st.fixed_dictionaries({"rope_type": st.just("default")}),
    st.fixed_dictionaries({"rope_type": st.sampled_from(["linear", "dynamic"]), "factor": st.floats(1, 64)}),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("llama3"),
            "factor": st.floats(1, 64),
            "low_freq_factor": st.floats(0.5, 3),
            "high_freq_factor": st.floats(3.5, 32),
            "original_max_position_embeddings": st.integers(1, 16384),
        }
    ),
    st.fixed_dictionaries(
        {"rope_type": st.just("yarn"), "factor": st.floats(0.5, 64)},
        optional={
            "original_max_position_embeddings": st.integers(1, 16384),
            "attention_factor": st.none() | st.floats(0.25, 4),
            "beta_fast": st.none() | st.just(0.0) | st.floats(1e-3, 64),
            "beta_slow": st.none() | st.just(0.0) | st.floats(1e-3, 8),
            "mscale": st.none() | st.floats(0, 2),
            "mscale_all_dim": st.none() | st.floats(0, 2),
            "truncate": st.booleans(),
        },
    ),
)


@settings(max_examples=150, deadline=None)
@given(
    rope=ropes,
    width=st.sampled_from([4, 16, 64, 128]),
    theta=st.sampled_from([10.0, 10000.0, 500000.0, 1e6]),
    context=st.integers(1, 131072),
)
def test_frequencies_match_transformers(rope, width, theta, context):
    """In the spelling of transformers 5, and in that of the files before it, with the older name of the kind."""
    options = dict(hidden_size=2 * width, num_attention_heads=2, max_position_embeddings=context)
    original = LlamaRotaryEmbedding(transformers.LlamaConfig(**options, rope_parameters={**rope, "rope_theta": theta}))
    kind = rope["rope_type"]
    older = {"type": kind, **{key: value for key, value in rope.items() if key != "rope_type"}}
    for spelled in (
        {"rope_parameters": {**rope, "rope_theta": theta}},
        {"rope_scaling": rope, "rope_theta": theta},
        {"rope_scaling": older, "rope_theta": theta},
        transformers.LlamaConfig(**options, rope_scaling=dict(older), rope_theta=theta).to_dict(),
    ):
        settings = read_rope({"max_position_embeddings": context, **spelled}, "LlamaConfig")
        scaling = settings["rope_scaling"]
        assert type(scaling) is (SCALINGS[kind] or type(None)) and settings["rope_theta"] == theta
        found = rope_frequencies(width, theta, scaling)
        assert relative_error(found, original.inv_freq) < 1e-6
        assert float(np.abs(np.asarray(found) / original.inv_freq.numpy() - 1).max()) < 1e-4  # the blends cancel digits
        assert (scaling.scale if scaling else 1.0) == pytest.approx(original.attention_scaling, rel=1e-12)


def test_spellings_that_mean_nothing_or_two_things():
    assert read_rope({"rope_scaling": None, "rope_theta": 1e4}, "X") == {"rope_theta": 1e4, "rope_scaling": None}
    assert read_rope({"rope_scaling": {"type": "default"}}, "X") == read_rope({}, "X") == {"rope_scaling": None}
    both = {"rope_type": "linear", "factor": 2.0}
    assert read_rope({"rope_scaling": both, "rope_parameters": both}, "X") == {"rope_scaling": LinearScaling(2.0)}
    assert read_rope({"rope_scaling": {"type": "yarn", **both}}, "X") == {"rope_scaling": LinearScaling(2.0)}
    with pytest.raises(UserError, match="X: rope_scaling and rope_parameters differ"):
        read_rope({"rope_scaling": both, "rope_parameters": {**both, "factor": 4.0}}, "X")
    with pytest.raises(UserError, match=r"X: rope_theta=10000.0 and, in rope_parameters, 5.0: keep one"):
        read_rope({"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 10000.0}, "X")


@pytest.mark.parametrize(
    "rope, message",
    [
        (
            {"type": "longrope"},
            r"X: rope_type='longrope' is not supported \(only 'default', 'linear', 'dynamic', 'yarn',",
        ),
        ({"rope_type": ["yarn"]}, r"rope_type=\['yarn'\] is not supported"),
        ({"type": "linear"}, "X: rope_type='linear': config lacks factor"),
        ({"type": "linear", "factor": "2"}, "X: rope_type='linear': factor='2' should be a number: write it without"),
        ({"type": "linear", "factor": 0}, "X: rope_type='linear': rope scaling needs factor > 0, got 0"),
        ({"type": "linear", "factor": 2.0, "beta_fast": 32}, "rope_type='linear': beta_fast=32 is not known here"),
        ({"beta_slow": 1}, "X: rope_type='default': beta_slow=1 is not known here"),
        ({"rope_type": "yarn", "factor": 2.0}, "original_max_position_embeddings=None should be a whole number"),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}, "above 0"),
        (
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8, "beta_fast": 1e-313},
            "the betas at least 1e-06",
        ),
        ({"rope_type": "llama3", "factor": 8.0}, "X: rope_type='llama3': config lacks low_freq_factor, high_freq_fac"),
        ({"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}, "X: rope_type='llama3': rope scaling needs fact"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ([2.0], "X: rope_scaling and rope_parameters should be objects"),
    ],
)
def test_unsupported_settings_say_why(rope, message):
    with pytest.raises(UserError, match=message):
        read_rope({"rope_scaling": rope}, "X")


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_rotation_matches_transformers(scale):
    x, positions = random(2, 5, 3, 16), np.array([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]])
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 1.0, "attention_factor": scale}
    config = transformers.LlamaConfig(hidden_size=32, num_attention_heads=2, rope_parameters=rope)
    cos, sin = LlamaRotaryEmbedding(config)(torch.from_numpy(x), torch.from_numpy(positions))
    q = torch.from_numpy(x).transpose(1, 2)
    expected, _ = transformers.models.llama.modeling_llama.apply_rotary_pos_emb(q, q, cos, sin)
    found = apply_rope(jnp.asarray(x), jnp.asarray(positions), rope_frequencies(16, 10000.0), scale)
    assert relative_error(found, expected.transpose(1, 2)) < 1e-6
