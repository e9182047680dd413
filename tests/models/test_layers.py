"""The shared layers against torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from nextgpt_jax.models import layers
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
    make = wrap("conv", lambda: layers.Conv(4, 6, kernel, stride=stride, padding=padding, rngs=nnx.Rngs(0)))
    ours = load_into(make, Table(tuple(affine("conv", "conv", CONV))), original)
    x = random(2, *(7, 8, 9)[:dims], 4)
    expected = original(torch.from_numpy(np.moveaxis(x, -1, 1)))
    assert relative_error(ours.conv(jnp.asarray(x)), expected.detach().movedim(1, -1)) < 1e-5


def test_conv_pads_each_side_on_its_own():
    conv = layers.Conv(2, 3, (3, 3), stride=2, padding=((0, 1), (0, 1)), bias=False, rngs=nnx.Rngs(0))
    x = jnp.asarray(random(1, 6, 6, 2))
    plain = layers.Conv(2, 3, (3, 3), stride=2, bias=False, rngs=nnx.Rngs(0))
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


def test_rotary_depends_on_distance_only():
    q, k = jnp.asarray(random(1, 1, 1, 16)), jnp.asarray(random(1, 1, 1, 16, seed=1))

    def score(i, j):
        a, b = (layers.apply_rope(x, jnp.array([[p]])) for x, p in ((q, i), (k, j)))
        return float((a * b).sum())

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert abs(score(7, 3) - score(9, 3)) > 1e-2
    np.testing.assert_array_equal(layers.apply_rope(q, jnp.zeros((1, 1), jnp.int32)), q)


def test_stacked_and_listed_layers_agree_in_values_and_gradients():
    stacked = layers.stack(lambda rngs: layers.Linear(6, 6, rngs=rngs), 3, nnx.Rngs(0))
    assert stacked.kernel.shape == (3, 6, 6)
    assert not np.array_equal(stacked.kernel[0], stacked.kernel[1])
    x, xs = jnp.asarray(random(2, 6)), jnp.arange(3.0)

    def run(module, remat="none"):
        return layers.scan_layers(lambda x, layer, scale: jnp.tanh(layer(x)) + scale, x, module, xs, remat=remat)

    expected = x
    for i in range(3):
        expected = jnp.tanh(expected @ stacked.kernel[i] + stacked.bias[i]) + i
    np.testing.assert_allclose(run(stacked), expected, rtol=1e-5)
    np.testing.assert_allclose(run(layers.unstack(stacked)), expected, rtol=1e-5)

    graphdef, state = nnx.split(stacked)
    plain, *others = (
        jax.grad(lambda s, remat=remat: run(nnx.merge(graphdef, s), remat).sum())(state)
        for remat in ("none", "dots", "full")
    )
    for recomputed in others:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), plain, recomputed)


def test_unstacking_can_give_up_the_stack():
    stacked = layers.stack(lambda rngs: layers.Linear(6, 6, rngs=rngs), 3, nnx.Rngs(0))
    expected = np.asarray(stacked.kernel[...])
    apart = layers.unstack(stacked, donate=True)
    np.testing.assert_array_equal([layer.kernel[...] for layer in apart], expected)
    assert stacked.kernel.get_raw_value().is_deleted()


def test_slices_stay_where_the_stack_was():
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = jax.sharding.PartitionSpec(None, "fsdp", "data")
    where = jax.sharding.NamedSharding(mesh, spec)
    for stack in (jax.device_put(np.ones((3, 8, 4)), where), jax.ShapeDtypeStruct((3, 8, 4), float, sharding=where)):
        cut = layers.slices(stack)
        assert [x.shape for x in cut] == [(8, 4)] * 3
        assert {x.sharding.spec for x in cut} == {jax.sharding.PartitionSpec("fsdp", "data")}


def lora_linear(**options) -> layers.Linear:
    linear = layers.Linear(8, 4, lora=layers.LoRAConfig(rank=2, alpha=6.0, **options), rngs=nnx.Rngs(0))
    linear.lora_b[...] = jnp.asarray(random(2, 4))
    return linear


def test_lora_adds_the_scaled_low_rank_product():
    linear, x = lora_linear(), jnp.asarray(random(3, 8))
    update = np.asarray(linear.lora_a[...]) @ np.asarray(linear.lora_b[...]) * 3.0
    np.testing.assert_allclose(linear(x), np.asarray(x) @ (np.asarray(linear.kernel[...]) + update), rtol=1e-4)


def test_merging_lora_changes_nothing_and_can_be_undone():
    linear, x = lora_linear(), jnp.asarray(random(3, 8))
    before, kernel = linear(x), jnp.array(linear.kernel[...])
    layers.merge_lora(linear)
    merged = jnp.array(linear.kernel[...])
    assert not np.allclose(merged, kernel)
    np.testing.assert_allclose(linear(x), before, rtol=1e-4, atol=1e-6)
    layers.merge_lora(linear)
    np.testing.assert_array_equal(linear.kernel[...], merged)
    layers.merge_lora(linear, undo=True)
    np.testing.assert_allclose(linear.kernel[...], kernel, atol=1e-6)
    np.testing.assert_allclose(linear(x), before, rtol=1e-4, atol=1e-6)


def test_lora_dropout_needs_keys_and_is_unbiased():
    linear, x = lora_linear(dropout=0.5), jnp.asarray(random(3, 8))
    without = linear(x)
    np.testing.assert_array_equal(without, linear(x))
    keys = jax.random.split(jax.random.key(0), 4000)
    samples = jax.vmap(lambda key: linear(x, jax.random.split(key, 3)))(keys)
    assert float(samples.std(0).min()) > 0
    error = 5 * samples.std(0) / np.sqrt(len(keys))
    assert bool((jnp.abs(samples.mean(0) - without) < error).all())
    plain = lora_linear()
    np.testing.assert_array_equal(plain(x), plain(x, keys[:3]))


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


def test_bad_lora_configs_say_why():
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        layers.LoRAConfig(rank=0, alpha=1)
    with pytest.raises(ValueError, match="dropout"):
        layers.LoRAConfig(rank=1, alpha=1, dropout=1.0)


def test_rngs_for_traces_give_the_same_keys():
    """Counted or split, traced or not."""

    def keys(rngs):
        layers_ = layers.stack(lambda rngs: layers.Linear(3, 2, rngs=rngs), 2, rngs)
        return [jax.random.key_data(rngs.params()), layers_.kernel[...], jax.random.key_data(rngs.params())]

    for a, b, c in zip(keys(nnx.Rngs(5)), keys(layers.make_rngs(5)), jax.jit(lambda: keys(layers.make_rngs(5)))()):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
