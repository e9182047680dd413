"""NExT-GPT's trained weights ("delta") in the reference's layout: pytorch_model.pt, or the same keys in safetensors.

A delta has the projections, the LoRA updates, and the *whole* embedding and head, whose last rows are the new tokens.
In the model, the rows of the base vocabulary and those of the new tokens are separate parameters; of a language model
with a tied head, only the rows of the new tokens differ between embedding and head. The file CONFIG in the same folder
records which new tokens there are; without it they are the released 38.
"""

import pathlib
import re
from collections.abc import Collection

import jax.numpy as jnp
import numpy as np
from flax import nnx

from nextgpt_jax.modalities import RELEASED, SignalTokens, Vocabulary, signals_from_json, signals_to_json
from nextgpt_jax.models import hf_config, registry
from nextgpt_jax.models.nextgpt import NExTGPTConfig, is_trainable
from nextgpt_jax.weights import matching, orbax_params, tables
from nextgpt_jax.weights.matching import ConversionError
from nextgpt_jax.weights.rules import LINEAR, Table, prefixed, rule
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, Tensor, open_checkpoint

# With LoRA (stage 3) peft adds a prefix.
_LLAMA = ("llama_model.base_model.model.", "llama_model.")
_MATRICES = ("model.embed_tokens.weight", "lm_head.weight")
CONFIG = "nextgpt_config.json"
_OUTPUTS = {  # the reference's names: in the released weights, and in its newer code
    "image": ("gen_text_hidden_fcs.0.", "mm_output_img_projector."),
    "video": ("gen_text_hidden_fcs_video.0.", "mm_output_vid_projector."),
    "audio": ("gen_text_hidden_fcs_audio.0.", "mm_output_aud_projector."),
}
_BASE, _NEW = "[base]", "[new]"


def table(config: NExTGPTConfig) -> Table:
    """The conversion table of a model's delta. Projections of modalities that the model does not have are ignored."""
    modalities = config.output_modalities
    outputs = {
        name: tables.output_projector(registry.kind_of(projector)) for name, projector in config.output_projectors
    }
    rules = [
        *_input_rules(config),
        *(
            row
            for name, rows in outputs.items()
            for row in prefixed(
                rows.rules, torch=_OUTPUTS.get(name, f"gen_text_hidden_fcs_{name}.0."), flax=f"output_proj.{name}."
            )
        ),
        *_lora_rules(config),
        rule(tuple(p + _MATRICES[0] + _BASE for p in _LLAMA), "llm.embed_tokens.embedding"),
        rule(tuple(p + _MATRICES[0] + _NEW for p in _LLAMA), "signal_embed"),
        rule(tuple(p + _MATRICES[1] + _BASE for p in _LLAMA), "llm.lm_head.kernel", LINEAR),
        rule(tuple(p + _MATRICES[1] + _NEW for p in _LLAMA), "signal_head"),
    ]
    tied = [p + _MATRICES[1] + _BASE for p in _LLAMA] if config.llm.tie_word_embeddings else []
    absent = [p for name, prefixes in _OUTPUTS.items() if name not in modalities for p in prefixes]
    ignored = [*map(re.escape, tied), *(re.escape(p) + ".*" for p in absent)]
    buffers = [pattern for rows in outputs.values() for pattern in rows.ignored]
    return Table(tuple(rules), (*ignored, r".*rotary_emb\.inv_freq", *dict.fromkeys(buffers)))


def _input_rules(config: NExTGPTConfig):
    """With one encoder, the released names; with several, each projection has the encoder's kind as a prefix."""
    rows = tables.input_projector(config.input_projector).rules
    if len(config.encoders) == 1:
        return prefixed(rows, flax="input_proj.")
    kinds = [registry.kind_of(encoder) for encoder in config.encoders]
    return [row for kind in kinds for row in prefixed(rows, torch=f"{kind}.", flax=f"input_proj.{kind}.")]


def _lora_rules(config: NExTGPTConfig):
    # Unlike in adapter files, keys usually contain the adapter's name, as in peft's modules.
    lora = tables.language_model(config.llm).lora
    rows = [rule(tuple(reversed(r.torch)), r.flax, r.transform) for r in lora.rules]
    return prefixed(rows, torch="llama_model.", flax="llm.")


def split_rows(checkpoint: Checkpoint, new: int) -> Checkpoint:
    """Splits embedding and head into the rows of the base vocabulary and the last `new` rows."""
    tensors = {}
    for key, whole in checkpoint.tensors.items():
        if key.endswith(_MATRICES):
            rows, *rest = whole.shape
            tensors[key + _BASE] = Tensor((rows - new, *rest), whole.dtype, lambda w=whole: w.read()[:-new])
            tensors[key + _NEW] = Tensor((new, *rest), whole.dtype, lambda w=whole: w.read()[-new:])
        else:
            tensors[key] = whole
    return checkpoint.with_tensors(tensors)


def join_rows(checkpoint: Checkpoint) -> Checkpoint:
    """The inverse of split_rows."""
    tensors = {}
    for key, part in checkpoint.tensors.items():
        if key.endswith(_NEW):
            whole = key.removesuffix(_NEW)
            tied = whole.replace(_MATRICES[1], _MATRICES[0])
            base = checkpoint.tensors.get(whole + _BASE) or checkpoint.tensors[tied + _BASE]
            tensors[whole] = _joined(base, part)
        elif not key.endswith(_BASE):
            tensors[key] = part
    return checkpoint.with_tensors(tensors)


def _joined(base: Tensor, new: Tensor) -> Tensor:
    dtype = np.dtype(jnp.promote_types(base.dtype, new.dtype))
    shape = (base.shape[0] + new.shape[0], *base.shape[1:])
    return Tensor(shape, dtype, lambda: np.concatenate([base.read(), new.read()]).astype(dtype, copy=False))


def config_json(signals: tuple[SignalTokens, ...]) -> dict:
    """The contents of CONFIG."""
    return {"signal_tokens": signals_to_json(signals)}


def read_signals(path: pathlib.Path) -> tuple[SignalTokens, ...]:
    """The signal tokens of the delta in the file or folder `path`.

    Raises:
      UserError: CONFIG cannot be read.
    """
    file = (path if path.is_dir() else path.parent) / CONFIG
    if not file.exists():
        return RELEASED
    return signals_from_json(hf_config.read_config(file).get("signal_tokens"), str(file))


def base_vocab_size(path: pathlib.Path) -> int | None:
    """Size of the base vocabulary that a delta was trained with; None if the delta has no embedding."""
    if orbax_params.is_converted(path):
        embedding = orbax_params.saved(path).get("llm.embed_tokens.embedding")
        return embedding and embedding.shape[0]
    tensors = open_checkpoint(path).tensors
    whole = next((tensor for key, tensor in tensors.items() if key.endswith(_MATRICES[0])), None)
    return whole and whole.shape[0] - len(Vocabulary(0, read_signals(path)).new_tokens)


def is_lora(path: tuple) -> bool:
    """Whether the parameter at this path is a low-rank update."""
    return path[-1] in ("lora_a", "lora_b")


def is_delta(path: tuple) -> bool:
    """Whether a delta has the parameter at this path of a NExTGPTModel."""
    return is_trainable(path) or path in (("llm", "embed_tokens", "embedding"), ("llm", "lm_head", "kernel"))


_LORA, _ROWS = "LoRA", "embedding and head rows"


def group(path: tuple) -> str:
    """The piece of a delta that a parameter belongs to. A file has all parameters of a piece or none."""
    if is_lora(path):
        return _LORA
    if path[0] == "output_proj":
        return f"output_proj.{path[1]}"
    return "input_proj" if path[0] == "input_proj" else _ROWS


def delta_state(state: nnx.State, held: Collection[str] | None = None) -> nnx.State:
    """The parameters of a NExTGPTModel's state that a delta has; if given, only those of the pieces `held`."""
    leaves = [(p, v) for p, v in nnx.to_flat_state(state) if is_delta(p)]
    return nnx.from_flat_state([(p, v) for p, v in leaves if held is None or group(p) in held])


def pieces(checkpoint: Checkpoint, state: nnx.State, rows: Table) -> tuple[list[str], list[str]]:
    """The pieces that a checkpoint (after split_rows) has, at least in part, and those that it lacks."""
    rules, found = matching.match_rules(delta_state(state), rows), {}
    for path, name in matching.flat_paths(delta_state(state)).items():
        keys = rules[name].keys
        found[group(path)] = found.get(group(path), False) or any(k in checkpoint for some in keys for k in some)
    return [g for g, present in found.items() if present], [g for g, present in found.items() if not present]


def match_delta(
    checkpoint: Checkpoint, state: nnx.State, rows: Table, *, allow_partial: bool = False
) -> tuple[nnx.State, matching.Match, list[str]]:
    """Matches a delta file with the parameters of `state` (abstract or real). Files of stages 1 and 2 have no LoRA.

    Returns:
      The parameters of `state` that the file has, their match, and the names of the pieces.

    Raises:
      ConversionError: other pieces than LoRA are missing and `allow_partial` is not set; or a piece lacks a tensor, or
        a tensor is unexpected or of the wrong shape.
    """
    checkpoint = split_rows(checkpoint, state["signal_embed"].shape[0])
    held, lacking = pieces(checkpoint, state, rows)
    if not held:
        raise ConversionError(f"{checkpoint.source} holds nothing of a NExT-GPT delta ({', '.join(lacking)})")
    if set(lacking) - {_LORA} and not allow_partial:
        raise ConversionError(
            f"{checkpoint.source} holds {', '.join(held)}, but not {', '.join(lacking)}: to accept this, convert it "
            "with --allow_partial"
        )
    if "lm_head" not in state["llm"]:
        _check_tied(checkpoint)
    wanted = delta_state(state, held)
    return wanted, matching.match(checkpoint, wanted, rows), held


def _check_tied(checkpoint: Checkpoint) -> None:
    embedding, head = (
        next((t for key, t in checkpoint.tensors.items() if key.endswith(matrix + _BASE)), None) for matrix in _MATRICES
    )
    if embedding and head and not np.array_equal(embedding.read(), head.read()):
        raise ConversionError(
            f"{checkpoint.source}: embedding and head differ, but the language model's config.json says "
            "tie_word_embeddings: true"
        )


def load_delta(
    checkpoint: Checkpoint, state: nnx.State, rows: Table, *, dtype=jnp.float32
) -> tuple[nnx.State, list[str]]:
    """Reads a delta file.

    Returns:
      The parameters of `state` that the file has, filled, and the names of the pieces.

    Raises:
      ConversionError: see `match_delta`.
    """
    wanted, found, held = match_delta(checkpoint, state, rows)
    return matching.fill(wanted, found.parameters, dtype), held


def saved_delta(folder: pathlib.Path, state: nnx.State) -> tuple[nnx.State, list[str]]:
    """The parameters of `state` that a converted delta has, and the names of its pieces.

    Raises:
      ConversionError: it has a parameter that `state` lacks.
    """
    names, kept = matching.flat_paths(delta_state(state)), orbax_params.saved(folder)
    held = dict.fromkeys(group(path) for path, name in names.items() if name in kept)
    if unknown := kept.keys() - set(names.values()):
        raise ConversionError(f"{folder}: unexpected {sorted(unknown)[0]}")
    return delta_state(state, held), list(held)


def export_delta(state: nnx.State, rows: Table) -> Checkpoint:
    """The delta of a NExTGPTModel's state in the reference's layout."""
    return join_rows(matching.export(delta_state(state), rows))
