"""Tier 2: language models of LLaMA's design. Embeddings in; hidden states, logits and an updated cache out.

RMSNorm, rotary embedding, grouped-query attention, SwiGLU, tied or untied head. Families (llama.py, qwen2.py) differ in
their configs. Legend: B batch, T tokens fed, S cache slots, D width, H heads, K key/value heads.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from nextgpt_jax.errors import UserError
from nextgpt_jax.models import hf_config, hf_fields
from nextgpt_jax.models.attention import attention
from nextgpt_jax.models.layers import Embedding, Linear, RMSNorm
from nextgpt_jax.models.llms import kv_cache, rope
from nextgpt_jax.models.llms.kv_cache import Cache
from nextgpt_jax.models.llms.rope import DynamicScaling, RopeScaling, YarnScaling, apply_rope, rope_frequencies
from nextgpt_jax.models.lora import LoRAConfig
from nextgpt_jax.models.stacking import scan_layers, stack
from nextgpt_jax.sharding import Rows, constrain

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

SHARDING: Rows = (  # of stacked layers
    (r"embed_tokens\.embedding", ("vocab", "embed")),
    (r"lm_head\.kernel", ("embed", "vocab")),
    (r"norm\.scale", (None,)),
    (r"layers\.\w+norm\.scale", (None, None)),
    (r"layers\.self_attn\.[qkv]_proj\.kernel", (None, "embed", "heads")),
    (r"layers\.self_attn\.[qkv]_proj\.lora_a", (None, "embed", None)),
    (r"layers\.self_attn\.[qkv]_proj\.lora_b", (None, None, "heads")),
    (r"layers\.self_attn\.o_proj\.kernel", (None, "heads", "embed")),
    (r"layers\.self_attn\.o_proj\.lora_a", (None, "heads", None)),
    (r"layers\.self_attn\.o_proj\.lora_b", (None, None, "embed")),
    (r"layers\.mlp\.(gate|up)_proj\.kernel", (None, "embed", "mlp")),
    (r"layers\.mlp\.(gate|up)_proj\.lora_a", (None, "embed", None)),
    (r"layers\.mlp\.(gate|up)_proj\.lora_b", (None, None, "mlp")),
    (r"layers\.mlp\.down_proj\.kernel", (None, "mlp", "embed")),
    (r"layers\.mlp\.down_proj\.lora_a", (None, "mlp", None)),
    (r"layers\.mlp\.down_proj\.lora_b", (None, None, "embed")),
    (r"layers\.self_attn\.[qkv]_proj\.kernel_scale", (None, None, "heads")),
    (r"layers\.mlp\.(gate|up)_proj\.kernel_scale", (None, None, "mlp")),
    (r"layers\.\w+\.(o|down)_proj\.kernel_scale", (None, None, "embed")),
    (r"layers\.self_attn\.[qkv]_proj\.bias", (None, "heads")),
    (r"layers\.mlp\.(gate|up)_proj\.bias", (None, "mlp")),
    (r"layers\.\w+\.(o|down)_proj\.bias", (None, None)),
)

_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings",
)  # fmt: skip
_SUPPORTED = {
    **hf_fields.TRANSFORMERS_SUPPORTED,
    "hidden_act": ("silu",),
    "is_causal": (True,),
    "partial_rotary_factor": (1,),
}
_HARMLESS = {*hf_fields.TRANSFORMERS, "attention_dropout", "unsloth_fixed", "unsloth_version"}


@dataclasses.dataclass(frozen=True)
class CausalLMConfig:
    """Fields as in config.json, but for `rope_scaling` and `eos_token_ids`, which have one spelling here.

    Class attributes:
      supported: keys of config.json that must have one of the values listed, where they are given.
      harmless: keys of config.json that change nothing that is computed here.
    """

    supported: ClassVar[Mapping[str, tuple]] = {}
    harmless: ClassVar[Collection[str]] = ()

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 0  # 0: num_attention_heads
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    eos_token_ids: tuple[int, ...] = ()  # each ends a response

    def __post_init__(self):
        if not self.num_key_value_heads:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if not self.head_dim and self.num_attention_heads > 0:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if small := [name for name in _SIZES if getattr(self, name) < 1]:
            raise ValueError(f"{small[0]}={getattr(self, small[0])} should be at least 1")
        if self.rms_norm_eps < 0 or self.rope_theta <= (1 if isinstance(self.rope_scaling, YarnScaling) else 0):
            raise ValueError(f"rms_norm_eps={self.rms_norm_eps:g} or rope_theta={self.rope_theta:g} is too small")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} attention heads do not divide into "
                f"{self.num_key_value_heads} key/value heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"the rotary embedding needs an even head width, got {self.head_dim}")

    @property
    def biases(self) -> tuple[str, ...]:
        """The projections that have a bias."""
        return ()

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Reads the content of a config.json.

        Raises:
          UserError: a field is missing or unknown, or has a value that is not supported.
        """
        name = cls.__name__
        found = rope.read_rope(config, name)
        ends = config.get("eos_token_id")
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        if wrong := [end for end in ends if type(end) is not int or end < 0]:
            raise UserError(f"{name}: eos_token_id={wrong[0]!r} is no token id")
        for key in ("num_key_value_heads", "head_dim"):
            if config.get(key) == 0:  # which stands for null in the fields
                raise UserError(f"{name}: {key}=0 should be at least 1, or null")
        kinds = config.get("layer_types") or ()
        if not isinstance(kinds, list | tuple) or any(kind != "full_attention" for kind in kinds):
            raise UserError(f"{name}: layer_types={kinds!r:.80} are not supported (only 'full_attention')")
        rest = {
            key: value
            for key, value in config.items()
            if key not in (*rope.FIELDS, "layer_types")
            and (key, value) not in (("num_key_value_heads", None), ("head_dim", None))
        }
        if "eos_token_ids" in rest:
            raise UserError(f"{name}: eos_token_ids is not known here: the field is called eos_token_id")
        rest |= {**found, "eos_token_ids": ends}
        supported, harmless = {**_SUPPORTED, **cls.supported}, {*_HARMLESS, *cls.harmless}
        return hf_config.config_from_dict(cls, rest, supported, harmless)


class Attention(nnx.Module):
    def __init__(self, cfg: CausalLMConfig, lora: LoRAConfig | None, quantization: str, *, rngs: nnx.Rngs):
        def linear(name, din, dout):
            adapted = lora if lora and name in lora.targets else None
            return Linear(din, dout, bias=name in cfg.biases, lora=adapted, quantization=quantization, rngs=rngs)

        self.head_dim, self.rope = cfg.head_dim, (cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
        query, key_value = cfg.num_attention_heads * cfg.head_dim, cfg.num_key_value_heads * cfg.head_dim
        self.q_proj = linear("q_proj", cfg.hidden_size, query)
        self.k_proj = linear("k_proj", cfg.hidden_size, key_value)
        self.v_proj = linear("v_proj", cfg.hidden_size, key_value)
        self.o_proj = linear("o_proj", query, cfg.hidden_size)

    def __call__(self, x, positions, mask, lengths, cache, layer, keys, attended=None):
        """With a cache, but neither mask nor lengths, x starts its sequences: it fills the first slots and attends to
        no others. `layer` is (index,) with the cache of all layers, and () with that of this layer alone. `attended`:
        see CausalLM."""

        def heads(projection, key):
            y = projection(x, key).reshape(*x.shape[:-1], -1, self.head_dim)
            return constrain(y, "batch", None, "heads", None)

        frequencies, scaling = rope_frequencies(*self.rope), self.rope[-1]
        scale = scaling.scale if scaling else 1.0
        q = apply_rope(heads(self.q_proj, keys[0]), positions, frequencies, scale)  # [B, T, H, d]
        k = apply_rope(heads(self.k_proj, keys[1]), positions, frequencies, scale)  # [B, T, K, d]
        v = heads(self.v_proj, keys[2])
        starts = mask is None and lengths is None
        if cache is not None:
            cache = kv_cache.write(cache, layer, None if starts else positions, k, v)
            if not starts:
                k, v = kv_cache.read(cache, layer, attended, x.dtype)  # [B, S, K, d]
        y = attention(q, k, v, mask=mask, causal=starts, key_lengths=lengths)
        return self.o_proj(y.reshape(*x.shape[:-1], -1), keys[3]), cache


class MLP(nnx.Module):
    def __init__(self, cfg: CausalLMConfig, lora: LoRAConfig | None, quantization: str, *, rngs: nnx.Rngs):
        def linear(name, din, dout):
            adapted = lora if lora and name in lora.targets else None
            return Linear(din, dout, bias=name in cfg.biases, lora=adapted, quantization=quantization, rngs=rngs)

        self.gate_proj = linear("gate_proj", cfg.hidden_size, cfg.intermediate_size)
        self.up_proj = linear("up_proj", cfg.hidden_size, cfg.intermediate_size)
        self.down_proj = linear("down_proj", cfg.intermediate_size, cfg.hidden_size)

    def __call__(self, x, keys):
        return self.down_proj(jax.nn.silu(self.gate_proj(x, keys[0])) * self.up_proj(x, keys[1]), keys[2])


class DecoderLayer(nnx.Module):
    def __init__(self, cfg: CausalLMConfig, lora: LoRAConfig | None, quantization: str, *, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)
        self.self_attn = Attention(cfg, lora, quantization, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)
        self.mlp = MLP(cfg, lora, quantization, rngs=rngs)

    def __call__(self, x, positions, mask, lengths, cache, layer, key, attended=None):
        keys = [None] * 7 if key is None else jax.vmap(lambda k: jax.random.split(k, 7), out_axes=1)(key)
        normed = self.input_layernorm(x)
        y, cache = self.self_attn(normed, positions, mask, lengths, cache, layer, keys[:4], attended)
        x = x + y
        x = x + self.mlp(self.post_attention_layernorm(x), keys[4:])
        return constrain(x, "batch", None, None), cache


class CausalLM(nnx.Module):
    """The layers with their embedding and head.

    `lora` adds low-rank updates to the projections that it names; `quantization` is that of all layers' kernels.
    """

    def __init__(self, cfg: CausalLMConfig, *, lora: LoRAConfig | None = None, quantization: str = "", rngs: nnx.Rngs):
        if lora:
            if unknown := set(lora.targets) - set(LORA_TARGETS):
                raise ValueError(f"LoRA targets {sorted(unknown)} are not projections {sorted(LORA_TARGETS)}")
        self.config = cfg
        self.embed_tokens = Embedding(cfg.vocab_size, cfg.hidden_size, rngs=rngs)
        self.layers = stack(lambda rngs: DecoderLayer(cfg, lora, quantization, rngs=rngs), cfg.num_hidden_layers, rngs)
        self.norm = RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)
        tied = cfg.tie_word_embeddings
        self.lm_head = None if tied else Linear(cfg.hidden_size, cfg.vocab_size, bias=False, rngs=rngs)

    def __call__(
        self,
        embeddings: Float[Array, "b t d"],
        *,
        positions: Int[Array, "b t"] | None = None,
        mask: Bool[Array, "b 1 t s"] | None = None,
        cache: Cache | None = None,
        attended: int | None = None,
        dropout_keys: Array | None = None,
        remat: str = "none",
    ) -> tuple[Float[Array, "b t d"], Cache | None]:
        """Hidden states after the final norm, and the cache with the fed tokens written at slots = positions.

        Without positions the tokens begin their sequences: they get 0..t-1, and with a cache they overwrite its first t
        slots (there are at least as many) and see no others. Without a mask attention is causal, which is all that
        right-padded rows need; with a cache, a query sees the slots up to its own position, and no others than the
        first `attended` (None: all) are looked at.
        dropout_keys [b], one a row, switch LoRA dropout on. remat: see stacking.scan_layers.

        Raises:
          UserError: the rotary embedding does not allow sequences of this length.
        """
        b, t, _ = embeddings.shape
        context = self.config.max_position_embeddings
        if cache is None and t > context and isinstance(self.config.rope_scaling, DynamicScaling):
            raise UserError(f"sequences of {t} tokens, but with rope_type='dynamic' at most {context}: shorten them")
        lengths = None
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(t), (b, t))
        elif mask is None and cache is not None:
            slots = attended or jax.tree.leaves(cache)[0].shape[-3]
            if t == 1:
                lengths = jnp.minimum(positions[:, 0] + 1, slots)
            else:
                mask = jnp.arange(slots) <= positions[:, None, :, None]  # [B, 1, T, S]
        n = self.config.num_hidden_layers
        keys = None if dropout_keys is None else jax.vmap(lambda k: jax.random.split(k, n), out_axes=1)(dropout_keys)
        x = constrain(embeddings, "batch", None, None)
        if isinstance(self.layers, nnx.List):
            caches = []
            for i, layer in enumerate(self.layers):
                own = cache and {name: arrays[i] for name, arrays in cache.items()}
                x, own = layer(x, positions, mask, lengths, own, (), None if keys is None else keys[i], attended)
                caches.append(own)
            return self.norm(x), cache and {name: [own[name] for own in caches] for name in cache}

        def step(carry, layer, xs):
            i, key = xs
            return layer(carry[0], positions, mask, lengths, carry[1], (i,), key, attended)

        x, cache = scan_layers(step, (x, cache), self.layers, (jnp.arange(n), keys), remat=remat)
        return self.norm(x), cache

    def head(self) -> Float[Array, "d vocab"]:
        """The head's kernel, gathered along fsdp on the mesh in use: once before a loop, not in every iteration."""
        kernel = self.embed_tokens.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]
        return constrain(kernel, None, "vocab")

    def init_cache(self, batch: int, slots: int, dtype=jnp.float32) -> Cache:
        """An empty cache for `slots` positions of each of `batch` rows. dtype: of floats, or int8 (see kv_cache.py)."""
        cfg = self.config
        shape = batch, slots, cfg.num_key_value_heads, cfg.head_dim
        return kv_cache.empty(cfg.num_hidden_layers, shape, dtype, stacked=not isinstance(self.layers, nnx.List))

    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b vocab"]:
        if self.lm_head is None:
            return hidden @ self.embed_tokens.embedding[...].T.astype(hidden.dtype)
        return self.lm_head(hidden)
