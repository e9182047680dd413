"""CLAP's text encoder: token ids in, one embedding per text out.

Matches transformers' ClapTextModelWithProjection (text_embeds, not normalized), a RoBERTa: post-norm layers, attention
to every token that is not padding, positions that skip the padding. Legend: B batch, T tokens, D width, H heads.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from nextgpt_jax.models import hf_config, hf_fields
from nextgpt_jax.models.attention import attention
from nextgpt_jax.models.layers import ACTIVATIONS, Embedding, LayerNorm, Linear, check_transformer
from nextgpt_jax.models.stacking import scan_layers, stack

_SUPPORTED = {
    **hf_fields.TRANSFORMERS_SUPPORTED,
    "model_type": ("clap_text_model",),
    "position_embedding_type": ("absolute",),
    "projection_hidden_act": ("relu",),
}
_HARMLESS = {  # of training, of the audio tower, and of heads that are not here
    *hf_fields.TRANSFORMERS, "attention_probs_dropout_prob", "classifier_dropout", "fusion_hidden_size",
    "fusion_num_hidden_layers", "hidden_dropout_prob", "tie_word_embeddings",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ClapTextConfig:
    """Fields as in the hub's text_encoder/config.json."""

    vocab_size: int = 50265
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    projection_dim: int = 512
    pad_token_id: int = 1

    def __post_init__(self):
        check_transformer(self.hidden_act, self.hidden_size, self.num_attention_heads)
        if self.max_tokens < 1:
            raise ValueError(f"{self.max_position_embeddings} positions leave none after the padding's")

    @property
    def max_tokens(self) -> int:
        """The longest text in tokens: positions start at pad_token_id + 1."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "ClapTextConfig":
        """Reads a ClapTextModelWithProjection's config.json. Raises UserError for another model or an unknown field."""
        return hf_config.config_from_dict(cls, config, _SUPPORTED, _HARMLESS)


class SelfAttention(nnx.Module):
    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.query = Linear(width, width, rngs=rngs)
        self.key = Linear(width, width, rngs=rngs)
        self.value = Linear(width, width, rngs=rngs)
        self.output = Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], mask: Bool[Array, "b 1 1 t"]) -> Float[Array, "b t d"]:
        q, k, v = (
            projection(x).reshape(*x.shape[:2], self.heads, -1)  # [B, T, H, D/H]
            for projection in (self.query, self.key, self.value)
        )
        return self.output(attention(q, k, v, mask=mask).reshape(x.shape))


class EncoderLayer(nnx.Module):
    def __init__(self, cfg: ClapTextConfig, *, rngs: nnx.Rngs):
        self.attention = SelfAttention(cfg.hidden_size, cfg.num_attention_heads, rngs=rngs)
        self.attention_norm = LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.intermediate = Linear(cfg.hidden_size, cfg.intermediate_size, rngs=rngs)
        self.output = Linear(cfg.intermediate_size, cfg.hidden_size, rngs=rngs)
        self.output_norm = LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.hidden_act = cfg.hidden_act

    def __call__(self, x: Float[Array, "b t d"], mask: Bool[Array, "b 1 1 t"]) -> Float[Array, "b t d"]:
        x = self.attention_norm(x + self.attention(x, mask))
        return self.output_norm(x + self.output(ACTIVATIONS[self.hidden_act](self.intermediate(x))))


class TextProjection(nnx.Module):
    """Linear, ReLU, Linear."""

    def __init__(self, din: int, dout: int, *, rngs: nnx.Rngs):
        self.linear1 = Linear(din, dout, rngs=rngs)
        self.linear2 = Linear(dout, dout, rngs=rngs)

    def __call__(self, x: Float[Array, "b din"]) -> Float[Array, "b dout"]:
        return self.linear2(jax.nn.relu(self.linear1(x)))


class ClapTextModelWithProjection(nnx.Module):
    """The text tower, its pooler and its projection into the space of texts and sounds."""

    def __init__(self, cfg: ClapTextConfig, *, rngs: nnx.Rngs):
        self.config = cfg
        self.word_embeddings = Embedding(cfg.vocab_size, cfg.hidden_size, rngs=rngs)
        self.position_embeddings = Embedding(cfg.max_position_embeddings, cfg.hidden_size, rngs=rngs)
        self.token_type_embeddings = Embedding(cfg.type_vocab_size, cfg.hidden_size, rngs=rngs)
        self.embeddings_norm = LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.layers = stack(lambda rngs: EncoderLayer(cfg, rngs=rngs), cfg.num_hidden_layers, rngs)
        self.pooler = Linear(cfg.hidden_size, cfg.hidden_size, rngs=rngs)
        self.text_projection = TextProjection(cfg.hidden_size, cfg.projection_dim, rngs=rngs)

    def __call__(self, ids: Int[Array, "b t"]) -> Float[Array, "b projection_dim"]:
        """Embeddings, not normalized, in the dtype of the parameters; ids equal to `pad_token_id` are padding.

        Raises ValueError for more than `config.max_tokens` tokens.
        """
        if ids.shape[1] > self.config.max_tokens:
            raise ValueError(f"{ids.shape[1]} tokens, but the text encoder takes {self.config.max_tokens}")
        pad = self.config.pad_token_id
        real = ids != pad
        positions = jnp.where(real, jnp.cumsum(real, 1), 0) + pad
        x = self.word_embeddings(ids) + self.token_type_embeddings.embedding[0] + self.position_embeddings(positions)
        mask = real[:, None, None]  # [B, 1, 1, T]
        x = self.embeddings_norm(x)
        x = scan_layers(lambda x, layer, _: layer(x, mask), x, self.layers)
        return self.text_projection(jnp.tanh(self.pooler(x[:, 0])))
