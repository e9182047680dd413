"""Tier 1: ImageBind (Girdhar et al. 2023). Images, video clips and text in; one embedding space out.

Matches the ImageBindModel that NExT-GPT uses: a modality is a stem that makes tokens, a pre-norm transformer trunk and
a head. Here are vision and text; a further modality is a stem and an entry of `ImageBind.__init__`. Legend of shape
comments: B batch, T tokens, D width of the trunk, E width of the shared space.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from nextgpt_jax import hub
from nextgpt_jax.layers import Conv, Embedding, LayerNorm, Linear, attention, gelu, scan_layers, stack

MODALITIES = ("vision", "text")
_EPS = 1e-6  # of every LayerNorm here
_MAX_LOGIT_SCALE = 100.0


@dataclasses.dataclass(frozen=True)
class ImageBindConfig:
    """Fields named as the arguments of the original's constructor."""

    vision_embed_dim: int
    vision_num_blocks: int
    vision_num_heads: int
    text_embed_dim: int
    text_num_blocks: int
    text_num_heads: int
    out_embed_dim: int
    kernel_size: tuple[int, int, int] = (2, 14, 14)  # of the vision stem: frames, height, width
    video_frames: int = 2
    image_size: int = 224
    text_vocab_size: int = 49408
    text_context_length: int = 77

    def __post_init__(self):
        for name in MODALITIES:
            width, heads = getattr(self, f"{name}_embed_dim"), getattr(self, f"{name}_num_heads")
            if width % heads:
                raise ValueError(f"{name}: width {width} does not divide into {heads} heads")
        for size, kernel in zip((self.video_frames, self.image_size, self.image_size), self.kernel_size, strict=True):
            if size % kernel:
                raise ValueError(f"a clip of {self.video_frames} frames of {self.image_size} pixels does not divide "
                                 f"into patches {self.kernel_size}")  # fmt: skip

    @property
    def num_patches(self) -> int:
        frames, height, width = self.kernel_size
        return self.video_frames // frames * (self.image_size // height) * (self.image_size // width)

    @classmethod
    def from_hub(cls, config: Mapping[str, Any]) -> "ImageBindConfig":
        """Reads the constructor's arguments; those of modalities that are not built here are passed over.

        Raises:
          UserError: a field is missing or its value is refused.
        """
        return hub.parse_config(cls, config)

    @classmethod
    def huge(cls) -> "ImageBindConfig":
        """imagebind_huge, the published model."""
        return cls(
            vision_embed_dim=1280,
            vision_num_blocks=32,
            vision_num_heads=16,
            text_embed_dim=1024,
            text_num_blocks=24,
            text_num_heads=16,
            out_embed_dim=1024,
        )


class Attention(nnx.Module):
    """Self-attention with one projection for query, key and value: nn.MultiheadAttention's packed layout."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.in_proj = Linear(width, 3 * width, rngs=rngs)
        self.out_proj = Linear(width, width, rngs=rngs)

    def __call__(self, x, causal):
        qkv = self.in_proj(x).reshape(*x.shape[:-1], 3, self.heads, -1)  # [B, T, 3, H, d]
        y = attention(qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :], causal=causal)
        return self.out_proj(y.reshape(x.shape))


class Block(nnx.Module):
    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.norm_1 = LayerNorm(width, eps=_EPS)
        self.attn = Attention(width, heads, rngs=rngs)
        self.norm_2 = LayerNorm(width, eps=_EPS)
        self.fc1 = Linear(width, 4 * width, rngs=rngs)
        self.fc2 = Linear(4 * width, width, rngs=rngs)

    def __call__(self, x, causal):
        x = x + self.attn(self.norm_1(x), causal)
        return x + self.fc2(gelu(self.fc1(self.norm_2(x))))


class Trunk(nnx.Module):
    """A stack of pre-norm blocks; vision has a LayerNorm in front, text is causal."""

    def __init__(self, width: int, blocks: int, heads: int, *, pre_norm: bool, causal: bool, rngs: nnx.Rngs):
        self.causal = causal
        self.pre_norm = LayerNorm(width, eps=_EPS) if pre_norm else None
        self.blocks = stack(lambda rngs: Block(width, heads, rngs=rngs), blocks, rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        return scan_layers(lambda x, block, _: block(x, self.causal), x, self.blocks)


class VisionStem(nnx.Module):
    """Patches in space and time, a class token in front, learned positions."""

    def __init__(self, cfg: ImageBindConfig, *, rngs: nnx.Rngs):
        width = cfg.vision_embed_dim
        self.clip_shape = (cfg.video_frames, cfg.image_size, cfg.image_size, 3)
        self.proj = Conv(3, width, cfg.kernel_size, stride=cfg.kernel_size, bias=False, rngs=rngs)
        self.cls_token = nnx.Param(jnp.zeros((1, 1, width)))
        self.pos_embed = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 1 + cfg.num_patches, width)))

    def __call__(self, x: Float[Array, "b h w 3"] | Float[Array, "b f h w 3"]) -> Float[Array, "b t d"]:
        if x.ndim == 4:
            x = jnp.repeat(x[:, None], self.clip_shape[0], axis=1)  # an image is a clip that stands still
        if x.shape[1:] != self.clip_shape:
            frames, height, width, _ = self.clip_shape
            raise ValueError(
                f"vision takes [B, {height}, {width}, 3] or [B, {frames}, {height}, {width}, 3], got {list(x.shape)}"
            )
        patches = self.proj(x)  # [B, F', H', W', D]
        patches = patches.reshape(len(x), -1, patches.shape[-1])
        cls_token = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (len(x), 1, patches.shape[-1]))
        return jnp.concatenate([cls_token, patches], axis=1) + self.pos_embed[...].astype(x.dtype)


class TextStem(nnx.Module):
    """Token embeddings and learned positions."""

    def __init__(self, cfg: ImageBindConfig, *, rngs: nnx.Rngs):
        self.token_embedding = Embedding(cfg.text_vocab_size, cfg.text_embed_dim, rngs=rngs)
        length, width = cfg.text_context_length, cfg.text_embed_dim
        self.pos_embed = nnx.Param(0.01 * jax.random.normal(rngs.params(), (1, length, width)))

    def __call__(self, ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        if ids.ndim != 2 or ids.shape[1] > self.pos_embed.shape[1]:
            raise ValueError(f"text takes ids [B, up to {self.pos_embed.shape[1]}], got {list(ids.shape)}")
        x = self.token_embedding(ids)
        return x + self.pos_embed[:, : ids.shape[1]].astype(x.dtype)


class Tower(nnx.Module):
    """One modality: stem, trunk and head. `scaled` multiplies the unit vectors by a learned logit scale."""

    def __init__(self, stem: nnx.Module, trunk: Trunk, width: int, out: int, *, scaled: bool, rngs: nnx.Rngs):
        self.stem = stem
        self.trunk = trunk
        self.norm = LayerNorm(width, eps=_EPS)
        self.head = Linear(width, out, bias=False, rngs=rngs)
        self.log_logit_scale = nnx.Param(jnp.log(1 / 0.07)) if scaled else None

    def __call__(self, x: Array, position: int | Int[Array, "#b"]) -> Float[Array, "b e"]:
        """`position` is the token that stands for the whole."""
        tokens = self.trunk(self.stem(x))  # [B, T, D]
        pooled = self.head(self.norm(tokens[jnp.arange(len(tokens)), position])).astype(jnp.float32)
        unit = pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)
        if self.log_logit_scale is None:
            return unit
        return unit * jnp.minimum(jnp.exp(self.log_logit_scale[...].astype(jnp.float32)), _MAX_LOGIT_SCALE)


class ImageBind(nnx.Module):
    """The towers of `modalities`, by name in `towers`.

    Raises:
      ValueError: a modality that is not in MODALITIES.
    """

    def __init__(self, cfg: ImageBindConfig, *, modalities: Sequence[str] = MODALITIES, rngs: nnx.Rngs):
        if unknown := set(modalities) - set(MODALITIES):
            raise ValueError(f"ImageBind modalities {sorted(unknown)} are not supported (only {list(MODALITIES)})")
        self.config = cfg

        def tower(name: str) -> Tower:
            width, blocks, heads = (
                getattr(cfg, f"{name}_{field}") for field in ("embed_dim", "num_blocks", "num_heads")
            )
            stem = {"vision": VisionStem, "text": TextStem}[name](cfg, rngs=rngs)
            trunk = Trunk(width, blocks, heads, pre_norm=name == "vision", causal=name == "text", rngs=rngs)
            return Tower(stem, trunk, width, cfg.out_embed_dim, scaled=name != "vision", rngs=rngs)

        self.towers = nnx.Dict({name: tower(name) for name in modalities})

    def embed(self, modality: str, x: Array) -> Float[Array, "b e"]:
        """Embeddings in the shared space, float32 [B, out_embed_dim].

        vision: an image [B, H, W, 3], which is repeated to video_frames, or a clip [B, video_frames, H, W, 3], floats
        normalised by CLIP's mean and deviation; the result has unit length. text: ids [B, up to text_context_length]
        int32, read at the highest id of each row (the end token); the result is scaled by the learned logit scale.

        Raises:
          ValueError: the modality was not built, or x has another shape.
        """
        if modality not in self.towers:
            raise ValueError(f"this ImageBind has no {modality!r} tower (it has {sorted(self.towers)})")
        return self.towers[modality](x, x.argmax(-1) if modality == "text" else 0)
