"""The UNet of Stable Diffusion and AudioLDM: noisy latents, a timestep and text in; the model's prediction out.

Matches diffusers' UNet2DConditionModel. Maps are channels last. Legend: B batch, H W latent size, C channels, L context
tokens, D context width.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from nextgpt_jax.errors import UserError
from nextgpt_jax.models import hf_config, hf_fields
from nextgpt_jax.models.diffusion.blocks import (
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

_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}  # whether the block attends
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}

# Options of the hub's config that change the computation, with the values that are implemented.
_SUPPORTED = {
    **hf_fields.DIFFUSERS_SUPPORTED,
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "transformer_layers_per_block": (1,),
}
_HARMLESS = {  # of training, of embeddings that are not supported, and the dtype of attention in half precision
    *hf_fields.DIFFUSERS, "addition_embed_type_num_heads", "addition_time_embed_dim", "dropout", "upcast_attention",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class UNet2DConfig:
    """Fields as in the hub's unet/config.json.

    `attention_head_dim` is the NUMBER of heads of all blocks, or of each. `cross_attention_dim` is the width of the
    text's hidden states, or the widths of the blocks themselves in models that see the text as a class embedding only:
    all their attention is self-attention. A class embedding is a linear map of `class_labels`
    (`class_embed_type="simple_projection"`), added to the time embedding, or concatenated with it if
    `class_embeddings_concat`.
    """

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    layers_per_block: int = 2
    attention_head_dim: int | tuple[int, ...] = 8
    cross_attention_dim: int | tuple[int, ...] = 1280
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    class_embed_type: str | None = None
    projection_class_embeddings_input_dim: int | None = None
    class_embeddings_concat: bool = False

    def __post_init__(self):
        n = len(self.block_out_channels)
        if not isinstance(self.layers_per_block, int):
            raise ValueError(f"layers_per_block={self.layers_per_block!r} is not supported (only one for all blocks)")
        if not isinstance(self.cross_attention_dim, int) and self.cross_attention_dim != self.block_out_channels:
            raise ValueError(
                f"cross_attention_dim={self.cross_attention_dim!r} is not supported (only one width for all blocks, or "
                f"{list(self.block_out_channels)}, with which they attend to themselves)"
            )
        if self.class_embed_type not in (None, "simple_projection"):
            raise ValueError(f"class_embed_type={self.class_embed_type!r} is not supported (only 'simple_projection')")
        if self.class_embed_type and not self.projection_class_embeddings_input_dim:
            raise ValueError("class_embed_type='simple_projection' needs projection_class_embeddings_input_dim")
        if self.class_embeddings_concat and not self.class_embed_type:
            raise ValueError("class_embeddings_concat=True needs a class_embed_type")
        check_block_types("down_block_types", self.down_block_types, _DOWN, n)
        check_block_types("up_block_types", self.up_block_types, _UP, n)
        if not isinstance(self.attention_head_dim, int) and len(self.attention_head_dim) != n:
            raise ValueError(f"{len(self.attention_head_dim)} entries of attention_head_dim, but {n} blocks")
        for width, heads in zip(self.block_out_channels, self.heads):
            if width % heads:
                raise ValueError(f"{width} channels do not divide into {heads} heads")
            if width % self.norm_num_groups:
                raise ValueError(f"{width} channels do not divide into {self.norm_num_groups} groups")

    @property
    def context_width(self) -> int | None:
        """Width of the hidden states that the blocks attend to, or None if they attend to themselves."""
        return self.cross_attention_dim if isinstance(self.cross_attention_dim, int) else None

    @property
    def heads(self) -> tuple[int, ...]:
        """The number of attention heads of each down block; the up blocks have them in reverse."""
        heads = self.attention_head_dim
        return (heads,) * len(self.block_out_channels) if isinstance(heads, int) else heads

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "UNet2DConfig":
        """Reads a UNet2DConditionModel's config.json. Raises UserError for variants that compute something else."""
        config = dict(config)
        if heads := config.pop("num_attention_heads", None):  # the later name of attention_head_dim
            config["attention_head_dim"] = heads
        if config.get("cross_attention_dim", 1280) is None:
            widths = list(config.get("block_out_channels", cls.block_out_channels))
            raise UserError(
                f"{cls.__name__}: cross_attention_dim=None is not supported (only a width, or {widths}, "
                "with which the blocks attend to themselves)"
            )
        return hf_config.config_from_dict(cls, config, _SUPPORTED, _HARMLESS)

    @classmethod
    def sd15(cls) -> "UNet2DConfig":
        """Stable Diffusion 1.5."""
        return cls(cross_attention_dim=768)

    @classmethod
    def sd2(cls) -> "UNet2DConfig":
        """Stable Diffusion 2."""
        return cls(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)

    @classmethod
    def audioldm_l(cls) -> "UNet2DConfig":
        """AudioLDM-L, conditioned on CLAP's embeddings of 512."""
        widths = (256, 512, 768, 1280)
        return cls(
            in_channels=8,
            out_channels=8,
            block_out_channels=widths,
            down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
            up_block_types=(*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
            cross_attention_dim=widths,
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=512,
            class_embeddings_concat=True,
        )


def _resnet(cfg: UNet2DConfig, din: int, dout: int, rngs: nnx.Rngs) -> ResnetBlock2D:
    time_width = (8 if cfg.class_embeddings_concat else 4) * cfg.block_out_channels[0]
    return ResnetBlock2D(din, dout, time_width=time_width, groups=cfg.norm_num_groups, eps=cfg.norm_eps, rngs=rngs)


def _transformer(cfg: UNet2DConfig, width: int, heads: int, rngs: nnx.Rngs) -> Transformer2D:
    return Transformer2D(
        width,
        heads=heads,
        head_dim=width // heads,
        context_width=cfg.context_width,
        groups=cfg.norm_num_groups,
        rngs=rngs,
    )


class DownBlock2D(nnx.Module):
    """Residual blocks, each followed by a transformer if `heads`, then a downsampler if `downsample`."""

    def __init__(self, cfg: UNet2DConfig, din: int, dout: int, downsample: bool, *, heads: int | None, rngs: nnx.Rngs):
        n = cfg.layers_per_block
        self.resnets = nnx.List(_resnet(cfg, dout if i else din, dout, rngs) for i in range(n))
        self.attentions = nnx.List(_transformer(cfg, dout, heads, rngs) for _ in range(n)) if heads else None
        self.downsampler = Downsample2D(dout, rngs=rngs) if downsample else None

    def __call__(self, x, time, context) -> list[Float[Array, "b h w c"]]:
        """The map after every layer: the skip connections, of which the last is also the next block's input."""
        maps = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attentions is not None:
                x = self.attentions[i](x, context)
            maps.append(x)
        if self.downsampler is not None:
            maps.append(self.downsampler(x))
        return maps


class MidBlock2D(nnx.Module):
    """Residual block, transformer, residual block."""

    def __init__(self, cfg: UNet2DConfig, width: int, *, heads: int, rngs: nnx.Rngs):
        self.resnets = nnx.List(_resnet(cfg, width, width, rngs) for _ in range(2))
        self.attentions = nnx.List([_transformer(cfg, width, heads, rngs)])

    def __call__(self, x, time, context) -> Float[Array, "b h w c"]:
        x = self.attentions[0](self.resnets[0](x, time), context)
        return self.resnets[1](x, time)


class UpBlock2D(nnx.Module):
    """As DownBlock2D, each residual block also taking a skip connection, then an upsampler."""

    def __init__(
        self,
        cfg: UNet2DConfig,
        din: int,
        dout: int,
        skips: tuple[int, ...],
        upsample: bool,
        *,
        heads: int | None,
        rngs: nnx.Rngs,
    ):
        self.resnets = nnx.List(_resnet(cfg, (dout if i else din) + skip, dout, rngs) for i, skip in enumerate(skips))
        self.attentions = nnx.List(_transformer(cfg, dout, heads, rngs) for _ in skips) if heads else None
        self.upsampler = Upsample2D(dout, rngs=rngs) if upsample else None

    def __call__(self, x, time, context, skips) -> Float[Array, "b h w c"]:
        """Pops its skip connections off the end of `skips`; the next one has the size to upsample to."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(jnp.concatenate([x, skips.pop()], -1), time)
            if self.attentions is not None:
                x = self.attentions[i](x, context)
        return x if self.upsampler is None else self.upsampler(x, skips[-1].shape[1:3])


class UNet2DConditionModel(nnx.Module):
    """The whole network. conv_out starts at zero, so that training from scratch starts from a zero prediction."""

    def __init__(self, cfg: UNet2DConfig, *, rngs: nnx.Rngs):
        self.config = cfg
        widths = cfg.block_out_channels
        self.conv_in = Conv(cfg.in_channels, widths[0], (3, 3), padding=1, rngs=rngs)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0], rngs=rngs)
        classes = cfg.projection_class_embeddings_input_dim if cfg.class_embed_type else None
        self.class_embedding = Linear(classes, 4 * widths[0], rngs=rngs) if classes else None

        down, up = unet_levels(widths, cfg.layers_per_block)
        self.down_blocks = nnx.List(
            DownBlock2D(cfg, *level, heads=heads if _DOWN[kind] else None, rngs=rngs)
            for level, kind, heads in zip(down, cfg.down_block_types, cfg.heads)
        )
        self.mid_block = MidBlock2D(cfg, widths[-1], heads=cfg.heads[-1], rngs=rngs)
        self.up_blocks = nnx.List(
            UpBlock2D(cfg, *level, heads=heads if _UP[kind] else None, rngs=rngs)
            for level, kind, heads in zip(up, cfg.up_block_types, cfg.heads[::-1])
        )

        self.conv_norm_out = GroupNorm(cfg.norm_num_groups, widths[0], eps=cfg.norm_eps)
        self.conv_out = Conv(widths[0], cfg.out_channels, (3, 3), padding=1, rngs=rngs)
        self.conv_out.kernel[...] = jnp.zeros_like(self.conv_out.kernel[...])

    def __call__(
        self,
        sample: Float[Array, "b h w c"],
        timestep: Num[Array, " b"] | Num[Array, ""],
        encoder_hidden_states: Float[Array, "b l d"] | None = None,
        class_labels: Float[Array, "b e"] | None = None,
    ) -> Float[Array, "b h w out"]:
        """The prediction (noise or velocity, as trained) in the dtype of `sample`.

        Any latent size works: on the way up, maps are resized to their skip connection where halving rounded.
        Raises ValueError unless there are hidden states if and only if the config has one width for them, and class
        labels if and only if it has a class embedding.
        """
        for name, given, wanted in (
            ("encoder_hidden_states", encoder_hidden_states, self.config.context_width is not None),
            ("class_labels", class_labels, self.class_embedding is not None),
        ):
            if (given is not None) != wanted:
                raise ValueError(f"this UNet {'needs' if wanted else 'takes no'} {name}")
        time = jnp.broadcast_to(timestep, sample.shape[:1])
        time = timestep_embedding(
            time,
            self.config.block_out_channels[0],
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        time = self.time_embedding(time.astype(sample.dtype))
        if class_labels is not None:
            classes = self.class_embedding(class_labels.astype(sample.dtype))
            time = jnp.concatenate([time, classes], -1) if self.config.class_embeddings_concat else time + classes
        context = None if encoder_hidden_states is None else encoder_hidden_states.astype(sample.dtype)

        skips = [self.conv_in(sample)]
        for block in self.down_blocks:
            skips += block(skips[-1], time, context)
        x = self.mid_block(skips[-1], time, context)
        for block in self.up_blocks:
            x = block(x, time, context, skips)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))
