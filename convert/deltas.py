"""Converted deltas: what their manifest records of the model, and their export."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from nextgpt_jax.config import ExperimentConfig, ModelConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.json_files import read_json
from nextgpt_jax.modalities import SignalTokens, Vocabulary
from nextgpt_jax.pipeline import saved
from nextgpt_jax.weights import assemble, delta_settings, matching, nextgpt_delta, orbax_params
from nextgpt_jax.weights.delta_table import MATRICES, Layout, all_prefixes, delta_table
from nextgpt_jax.weights.rules import Table
from nextgpt_jax.weights.tokenizers import ADDED_TOKENS
from nextgpt_jax.weights.torch_checkpoint import Checkpoint

from . import folders
from .published import PublishedFolder, restore_unmatched


def delta_model(config: ModelConfig, delta: pathlib.Path) -> tuple[nnx.State, Table, Layout]:
    """The abstract parameters of the model that a delta belongs to, the delta's table, and its manifest's record."""
    model = assemble.model_config(dataclasses.replace(config, delta=str(delta)))
    return assemble.abstract_state(model), nextgpt_delta.table(model), Layout.of(model)


def converted_delta(source: pathlib.Path, config: ModelConfig | None, dtype: np.dtype | None) -> PublishedFolder:
    """A converted delta in the published layout. The model that it belongs to is recorded in its manifest.

    Args:
      source: its folder.
      config: if given, its settings have to agree with the record.
      dtype: see `export_checkpoint`.

    Raises:
      UserError: it is no complete converted folder, disagrees, or is of a version that kept no record and there is no
        config.
    """
    manifest = folders.read_manifest(source)
    if "layout" in manifest:
        layout = Layout.from_json(manifest["layout"], str(source / folders.MANIFEST))
        wanted, table = orbax_params.saved_state(source), delta_table(layout)
    elif config is None:
        raise UserError(f"{source} is of a version that kept no config: give --config, which names the model's parts")
    else:
        state, table, layout = delta_model(config, source)
        wanted, _ = nextgpt_delta.saved_delta(source, state)
    parameters = orbax_params.parameters(source, wanted, table)
    tensors = nextgpt_delta.join_rows(matching.export_parameters(parameters, wanted, table))
    if config is not None:
        _check_settings(source, tensors, config, layout)
    tensors = restore_unmatched(tensors, source).cast(dtype)
    return published_delta(tensors, nextgpt_delta.read_signals(source), folders.companion_files(source))


def _check_settings(source: pathlib.Path, tensors: Checkpoint, config: ModelConfig, layout: Layout) -> None:
    prefixes = all_prefixes(layout.output_projectors)
    if needed := delta_settings.needed(tensors.shapes, delta_settings.settings_in(config), prefixes):
        flags = delta_settings.as_flags(needed)
        raise UserError(f"{source} has {flags}, and --config other values: leave --config out, or set these")


def published_delta(
    tensors: Checkpoint, signals: tuple[SignalTokens, ...], copied: Mapping[str, pathlib.Path]
) -> PublishedFolder:
    """The folder of a delta: its tensors in both formats, the new tokens, and the files `copied`."""
    json_files: dict[str, Any] = {nextgpt_delta.CONFIG: nextgpt_delta.config_json(signals)}
    embedding = next((tensor for key, tensor in tensors.tensors.items() if key.endswith(MATRICES[0])), None)
    if embedding:
        tokens = Vocabulary(0, signals).new_tokens
        added = {token: embedding.shape[0] - len(tokens) + i for i, token in enumerate(tokens)}
        known = read_json(copied[ADDED_TOKENS]) if ADDED_TOKENS in copied else {}
        json_files[ADDED_TOKENS] = (known if isinstance(known, dict) else {}) | added
    weights = {"model.safetensors": tensors, nextgpt_delta.WEIGHTS: tensors}
    return PublishedFolder(weights, copied, json_files)


def system_config(source: pathlib.Path, given: ExperimentConfig | None) -> ExperimentConfig:
    """The config of a converted system: the one given, or the one that its folder holds.

    Raises:
      UserError: the folder is no converted system, has no config and none is given, or other parts than the one given.
    """
    manifest = folders.read_manifest(source)
    if "parts" not in manifest:
        raise UserError(f"{source} is no converted system: export its component ({manifest.get('component')})")
    if given is None:
        if not (source / saved.FILE).is_file():
            raise UserError(f"{source} holds no {saved.FILE}: give --config, which names the parts")
        return saved.read(source)
    if different := manifest["parts"].keys() ^ assemble.folders_by_part(given.model).keys():
        field = sorted(different)[0]
        one, other = (source, "--config") if field in manifest["parts"] else ("--config", source)
        raise UserError(f"{one} has a part {field}, and {other} has none: leave --config out, or make them equal")
    return given
