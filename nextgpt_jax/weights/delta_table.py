"""The conversion table of a delta: NExT-GPT's keys for projections, LoRA updates, embedding and head."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Self

from nextgpt_jax.errors import UserError
from nextgpt_jax.models import registry
from nextgpt_jax.models.nextgpt import NExTGPTConfig
from nextgpt_jax.weights import tables
from nextgpt_jax.weights.rules import LINEAR, Rule, Table, prefixed, rule

MATRICES = ("model.embed_tokens.weight", "lm_head.weight")
BASE, NEW = "[base]", "[new]"  # their rows, which are separate parameters

# With LoRA (stage 3) peft adds a prefix.
_LLAMA = ("llama_model.base_model.model.", "llama_model.")
_OUTPUTS = {  # the reference's names: in the released weights, and in its newer code
    "image": ("gen_text_hidden_fcs.0.", "mm_output_img_projector."),
    "video": ("gen_text_hidden_fcs_video.0.", "mm_output_vid_projector."),
    "audio": ("gen_text_hidden_fcs_audio.0.", "mm_output_aud_projector."),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """What decides the keys of a delta, whatever the sizes: the manifest of a converted one records it.

    Attributes:
      language_model: its kind.
      tied: whether its head is its embedding.
      encoders: their kinds.
      input_projector: the kind of the input projections.
      output_projectors: the kind of each output modality's projection.
    """

    language_model: str
    tied: bool
    encoders: tuple[str, ...]
    input_projector: str
    output_projectors: dict[str, str]

    @classmethod
    def of(cls, config: NExTGPTConfig) -> Self:
        """The layout of a model's delta."""
        return cls(
            registry.kind_of(config.llm),
            config.llm.tie_word_embeddings,
            tuple(registry.kind_of(encoder) for encoder in config.encoders),
            config.input_projector,
            {name: registry.kind_of(projector) for name, projector in config.output_projectors},
        )

    @classmethod
    def from_json(cls, content: Any, where: str) -> Self:
        """The inverse of dataclasses.asdict, after JSON.

        Raises:
          UserError: the content, from the file `where`, is something else.
        """
        try:
            found = cls(**{**content, "encoders": tuple(content["encoders"])})
            outputs = found.output_projectors.values()
            known = found.language_model in registry.LANGUAGE_MODELS and set(found.encoders) <= set(registry.ENCODERS)
            known &= found.input_projector in registry.INPUT_PROJECTORS
            if not known or not set(outputs) <= set(registry.OUTPUT_PROJECTORS):
                raise ValueError
        except (TypeError, KeyError, AttributeError, ValueError):
            raise UserError(f"{where}: layout is of another version of this project") from None
        return found


def output_prefixes(modality: str) -> tuple[str, ...]:
    """The prefixes of the keys of an output projection, of which export writes the first."""
    return _OUTPUTS.get(modality, (f"gen_text_hidden_fcs_{modality}.0.",))


def delta_table(layout: Layout) -> Table:
    """The conversion table. Projections of modalities that the model does not have are ignored."""
    outputs = {name: tables.output_projector(kind) for name, kind in layout.output_projectors.items()}
    rules = [
        *_input_rules(layout),
        *(
            row
            for name, rows in outputs.items()
            for row in prefixed(list(rows.rules), torch=output_prefixes(name), flax=f"output_proj.{name}.")
        ),
        *_lora_rules(layout),
        rule(tuple(p + MATRICES[0] + BASE for p in _LLAMA), "llm.embed_tokens.embedding"),
        rule(tuple(p + MATRICES[0] + NEW for p in _LLAMA), "signal_embed"),
        rule(tuple(p + MATRICES[1] + BASE for p in _LLAMA), "llm.lm_head.kernel", LINEAR),
        rule(tuple(p + MATRICES[1] + NEW for p in _LLAMA), "signal_head"),
    ]
    tied = [p + MATRICES[1] + BASE for p in _LLAMA] if layout.tied else []
    absent = [p for name, prefixes in _OUTPUTS.items() if name not in outputs for p in prefixes]
    ignored = [*map(re.escape, tied), *(re.escape(p) + ".*" for p in absent)]
    buffers = [_any(output_prefixes(name)) + key for name, rows in outputs.items() for key in rows.ignored]
    return Table(tuple(rules), (*ignored, r".*rotary_emb\.inv_freq", *buffers))


def all_prefixes(modalities: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of all output projections."""
    return tuple(prefix for name in modalities for prefix in output_prefixes(name))


def _any(prefixes: tuple[str, ...]) -> str:
    return f"(?:{'|'.join(map(re.escape, prefixes))})"


def _input_rules(layout: Layout) -> list[Rule]:
    """With one encoder, the released names; with several, each projection has the encoder's kind as a prefix."""
    rows = list(tables.input_projector(layout.input_projector).rules)
    if len(layout.encoders) == 1:
        return prefixed(rows, flax="input_proj.")
    return [row for kind in layout.encoders for row in prefixed(rows, torch=f"{kind}.", flax=f"input_proj.{kind}.")]


def _lora_rules(layout: Layout) -> list[Rule]:
    # Unlike in adapter files, keys usually contain the adapter's name, as in peft's modules.
    rows = [rule(tuple(reversed(r.torch)), r.flax, r.transform) for r in tables.lora(layout.language_model).rules]
    return prefixed(rows, torch="llama_model.", flax="llm.")
