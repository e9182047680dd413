"""LLaMA in transformers' layout, and its LoRA updates in peft's."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from nextgpt_jax.weights.matching import Parameter
from nextgpt_jax.weights.rules import LINEAR, Table, affine, norm, rule

_LAYER = "model.layers.{i}"
_PROJECTIONS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}

BASE = Table(
    rules=(
        rule("model.embed_tokens.weight", "embed_tokens.embedding"),
        *(
            row
            for block, names in _PROJECTIONS.items()
            for name in names
            for row in affine(f"{_LAYER}.{block}.{name}", f"layers.{block}.{name}", bias=False)
        ),
        *norm(f"{_LAYER}.input_layernorm", "layers.input_layernorm", bias=False),
        *norm(f"{_LAYER}.post_attention_layernorm", "layers.post_attention_layernorm", bias=False),
        *norm("model.norm", "norm", bias=False),
        *affine("lm_head", "lm_head", bias=False),
    ),
    ignored=(r".*rotary_emb\.inv_freq",),  # buffers in files of 2023
)

# As transformers, which ties the head whatever a file has for it.
TIED = Table(BASE.rules, ignored=(*BASE.ignored, r"lm_head\.weight"))

# Without what a delta replaces as a whole, of whatever size it is in the base.
LAYERS = Table(
    rules=tuple(row for row in BASE.rules if not row.flax.startswith(("embed_tokens", "lm_head"))),
    ignored=(*BASE.ignored, r"model\.embed_tokens\.weight", r"lm_head\.weight"),
)

# peft >= 0.3 puts the adapter's name into the key; files saved by save_pretrained and peft 0.2 have none.
LORA = Table(
    rules=tuple(
        rule(
            tuple(
                f"base_model.model.{_LAYER}.{block}.{name}.lora_{side}{adapter}.weight" for adapter in ("", ".default")
            ),
            f"layers.{block}.{name}.lora_{side.lower()}",
            LINEAR,
        )
        for block, names in _PROJECTIONS.items()
        for name in names
        for side in "AB"
    )
)


def merged(base: Mapping[str, Parameter], lora: Mapping[str, Parameter], scale: float) -> dict[str, Parameter]:
    """LLaMA's parameters with low-rank updates A B scale added to their kernels, in float32, layer by layer."""
    parameters = dict(base)
    for name in {name.rsplit(".", 1)[0] for name in lora}:
        kernel, a, b = base[f"{name}.kernel"], lora[f"{name}.lora_a"], lora[f"{name}.lora_b"]
        pieces = [_sum(*readers, scale) for readers in zip(kernel.pieces, a.pieces, b.pieces, strict=True)]
        parameters[f"{name}.kernel"] = dataclasses.replace(kernel, pieces=tuple(pieces))
    return parameters


def _sum(kernel, a, b, scale: float):
    def read() -> np.ndarray:
        weights = kernel()
        update = a().astype(np.float32) @ b().astype(np.float32) * scale
        return (weights.astype(np.float32) + update).astype(weights.dtype)

    return read
