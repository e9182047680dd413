"""The projections on either side of the language model: media features in, prompt embeddings of the decoders out.

Output projections match TextFcLayer of NExT-GPT: `transformer` is the paper's (torch's nn.Transformer around learned
queries), `qformer` a small BERT with cross-attention (BLIP-2), `linear` one layer. Legend of shape comments: B batch,
N signal tokens, M output tokens, D width of the language model, W width inside, H heads.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nextgpt_jax.models.attention import attention
from nextgpt_jax.models.layers import LayerNorm, Linear, gelu
from nextgpt_jax.models.rngs import draw
from nextgpt_jax.models.stacking import scan_layers, stack
from nextgpt_jax.sharding import LARGEST_DIM, LARGEST_DIM_PER_LAYER

INPUT_SHARDING = ((r"layers\..*", LARGEST_DIM),)
OUTPUT_SHARDING = ((r"(encoder|decoder|layers)\..*", LARGEST_DIM_PER_LAYER), (r".*", LARGEST_DIM))
_QFORMER_EPS = 1e-12


class LinearInputProjector(nnx.Module):
    """Encoder embeddings to the language model's width, one layer."""

    def __init__(self, din: int, dout: int, *, rngs: nnx.Rngs):
        self.layers = nnx.List([Linear(din, dout, rngs=rngs)])

    def __call__(self, x: Float[Array, "*b din"]) -> Float[Array, "*b dout"]:
        return self.layers[0](x)


class MLPInputProjector(nnx.Module):
    """Encoder embeddings to the language model's width, two layers with an exact GELU between."""

    def __init__(self, din: int, dout: int, *, rngs: nnx.Rngs):
        self.layers = nnx.List([Linear(din, dout, rngs=rngs), Linear(dout, dout, rngs=rngs)])

    def __call__(self, x: Float[Array, "*b din"]) -> Float[Array, "*b dout"]:
        return self.layers[1](gelu(self.layers[0](x)))


@dataclasses.dataclass(frozen=True)
class OutputProjectorConfig:
    """Base of the output projections' configs: the shapes outside."""

    in_dim: int
    out_dim: int
    num_input_tokens: int
    num_output_tokens: int

    def __post_init__(self):
        if min(dataclasses.astuple(self)) < 1:
            raise ValueError(f"sizes must be positive: {self}")


@dataclasses.dataclass(frozen=True)
class LinearProjectorConfig(OutputProjectorConfig):
    """Maps each of the first num_output_tokens signal tokens by itself, so it can't give more tokens than it gets."""

    def __post_init__(self):
        super().__post_init__()
        if self.num_output_tokens > self.num_input_tokens:
            raise ValueError(
                f"a linear output projection can't make {self.num_output_tokens} tokens of {self.num_input_tokens}"
            )


@dataclasses.dataclass(frozen=True)
class TransformerProjectorConfig(OutputProjectorConfig):
    """Sizes inside as published. num_layers counts the encoder's and the decoder's layers each."""

    hidden_dim: int = 512
    num_layers: int = 4
    num_heads: int = 4
    feedforward_dim: int = 2048

    def __post_init__(self):
        super().__post_init__()
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"width {self.hidden_dim} does not divide into {self.num_heads} heads")


@dataclasses.dataclass(frozen=True)
class QFormerProjectorConfig(TransformerProjectorConfig):
    """Sizes inside as published. num_layers counts the layers with cross-attention, which are all."""

    hidden_dim: int = 768
    num_layers: int = 2
    num_heads: int = 12
    feedforward_dim: int = 3072


class PackedAttention(nnx.Module):
    """nn.MultiheadAttention without masks: query, key and value projections are packed in one."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.in_proj = Linear(width, 3 * width, rngs=rngs)
        self.out_proj = Linear(width, width, rngs=rngs)

    def __call__(self, x, memory):
        width = x.shape[-1]
        kernel, bias = self.in_proj.kernel[...].astype(x.dtype), self.in_proj.bias[...].astype(x.dtype)
        q = x @ kernel[:, :width] + bias[:width]
        k, v = jnp.split(memory @ kernel[:, width:] + bias[width:], 2, axis=-1)
        return self.out_proj(_attend(q, k, v, self.heads))


def _attend(q, k, v, heads):
    q, k, v = (x.reshape(*x.shape[:-1], heads, -1) for x in (q, k, v))  # [B, N, H, W / H]
    y = attention(q, k, v)
    return y.reshape(*y.shape[:-2], -1)


class EncoderLayer(nnx.Module):
    """nn.TransformerEncoderLayer, norm_first, ReLU."""

    def __init__(self, width: int, heads: int, feedforward: int, *, rngs: nnx.Rngs):
        self.self_attn = PackedAttention(width, heads, rngs=rngs)
        self.linear1 = Linear(width, feedforward, rngs=rngs)
        self.linear2 = Linear(feedforward, width, rngs=rngs)
        self.norm1 = LayerNorm(width)
        self.norm2 = LayerNorm(width)

    def __call__(self, x):
        y = self.norm1(x)
        x = x + self.self_attn(y, y)
        return x + self.linear2(jax.nn.relu(self.linear1(self.norm2(x))))


class DecoderLayer(nnx.Module):
    """nn.TransformerDecoderLayer, norm_first, ReLU."""

    def __init__(self, width: int, heads: int, feedforward: int, *, rngs: nnx.Rngs):
        self.self_attn = PackedAttention(width, heads, rngs=rngs)
        self.multihead_attn = PackedAttention(width, heads, rngs=rngs)
        self.linear1 = Linear(width, feedforward, rngs=rngs)
        self.linear2 = Linear(feedforward, width, rngs=rngs)
        self.norm1 = LayerNorm(width)
        self.norm2 = LayerNorm(width)
        self.norm3 = LayerNorm(width)

    def __call__(self, x, memory):
        y = self.norm1(x)
        x = x + self.self_attn(y, y)
        x = x + self.multihead_attn(self.norm2(x), memory)
        return x + self.linear2(jax.nn.relu(self.linear1(self.norm3(x))))


class TransformerProjector(nnx.Module):
    """Learned queries decode the encoded signal tokens; no masks, no positions, no dropout."""

    def __init__(self, cfg: TransformerProjectorConfig, *, rngs: nnx.Rngs):
        sizes = (cfg.hidden_dim, cfg.num_heads, cfg.feedforward_dim)
        self.fc = Linear(cfg.in_dim, cfg.hidden_dim, rngs=rngs)
        self.encoder = stack(lambda rngs: EncoderLayer(*sizes, rngs=rngs), cfg.num_layers, rngs)
        self.encoder_norm = LayerNorm(cfg.hidden_dim)
        self.decoder = stack(lambda rngs: DecoderLayer(*sizes, rngs=rngs), cfg.num_layers, rngs)
        self.decoder_norm = LayerNorm(cfg.hidden_dim)
        self.model = Linear(cfg.hidden_dim, cfg.out_dim, rngs=rngs)
        shape = (1, cfg.num_output_tokens, cfg.hidden_dim)
        self.query_embs = nnx.Param(draw(jax.random.normal, rngs, shape))

    def __call__(
        self, hidden: Float[Array, "b n d"], token_embeddings: Float[Array, "b n d"]
    ) -> Float[Array, "b m out"]:
        """Hidden states and token embeddings of the signal tokens to prompt embeddings."""
        x = self.fc(hidden + token_embeddings)  # [B, N, W]
        memory = self.encoder_norm(scan_layers(lambda x, layer, _: layer(x), x, self.encoder))
        queries = _repeat(self.query_embs, x)  # [B, M, W]
        y = scan_layers(lambda y, layer, _: layer(y, memory), queries, self.decoder)
        return self.model(self.decoder_norm(y))


def _repeat(queries: nnx.Param, x: Array) -> Array:
    return jnp.broadcast_to(queries[...].astype(x.dtype), (len(x), *queries.shape[1:]))


class BertAttention(nnx.Module):
    """BertAttention without masks: separate projections, the norm after the residual."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.query = Linear(width, width, rngs=rngs)
        self.key = Linear(width, width, rngs=rngs)
        self.value = Linear(width, width, rngs=rngs)
        self.dense = Linear(width, width, rngs=rngs)
        self.norm = LayerNorm(width, eps=_QFORMER_EPS)

    def __call__(self, x, memory):
        y = _attend(self.query(x), self.key(memory), self.value(memory), self.heads)
        return self.norm(self.dense(y) + x)


class QFormerLayer(nnx.Module):
    """BertLayer of BLIP-2's Q-Former with cross-attention, the branch that queries take."""

    def __init__(self, width: int, heads: int, feedforward: int, *, rngs: nnx.Rngs):
        self.attention = BertAttention(width, heads, rngs=rngs)
        self.crossattention = BertAttention(width, heads, rngs=rngs)
        self.intermediate = Linear(width, feedforward, rngs=rngs)
        self.output = Linear(feedforward, width, rngs=rngs)
        self.norm = LayerNorm(width, eps=_QFORMER_EPS)

    def __call__(self, x, memory):
        x = self.attention(x, x)
        x = self.crossattention(x, memory)
        return self.norm(self.output(gelu(self.intermediate(x))) + x)


class QFormerProjector(nnx.Module):
    """Query tokens attend to themselves and to the signal tokens in every layer."""

    def __init__(self, cfg: QFormerProjectorConfig, *, rngs: nnx.Rngs):
        sizes = (cfg.hidden_dim, cfg.num_heads, cfg.feedforward_dim)
        self.fc = Linear(cfg.in_dim, cfg.hidden_dim, rngs=rngs)
        self.norm = LayerNorm(cfg.hidden_dim, eps=_QFORMER_EPS)
        self.layers = stack(lambda rngs: QFormerLayer(*sizes, rngs=rngs), cfg.num_layers, rngs)
        self.model = Linear(cfg.hidden_dim, cfg.out_dim, rngs=rngs)
        shape = (1, cfg.num_output_tokens, cfg.hidden_dim)
        self.query_tokens = nnx.Param(0.02 * draw(jax.random.normal, rngs, shape))

    def __call__(
        self, hidden: Float[Array, "b n d"], token_embeddings: Float[Array, "b n d"]
    ) -> Float[Array, "b m out"]:
        """Hidden states and token embeddings of the signal tokens to prompt embeddings."""
        memory = self.fc(hidden + token_embeddings)  # [B, N, W]
        queries = self.norm(_repeat(self.query_tokens, memory))  # [B, M, W]
        return self.model(scan_layers(lambda x, layer, _: layer(x, memory), queries, self.layers))


class LinearProjector(nnx.Module):
    """Each of the first num_output_tokens signal tokens through one layer."""

    def __init__(self, cfg: LinearProjectorConfig, *, rngs: nnx.Rngs):
        self.num_output_tokens = cfg.num_output_tokens
        self.model = Linear(cfg.in_dim, cfg.out_dim, rngs=rngs)

    def __call__(
        self, hidden: Float[Array, "b n d"], token_embeddings: Float[Array, "b n d"]
    ) -> Float[Array, "b m out"]:
        """Hidden states and token embeddings of the signal tokens to prompt embeddings."""
        return self.model((hidden + token_embeddings)[:, : self.num_output_tokens])
