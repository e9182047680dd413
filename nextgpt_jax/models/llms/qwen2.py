"""Qwen2 and Qwen2.5 (model_type "qwen2"); matches transformers' Qwen2ForCausalLM without sliding windows."""

import dataclasses
from typing import ClassVar

from nextgpt_jax.models.llms.causal_lm import CausalLM, CausalLMConfig


@dataclasses.dataclass(frozen=True)
class Qwen2Config(CausalLMConfig):
    """Sizes of a Qwen2, and those of released models."""

    supported: ClassVar = {"model_type": ("qwen2",), "attention_bias": (True,), "use_sliding_window": (False,)}
    harmless: ClassVar = ("max_window_layers", "sliding_window")  # of windows, which are off

    @property
    def biases(self) -> tuple[str, ...]:
        """The projections that have a bias."""
        return "q_proj", "k_proj", "v_proj"

    @classmethod
    def qwen25_05b(cls) -> "Qwen2Config":
        """Qwen2.5 0.5B."""
        return cls(
            vocab_size=151936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            max_position_embeddings=32768,
            rope_theta=1e6,
            tie_word_embeddings=True,
            eos_token_ids=(151645, 151643),
        )

    @classmethod
    def qwen25_7b(cls) -> "Qwen2Config":
        """Qwen2.5 7B."""
        return cls(
            vocab_size=152064,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            max_position_embeddings=32768,
            rope_theta=1e6,
            eos_token_ids=(151645, 151643),
        )


class Qwen2(CausalLM):
    """A Qwen2: a LLaMA with biases on query, key and value."""
