"""LLaMA 1 to 3, Vicuna and others of model_type "llama"; matches transformers' LlamaForCausalLM."""

import dataclasses
from typing import ClassVar

from nextgpt_jax.models.llms.causal_lm import CausalLM, CausalLMConfig
from nextgpt_jax.models.llms.rope import Llama3Scaling


@dataclasses.dataclass(frozen=True)
class LlamaConfig(CausalLMConfig):
    """Sizes of a LLaMA, and those of released models."""

    supported: ClassVar = {"model_type": ("llama",), "is_llama_config": (True,), "rope_interleaved": (False,)}
    harmless: ClassVar = ("max_sequence_length", "pretraining_tp")  # the latter: in which order products are summed

    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def biases(self) -> tuple[str, ...]:
        """The projections that have a bias."""
        attention = ("q_proj", "k_proj", "v_proj", "o_proj") if self.attention_bias else ()
        return attention + (("gate_proj", "up_proj", "down_proj") if self.mlp_bias else ())

    @classmethod
    def vicuna_7b(cls) -> "LlamaConfig":
        """Vicuna-7B v0 as NExT-GPT uses it: LLaMA-1's sizes and 32000 rows."""
        return cls(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
        )

    @classmethod
    def llama31_8b(cls) -> "LlamaConfig":
        """Llama 3.1 8B."""
        return cls(
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            rope_theta=500000.0,
            rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192),
            eos_token_ids=(128001, 128008, 128009),
        )

    @classmethod
    def llama32_1b(cls) -> "LlamaConfig":
        """Llama 3.2 1B."""
        return cls(
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            rope_theta=500000.0,
            rope_scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192),
            tie_word_embeddings=True,
            eos_token_ids=(128001, 128008, 128009),
        )


class Llama(CausalLM):
    """A LLaMA; nothing is special."""
