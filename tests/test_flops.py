"""Counting operations on jaxprs: loops by their length, recomputation apart, conditionals by a branch."""

import jax
import jax.numpy as jnp
import pytest

from nextgpt_jax.chips import chip
from nextgpt_jax.flops import Flops, count
from nextgpt_jax.models.stacking import REMAT_POLICIES

X, W = jnp.ones((4, 8)), jnp.ones((5, 8, 8))
ONE = 2 * 4 * 8 * 8  # a product of a layer


def layers(x, w, policy="none"):
    def body(x, w):
        return jnp.tanh(x @ w), None

    return jax.lax.scan(jax.checkpoint(body, policy=REMAT_POLICIES[policy], prevent_cse=False), x, w)[0].sum()


def test_loops_count_by_their_length():
    assert count(jax.make_jaxpr(layers)(X, W)) == Flops(5 * ONE)
    assert count(jax.make_jaxpr(jax.jit(layers))(X, W)) == Flops(5 * ONE)


@pytest.mark.parametrize("policy, again", [("none", 0), ("dots", 0), ("full", 5 * ONE)])
def test_what_is_computed_again_counts_apart(policy, again):
    """Gradients of x need one more product a layer, those of w another."""
    of_x = jax.make_jaxpr(jax.grad(lambda x: layers(x, W, policy)))(X)
    assert count(of_x) == Flops(10 * ONE, again)
    of_both = jax.make_jaxpr(jax.grad(lambda x, w: layers(x, w, policy), argnums=(0, 1)))(X, W)
    assert count(of_both) == Flops(15 * ONE, again)


def test_convolutions_and_conditionals():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )

    jaxpr = jax.make_jaxpr(convolve)(jnp.ones((2, 6, 6, 4)), jnp.ones((3, 3, 2, 8)))
    assert count(jaxpr) == Flops(2 * (2 * 6 * 6 * 8) * (3 * 3 * 2))
    either = jax.make_jaxpr(lambda n: jax.lax.cond(n > 0, lambda: X @ W[0], lambda: jnp.zeros((4, 8))))(1)
    assert (count(either), count(either, branch=min)) == (Flops(ONE), Flops(0.0))


def test_cudnn_s_attention_counts_as_xla_s(monkeypatch):
    """Scores that its backward pass makes again are not needed."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    q, k = jnp.ones((2, 6, 4, 16), jnp.bfloat16), jnp.ones((2, 10, 4, 16), jnp.bfloat16)

    def counted(implementation):
        def attend(q, k):
            return jax.nn.dot_product_attention(q, k, k, implementation=implementation).sum()

        return [count(jax.make_jaxpr(f)(q, k)) for f in (attend, jax.grad(attend, argnums=(0, 1)))]

    assert counted("cudnn") == counted("xla") == [Flops(4.0 * 2 * 4 * 6 * 10 * 16), Flops(12.0 * 2 * 4 * 6 * 10 * 16)]


def test_chips_are_known_by_their_device_kind():
    names = {"TPU v5 lite": "TPU v5e", "TPU v5": "TPU v5p", "TPU v6 lite": "TPU v6e", "NVIDIA H200": "NVIDIA H200"}
    assert {kind: chip(kind).name for kind in names} == names
    assert (chip("NVIDIA H100 80GB HBM3").name, chip("NVIDIA H100 80GB HBM3").capability) == ("NVIDIA H100", (9, 0))
    assert chip("cpu") is None
