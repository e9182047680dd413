"""NExT-GPT's trained weights ("delta") in the reference's layout: pytorch_model.pt, or the same keys in safetensors.

A delta has the projections, the LoRA updates, and the *whole* embedding and head, whose last rows are the new tokens.
In the model, the rows of the base vocabulary and those of the new tokens are separate parameters; of a language model
with a tied head, only the rows of the new tokens differ between embedding and head. The file CONFIG in the same folder
records which new tokens there are; without it they are the released 38.
"""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from nextgpt_jax.modalities import RELEASED, SignalTokens, Vocabulary, signals_from_json, signals_to_json
from nextgpt_jax.models import hf_config
from nextgpt_jax.models.nextgpt import NExTGPTConfig, is_trainable
from nextgpt_jax.weights import delta_settings, matching, orbax_params, weight_files
from nextgpt_jax.weights.delta_table import BASE, MATRICES, NEW, Layout, all_prefixes, delta_table
from nextgpt_jax.weights.matching import ConversionError
from nextgpt_jax.weights.rules import Table
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, Tensor, open_checkpoint

CONFIG = "nextgpt_config.json"
WEIGHTS = "pytorch_model.pt"  # the only name that the reference reads


def table(config: NExTGPTConfig) -> Table:
    """The conversion table of a model's delta. Projections of modalities that the model does not have are ignored."""
    given, prefixes = delta_settings.settings_of(config), all_prefixes(dict(config.output_projectors))

    def hint(shapes: Mapping[str, tuple[int, ...]]) -> str:
        needed = delta_settings.needed(shapes, given, prefixes)
        kind = needed.get("output_projector")
        holds = f"it holds output projections of the kind {kind}, " if kind else ""
        return f"{holds}set {delta_settings.as_flags(needed)}" if needed else ""

    return dataclasses.replace(delta_table(Layout.of(config)), hint=hint)


def split_rows(checkpoint: Checkpoint, new: int) -> Checkpoint:
    """Splits embedding and head into the rows of the base vocabulary and the last `new` rows."""
    tensors = {}
    for key, whole in checkpoint.tensors.items():
        if key.endswith(MATRICES):
            rows, *rest = whole.shape
            tensors[key + BASE] = Tensor((rows - new, *rest), whole.dtype, lambda w=whole: w.read()[:-new])
            tensors[key + NEW] = Tensor((new, *rest), whole.dtype, lambda w=whole: w.read()[-new:])
        else:
            tensors[key] = whole
    return checkpoint.with_tensors(tensors)


def join_rows(checkpoint: Checkpoint) -> Checkpoint:
    """The inverse of split_rows."""
    tensors = {}
    for key, part in checkpoint.tensors.items():
        if key.endswith(NEW):
            whole = key.removesuffix(NEW)
            tied = whole.replace(MATRICES[1], MATRICES[0])
            base = checkpoint.tensors.get(whole + BASE) or checkpoint.tensors[tied + BASE]
            tensors[whole] = _joined(base, part)
        elif not key.endswith(BASE):
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
    tensors = open_checkpoint(path, weight_files.DELTA).tensors
    whole = next((tensor for key, tensor in tensors.items() if key.endswith(MATRICES[0])), None)
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
    if set(lacking) - {_LORA} and not allow_partial and (hint := rows.hint(checkpoint.shapes)):
        raise ConversionError(f"{checkpoint.source} does not fit the model: {hint}")
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
        next((t for key, t in checkpoint.tensors.items() if key.endswith(matrix + BASE)), None) for matrix in MATRICES
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
