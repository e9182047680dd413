"""Layers shared by the models. They take sizes, never a model's config. Channels are last everywhere.

Why not nnx.Linear, nnx.LayerNorm and others: theirs compute in a dtype fixed at construction, or promote activations to
the dtype of the parameters. Here parameters keep the dtype they are created or loaded in (trained ones are float32,
frozen ones may be bfloat16), and results have the dtype of the activations; only statistics of norms are float32. In
float32 both are equal. Linear also has LoRA, quantized kernels and a sharding constraint on its output.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from nextgpt_jax.models import quantize
from nextgpt_jax.models.lora import LoRAConfig
from nextgpt_jax.models.rngs import draw
from nextgpt_jax.sharding import constrain

_kernel_init = nnx.initializers.lecun_normal()
_embedding_init = nnx.initializers.normal(0.02)


class Linear(nnx.Module):
    """x @ kernel (+ bias), plus a low-rank update when `lora` is given. kernel: [in, out].

    `quantization` (a key of quantize.SCHEMES) stores the kernel in 8 or 4 bits, with a kernel_scale; it is then frozen.
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
        kernel = draw(_kernel_init, rngs, (din, dout))
        self.quantization = quantization
        if quantization:
            kernel, scale = quantize.quantize(kernel, quantization)
            self.kernel_scale = nnx.Param(scale)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros(dout)) if bias else None
        self.lora = lora
        self.merged = False
        if lora:
            self.lora_a = nnx.LoRAParam(draw(_kernel_init, rngs, (din, lora.rank)))
            self.lora_b = nnx.LoRAParam(jnp.zeros((lora.rank, dout)))

    def __call__(self, x: Float[Array, "*b din"], dropout_keys: Array | None = None) -> Float[Array, "*b dout"]:
        """`dropout_keys` [B], one per example, enable the dropout of the LoRA branch (training)."""
        if self.quantization:
            y = quantize.quantized_matmul(x, self.kernel[...], self.kernel_scale[...], self.quantization)
        else:
            y = x @ self.kernel[...].astype(x.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        if self.lora and not self.merged:
            if dropout_keys is not None and self.lora.dropout:
                x = dropout(x, self.lora.dropout, dropout_keys)
            low_rank = x @ self.lora_a[...].astype(x.dtype) @ self.lora_b[...].astype(x.dtype)
            y = y + low_rank * self.lora.scale
        return constrain(y, "batch")


def dropout(x: Float[Array, "b *s d"], rate: float, keys: Array) -> Float[Array, "b *s d"]:
    """Zeros elements at `rate`, rounded to 1/65536, and scales the others to keep the mean. keys [b]: one per example.

    Uses 16 random bits per element, half as many as jax.random.bernoulli: with a mask for each projection, random bits
    are among the largest costs of a training step.
    """
    dropped = round(rate * 2**16)
    shape = (*x.shape[1:-1], -(-x.shape[-1] // 2))
    words = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))(keys)
    bits = jax.lax.bitcast_convert_type(words, jnp.uint16)  # [B, *S, ceil(D / 2), 2]
    keep = bits.reshape(*bits.shape[:-2], -1)[..., : x.shape[-1]] >= dropped
    return jnp.where(keep, x / (1.0 - dropped / 2**16), 0)


class Conv(nnx.Module):
    """n-dimensional convolution, channels last. kernel: [*spatial, in, out]; padding: one number, or a pair for each
    spatial axis."""

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
        self.kernel = nnx.Param(draw(_kernel_init, rngs, (*kernel_size, din, dout)))
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
        self.embedding = nnx.Param(draw(_embedding_init, rngs, (n, width)))

    def __call__(self, ids: Int[Array, "*b"]) -> Float[Array, "*b width"]:
        return self.embedding[...][ids]


class LayerNorm(nnx.Module):
    """Layer normalization over the last axis, statistics in float32."""

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
    """x / rms(x) in float32, cast back, then scaled, in the order of LlamaRMSNorm."""

    def __init__(self, width: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones(width))
        self.eps = eps

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + self.eps)
        return h.astype(x.dtype) * self.scale[...].astype(x.dtype)


class GroupNorm(nnx.Module):
    """Group normalization of channels-last maps, statistics in float32."""

    def __init__(self, groups: int, width: int, *, eps: float):
        if width % groups:
            raise ValueError(f"{width} channels do not divide into {groups} groups")
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.groups = groups
        self.eps = eps

    def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *s c"]:
        h = x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])
        h = h - self._group_mean(h)
        h = h * (jax.lax.rsqrt(self._group_mean(jnp.square(h)) + self.eps) * self.scale[...]) + self.bias[...]
        return h.reshape(x.shape).astype(x.dtype)

    def _group_mean(self, h: Float[Array, "b s c"]) -> Float[Array, "b 1 c"]:
        """The mean of a channel's group. Channels first: a mean over a group's few channels does not vectorize."""
        means = h.mean(1).reshape(h.shape[0], self.groups, -1).mean(-1)
        return jnp.repeat(means, h.shape[-1] // self.groups, axis=-1)[:, None]


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x): CLIP-L's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """The exact (erf) GELU, torch's default."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"quick_gelu": quick_gelu, "gelu": gelu}


def check_transformer(hidden_act: str, width: int, heads: int) -> None:
    """Raises ValueError unless the activation is one of ACTIVATIONS and the width divides into the heads."""
    if hidden_act not in ACTIVATIONS:
        raise ValueError(f"hidden_act={hidden_act!r} is not supported (only {', '.join(ACTIVATIONS)})")
    if width % heads:
        raise ValueError(f"width {width} does not divide into {heads} heads")
