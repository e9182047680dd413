"""CLIP: embeddings of images and of texts in one space.

Matches transformers' CLIPModel (get_image_features and get_text_features), such as openai/clip-vit-base-patch32 and
clip-vit-large-patch14. Legend: B batch, T tokens, D width, E width of the shared space.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from nextgpt_jax.errors import UserError
from nextgpt_jax.models import hf_config, hf_fields
from nextgpt_jax.models.diffusion.clip_text import CLIPTextConfig, CLIPTextModel, EncoderLayer
from nextgpt_jax.models.layers import Conv, LayerNorm, Linear, check_transformer
from nextgpt_jax.models.rngs import draw
from nextgpt_jax.models.stacking import scan_layers, stack

_SUPPORTED = {**hf_fields.TRANSFORMERS_SUPPORTED, "model_type": ("clip",)}
_HARMLESS = {*hf_fields.TRANSFORMERS, "logit_scale_init_value", "tie_word_embeddings"}
_VISION_SUPPORTED = {**hf_fields.TRANSFORMERS_SUPPORTED, "model_type": ("clip_vision_model",), "num_channels": (3,)}
_VISION_HARMLESS = {
    *hf_fields.TRANSFORMERS, "attention_dropout", "dropout", "projection_dim", "tie_word_embeddings",
}  # fmt: skip
_OLD_END = 2  # as which configs of before 2023 have the end token, whatever the tokenizer's is


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """Fields as in vision_config of the hub's config.json."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224  # pixels
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        check_transformer(self.hidden_act, self.hidden_size, self.num_attention_heads)
        if self.patch_size < 1 or self.image_size < self.patch_size:
            raise ValueError(f"images of {self.image_size} pixels have no patch of {self.patch_size}")

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """The towers, the width of the shared space, and the id at which a text is read.

    Attributes:
      end_token: None: the highest id of the text, as transformers does where the config has 2.
    """

    text: CLIPTextConfig
    vision: CLIPVisionConfig
    projection_dim: int = 512
    end_token: int | None = None

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "CLIPConfig":
        """Reads a CLIPModel's config.json.

        Raises:
          UserError: another model, an unknown field or an unsupported value.
        """
        towers = dict(config) if isinstance(config, Mapping) else {}
        found = {}
        for name in ("text", "vision"):
            given = [towers.pop(key, None) for key in (f"{name}_config", f"{name}_config_dict")]  # the latter: < 2022
            merged: dict[str, Any] = {}
            for fields in given:
                if not isinstance(fields, Mapping | None):
                    raise UserError(f"CLIPConfig: {name}_config is a {type(fields).__name__}, not an object")
                merged |= fields or {}
            found[name] = merged
        rest = hf_config.config_from_dict(_Shared, towers, _SUPPORTED, _HARMLESS, "CLIPConfig")
        end = found["text"].get("eos_token_id", 49407)
        return cls(
            CLIPTextConfig.from_dict(found["text"]),
            hf_config.config_from_dict(CLIPVisionConfig, found["vision"], _VISION_SUPPORTED, _VISION_HARMLESS),
            rest.projection_dim,
            None if end == _OLD_END or not isinstance(end, int) else end,
        )

    @classmethod
    def from_pretrained(cls, folder: str | pathlib.Path) -> "CLIPConfig":
        """Reads config.json of a folder. Raises UserError as `from_dict`, or if it cannot be read."""
        return cls.from_dict(hf_config.read_config(pathlib.Path(folder) / "config.json"))

    @classmethod
    def vit_b32(cls) -> "CLIPConfig":
        """openai/clip-vit-base-patch32."""
        return cls(CLIPTextConfig(), CLIPVisionConfig())

    @classmethod
    def vit_l14(cls) -> "CLIPConfig":
        """openai/clip-vit-large-patch14."""
        vision = CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
        )
        return cls(CLIPTextConfig.clip_l(), vision, 768)


@dataclasses.dataclass(frozen=True)
class _Shared:
    projection_dim: int = 512


class CLIPVisionModel(nnx.Module):
    """The vision tower up to the normed class token; no projection."""

    def __init__(self, cfg: CLIPVisionConfig, *, rngs: nnx.Rngs):
        self.config = cfg
        width, patch = cfg.hidden_size, cfg.patch_size
        self.class_embedding = nnx.Param(0.02 * draw(jax.random.normal, rngs, (width,)))
        self.position_embedding = nnx.Param(0.02 * draw(jax.random.normal, rngs, (cfg.num_patches + 1, width)))
        self.patch_embedding = Conv(3, width, (patch, patch), stride=patch, bias=False, rngs=rngs)
        self.pre_layernorm = LayerNorm(width, eps=cfg.layer_norm_eps)
        self.layers = stack(lambda rngs: EncoderLayer(cfg, causal=False, rngs=rngs), cfg.num_hidden_layers, rngs)
        self.post_layernorm = LayerNorm(width, eps=cfg.layer_norm_eps)

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Raises ValueError if the images have another size than the config's."""
        if x.shape[1:3] != (self.config.image_size,) * 2:
            raise ValueError(
                f"images are {self.config.image_size} pixels high and wide, got {x.shape[1]} x {x.shape[2]}"
            )
        patches = self.patch_embedding(x)
        patches = patches.reshape(len(x), -1, patches.shape[-1])  # [B, T - 1, D]
        first = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (len(x), 1, patches.shape[-1]))
        tokens = jnp.concatenate([first, patches], axis=1) + self.position_embedding[...].astype(x.dtype)
        tokens = scan_layers(lambda x, layer, _: layer(x), self.pre_layernorm(tokens), self.layers)
        return self.post_layernorm(tokens[:, 0])


class CLIP(nnx.Module):
    """Both towers and their projections."""

    def __init__(self, cfg: CLIPConfig, *, rngs: nnx.Rngs):
        self.config = cfg
        self.text = CLIPTextModel(cfg.text, rngs=rngs)
        self.vision = CLIPVisionModel(cfg.vision, rngs=rngs)
        self.text_projection = Linear(cfg.text.hidden_size, cfg.projection_dim, bias=False, rngs=rngs)
        self.visual_projection = Linear(cfg.vision.hidden_size, cfg.projection_dim, bias=False, rngs=rngs)

    def embed_images(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b e"]:
        """Unit vectors of images, normalized by CLIP's mean and deviation (media.preprocess_image)."""
        return _unit(self.visual_projection(self.vision(x)))

    def embed_texts(self, ids: Int[Array, "b t"]) -> Float[Array, "b e"]:
        """Unit vectors of texts, read at their first end token."""
        end = self.config.end_token
        at = ids.argmax(-1) if end is None else (ids == end).argmax(-1)
        hidden = self.text(ids)
        return _unit(self.text_projection(jnp.take_along_axis(hidden, at[:, None, None], axis=1)[:, 0]))


def _unit(x: Float[Array, "b e"]) -> Float[Array, "b e"]:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
