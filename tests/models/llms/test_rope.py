"""Rotary position embedding against transformers, and the settings in config files."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.llms.rope import Llama3Scaling, apply_rope, read_rope, rope_frequencies
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
def test_frequencies_match_transformers(theta, scaling):
    parameters = {"rope_type": "llama3" if scaling else "default", "rope_theta": theta, **scaling}
    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=2, max_position_embeddings=131072, rope_parameters=parameters
    )
    expected = LlamaRotaryEmbedding(config).inv_freq
    settings = read_rope(config.to_dict(), "LlamaConfig")
    found = rope_frequencies(128, settings["rope_theta"], settings["rope_scaling"])
    assert relative_error(found, expected) < 1e-6
    assert float(np.abs(np.asarray(found) / expected.numpy() - 1).max()) < 1e-5


def test_both_spellings_of_config_files():
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 8192)
    older = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}
    newer = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}
    for config in (older, newer):
        assert read_rope(config, "X") == {"rope_theta": 5e5, "rope_scaling": scaling}
    assert read_rope({"rope_scaling": None, "rope_theta": 1e4}, "X") == {"rope_theta": 1e4, "rope_scaling": None}


@pytest.mark.parametrize(
    "rope, message",
    [
        ({"type": "linear", "factor": 2.0}, r"X: rope_type='linear' is not supported \(only 'default' or 'llama3'\)"),
        ({"rope_type": "yarn"}, "rope_type='yarn' is not supported"),
        ({"rope_type": "llama3", "factor": 8.0}, "X: rope_type='llama3' lacks low_freq_factor, high_freq_factor, orig"),
        ({"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}, "X: rope scaling needs factor > 0 and"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
    ],
)
def test_unsupported_settings_say_why(rope, message):
    with pytest.raises(UserError, match=message):
        read_rope({"rope_scaling": rope}, "X")


def test_rotation_matches_transformers():
    x, positions = random(2, 5, 3, 16), np.array([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]])
    config = transformers.LlamaConfig(hidden_size=32, num_attention_heads=2)
    cos, sin = LlamaRotaryEmbedding(config)(torch.from_numpy(x), torch.from_numpy(positions))
    q = torch.from_numpy(x).transpose(1, 2)
    expected, _ = transformers.models.llama.modeling_llama.apply_rotary_pos_emb(q, q, cos, sin)
    found = apply_rope(jnp.asarray(x), jnp.asarray(positions), rope_frequencies(16, 10000.0))
    assert relative_error(found, expected.transpose(1, 2)) < 1e-6
