"""The keys and values of a language model's tokens, in the model's dtype or in 8 bits.

In 8 bits a key or value of a head is one float32 scale and integers: the largest magnitude is 127. The scale of a token
and head depends on nothing else, so what a row reads does not depend on the other rows, nor on when it was written.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nextgpt_jax.errors import UserError
from nextgpt_jax.mesh import mesh_device
from nextgpt_jax.models.attention import targets

# "k" and "v": [layers, B, S, K, head_dim], or a list of [B, S, K, head_dim] of unstacked layers; slot = position.
# In 8 bits they are int8, and "k_scale" and "v_scale" are their scales: [..., B, S, K, 1].
Cache = dict[str, Array | list[Array]]
# (index,) in a cache of all layers, () in that of a single layer
Layer = tuple[Array | int, ...]

DTYPES = {"int8": jnp.int8}  # names of a config, apart from "": the model's dtype


def check(name: str) -> None:
    """Checks a value of config.serving.kv_cache.

    Raises:
      UserError: it is no key of DTYPES (or empty).
    """
    if name and name not in DTYPES:
        raise UserError(
            f"serving.kv_cache: {name!r} is not one of {', '.join(DTYPES)}, or nothing for the model's dtype"
        )


def empty(layers: int, shape: tuple[int, int, int, int], dtype: jnp.dtype, *, stacked: bool) -> Cache:
    """A cache without tokens.

    Args:
      shape: of a layer: B, S, K, head_dim.
      dtype: of floats, or int8.
    """
    parts: dict[str, tuple[tuple[int, ...], jnp.dtype]] = {"k": (shape, dtype), "v": (shape, dtype)}
    if jnp.dtype(dtype) == jnp.int8:
        scale = (*shape[:-1], 1), jnp.dtype(jnp.float32)
        parts |= {"k_scale": scale, "v_scale": scale}
    if stacked:
        return {name: jnp.zeros((layers, *of_layer), kind) for name, (of_layer, kind) in parts.items()}
    return {name: [jnp.zeros(of_layer, kind) for _ in range(layers)] for name, (of_layer, kind) in parts.items()}


def write(
    cache: Cache,
    layer: Layer,
    positions: Int[Array, "b t"] | None,
    k: Float[Array, "b t k d"],
    v: Float[Array, "b t k d"],
) -> Cache:
    """The cache with keys and values in the slots `positions` (None: the first T). Positions that are no slot are
    dropped."""
    new = {"k": k, "v": v}
    if "k_scale" in cache:
        new["k"], new["k_scale"] = quantize(k)
        new["v"], new["v_scale"] = quantize(v)
    return {name: _write(cache[name], layer, positions, values) for name, values in new.items()}


def read(
    cache: Cache, layer: Layer, slots: int | None, dtype: jnp.dtype
) -> tuple[Float[Array, "b s k d"], Float[Array, "b s k d"]]:
    """The keys and values of the first `slots` (None: all)."""
    part = {name: arrays[layer][:, :slots] for name, arrays in cache.items()}
    if "k_scale" in cache:
        part["k"], part["v"] = part["k"] * part["k_scale"], part["v"] * part["v_scale"]
    return part["k"].astype(dtype), part["v"].astype(dtype)


def quantize(x: Float[Array, "*b d"]) -> tuple[Int[Array, "*b d"], Float[Array, "*b 1"]]:
    """int8 and float32 scales of vectors; their product is off by half a scale at most."""
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(-1, keepdims=True) / 127
    return jnp.round(x / jnp.where(scale > 0, scale, 1)).astype(jnp.int8), scale


def _write(cache: Array, layer: Layer, positions: Array | None, new: Array) -> Array:
    new = new.astype(cache.dtype)
    if positions is None:
        return jax.lax.dynamic_update_slice(cache, new.reshape((1,) * len(layer) + new.shape), (*layer, 0, 0, 0, 0))
    if mesh_device() is None and targets().keys() == {"cpu"}:
        return _select(cache, layer, positions, new)
    return cache.at[*layer, jnp.arange(len(new))[:, None], positions].set(new, mode="drop")


@jax.jit  # so that it is traced once, not for the keys and the values of every layer
def _select(cache: Array, layer: Layer, positions: Array, new: Array) -> Array:
    """`_write` for CPUs, where a scatter is a loop over rows and tokens, of 20 us each."""
    slots = cache.shape[-3]
    if new.shape[1] == 1 and len(new) <= 64:
        for b in range(len(new)):
            start = (*layer, b, jnp.minimum(positions[b, 0], slots - 1), 0, 0)
            shape = (1,) * len(layer) + (1, 1, *new.shape[2:])
            old = jax.lax.dynamic_slice(cache, start, shape)
            row = jnp.where(positions[b, 0] < slots, new[b].reshape(shape), old)
            cache = jax.lax.dynamic_update_slice(cache, row, start)
        return cache
    chosen = positions[:, None, :] == jnp.arange(slots)[:, None]  # [B, S, T]
    values = jnp.einsum("bst,btkd->bskd", chosen.astype(new.dtype), new, precision="highest")
    old = cache[layer] if layer else cache
    result = jnp.where(chosen.any(-1)[:, :, None, None], values, old)
    return cache.at[layer].set(result) if layer else result
