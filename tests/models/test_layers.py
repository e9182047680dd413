"""The shared layers against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from nextgpt_jax.models import layers
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights.rules import CONV, Table, affine, norm
from tests.parity import load_into, randomise, relative_error


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def under(name: str, module: torch.nn.Module) -> torch.nn.Module:
    parent = torch.nn.Sequential()
    parent.add_module(name, module)
    return randomise(parent)


def wrap(name: str, make):
    """A module that holds make() under `name`, so that tables have a path to name."""

    class Holder(nnx.Module):
        def __init__(self):
            setattr(self, name, make())

    return Holder


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), (1, 2)])
def test_conv_matches_torch(dims, stride, padding):
    torch.manual_seed(0)
    kernel = (3, 2, 3)[:dims]
    original = under("conv", (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[dims - 1](
        4, 6, kernel, stride=stride, padding=padding))  # fmt: skip
    make = wrap("conv", lambda: layers.Conv(4, 6, kernel, stride=stride, padding=padding, rngs=make_rngs(0)))
    ours = load_into(make, Table(tuple(affine("conv", "conv", CONV))), original)
    x = random(2, *(7, 8, 9)[:dims], 4)
    expected = original(torch.from_numpy(np.moveaxis(x, -1, 1)))
    assert relative_error(ours.conv(jnp.asarray(x)), expected.detach().movedim(1, -1)) < 1e-5


def test_conv_pads_each_side_on_its_own():
    conv = layers.Conv(2, 3, (3, 3), stride=2, padding=((0, 1), (0, 1)), bias=False, rngs=make_rngs(0))
    x = jnp.asarray(random(1, 6, 6, 2))
    plain = layers.Conv(2, 3, (3, 3), stride=2, bias=False, rngs=make_rngs(0))
    np.testing.assert_array_equal(conv(x), plain(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))))


@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_norms_match_torch(eps):
    x = random(2, 5, 12)
    original = under("norm", torch.nn.LayerNorm(12, eps=eps))
    ours = load_into(wrap("norm", lambda: layers.LayerNorm(12, eps=eps)), Table(tuple(norm("norm", "norm"))), original)
    assert relative_error(ours.norm(jnp.asarray(x)), original(torch.from_numpy(x))) < 1e-5

    original = under("norm", torch.nn.GroupNorm(3, 12, eps=eps))
    ours = load_into(
        wrap("norm", lambda: layers.GroupNorm(3, 12, eps=eps)), Table(tuple(norm("norm", "norm"))), original
    )
    expected = original(torch.from_numpy(x).movedim(-1, 1)).movedim(1, -1)
    assert relative_error(ours.norm(jnp.asarray(x)), expected) < 1e-5

    original = under("norm", torch.nn.RMSNorm(12, eps=eps))
    table = Table(tuple(norm("norm", "norm", bias=False)))
    ours = load_into(wrap("norm", lambda: layers.RMSNorm(12, eps=eps)), table, original)
    assert relative_error(ours.norm(jnp.asarray(x)), original(torch.from_numpy(x))) < 1e-5


def test_norms_keep_bfloat16_and_compute_in_float32():
    x = (1000 + random(2, 5, 12)).astype(jnp.bfloat16)
    for layer in (layers.LayerNorm(12), layers.RMSNorm(12, eps=1e-6), layers.GroupNorm(3, 12, eps=1e-5)):
        out = layer(jnp.asarray(x))
        assert out.dtype == jnp.bfloat16
        assert relative_error(out, layer(jnp.asarray(x, jnp.float32))) < 1e-2


def test_group_norm_refuses_uneven_groups():
    with pytest.raises(ValueError, match="12 channels do not divide into 5 groups"):
        layers.GroupNorm(5, 12, eps=1e-5)


def test_activations_match_torch():
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    assert relative_error(layers.gelu(jnp.asarray(x)), torch.nn.functional.gelu(torch.from_numpy(x))) < 1e-6
    expected = torch.from_numpy(x) * torch.sigmoid(1.702 * torch.from_numpy(x))
    assert relative_error(layers.quick_gelu(jnp.asarray(x)), expected) < 1e-6


@pytest.mark.parametrize("rate, width", [(0.1, 7), (0.5, 8), (0.0, 3)])
def test_dropout_drops_at_its_rate_row_by_row(rate, width):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jnp.ones((3, 20_000, width))
    out = layers.dropout(x, rate, keys)
    dropped = (np.asarray(out) == 0).mean((0, 1))
    np.testing.assert_allclose(dropped, rate, atol=5 * np.sqrt(0.25 / 60_000))
    np.testing.assert_allclose(out.max(), 1 / (1 - rate), rtol=1e-4)
    np.testing.assert_array_equal(out[1:], layers.dropout(x[1:], rate, keys[1:]))  # a row's mask is its key's alone
    assert rate == 0 or not np.array_equal(out[0], out[1])
