"""The autoencoder between pixels (or mel spectrograms) and latents.

Matches diffusers' AutoencoderKL: every group norm has eps 1e-6, the middle block attends with one head. Maps are
channels last. Legend: B batch, H W pixels, h w latent pixels, C channels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nextgpt_jax.errors import UserError
from nextgpt_jax.models import hf_config, hf_fields
from nextgpt_jax.models.attention import attention
from nextgpt_jax.models.diffusion.blocks import Downsample2D, ResnetBlock2D, Upsample2D
from nextgpt_jax.models.layers import Conv, GroupNorm, Linear

_EPS = 1e-6

_SUPPORTED = {
    **hf_fields.DIFFUSERS_SUPPORTED,
    "_class_name": ("AutoencoderKL",),
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "shift_factor": (None,),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
_HARMLESS = {*hf_fields.DIFFUSERS, *_BLOCKS, "force_upcast"}  # upcast: the dtype is chosen here


@dataclasses.dataclass(frozen=True)
class AutoencoderKLConfig:
    """Fields as in the hub's vae/config.json. Diffusion models see latents times `scaling_factor`."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215

    def __post_init__(self):
        if not self.scaling_factor > 0:
            raise ValueError(f"scaling_factor={self.scaling_factor!r} should be positive")
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise ValueError(f"{width} channels do not divide into {self.norm_num_groups} groups")

    @property
    def downscale(self) -> int:
        """Pixels per latent pixel, along each side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape [h, w, c] of the latents of height x width pixels.

        Raises UserError unless both sides are multiples of `downscale`.
        """
        factor = self.downscale
        if height < factor or width < factor or height % factor or width % factor:
            raise UserError(f"height and width must be multiples of {factor}, got {height} x {width}")
        return height // factor, width // factor, self.latent_channels

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "AutoencoderKLConfig":
        """Reads an AutoencoderKL's config.json. Raises UserError for variants that compute something else."""
        found = hf_config.config_from_dict(cls, config, _SUPPORTED, _HARMLESS)
        for key, wanted in _BLOCKS.items():
            kinds = config.get(key, [wanted])
            if not isinstance(kinds, list | tuple) or (unknown := [kind for kind in kinds if kind != wanted]):
                unknown = unknown if isinstance(kinds, list | tuple) else kinds
                raise UserError(f"{cls.__name__}: {key} {unknown} are not supported (only {wanted})")
            if len(kinds) != len(found.block_out_channels):
                raise UserError(
                    f"{cls.__name__}: {len(kinds)} {key}, but {len(found.block_out_channels)} block_out_channels"
                )
        return found

    @classmethod
    def sd(cls) -> "AutoencoderKLConfig":
        """The autoencoder of Stable Diffusion 1 and 2 and of Zeroscope."""
        return cls(block_out_channels=(128, 256, 512, 512), layers_per_block=2)


def _resnet(cfg: AutoencoderKLConfig, din: int, dout: int, rngs: nnx.Rngs) -> ResnetBlock2D:
    return ResnetBlock2D(din, dout, groups=cfg.norm_num_groups, eps=_EPS, rngs=rngs)


class AttentionBlock(nnx.Module):
    """One-headed self-attention over the pixels of a map, with its norm and residual."""

    def __init__(self, width: int, *, groups: int, rngs: nnx.Rngs):
        self.group_norm = GroupNorm(groups, width, eps=_EPS)
        self.to_q = Linear(width, width, rngs=rngs)
        self.to_k = Linear(width, width, rngs=rngs)
        self.to_v = Linear(width, width, rngs=rngs)
        self.to_out = Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        h = self.group_norm(x).reshape(x.shape[0], -1, 1, x.shape[-1])  # [B, H*W, 1, C]
        h = attention(self.to_q(h), self.to_k(h), self.to_v(h))
        return x + self.to_out(h).reshape(x.shape)


class MidBlock(nnx.Module):
    """Residual block, attention, residual block."""

    def __init__(self, cfg: AutoencoderKLConfig, width: int, *, rngs: nnx.Rngs):
        self.resnets = nnx.List(_resnet(cfg, width, width, rngs) for _ in range(2))
        self.attentions = nnx.List([AttentionBlock(width, groups=cfg.norm_num_groups, rngs=rngs)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class EncoderBlock(nnx.Module):
    """Residual blocks, then a downsampler if `downsample`."""

    def __init__(self, cfg: AutoencoderKLConfig, din: int, dout: int, *, downsample: bool, rngs: nnx.Rngs):
        n = cfg.layers_per_block
        self.resnets = nnx.List(_resnet(cfg, dout if i else din, dout, rngs) for i in range(n))
        self.downsampler = Downsample2D(dout, asymmetric=True, rngs=rngs) if downsample else None

    def __call__(self, x: Float[Array, "b h w din"]) -> Float[Array, "b h2 w2 dout"]:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.downsampler is None else self.downsampler(x)


class DecoderBlock(nnx.Module):
    """Residual blocks (one more than the encoder's), then an upsampler if `upsample`."""

    def __init__(self, cfg: AutoencoderKLConfig, din: int, dout: int, *, upsample: bool, rngs: nnx.Rngs):
        n = cfg.layers_per_block + 1
        self.resnets = nnx.List(_resnet(cfg, dout if i else din, dout, rngs) for i in range(n))
        self.upsampler = Upsample2D(dout, rngs=rngs) if upsample else None

    def __call__(self, x: Float[Array, "b h w din"]) -> Float[Array, "b h2 w2 dout"]:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.upsampler is None else self.upsampler(x)


class Encoder(nnx.Module):
    """Pixels to the moments of the latents (mean and log variance, concatenated)."""

    def __init__(self, cfg: AutoencoderKLConfig, *, rngs: nnx.Rngs):
        widths = cfg.block_out_channels
        self.conv_in = Conv(cfg.in_channels, widths[0], (3, 3), padding=1, rngs=rngs)
        self.down_blocks = nnx.List(
            EncoderBlock(cfg, widths[max(i - 1, 0)], width, downsample=i < len(widths) - 1, rngs=rngs)
            for i, width in enumerate(widths)
        )
        self.mid_block = MidBlock(cfg, widths[-1], rngs=rngs)
        self.conv_norm_out = GroupNorm(cfg.norm_num_groups, widths[-1], eps=_EPS)
        self.conv_out = Conv(widths[-1], 2 * cfg.latent_channels, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b h w moments"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Latents to pixels."""

    def __init__(self, cfg: AutoencoderKLConfig, *, rngs: nnx.Rngs):
        widths = cfg.block_out_channels[::-1]
        self.conv_in = Conv(cfg.latent_channels, widths[0], (3, 3), padding=1, rngs=rngs)
        self.mid_block = MidBlock(cfg, widths[0], rngs=rngs)
        self.up_blocks = nnx.List(
            DecoderBlock(cfg, widths[max(i - 1, 0)], width, upsample=i < len(widths) - 1, rngs=rngs)
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = GroupNorm(cfg.norm_num_groups, widths[-1], eps=_EPS)
        self.conv_out = Conv(widths[-1], cfg.out_channels, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w z"]) -> Float[Array, "b H W c"]:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class AutoencoderKL(nnx.Module):
    """Encoder and decoder of unscaled latents: multiply by `config.scaling_factor` for a diffusion model."""

    def __init__(self, cfg: AutoencoderKLConfig, *, rngs: nnx.Rngs):
        self.config = cfg
        self.encoder = Encoder(cfg, rngs=rngs)
        self.quant_conv = Linear(2 * cfg.latent_channels, 2 * cfg.latent_channels, rngs=rngs)
        self.post_quant_conv = Linear(cfg.latent_channels, cfg.latent_channels, rngs=rngs)
        self.decoder = Decoder(cfg, rngs=rngs)

    def encode(self, x: Float[Array, "b H W c"]) -> tuple[Float[Array, "b h w z"], Float[Array, "b h w z"]]:
        """Mean and log variance (clamped to -30 .. 20) of the latents of pixels in -1 .. 1."""
        mean, logvar = jnp.split(self.quant_conv(self.encoder(x)), 2, -1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def encode_latents(
        self, x: Float[Array, "b H W c"], noise: Float[Array, "b h w z"] | None, dtype: DTypeLike
    ) -> Float[Array, "b h w z"]:
        """A diffusion model's latents, float32, of pixels in -1 .. 1; the network computes in `dtype`.

        Drawn with standard normal `noise` from their distribution; None takes its mean.
        """
        mean, logvar = (moment.astype(jnp.float32) for moment in self.encode(x.astype(dtype)))
        drawn = mean if noise is None else mean + jnp.exp(0.5 * logvar) * noise
        return drawn * self.config.scaling_factor

    def decode(self, latents: Float[Array, "b h w z"]) -> Float[Array, "b H W c"]:
        """Pixels, about -1 .. 1 and not clipped."""
        return self.decoder(self.post_quant_conv(latents))

    def decode_pixels(self, latents: Float[Array, "b h w z"], dtype: DTypeLike) -> Float[Array, "b H W c"]:
        """Pixels in 0 .. 1, float32, of a diffusion model's latents; the network computes in `dtype`."""
        pixels = self.decode((latents / self.config.scaling_factor).astype(dtype))
        return jnp.clip(pixels.astype(jnp.float32) / 2 + 0.5, 0.0, 1.0)
