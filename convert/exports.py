"""From converted folders and training runs to the published layout: `export_checkpoint`."""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np
from flax import nnx

from nextgpt_jax.config import ExperimentConfig, ModelConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_folder
from nextgpt_jax.models import registry
from nextgpt_jax.models.lora import LoRAConfig
from nextgpt_jax.models.nextgpt import is_trainable
from nextgpt_jax.pipeline import saved
from nextgpt_jax.weights import assemble, components, matching, nextgpt_delta, orbax_params, tables
from nextgpt_jax.weights.rules import Table
from nextgpt_jax.weights.run_checkpoints import Workdir
from nextgpt_jax.weights.safetensors_writer import save_safetensors
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, open_checkpoint

from . import folders
from .imports import SYSTEM, check_component, delta_state, is_language_model, parse_dtype

_TRAINED = ("delta", "lora")  # components that a training run has


def export_checkpoint(
    component: str,
    output: str | os.PathLike,
    *,
    source: str | os.PathLike = "",
    workdir: str | os.PathLike = "",
    config: ExperimentConfig | None = None,
    lora: str | os.PathLike = "",
    dtype: str | None = None,
    verbose: bool = False,
) -> None:
    """Writes converted or trained weights in the published layout, as safetensors in shards of 5 GB.

    The folder loads in transformers, diffusers or peft. It appears when it is complete and on disk.

        export_checkpoint("llm", "vicuna", source="converted/vicuna", dtype="float16")
        export_checkpoint("lora", "adapter", workdir="runs/stage3")

    Args:
      component: a key of LAYOUTS, or "nextgpt": every part of a converted system.
      output: the new folder.
      source: a converted folder.
      workdir: for "delta" and "lora", in place of `source`: a training run, of which the newest checkpoint is exported.
      config: for "delta", "nextgpt" and `workdir`: names the parts and the sizes of the projections; None: the one that
        the run recorded.
      lora: for "llm": an adapter, published or converted, whose updates are added to the weights.
      dtype: one of DTYPES, for floating-point tensors. Default: each keeps its own.
      verbose: print one line per component.

    Raises:
      UserError: an argument is missing or unknown, the source is not complete, or the output exists or cannot be
        written.
    """
    output, cast = pathlib.Path(output), parse_dtype(dtype)
    if config is None and str(workdir) and Workdir(workdir).exists():
        config = Workdir(workdir).config()
    _check_arguments(component, source=source, workdir=workdir, config=config, lora=lora)
    config = config or ExperimentConfig()  # other components have none
    if str(workdir):
        exported = {"": output}
        _export_run(output, component, Workdir(workdir), config.model, cast)
    elif component == SYSTEM:
        exported = _export_system(output, pathlib.Path(source), config, cast)
    else:
        exported = {"": output}
        if component == "delta":
            _export_delta(output, pathlib.Path(source), config.model, cast)
        elif str(lora):
            _export_merged(output, pathlib.Path(source), pathlib.Path(lora), cast)
        else:
            folders.export_folder(component, pathlib.Path(source), output, dtype=cast)
    if verbose:
        for name, folder in exported.items():
            print(f"{name or component}: {folder}")


def _check_arguments(component: str, *, source, workdir, config, lora) -> None:
    check_component(component)
    if str(workdir) and component not in _TRAINED:
        raise UserError(f"export {component} takes --source; of a --workdir, {' and '.join(_TRAINED)} can be exported")
    if not str(source) and not str(workdir):
        raise UserError(f"--source is missing: a folder that python -m convert {component} has written")
    if config is None and (str(workdir) or component in ("delta", SYSTEM)):
        raise UserError(f"export {component} needs --config, which names the parts that it belongs to")
    if str(lora) and not is_language_model(component):
        raise UserError(f"--lora applies to llm, not to {component}")


def _write_tensors(
    output: pathlib.Path, file: str, tensors: Checkpoint, dtype: np.dtype | None, **json_files: Any
) -> None:
    """A folder with one checkpoint, and JSON files by their names without the suffix."""
    with atomic_folder(output) as folder:
        for name, content in json_files.items():
            folders.write_json(folder / f"{name}.json", content)
        save_safetensors(tensors, folder / file, dtype=dtype)


def _delta_config(signals) -> dict[str, Any]:
    return {pathlib.Path(nextgpt_delta.CONFIG).stem: nextgpt_delta.config_json(signals)}


def _export_delta(output: pathlib.Path, source: pathlib.Path, config: ModelConfig, dtype: np.dtype | None) -> None:
    state, table = delta_state(config, source)
    wanted, _ = nextgpt_delta.saved_delta(source, state)
    parameters = orbax_params.parameters(source, wanted, table)
    tensors = nextgpt_delta.join_rows(matching.export_parameters(parameters, wanted, table))
    tensors = folders.restore_unmatched(tensors, source)
    signals = nextgpt_delta.read_signals(source)
    _write_tensors(output, "model.safetensors", tensors, dtype, **_delta_config(signals))


def _export_merged(output: pathlib.Path, source: pathlib.Path, adapter: pathlib.Path, dtype: np.dtype | None) -> None:
    """The language model's weights with an adapter's updates added."""
    base = registry.read_language_model(source)
    part, config = components.llm_part(base), components.lora_config(adapter)
    modules = components.adapted_modules(base, config)
    if orbax_params.is_converted(adapter):
        low_rank = components.lora_part(base, config)
        updates = orbax_params.parameters(adapter, low_rank.state, low_rank.table)
        tensors = matching.export_parameters(updates, low_rank.state, low_rank.table)
    else:
        tensors = open_checkpoint(adapter)
    merged = modules.merge(orbax_params.parameters(source, part.state, part.table), tensors)
    folders.export_parts(source, output, [(part, merged)], dtype=dtype)


def _export_run(
    output: pathlib.Path, component: str, run: Workdir, config: ModelConfig, dtype: np.dtype | None
) -> None:
    """The trained weights of a run: all of them as a delta, or the LoRA updates as a peft adapter."""
    config = assemble.resolve_parts(dataclasses.replace(config, delta=run.base_delta))
    model = assemble.model_config(config, signals=run.signals)
    state = assemble.abstract_state(model)
    trained, _ = run.restore_delta(nnx.filter_state(state, is_trainable))
    if component == "delta":
        tensors = _trained_delta(trained, _base_rows(config, state), state, nextgpt_delta.table(model))
        _write_tensors(output, "model.safetensors", tensors, dtype, **_delta_config(run.signals))
    else:
        lora = nnx.filter_state(trained["llm"], nnx.LoRAParam)
        tensors = matching.export(lora, tables.language_model(model.llm).lora)
        assert model.lora
        adapter_config = _adapter_config(model.lora)
        _write_tensors(output, "adapter_model.safetensors", tensors, dtype, adapter_config=adapter_config)


def _base_rows(config: ModelConfig, state: nnx.State) -> dict[str, matching.Parameter]:
    """The frozen embedding and head, which a delta file repeats; nothing else of the base model is read."""
    if config.delta:
        table, path = nextgpt_delta.table(assemble.model_config(config)), pathlib.Path(config.delta)
        if orbax_params.is_converted(path):
            wanted, _ = nextgpt_delta.saved_delta(path, state)
            return orbax_params.parameters(path, wanted, table)
        return nextgpt_delta.match_delta(open_checkpoint(path), state, table)[1].parameters
    rows = nnx.from_flat_state(
        (path[1:], leaf)
        for path, leaf in nnx.to_flat_state(nextgpt_delta.delta_state(state))
        if path[0] == "llm" and not nextgpt_delta.is_lora(path)
    )
    folder = pathlib.Path(config.llm)
    table = tables.language_model(registry.read_language_model(folder)).base
    if orbax_params.is_converted(folder):
        found = orbax_params.parameters(folder, rows, table)
    else:
        found = matching.match(open_checkpoint(folder), rows, table, allow_unused=True).parameters
    return {f"llm.{name}": parameter for name, parameter in found.items()}


def _trained_delta(trained: nnx.State, rows, state: nnx.State, table: Table) -> Checkpoint:
    """The delta file of trained parameters, with the base model's rows."""
    wanted = nextgpt_delta.delta_state(state)
    rules, leaves = matching.match_rules(wanted, table), dict(nnx.to_flat_state(trained))
    parameters = dict(rows)
    for path, name in matching.flat_paths(wanted).items():
        if path in leaves:
            parameters[name] = matching.Parameter.of(leaves[path][...], rules[name].stacked)
    return nextgpt_delta.join_rows(matching.export_parameters(parameters, wanted, table))


def _adapter_config(config: LoRAConfig) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(config.targets),
        "bias": "none",
        "inference_mode": True,
    }


def _export_system(
    output: pathlib.Path, source: pathlib.Path, config: ExperimentConfig, dtype: np.dtype | None
) -> dict[str, pathlib.Path]:
    """Every part of a converted system; returns their folders by the field of ModelConfig."""
    manifest = folders.read_manifest(source)
    if "parts" not in manifest:
        raise UserError(f"{source} is no converted system: export its component ({manifest.get('component')})")
    named = {field: source / entry["folder"] for field, entry in manifest["parts"].items()}
    model = assemble.with_folders(config.model, named)
    with atomic_folder(output) as scratch:
        for field, entry in manifest["parts"].items():
            target = scratch / entry["folder"]
            if entry["component"] == "delta":
                _export_delta(target, named[field], model, dtype)
            else:
                folders.export_folder(entry["component"], named[field], target, dtype=dtype)
        saved.write(scratch, config, assemble.join_folders({part: path.name for part, path in named.items()}))
    return {field: output / entry["folder"] for field, entry in manifest["parts"].items()}
