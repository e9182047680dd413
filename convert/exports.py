"""From converted folders and training runs to the published layout: `export_checkpoint`."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from nextgpt_jax.config import ExperimentConfig, ModelConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_folder, check_new_folder
from nextgpt_jax.models import registry
from nextgpt_jax.models.lora import LoRAConfig
from nextgpt_jax.models.nextgpt import is_trainable
from nextgpt_jax.pipeline import saved
from nextgpt_jax.weights import assemble, components, matching, nextgpt_delta, orbax_params, tables, weight_files
from nextgpt_jax.weights.rules import Table
from nextgpt_jax.weights.run_checkpoints import Workdir
from nextgpt_jax.weights.run_steps import LATEST, parse_step
from nextgpt_jax.weights.tokenizers import tokenizer_files
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, open_checkpoint

from . import deltas, folders
from .imports import check_component, parse_dtype, write_report
from .options import SYSTEM, check_options
from .published import PublishedFolder, component_folder, parts_folder


def export_checkpoint(
    component: str,
    output: str | os.PathLike | None = None,
    *,
    source: str | os.PathLike = "",
    workdir: str | os.PathLike = "",
    step: str | int = LATEST,
    ema: bool | None = None,
    config: ExperimentConfig | None = None,
    lora: str | os.PathLike = "",
    dtype: str | None = None,
    dry_run: bool = False,
    report: str | os.PathLike = "",
    verbose: bool = False,
) -> dict[str, Any]:
    """Writes converted or trained weights in the published layout, as safetensors in shards of 5 GB.

    The folder loads in transformers, diffusers or peft; that of a delta has pytorch_model.pt, which NExT-GPT's own code
    reads, too. It appears when it is complete and on disk.

        export_checkpoint("llm", "vicuna", source="converted/vicuna", dtype="float16")
        export_checkpoint("lora", "adapter", workdir="runs/stage3")

    Args:
      component: a key of LAYOUTS, or "nextgpt": every part of a converted system.
      output: the new folder; not needed with `dry_run`.
      source: a converted folder.
      workdir: for "delta" and "lora", in place of `source`: a training run, of which a checkpoint is exported.
      step: of `workdir`: the number of the checkpoint, "latest", or "best", that with the lowest loss.
      ema: of `workdir`: whether to export the moving average of the weights; None: if the run makes one.
      config: for "delta", "nextgpt" and `workdir`: names the parts and the sizes of the projections; None: the one that
        the run, or the converted folder, recorded.
      lora: for "llm": an adapter, published or converted, whose updates are added to the weights.
      dtype: one of DTYPES, for floating-point tensors. Default: each keeps its own.
      dry_run: check everything and write nothing but `report`.
      report: a file to write the returned report to, as JSON.
      verbose: print one line per component.

    Returns:
      The report: what each folder holds, by the name of the component, or for "nextgpt" by the field of ModelConfig.

    Raises:
      UserError: an argument is missing, unknown or belongs to another component; the source is not complete, or does
        not fit the config; or the output exists or cannot be written.
    """
    check_component(component)
    step = parse_step(step, "--step")
    options = {"source": str(source), "workdir": str(workdir), "config": config, "lora": str(lora)}
    options |= {} if step == LATEST else {"step": str(step)}
    options |= {} if ema is None else {"ema": "given"}
    check_options(component, [name for name, value in options.items() if value], export=True)
    if not str(source) and not str(workdir):
        raise UserError(f"--source is missing: a folder that python -m convert {component} has written")
    if output is None and not dry_run:
        raise UserError("--output=DIR is missing")
    cast, folder = parse_dtype(dtype), pathlib.Path(source)
    if str(source) and component != SYSTEM:
        _check_kind(component, folder)
    if component == SYSTEM:
        config = deltas.system_config(folder, config)
        found = _system(folder, config, cast)
    elif str(workdir):
        found = {component: _run(component, Workdir(workdir), step, ema, config, cast)}
    elif component == "delta":
        found = {component: deltas.converted_delta(folder, config.model if config else None, cast)}
    elif str(lora):
        found = {component: _merged(folder, pathlib.Path(lora), cast)}
    else:
        found = {component: component_folder(component, folder, cast)}
    reports = {name: published.report() for name, published in found.items()}
    size = sum(published.nbytes for published in found.values()) if dry_run else 0  # else checked again later
    target = None if output is None else check_new_folder(output, size)
    lines = [f"{name} can be exported: {published.summary}" for name, published in found.items()]
    if not dry_run and target is not None:
        if component == SYSTEM:
            assert config
            places = _write_system(target, folder, config, found)
        else:
            found[component].write(target)
            places = {component: target}
        lines = [f"{name}: {place}" for name, place in places.items()]
    write_report(report, reports)
    if verbose:
        print("\n".join(lines), flush=True)
    return reports


def _check_kind(component: str, source: pathlib.Path) -> None:
    manifest = folders.read_manifest(source)
    found = SYSTEM if "parts" in manifest else manifest.get("component", component)
    if components.ALIASES.get(found, found) != components.ALIASES.get(component, component):
        raise UserError(f"{source} was converted as {found}: export {found}")


def _merged(source: pathlib.Path, adapter: pathlib.Path, dtype: np.dtype | None) -> PublishedFolder:
    """The language model's weights with an adapter's updates added."""
    folders.read_manifest(source)
    base = registry.read_language_model(source)
    part, config = components.llm_part(base), components.lora_config(adapter)
    modules = components.adapted_modules(base, config)
    if orbax_params.is_converted(adapter):
        low_rank = components.lora_part(base, config)
        updates = orbax_params.parameters(adapter, low_rank.state, low_rank.table)
        tensors = matching.export_parameters(updates, low_rank.state, low_rank.table)
    else:
        tensors = open_checkpoint(adapter, weight_files.PEFT)
    merged = modules.merge(orbax_params.parameters(source, part.state, part.table), tensors)
    return parts_folder(source, [(part, merged)], dtype)


def _run(
    component: str,
    run: Workdir,
    step: str | int,
    ema: bool | None,
    given: ExperimentConfig | None,
    dtype: np.dtype | None,
) -> PublishedFolder:
    """The trained weights of a run: all of them as a delta, or the LoRA updates as a peft adapter."""
    given = given or run.config()
    if given is None:
        raise UserError(f"export {component} needs --config, which names the parts that it belongs to")
    config = assemble.resolve_parts(dataclasses.replace(given.model, delta=run.base_delta))
    model = assemble.model_config(config, signals=run.signals)
    state = assemble.abstract_state(model)
    trained, _ = run.restore_delta(nnx.filter_state(state, is_trainable), step, ema)
    if component == "delta":
        tensors = _trained_delta(trained, _base_rows(config, state), state, nextgpt_delta.table(model))
        return deltas.published_delta(tensors.cast(dtype), run.signals, tokenizer_files(config.llm))
    lora = nnx.filter_state(trained["llm"], nnx.LoRAParam)
    tensors = matching.export(lora, tables.language_model(model.llm).lora)
    assert model.lora
    config_file = {weight_files.ADAPTER: _adapter_config(model.lora)}
    return PublishedFolder({weight_files.PEFT.written: tensors.cast(dtype)}, json_files=config_file)


def _base_rows(config: ModelConfig, state: nnx.State) -> dict[str, matching.Parameter]:
    """The frozen embedding and head, which a delta file repeats; nothing else of the base model is read."""
    if config.delta:
        table, path = nextgpt_delta.table(assemble.model_config(config)), pathlib.Path(config.delta)
        if orbax_params.is_converted(path):
            wanted, _ = nextgpt_delta.saved_delta(path, state)
            return orbax_params.parameters(path, wanted, table)
        return nextgpt_delta.match_delta(open_checkpoint(path, weight_files.DELTA), state, table)[1].parameters
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
        found = matching.match(
            open_checkpoint(folder, weight_files.TRANSFORMERS), rows, table, allow_unused=True
        ).parameters
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


def _system(source: pathlib.Path, config: ExperimentConfig, dtype: np.dtype | None) -> dict[str, PublishedFolder]:
    """Every part of a converted system by the field of ModelConfig."""
    parts = folders.read_manifest(source)["parts"]
    named = {field: source / entry["folder"] for field, entry in parts.items()}
    model = assemble.with_folders(config.model, named)
    parts = dict(sorted(parts.items(), key=lambda part: part[1]["component"] != "delta"))  # whose errors come early
    return {
        field: deltas.converted_delta(named[field], model, dtype)
        if entry["component"] == "delta"
        else component_folder(entry["component"], named[field], dtype)
        for field, entry in parts.items()
    }


def _write_system(
    output: pathlib.Path, source: pathlib.Path, config: ExperimentConfig, found: Mapping[str, PublishedFolder]
) -> dict[str, pathlib.Path]:
    """Writes the parts below `output`; returns their folders."""
    names = {field: entry["folder"] for field, entry in folders.read_manifest(source)["parts"].items()}
    with atomic_folder(output, sum(published.nbytes for published in found.values())) as scratch:
        for field, published in found.items():
            published.write(scratch / names[field])
        saved.write(scratch, config, assemble.join_folders(names))
    return {field: output / name for field, name in names.items()}
