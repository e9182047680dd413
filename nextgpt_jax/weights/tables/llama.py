"""LLaMA and models like it in transformers' layout, and their LoRA updates in peft's."""

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from nextgpt_jax.weights.matching import ConversionError
from nextgpt_jax.weights.rules import LINEAR, Table, affine, norm, rule
from nextgpt_jax.weights.torch_checkpoint import Checkpoint

_LAYER, _EMBEDDING, _HEAD = "model.layers.{i}", "model.embed_tokens.weight", "lm_head.weight"
_PROJECTIONS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


class LanguageModelTables(NamedTuple):
    """The tables of a language model's checkpoints."""

    base: Table
    tied: Table  # of models with a tied head: one in the file has to equal the embedding
    layers: Table  # without embedding and head, which a delta supplies as a whole, of whatever size they are here
    lora: Table  # low-rank updates in peft's layout

    def whole(self, config: Any) -> Table:
        """The table of all weights of the model with this config."""
        return self.tied if config.tie_word_embeddings else self.base


@functools.cache
def language_model_tables(biases: tuple[str, ...] = ()) -> LanguageModelTables:
    """The tables of models with LLaMA's layers, in which the projections named in `biases` have one."""
    base = Table(
        rules=(
            rule(_EMBEDDING, "embed_tokens.embedding"),
            *(
                row
                for block, names in _PROJECTIONS.items()
                for name in names
                for row in affine(f"{_LAYER}.{block}.{name}", f"layers.{block}.{name}", bias=name in biases)
            ),
            *norm(f"{_LAYER}.input_layernorm", "layers.input_layernorm", bias=False),
            *norm(f"{_LAYER}.post_attention_layernorm", "layers.post_attention_layernorm", bias=False),
            *norm("model.norm", "norm", bias=False),
            *affine("lm_head", "lm_head", bias=False),
        ),
        ignored=(r".*rotary_emb\.inv_freq",),  # buffers in files of 2023
    )
    layers = Table(
        rules=tuple(row for row in base.rules if not row.flax.startswith(("embed_tokens", "lm_head"))),
        ignored=(*base.ignored, re.escape(_EMBEDDING), re.escape(_HEAD)),
    )
    tied = Table(base.rules, ignored=(*base.ignored, re.escape(_HEAD)), preprocess=_check_tied)
    return LanguageModelTables(base, tied, layers, LORA)


def _check_tied(checkpoint: Checkpoint) -> Checkpoint:
    """transformers keeps two matrices that differ, whatever the config says, and drops a head that is the embedding."""
    if {_EMBEDDING, _HEAD} <= checkpoint.tensors.keys():
        embedding, head = checkpoint.tensors[_EMBEDDING], checkpoint.tensors[_HEAD]
        if embedding.shape != head.shape or not np.array_equal(embedding.read(), head.read()):
            raise ConversionError(
                f"{checkpoint.source}: config.json has tie_word_embeddings=true, but {_HEAD} is not {_EMBEDDING}: "
                "set it to false to use both"
            )
    return checkpoint


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

BASE = language_model_tables().base


def tables(config: Any) -> LanguageModelTables:
    """The tables of the model with this config."""
    return language_model_tables(config.biases)


def sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The sizes of the config that a checkpoint shows."""
    found: dict[str, int] = {}
    if len(embedding := shapes.get(_EMBEDDING, ())) == 2:
        found["vocab_size"], found["hidden_size"] = embedding
    if len(wide := shapes.get(f"{_LAYER.format(i=0)}.mlp.gate_proj.weight", ())) == 2:
        found["intermediate_size"] = wide[0]
    layers = [int(m[1]) for key in shapes if (m := re.fullmatch(r"model\.layers\.(\d+)\.input_layernorm\.weight", key))]
    return found | ({"num_hidden_layers": max(layers) + 1} if layers else {})
