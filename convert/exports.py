"""python -m convert export COMPONENT: from converted folders and training runs to the published layout."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from absl import flags
from flax import nnx

from convert import folders
from convert.imports import delta_state
from nextgpt_jax.config import ModelConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_folder
from nextgpt_jax.models import hf_config
from nextgpt_jax.models.llms.llama import LlamaConfig
from nextgpt_jax.models.nextgpt import is_trainable
from nextgpt_jax.weights import components, load, matching, nextgpt_delta, orbax_params
from nextgpt_jax.weights.components import COMPONENTS
from nextgpt_jax.weights.rules import Table
from nextgpt_jax.weights.run_checkpoints import Workdir
from nextgpt_jax.weights.safetensors_writer import save_safetensors
from nextgpt_jax.weights.tables import llama as llama_table
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, open_checkpoint


def export_to(output: pathlib.Path, component: str, values: flags.FlagValues) -> None:
    """Writes converted or trained weights to the folder `output`, in the published layout.

    Raises:
      UserError: the source is not complete, or the output exists.
    """
    dtype = np.dtype(values.dtype) if values.dtype else None
    if values.workdir:
        return _export_run(output, component, values, dtype)
    if component == "nextgpt":
        return _export_system(output, values, dtype)
    source = pathlib.Path(values.source)
    if component == "delta":
        tensors = _saved_delta(source, values)
        _write_tensors(output, tensors, dtype, "model.safetensors", **_delta_config(nextgpt_delta.read_signals(source)))
    elif component == "llama" and values.lora:
        _export_merged(output, source, pathlib.Path(values.lora), dtype)
    else:
        folders.export_folder(component, source, output, dtype=dtype)
    print(f"{component}: {output}")


def _write_tensors(output: pathlib.Path, tensors: Checkpoint, dtype, file: str, **beside: Any) -> None:
    with atomic_folder(output) as folder:
        for name, content in beside.items():
            (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
        save_safetensors(tensors, folder / file, dtype=dtype)


def _delta_config(signals) -> dict[str, Any]:
    return {pathlib.Path(nextgpt_delta.CONFIG).stem: nextgpt_delta.config_json(signals)}


def _saved_delta(source: pathlib.Path, values) -> Checkpoint:
    state, table = delta_state(values.config, source)
    wanted, _ = nextgpt_delta.saved_delta(source, state)
    parameters = orbax_params.parameters(source, wanted, table)
    tensors = nextgpt_delta.join_rows(matching.export_parameters(parameters, wanted, table))
    return folders.restore_unmatched(tensors, source)


def _export_merged(output: pathlib.Path, source: pathlib.Path, adapter: pathlib.Path, dtype) -> None:
    """LLaMA's weights with an adapter's updates added."""
    (part,) = COMPONENTS["llama"](source)
    base = LlamaConfig.from_dict(hf_config.read_config(source / "config.json"))
    config = components.lora_config(adapter)
    low_rank = components.lora_part(base, config)
    if orbax_params.is_converted(adapter):
        updates = orbax_params.parameters(adapter, low_rank.state, low_rank.table)
    else:
        updates = matching.fit(open_checkpoint(adapter), low_rank.state, low_rank.table).parameters
    parameters = llama_table.merged(
        orbax_params.parameters(source, part.state, part.table), updates, config.alpha / config.rank
    )
    folders.export_parts(source, output, [(part, parameters)], dtype=dtype)


def _export_run(output: pathlib.Path, component: str, values, dtype) -> None:
    """The trained weights of a run: all of them as a delta, or the LoRA updates as a peft adapter."""
    if component not in ("delta", "lora"):
        raise UserError(f"export {component} takes --source; of a --workdir, delta and lora can be exported")
    run = Workdir(values.workdir)
    config = dataclasses.replace(values.config.model, delta=run.base_delta)
    model = load.model_config(config, signals=run.signals)
    state = load.abstract_state(model)
    trained, _ = run.restore_delta(nnx.filter_state(state, is_trainable))
    if component == "delta":
        tensors = _trained_delta(trained, _base_rows(config, state), state, load.delta_table(model))
        _write_tensors(output, tensors, dtype, "model.safetensors", **_delta_config(run.signals))
    else:
        tensors = matching.export(nnx.filter_state(trained["llm"], nnx.LoRAParam), llama_table.LORA)
        _write_tensors(output, tensors, dtype, "adapter_model.safetensors", adapter_config=_adapter_config(model.lora))
    print(f"{len(tensors)} tensors: {output}")


def _base_rows(config: ModelConfig, state: nnx.State) -> dict[str, matching.Parameter]:
    """The base's embedding and head, which a delta file repeats; nothing else of the base is read."""
    if config.delta:
        table, path = load.delta_table(load.model_config(config)), pathlib.Path(config.delta)
        if orbax_params.is_converted(path):
            wanted, _ = nextgpt_delta.saved_delta(path, state)
            return orbax_params.parameters(path, wanted, table)
        return nextgpt_delta.fit_delta(open_checkpoint(path), state, table)[1].parameters
    rows = nnx.from_flat_state(
        (path[1:], leaf)
        for path, leaf in nnx.to_flat_state(nextgpt_delta.delta_state(state))
        if path[0] == "llm" and not nextgpt_delta.is_lora(path)
    )
    folder = pathlib.Path(config.llm)
    if orbax_params.is_converted(folder):
        found = orbax_params.parameters(folder, rows, llama_table.BASE)
    else:
        found = matching.fit(open_checkpoint(folder), rows, llama_table.BASE, allow_unused=True).parameters
    return {f"llm.{name}": parameter for name, parameter in found.items()}


def _trained_delta(trained: nnx.State, rows, state: nnx.State, table: Table) -> Checkpoint:
    """The delta file of trained parameters, with the base's rows."""
    wanted = nextgpt_delta.delta_state(state)
    sources, leaves = matching.plan(wanted, table), dict(nnx.to_flat_state(trained))
    parameters = dict(rows)
    for path, name in matching.flat_paths(wanted).items():
        if path in leaves:
            parameters[name] = matching.Parameter.of(leaves[path][...], sources[name].stacked)
    return nextgpt_delta.join_rows(matching.export_parameters(parameters, wanted, table))


def _adapter_config(config) -> dict[str, Any]:
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


def _export_system(output: pathlib.Path, values, dtype) -> None:
    """Every part of a converted system."""
    source = pathlib.Path(values.source)
    manifest = folders.read_manifest(source)
    if "parts" not in manifest:
        raise UserError(f"{source} is no converted system: export its component ({manifest.get('component')})")
    named = {name: source / entry["folder"] for name, entry in manifest["parts"].items()}
    model = dataclasses.replace(values.config.model, **{name: str(path) for name, path in named.items()})
    values.config.model = model
    with atomic_folder(output) as scratch:
        for name, entry in manifest["parts"].items():
            target = scratch / entry["folder"]
            if entry["component"] == "delta":
                config = _delta_config(nextgpt_delta.read_signals(named[name]))
                _write_tensors(target, _saved_delta(named[name], values), dtype, "model.safetensors", **config)
            else:
                folders.export_folder(entry["component"], named[name], target, dtype=dtype)
            print(f"{name}: {output / entry['folder']}")
