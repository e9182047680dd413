"""CLIP's text encoder: token ids in, one hidden state per token out.

Matches transformers' CLIPTextModel (last_hidden_state), as Stable Diffusion and Zeroscope use it: pre-norm layers,
causal attention without a padding mask, learned positions. Legend: B batch, T tokens, D width, H heads.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from nextgpt_jax.models import hf_config, hf_fields
from nextgpt_jax.models.attention import attention
from nextgpt_jax.models.layers import ACTIVATIONS, Embedding, LayerNorm, Linear, check_transformer
from nextgpt_jax.models.stacking import scan_layers, stack

_SUPPORTED = {**hf_fields.TRANSFORMERS_SUPPORTED, "model_type": ("clip_text_model",), "is_causal": (True,)}
_HARMLESS = {  # dropout is of training, and nothing here reads the pooled output
    *hf_fields.TRANSFORMERS, "attention_dropout", "dropout", "projection_dim", "tie_word_embeddings",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """Fields as in the hub's text_encoder/config.json."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        check_transformer(self.hidden_act, self.hidden_size, self.num_attention_heads)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "CLIPTextConfig":
        """Reads a CLIPTextModel's config.json. Raises UserError for another model or an unknown field."""
        return hf_config.config_from_dict(cls, config, _SUPPORTED, _HARMLESS)

    @classmethod
    def clip_l(cls) -> "CLIPTextConfig":
        """CLIP ViT-L/14's text encoder, as in Stable Diffusion 1.5."""
        return cls(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)

    @classmethod
    def openclip_h(cls) -> "CLIPTextConfig":
        """OpenCLIP ViT-H/14's text encoder without its last layer, as in Stable Diffusion 2 and Zeroscope."""
        return cls(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=23,
            num_attention_heads=16,
            hidden_act="gelu",
        )


class SelfAttention(nnx.Module):
    def __init__(self, width: int, heads: int, *, causal: bool, rngs: nnx.Rngs):
        self.heads = heads
        self.causal = causal
        self.q_proj = Linear(width, width, rngs=rngs)
        self.k_proj = Linear(width, width, rngs=rngs)
        self.v_proj = Linear(width, width, rngs=rngs)
        self.out_proj = Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        q, k, v = (
            projection(x).reshape(*x.shape[:2], self.heads, -1)  # [B, T, H, D/H]
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(attention(q, k, v, causal=self.causal).reshape(x.shape))


class EncoderLayer(nnx.Module):
    """A layer of the text tower, or of the vision tower, which is not causal."""

    def __init__(self, cfg: Any, *, causal: bool = True, rngs: nnx.Rngs):
        self.layer_norm1 = LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.self_attn = SelfAttention(cfg.hidden_size, cfg.num_attention_heads, causal=causal, rngs=rngs)
        self.layer_norm2 = LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.fc1 = Linear(cfg.hidden_size, cfg.intermediate_size, rngs=rngs)
        self.fc2 = Linear(cfg.intermediate_size, cfg.hidden_size, rngs=rngs)
        self.hidden_act = cfg.hidden_act

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.fc2(ACTIVATIONS[self.hidden_act](self.fc1(self.layer_norm2(x))))


class CLIPTextModel(nnx.Module):
    """The text tower up to its final norm; no pooling, no projection."""

    def __init__(self, cfg: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.config = cfg
        self.token_embedding = Embedding(cfg.vocab_size, cfg.hidden_size, rngs=rngs)
        self.position_embedding = Embedding(cfg.max_position_embeddings, cfg.hidden_size, rngs=rngs)
        self.layers = stack(lambda rngs: EncoderLayer(cfg, rngs=rngs), cfg.num_hidden_layers, rngs)
        self.final_layer_norm = LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)

    def __call__(self, ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Hidden states after the final norm, in the dtype of the embeddings.

        Raises ValueError when there are more tokens than positions.
        """
        t = ids.shape[1]
        if t > self.config.max_position_embeddings:
            raise ValueError(f"{t} tokens, but the text encoder has {self.config.max_position_embeddings} positions")
        x = self.token_embedding(ids) + self.position_embedding.embedding[:t]
        x = scan_layers(lambda x, layer, _: layer(x), x, self.layers)
        return self.final_layer_norm(x)
