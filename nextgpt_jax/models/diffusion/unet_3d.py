"""The UNet of text-to-video diffusion (ModelScope's, Zeroscope): noisy latents of all frames, a timestep and text in.

Matches diffusers' UNet3DConditionModel: Stable Diffusion's UNet on every frame, with convolutions and attention over
time between its layers, which also run for a single frame. Maps are channels last. Legend: B videos, F frames, N = B*F
frames of all videos, H W latent size, C channels, L context tokens, D context width.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Num

from nextgpt_jax.models import hf_config, hf_fields
from nextgpt_jax.models.diffusion.blocks import (
    BasicTransformerBlock,
    Downsample2D,
    ResnetBlock2D,
    TimestepEmbedding,
    Transformer2D,
    Upsample2D,
    check_block_types,
    timestep_embedding,
    unet_levels,
)
from nextgpt_jax.models.layers import Conv, GroupNorm, Linear
from nextgpt_jax.sharding import constrain

_DOWN = {"CrossAttnDownBlock3D": True, "DownBlock3D": False}  # whether the block attends
_UP = {"CrossAttnUpBlock3D": True, "UpBlock3D": False}

# Options of the hub's config that change the computation, with the values that are implemented.
_SUPPORTED = {
    **hf_fields.DIFFUSERS_SUPPORTED,
    "_class_name": ("UNet3DConditionModel",),
    "act_fn": ("silu", "swish"),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1,),
    "num_attention_heads": (None,),
    "time_cond_proj_dim": (None,),
}

_HEADS_IN = 8  # heads of transformer_in; not in the config


@dataclasses.dataclass(frozen=True)
class UNet3DConfig:
    """Fields as in the hub's unet/config.json.

    `attention_head_dim` is the width of a head here, not the number of heads as in UNet2DConfig.
    """

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock3D",) * 3, "DownBlock3D")
    up_block_types: tuple[str, ...] = ("UpBlock3D", *("CrossAttnUpBlock3D",) * 3)
    layers_per_block: int = 2
    attention_head_dim: int = 64
    cross_attention_dim: int = 1024
    norm_num_groups: int = 32
    norm_eps: float = 1e-5

    def __post_init__(self):
        n = len(self.block_out_channels)
        for name in ("attention_head_dim", "cross_attention_dim", "layers_per_block"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name}={getattr(self, name)!r} is not supported (only one number for all blocks)")
        check_block_types("down_block_types", self.down_block_types, _DOWN, n)
        check_block_types("up_block_types", self.up_block_types, _UP, n)
        for width in self.block_out_channels:
            if width % self.attention_head_dim:
                raise ValueError(f"{width} channels do not divide into heads of {self.attention_head_dim}")
            if width % self.norm_num_groups:
                raise ValueError(f"{width} channels do not divide into {self.norm_num_groups} groups")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "UNet3DConfig":
        """Reads a UNet3DConditionModel's config.json. Raises UserError for variants that compute something else."""
        return hf_config.config_from_dict(cls, config, _SUPPORTED, hf_fields.DIFFUSERS)

    @classmethod
    def zeroscope(cls) -> "UNet3DConfig":
        """Zeroscope v2 576w, and ModelScope's text-to-video 1.7B."""
        return cls()


class TemporalConv(Conv):
    """A convolution over three frames of every pixel. kernel: [3, 1, 1, in, out].

    Pixels are one axis: compilers have faster programs for two spatial axes than for three.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        super().__init__(width, width, (3, 1, 1), padding=((1, 1), (0, 0), (0, 0)), rngs=rngs)

    def __call__(self, x: Float[Array, "b f p c"]) -> Float[Array, "b f p c"]:
        kernel = self.kernel[...].astype(x.dtype)[:, 0]
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), self.padding[:2], dimension_numbers=layout)
        return constrain(y + self.bias[...].astype(x.dtype), "batch")


class TemporalConvLayer(nnx.Module):
    """Four convolutions over three frames each, with group norms over all frames, around a residual.

    The last convolution starts at zero: an untrained layer changes nothing.
    """

    def __init__(self, width: int, *, groups: int, rngs: nnx.Rngs):
        self.norms = nnx.List(GroupNorm(groups, width, eps=1e-5) for _ in range(4))
        self.convs = nnx.List(TemporalConv(width, rngs=rngs) for _ in range(4))
        self.convs[-1].kernel[...] = jnp.zeros_like(self.convs[-1].kernel[...])

    def __call__(self, x: Float[Array, "n h w c"], frames: int) -> Float[Array, "n h w c"]:
        h = x.reshape(-1, frames, x.shape[1] * x.shape[2], x.shape[3])  # [B, F, pixels, C]
        for norm, conv in zip(self.norms, self.convs):
            h = conv(jax.nn.silu(norm(h)))
        return x + h.reshape(x.shape)


class TransformerTemporal(nnx.Module):
    """Two self-attentions and a feed-forward over the frames of each pixel (diffusers' TransformerTemporalModel).

    Its group norm is over all frames. There are no position embeddings: the temporal convolutions convey the order.
    """

    def __init__(self, width: int, *, heads: int, head_dim: int, groups: int, rngs: nnx.Rngs):
        inner = heads * head_dim
        self.norm = GroupNorm(groups, width, eps=1e-6)
        self.proj_in = Linear(width, inner, rngs=rngs)
        self.transformer_blocks = nnx.List(
            [BasicTransformerBlock(inner, heads=heads, head_dim=head_dim, context_width=None, rngs=rngs)]
        )
        self.proj_out = Linear(inner, width, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"], frames: int) -> Float[Array, "n h w c"]:
        _, height, width, _ = x.shape
        h = self.norm(x.reshape(-1, frames, *x.shape[1:]))
        h = self.proj_in(rearrange(h, "b f h w c -> (b h w) f c"))
        for block in self.transformer_blocks:
            h = block(h)
        h = rearrange(self.proj_out(h), "(b h w) f c -> (b f) h w c", h=height, w=width)
        return x + h


class SpatioTemporalLayers(nnx.Module):
    """The layers of a block: each a residual block and temporal convolutions.

    The first `attending` layers also have a transformer over the pixels of a frame and one over the frames of a pixel.
    """

    def __init__(self, cfg: UNet3DConfig, dins: list[int], dout: int, *, attending: int, rngs: nnx.Rngs):
        groups, head_dim = cfg.norm_num_groups, cfg.attention_head_dim
        heads = {"heads": dout // head_dim, "head_dim": head_dim}
        time_width = 4 * cfg.block_out_channels[0]
        self.resnets = nnx.List(
            ResnetBlock2D(din, dout, time_width=time_width, groups=groups, eps=cfg.norm_eps, rngs=rngs) for din in dins
        )
        self.temp_convs = nnx.List(TemporalConvLayer(dout, groups=groups, rngs=rngs) for _ in dins)
        self.attentions = nnx.List(
            Transformer2D(dout, **heads, context_width=cfg.cross_attention_dim, groups=groups, rngs=rngs)
            for _ in range(attending)
        )
        self.temp_attentions = nnx.List(
            TransformerTemporal(dout, **heads, groups=groups, rngs=rngs) for _ in range(attending)
        )

    def layer(self, i: int, x, time, context, frames: int) -> Float[Array, "n h w c"]:
        x = self.resnets[i](x, time)
        x = self.temp_convs[i](x, frames)
        if i < len(self.attentions):
            x = self.attentions[i](x, context)
            x = self.temp_attentions[i](x, frames)
        return x


class DownBlock3D(SpatioTemporalLayers):
    """Layers, with transformers if `attends`, then a downsampler if `downsample`."""

    def __init__(self, cfg: UNet3DConfig, din: int, dout: int, downsample: bool, *, attends: bool, rngs: nnx.Rngs):
        dins = [din] + [dout] * (cfg.layers_per_block - 1)
        super().__init__(cfg, dins, dout, attending=len(dins) if attends else 0, rngs=rngs)
        self.downsampler = Downsample2D(dout, rngs=rngs) if downsample else None

    def __call__(self, x, time, context, frames: int) -> list[Float[Array, "n h w c"]]:
        """The map after every layer: the skip connections, of which the last is also the next block's input."""
        maps = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x, time, context, frames)
            maps.append(x)
        if self.downsampler is not None:
            maps.append(self.downsampler(x))
        return maps


class MidBlock3D(SpatioTemporalLayers):
    """Two layers, of which the first attends."""

    def __init__(self, cfg: UNet3DConfig, width: int, *, rngs: nnx.Rngs):
        super().__init__(cfg, [width, width], width, attending=1, rngs=rngs)

    def __call__(self, x, time, context, frames: int) -> Float[Array, "n h w c"]:
        for i in range(len(self.resnets)):
            x = self.layer(i, x, time, context, frames)
        return x


class UpBlock3D(SpatioTemporalLayers):
    """As DownBlock3D, each layer also taking a skip connection, then an upsampler."""

    def __init__(
        self,
        cfg: UNet3DConfig,
        din: int,
        dout: int,
        skips: tuple[int, ...],
        upsample: bool,
        *,
        attends: bool,
        rngs: nnx.Rngs,
    ):
        dins = [(dout if i else din) + skip for i, skip in enumerate(skips)]
        super().__init__(cfg, dins, dout, attending=len(dins) if attends else 0, rngs=rngs)
        self.upsampler = Upsample2D(dout, rngs=rngs) if upsample else None

    def __call__(self, x, time, context, frames: int, skips) -> Float[Array, "n h w c"]:
        """Pops its skip connections off the end of `skips`; the next one has the size to upsample to."""
        for i in range(len(self.resnets)):
            x = self.layer(i, jnp.concatenate([x, skips.pop()], -1), time, context, frames)
        return x if self.upsampler is None else self.upsampler(x, skips[-1].shape[1:3])


class UNet3DConditionModel(nnx.Module):
    """The whole network. conv_out starts at zero, so that training from scratch starts from a zero prediction.

    `blocks.chunk_feed_forward` bounds the memory of its widest layers, as diffusers' enable_forward_chunking does.
    """

    def __init__(self, cfg: UNet3DConfig, *, rngs: nnx.Rngs):
        self.config = cfg
        widths, groups = cfg.block_out_channels, cfg.norm_num_groups
        self.conv_in = Conv(cfg.in_channels, widths[0], (3, 3), padding=1, rngs=rngs)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0], rngs=rngs)
        self.transformer_in = TransformerTemporal(
            widths[0], heads=_HEADS_IN, head_dim=cfg.attention_head_dim, groups=groups, rngs=rngs
        )

        down, up = unet_levels(widths, cfg.layers_per_block)
        self.down_blocks = nnx.List(
            DownBlock3D(cfg, *level, attends=_DOWN[kind], rngs=rngs) for level, kind in zip(down, cfg.down_block_types)
        )
        self.mid_block = MidBlock3D(cfg, widths[-1], rngs=rngs)
        self.up_blocks = nnx.List(
            UpBlock3D(cfg, *level, attends=_UP[kind], rngs=rngs) for level, kind in zip(up, cfg.up_block_types)
        )

        self.conv_norm_out = GroupNorm(groups, widths[0], eps=cfg.norm_eps)
        self.conv_out = Conv(widths[0], cfg.out_channels, (3, 3), padding=1, rngs=rngs)
        self.conv_out.kernel[...] = jnp.zeros_like(self.conv_out.kernel[...])

    def __call__(
        self,
        sample: Float[Array, "b f h w c"],
        timestep: Num[Array, " b"] | Num[Array, ""],
        encoder_hidden_states: Float[Array, "b l d"],
    ) -> Float[Array, "b f h w out"]:
        """The prediction (noise or velocity, as trained) in the dtype of `sample`.

        Any number of frames and any latent size work: on the way up, maps are resized to their skip connection where
        halving rounded.
        """
        batch, frames = sample.shape[:2]
        time = timestep_embedding(jnp.broadcast_to(timestep, batch), self.config.block_out_channels[0])
        time = self.time_embedding(time.astype(sample.dtype))
        time = jnp.repeat(time, frames, 0)  # [N, 4C]
        context = encoder_hidden_states.astype(sample.dtype)  # [B, L, D]: a row is shared by all frames of its video

        x = self.conv_in(sample.reshape(-1, *sample.shape[2:]))  # [N, H, W, C]
        skips = [self.transformer_in(x, frames)]
        for block in self.down_blocks:
            skips += block(skips[-1], time, context, frames)
        x = self.mid_block(skips[-1], time, context, frames)
        for block in self.up_blocks:
            x = block(x, time, context, frames, skips)
        x = self.conv_out(jax.nn.silu(self.conv_norm_out(x)))
        return x.reshape(batch, frames, *x.shape[1:])
