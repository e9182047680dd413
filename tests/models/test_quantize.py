"""Kernels in few bits: how near they are, what the backward pass keeps, and the third stage on them."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.__main__ import main as convert
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.inference.types import Request
from nextgpt_jax.models import quantize
from nextgpt_jax.models.layers import Linear
from nextgpt_jax.models.lora import LoRAConfig, merge_lora
from nextgpt_jax.models.partitioning import with_shardings
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.models.stacking import REMAT_POLICIES
from nextgpt_jax.prompts import Turn
from nextgpt_jax.training import loop
from nextgpt_jax.weights.assemble import abstract_state, model_config
from nextgpt_jax.weights.load import load_system, load_trained
from tests import tiny
from tests.parity import relative_error
from tests.training.recorder import Recorder

# Table of the QLoRA paper (appendix E), to four digits.
NF4 = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626,
       0.7230, 1.0]  # fmt: skip


def kernel(din: int, dout: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.02, (din, dout)).astype(np.float32)


@given(st.integers(1, 200), st.integers(1, 9), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_int8_rounds_to_the_nearest_of_255_numbers(din, dout, seed):
    w = kernel(din, dout, seed)
    values, scale = quantize.quantize(jnp.asarray(w), "int8")
    assert (values.dtype, values.shape, scale.dtype, scale.shape) == (jnp.int8, w.shape, jnp.float32, (1, dout))
    found = np.asarray(quantize.dequantize(values, scale, "int8", jnp.float32))
    assert (np.abs(found - w) <= 0.502 * np.abs(w).max(0) / 127).all()


def test_nf4_expands_as_qwix_does():
    values = jnp.arange(128, dtype=jnp.int32).reshape(32, 4).astype(jnp.uint4)
    scale = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, (2, 4)).astype(np.float32))
    expected = qwix.dequantize(qwix.QArray(values, scale, qtype="nf4"))
    np.testing.assert_array_equal(quantize.dequantize(values, scale, "nf4", jnp.float32), expected)


def test_nf4_is_qlora_s():
    """Blocks of 64 inputs, whose largest is 1 in the table, and each number the nearest of it."""
    w = kernel(192, 5)
    values, scale = quantize.quantize(jnp.asarray(w), "nf4")
    assert (values.dtype, scale.shape) == (jnp.uint4, (3, 5))
    blocks = w.reshape(3, 64, 5)
    largest = np.abs(blocks).max(1, keepdims=True)
    nearest = np.take(NF4, np.abs((blocks / largest)[..., None] - NF4).argmin(-1)) * largest
    found = np.asarray(quantize.dequantize(values, scale, "nf4", jnp.float32)).reshape(blocks.shape)
    np.testing.assert_allclose(found, nearest, atol=1e-4 * largest.max())


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("scheme", quantize.SCHEMES)
def test_the_backward_pass_keeps_the_small_kernel(scheme, remat):
    w, x = kernel(96, 40), np.random.default_rng(1).normal(size=(3, 96)).astype(np.float32)
    values, scale = quantize.quantize(jnp.asarray(w), scheme)
    whole = quantize.dequantize(values, scale, scheme, jnp.float32)

    @functools.partial(jax.checkpoint, policy=REMAT_POLICIES[remat])
    def squares(x):
        return jnp.square(quantize.quantized_matmul(x, values, scale, scheme)).sum()

    expected = jax.grad(lambda x: jnp.square(x @ whole).sum())(x)
    assert relative_error(jax.grad(squares)(x), expected) < 1e-6
    kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(squares, x)[1], x))
    assert any(leaf.dtype == values.dtype for leaf in kept)
    assert not [leaf for leaf in kept if leaf.size >= w.size and jnp.issubdtype(leaf.dtype, jnp.floating)]


def test_int8_in_bfloat16_rounds_once():
    """Its scales are applied to the product, in float32."""
    w, x = kernel(256, 64), np.random.default_rng(1).normal(size=(8, 256)).astype(jnp.bfloat16)
    values, scale = quantize.quantize(jnp.asarray(w), "int8")
    whole = np.asarray(x, np.float32) @ np.asarray(quantize.dequantize(values, scale, "int8", jnp.float32))
    found = quantize.quantized_matmul(jnp.asarray(x), values, scale, "int8")
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), whole, rtol=2**-8, atol=1e-6)


def test_a_quantized_layer_keeps_its_low_rank_branch():
    layer = Linear(32, 16, lora=LoRAConfig(2, 4.0), quantization="int8", rngs=make_rngs(0))
    layer.lora_b[...] = jnp.ones_like(layer.lora_b[...])
    x = jnp.ones((3, 32))
    before, values = layer(x), np.asarray(layer.kernel[...])
    merge_lora(layer)
    np.testing.assert_array_equal(layer(x), before)
    np.testing.assert_array_equal(layer.kernel[...], values)


@pytest.mark.parametrize("scheme", quantize.SCHEMES)
@pytest.mark.parametrize("source", ["hub", "converted"])
def test_loading_quantizes_the_layers_kernels_and_nothing_else(tiny_root, tmp_path, scheme, source):
    config = tiny.experiment(tiny_root, "stage3").model
    if source == "converted":
        convert(["convert", "llama", f"--source={config.llm}", f"--output={tmp_path / 'llm'}"])
        config.llm = str(tmp_path / "llm")
    plain = dict(nnx.to_flat_state(nnx.state(load_system(config, decoder_parts=()).model)))
    config.quantize = scheme
    small = dict(nnx.to_flat_state(nnx.state(load_system(config, decoder_parts=()).model)))
    scales = {path for path in small if path[-1] == "kernel_scale"}
    assert {path[2:4] for path in scales} == {
        *(("self_attn", f"{name}_proj") for name in "qkvo"), *(("mlp", f"{n}_proj") for n in ("gate", "up", "down"))
    }  # fmt: skip
    assert small.keys() - scales == plain.keys()
    for path, leaf in plain.items():
        found, expected = small[path][...], leaf[...]
        if path[-1] == "kernel" and (scale := (*path[:-1], "kernel_scale")) in scales:
            values, scales_of = jax.vmap(lambda k: quantize.quantize(k, scheme))(expected)
            np.testing.assert_array_equal(found.astype(jnp.int8), values.astype(jnp.int8))
            np.testing.assert_allclose(small[scale][...], scales_of, rtol=1e-6)
        else:
            np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_the_third_stage_with_one_override(tiny_root, tmp_path, monkeypatch):
    """Its losses stay near those on whole kernels, the adapters learn, and the run answers."""
    monkeypatch.setattr(loop, "MetricsLog", Recorder)
    config, found = tiny.experiment(tiny_root, "stage3", tiny.PICTURES), {}
    config.train.log_every = 1
    for scheme in ("", "int8", "nf4"):
        config.model.quantize, Recorder.losses = scheme, {}
        loop.train(config, str(tmp_path / f"run{scheme}"))
        found[scheme] = list(Recorder.losses.values())
    assert len(found[""]) == 4 and found[""] != found["int8"] != found["nf4"]
    np.testing.assert_allclose(found["int8"], found[""], rtol=0.02)
    np.testing.assert_allclose(found["nf4"], found[""], rtol=0.2)
    system = load_trained(config.model, str(tmp_path / "runnf4"))
    assert np.asarray(system.model.llm.layers[0].self_attn.q_proj.lora_b[...]).any()
    (reply,) = Engine(system, config.generation).generate([Request((Turn(("a",)),), modality="image", temperature=0.0)])
    assert [medium.modality for medium in reply.media] == ["image"]


def test_mistakes(tiny_root, monkeypatch):
    config = tiny.experiment(tiny_root, "stage3").model
    config.quantize = "int3"
    with pytest.raises(UserError, match="model.quantize: 'int3' is not one of int8, nf4"):
        load_system(config)
    config.quantize = "nf4"
    with pytest.raises(
        UserError, match=r"config.mesh.tensor=2 cuts the blocks of 16 inputs that share a scale \(of 48"
    ):
        abstract = abstract_state(model_config(config))
        with_shardings(model_config(config), abstract, tiny.Mesh(tensor=2))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "qwix" else find(name, *more))
    with pytest.raises(UserError, match=r"needs qwix: pip install 'nextgpt-jax\[quantize\]'"):
        load_system(config)
