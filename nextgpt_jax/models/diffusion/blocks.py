"""Blocks shared by the UNets and autoencoders: residual, transformer, down- and upsampling blocks, time embedding.

They match diffusers' classes of the same names. Maps are channels last. Legend: B batch, H W spatial, C channels,
L context tokens, D context width.
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from nextgpt_jax.models.attention import attention
from nextgpt_jax.models.layers import Conv, GroupNorm, LayerNorm, Linear, gelu


def timestep_embedding(
    timesteps: Num[Array, " b"], width: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0
) -> Float[Array, "b width"]:
    """Sines and cosines of the timesteps (fractions allowed) at geometric frequencies 1 .. 1/10000, in float32.

    Sines come first unless `flip_sin_to_cos`. `freq_shift` 1 lets the last frequency reach 1/10000 exactly.
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies  # [B, width/2]
    parts = [jnp.cos(angles), jnp.sin(angles)] if flip_sin_to_cos else [jnp.sin(angles), jnp.cos(angles)]
    return jnp.pad(jnp.concatenate(parts, -1), ((0, 0), (0, width % 2)))


class DownLevel(NamedTuple):
    """Channels in and out of a UNet's down block, and whether it halves the map."""

    din: int
    dout: int
    downsample: bool


class UpLevel(NamedTuple):
    """Channels in and out of a UNet's up block, those of its skip connections, and whether it doubles the map."""

    din: int
    dout: int
    skips: tuple[int, ...]
    upsample: bool


def unet_levels(widths: Sequence[int], layers: int) -> tuple[list[DownLevel], list[UpLevel]]:
    """The down and the up blocks of a UNet with `layers` layers per down block, one more per up block."""
    top = len(widths) - 1
    down = [DownLevel(widths[max(i - 1, 0)], width, i < top) for i, width in enumerate(widths)]
    # Skip connections: the first convolution, then every layer and every downsampled map.
    skips = [widths[0]] + [level.dout for level in down for _ in range(layers + level.downsample)]
    up = []
    for i in reversed(range(len(widths))):
        taken = tuple(skips.pop() for _ in range(layers + 1))
        up.append(UpLevel(widths[min(i + 1, top)], widths[i], taken, i > 0))
    return down, up


def check_block_types(field: str, types: Sequence[str], known: Collection[str], count: int) -> None:
    """Raises ValueError unless `types`, a config's `field`, has `count` entries, all of them known."""
    if unknown := set(types) - set(known):
        raise ValueError(f"{field} {sorted(unknown)} are not supported (only {', '.join(known)})")
    if len(types) != count:
        raise ValueError(f"{len(types)} {field}, but {count} block_out_channels")


class TimestepEmbedding(nnx.Module):
    """Linear, SiLU, Linear."""

    def __init__(self, din: int, dout: int, *, rngs: nnx.Rngs):
        self.linear_1 = Linear(din, dout, rngs=rngs)
        self.linear_2 = Linear(dout, dout, rngs=rngs)

    def __call__(self, x: Float[Array, "b din"]) -> Float[Array, "b dout"]:
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


class ResnetBlock2D(nnx.Module):
    """Two convolutions with group norms and a residual; the time embedding is added between them if there is one."""

    def __init__(self, din: int, dout: int, *, time_width: int | None = None, groups: int, eps: float, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(groups, din, eps=eps)
        self.conv1 = Conv(din, dout, (3, 3), padding=1, rngs=rngs)
        self.time_emb_proj = Linear(time_width, dout, rngs=rngs) if time_width else None
        self.norm2 = GroupNorm(groups, dout, eps=eps)
        self.conv2 = Conv(dout, dout, (3, 3), padding=1, rngs=rngs)
        self.conv_shortcut = Linear(din, dout, rngs=rngs) if din != dout else None

    def __call__(
        self, x: Float[Array, "b h w din"], time: Float[Array, "b t"] | None = None
    ) -> Float[Array, "b h w dout"]:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(jax.nn.silu(time))[:, None, None]
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample2D(nnx.Module):
    """Halves the map (rounding up) by a convolution of stride 2.

    The UNets pad one row and column on every side; `asymmetric` pads the right and bottom only, as the autoencoders do.
    """

    def __init__(self, width: int, *, asymmetric: bool = False, rngs: nnx.Rngs):
        padding = ((0, 1), (0, 1)) if asymmetric else 1
        self.conv = Conv(width, width, (3, 3), stride=2, padding=padding, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return self.conv(x)


class Upsample2D(nnx.Module):
    """Doubles the map by repetition, or fits it to `size`, then convolves."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.conv = Conv(width, width, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], size: tuple[int, int] | None = None) -> Float[Array, "b h2 w2 c"]:
        """`size` is the size before Downsample2D: 2h or 2h - 1, for which nearest resizing is repeating and cutting.

        Raises ValueError for any other size.
        """
        height, width = 2 * x.shape[1], 2 * x.shape[2]
        size = size or (height, width)
        if size[0] not in (height, height - 1) or size[1] not in (width, width - 1):
            raise ValueError(f"a map of {x.shape[1]} x {x.shape[2]} cannot be upsampled to {size[0]} x {size[1]}")
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return self.conv(x[:, : size[0], : size[1]])


class Attention(nnx.Module):
    """Multi-head attention to a context, or to the sequence itself; only the output projection has a bias."""

    def __init__(self, width: int, *, heads: int, head_dim: int, context_width: int | None = None, rngs: nnx.Rngs):
        inner = heads * head_dim
        self.heads = heads
        self.to_q = Linear(width, inner, bias=False, rngs=rngs)
        self.to_k = Linear(context_width or width, inner, bias=False, rngs=rngs)
        self.to_v = Linear(context_width or width, inner, bias=False, rngs=rngs)
        self.to_out = Linear(inner, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b t c"], context: Float[Array, "_ l d"] | None = None) -> Float[Array, "b t c"]:
        """`context` has B rows, or a divisor of B: each is then shared by consecutive rows of `x`, such as frames."""
        context = x if context is None else context

        def heads(y):  # rows that share a context form one sequence of queries
            return y.reshape(context.shape[0], -1, self.heads, y.shape[-1] // self.heads)  # [contexts, T, heads, d]

        y = attention(heads(self.to_q(x)), heads(self.to_k(context)), heads(self.to_v(context)))
        return self.to_out(y.reshape(*x.shape[:2], -1))


class FeedForward(nnx.Module):
    """GEGLU (exact GELU) of four times the width, then back; `chunk_feed_forward` bounds its memory."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.proj = Linear(width, 8 * width, rngs=rngs)
        self.out = Linear(4 * width, width, rngs=rngs)
        self.chunk_size = None

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        if self.chunk_size is None or x.shape[0] * x.shape[1] <= self.chunk_size:
            return self._tokens(x)
        tokens = x.reshape(-1, x.shape[-1])
        return jax.lax.map(self._tokens, tokens, batch_size=self.chunk_size).reshape(x.shape)

    def _tokens(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        hidden, gate = jnp.split(self.proj(x), 2, -1)
        return self.out(hidden * gelu(gate))


def chunk_feed_forward(module: nnx.Module, tokens: int | None) -> None:
    """Makes every FeedForward below `module` process `tokens` tokens at a time (all at once if None), in place.

    Values stay the same; the hidden layer, 8 times the width, is only held for that many. Raises ValueError below 1.
    """
    if tokens is not None and tokens < 1:
        raise ValueError(f"a chunk has at least 1 token, got {tokens}")
    for _, layer in nnx.iter_modules(module):
        if isinstance(layer, FeedForward):
            layer.chunk_size = tokens


class BasicTransformerBlock(nnx.Module):
    """Pre-norm self-attention, attention to the context (to the sequence itself without one), feed-forward.

    Rows may share a context, as in Attention.
    """

    def __init__(self, width: int, *, heads: int, head_dim: int, context_width: int | None, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(width)
        self.attn1 = Attention(width, heads=heads, head_dim=head_dim, rngs=rngs)
        self.norm2 = LayerNorm(width)
        self.attn2 = Attention(width, heads=heads, head_dim=head_dim, context_width=context_width, rngs=rngs)
        self.norm3 = LayerNorm(width)
        self.ff = FeedForward(width, rngs=rngs)

    def __call__(self, x: Float[Array, "b t c"], context: Float[Array, "_ l d"] | None = None) -> Float[Array, "b t c"]:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2D(nnx.Module):
    """Transformer blocks over the pixels of a map, with a residual around them (diffusers' Transformer2DModel).

    proj_in and proj_out are Linear, which covers diffusers' 1 x 1 convolutions too.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_dim: int,
        context_width: int | None,
        groups: int,
        layers: int = 1,
        rngs: nnx.Rngs,
    ):
        inner = heads * head_dim
        self.norm = GroupNorm(groups, width, eps=1e-6)
        self.proj_in = Linear(width, inner, rngs=rngs)
        self.transformer_blocks = nnx.List(
            BasicTransformerBlock(inner, heads=heads, head_dim=head_dim, context_width=context_width, rngs=rngs)
            for _ in range(layers)
        )
        self.proj_out = Linear(inner, width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], context: Float[Array, "_ l d"] | None = None
    ) -> Float[Array, "b h w c"]:
        h = self.norm(x).reshape(x.shape[0], -1, x.shape[-1])  # [B, H*W, C]
        h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(h).reshape(x.shape)
