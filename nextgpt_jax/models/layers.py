"""Layers shared by the models. They take sizes, never a model's config.

Channels are last everywhere. Parameters keep the dtype they are created or loaded in; computation follows the dtype of
the activations; normalisation statistics and softmax are float32. Legend of shape comments: B batch, T tokens, S cached
tokens, D width, H heads, K key/value heads.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from nextgpt_jax.models import quantize
from nextgpt_jax.sharding import constrain

_kernel_init = nnx.initializers.lecun_normal()
_embedding_init = nnx.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adaptation (Hu et al. 2021) as peft does it: y = x W + dropout(x) A B * alpha / rank."""

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"LoRA rank must be at least 1, got {self.rank}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"LoRA dropout must be in [0, 1), got {self.dropout}")


class Linear(nnx.Module):
    """x @ kernel (+ bias), plus a low-rank update when `lora` is given. kernel: [in, out].

    `scheme` (see quantize.py) keeps the kernel, which then cannot be trained, in few bits, with a kernel_scale.
    """

    def __init__(
        self,
        din: int,
        dout: int,
        *,
        bias: bool = True,
        lora: LoRAConfig | None = None,
        quantization: str = "",
        rngs: nnx.Rngs,
    ):
        kernel = _kernel_init(rngs.params(), (din, dout))
        self.quantization = quantization
        if quantization:
            kernel, scale = quantize.quantize(kernel, quantization)
            self.kernel_scale = nnx.Param(scale)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros(dout)) if bias else None
        self.lora = lora
        self.merged = False
        if lora:
            self.lora_a = nnx.LoRAParam(_kernel_init(rngs.params(), (din, lora.rank)))
            self.lora_b = nnx.LoRAParam(jnp.zeros((lora.rank, dout)))

    def __call__(self, x: Float[Array, "*b din"], dropout_keys: Array | None = None) -> Float[Array, "*b dout"]:
        """`dropout_keys` [B], one a row, switch on the LoRA branch's own dropout (training)."""
        if self.quantization:
            y = quantize.product(x, self.kernel[...], self.kernel_scale[...], self.quantization)
        else:
            y = x @ self.kernel[...].astype(x.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        if self.lora and not self.merged:
            if dropout_keys is not None and self.lora.dropout:
                x = dropout(x, self.lora.dropout, dropout_keys)
            low_rank = x @ self.lora_a[...].astype(x.dtype) @ self.lora_b[...].astype(x.dtype)
            y = y + low_rank * (self.lora.alpha / self.lora.rank)
        return constrain(y, "batch")


def dropout(x: Float[Array, "b *s d"], rate: float, keys: Array) -> Float[Array, "b *s d"]:
    """Zeros elements at `rate`, rounded to 1/65536, and scales the others, so that the mean stays. keys [b]: one a row.

    An element takes 16 random bits, half of what jax.random.bernoulli makes for it: with a mask for each projection,
    making bits is among the largest costs of a training step.
    """
    dropped = round(rate * 2**16)
    shape = (*x.shape[1:-1], -(-x.shape[-1] // 2))
    words = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))(keys)
    bits = jax.lax.bitcast_convert_type(words, jnp.uint16)  # [B, *S, ceil(D / 2), 2]
    keep = bits.reshape(*bits.shape[:-2], -1)[..., : x.shape[-1]] >= dropped
    return jnp.where(keep, x / (1.0 - dropped / 2**16), 0)


def merge_lora(module: nnx.Module, *, undo: bool = False) -> None:
    """Adds every LoRA update below `module` to its kernel (or takes it off again with `undo`), in place.

    Works on stacked layers too, and on abstract ones. A merged Linear skips its low-rank branch. Merging what is merged
    changes nothing, and quantized kernels stay as they are, with their branch.
    """
    for _, layer in nnx.iter_modules(module):
        if isinstance(layer, Linear) and layer.lora and not layer.quantization and layer.merged is undo:
            scale = (-1.0 if undo else 1.0) * layer.lora.alpha / layer.lora.rank
            if isinstance(layer.kernel.get_raw_value(), jax.Array):
                kernel = layer.kernel[...]
                where = kernel.sharding if isinstance(kernel.sharding, NamedSharding) else None
                add = jax.jit(_add_update, static_argnums=3, out_shardings=where)
                layer.kernel[...] = add(kernel, layer.lora_a[...], layer.lora_b[...], scale)
            layer.merged = not undo


def _add_update(kernel: Array, a: Array, b: Array, scale: float) -> Array:
    """Summed in the dtype of the update; layers of a stack one by one, for less memory."""
    if kernel.ndim > 2:
        return jax.lax.map(lambda layer: _add_update(*layer, scale), (kernel, a, b))
    update = (a @ b) * scale
    return (kernel.astype(update.dtype) + update).astype(kernel.dtype)


class Conv(nnx.Module):
    """n-dimensional convolution, channels last. kernel: [*spatial, in, out]; padding: one number, or pairs a side."""

    def __init__(
        self,
        din: int,
        dout: int,
        kernel_size: tuple[int, ...],
        *,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[tuple[int, int], ...] = 0,
        dilation: int = 1,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        n = len(kernel_size)
        self.dilation = (dilation,) * n
        self.stride = (stride,) * n if isinstance(stride, int) else tuple(stride)
        self.padding = ((padding, padding),) * n if isinstance(padding, int) else tuple(padding)
        self.kernel = nnx.Param(_kernel_init(rngs.params(), (*kernel_size, din, dout)))
        self.bias = nnx.Param(jnp.zeros(dout)) if bias else None

    def __call__(self, x: Float[Array, "b *s din"]) -> Float[Array, "b *t dout"]:
        spatial = "DHW"[-len(self.stride) :]
        layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
        kernel = self.kernel[...].astype(x.dtype)
        y = jax.lax.conv_general_dilated(
            x, kernel, self.stride, self.padding, rhs_dilation=self.dilation, dimension_numbers=layout
        )
        return constrain(y if self.bias is None else y + self.bias[...].astype(x.dtype), "batch")


class Embedding(nnx.Module):
    """Rows of a table. embedding: [n, width]."""

    def __init__(self, n: int, width: int, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(_embedding_init(rngs.params(), (n, width)))

    def __call__(self, ids: Int[Array, "*b"]) -> Float[Array, "*b width"]:
        return self.embedding[...][ids]


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, statistics in float32."""

    def __init__(self, width: int, *, eps: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.eps = eps

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        h = x.astype(jnp.float32)
        h = h - h.mean(-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + self.eps)
        return (h * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) in float32, cast back, then scaled: LlamaRMSNorm's order."""

    def __init__(self, width: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones(width))
        self.eps = eps

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + self.eps)
        return h.astype(x.dtype) * self.scale[...].astype(x.dtype)


class GroupNorm(nnx.Module):
    """Group normalisation of channels-last maps, statistics in float32."""

    def __init__(self, groups: int, width: int, *, eps: float):
        if width % groups:
            raise ValueError(f"{width} channels do not divide into {groups} groups")
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.groups = groups
        self.eps = eps

    def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *s c"]:
        h = x.astype(jnp.float32).reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        h = h - h.mean((1, 3), keepdims=True)
        h = h * jax.lax.rsqrt(jnp.square(h).mean((1, 3), keepdims=True) + self.eps)
        return (h.reshape(x.shape) * self.scale[...] + self.bias[...]).astype(x.dtype)


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x): CLIP-L's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """The exact (erf) GELU, torch's default."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"quick_gelu": quick_gelu, "gelu": gelu}


def apply_rope(
    x: Float[Array, "b t h d"], positions: Int[Array, "b t"], theta: float = 10000.0
) -> Float[Array, "b t h d"]:
    """Rotary position embedding in HF's layout: pairs are (i, i + d/2), not neighbours. Angles in float32."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies  # [B, T, 1, d/2]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class _Stream(nnx.RngStream):
    """The same keys. In Flax 0.12.8 `count[...] += 1` looks for a sharding, and the message for a traced value, which
    has none, is searched for in the whole trace: with thousands of parameters that takes minutes."""

    def __call__(self) -> jax.Array:
        self.count._check_can_update()
        key = jax.random.fold_in(self.key[...], self.count[...])
        self.count.set_value(self.count[...] + 1)
        return key


def make_rngs(seed: int) -> nnx.Rngs:
    """nnx.Rngs(seed) with the same keys, to make large models of under a trace (nnx.eval_shape, jit)."""
    rngs = nnx.Rngs(seed)
    rngs.default = _Stream(seed, tag="default")
    return rngs


def stack(make: Callable[[nnx.Rngs], nnx.Module], n: int, rngs: nnx.Rngs) -> nnx.Module:
    """n copies of make(rngs) as one module whose parameters have a leading layer axis, to run under `scan_layers`."""

    @nnx.split_rngs(splits=n)
    @nnx.vmap(axis_size=n)
    def build(rngs):
        return make(rngs)

    return build(rngs)


def unstack(layers: nnx.Module, *, donate: bool = False) -> nnx.List:
    """The stacked layers, which may be abstract, as a list of single ones.

    On CPUs and GPUs a scan copies each layer's weights out of the stack before it multiplies by them. Single layers
    take longer to compile. donate: the stacked arrays are deleted one by one, so that memory never holds them twice.
    """
    graphdef, state = nnx.split(layers)
    leaves, structure = jax.tree.flatten(state)
    n, cut = len(leaves[0]), []
    for leaf in leaves:
        cut.append(slices(leaf))
        if donate and isinstance(leaf, jax.Array):
            leaf.delete()
    return nnx.List([nnx.merge(graphdef, jax.tree.unflatten(structure, [x[i] for x in cut])) for i in range(n)])


def slices(x: jax.Array | jax.ShapeDtypeStruct) -> list:
    """An array, or an abstract one, cut along its first axis; on a mesh the other axes stay where they are."""
    where = getattr(x, "sharding", None)
    where = NamedSharding(where.mesh, PartitionSpec(*where.spec[1:])) if isinstance(where, NamedSharding) else None
    if isinstance(x, jax.ShapeDtypeStruct):
        return [jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=where)] * len(x)
    return jax.jit(list, out_shardings=where)(x)


REMAT_POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["carry"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def scan_layers(
    step: Callable[[Any, nnx.Module, Any], Any],
    carry: Any,
    layers: nnx.Module,
    xs: Any = None,
    *,
    remat: str = "none",
) -> Any:
    """carry = step(carry, layer, x) over the layers, and over the leading axis of `xs` with them.

    Stacked layers run under one `lax.scan`; an nnx.List runs as a plain loop. `remat` says what of a stacked layer the
    backward pass finds in memory: "none" everything, "dots" the results of matrix products, "full" the carry alone,
    "offload" the carry, which has waited in the host's memory (accelerators only). The rest is computed again.
    """
    if isinstance(layers, nnx.List):
        for i, layer in enumerate(layers):
            carry = step(carry, layer, jax.tree.map(lambda x, i=i: x[i], xs))
        return carry
    graphdef, state = nnx.split(layers)

    def body(carry, state_and_x):
        state, x = state_and_x
        if remat == "offload":
            carry = jax.tree.map(lambda leaf: checkpoint_name(leaf, "carry"), carry)
        return step(carry, nnx.merge(graphdef, state), x), None

    if remat != "none":
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=False)  # a scan needs no barriers
    return jax.lax.scan(body, carry, (state, xs))[0]
