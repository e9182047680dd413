"""python -m convert COMPONENT: from the published layout to converted folders."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np
from absl import flags
from flax import nnx

from convert import folders, vicuna
from convert.folders import FittedPart
from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_folder, atomic_write
from nextgpt_jax.models import hf_config
from nextgpt_jax.models.encoders.imagebind import ImageBindConfig
from nextgpt_jax.models.llms.llama import LlamaConfig
from nextgpt_jax.weights import components, hub, load, nextgpt_delta, orbax_params
from nextgpt_jax.weights.components import COMPONENTS, Part
from nextgpt_jax.weights.torch_checkpoint import open_checkpoint


def import_to(output: pathlib.Path, component: str, values: flags.FlagValues) -> None:
    """Converts published weights to the folder `output`.

    Raises:
      UserError: anything does not fit; nothing is left then.
    """
    if component == "nextgpt":
        return _import_system(output, values)
    dtype = np.dtype(values.dtype) if values.dtype else None
    source = hub.find(values.source, components.LAYOUTS[component], revision=values.revision)
    folder = source.path if source.path.is_dir() else source.path.parent
    extra: dict[str, Any] = {}  # files that the published folder lacks
    if component == "delta":
        parts, facts = _fit_delta(values, source.path, dtype), {"config": config_hash(values.config)}
    elif component == "lora":
        parts, extra = _fit_lora(values, folder, dtype)
        facts = {}
    else:
        parts = _fit(component, source.path, folder, values, dtype)
        extra = _other_files(component, folder, parts, values)
        facts = {"delta": str(pathlib.Path(values.delta).absolute())} if values.delta else {}
    _finish(output, component, source, folder, parts, values, facts, extra)


def _finish(output, component, source, folder, parts: list[FittedPart], values, facts, extra) -> None:
    if values.report:
        with atomic_write(values.report) as temporary:
            temporary.write_text(json.dumps(folders.report(component, source.facts(), parts), indent=1) + "\n")
    if values.dry_run:
        print(f"{component} fits: {folders.summary(parts)}")
        return
    folders.import_folder(component, folder, output, parts, facts={**source.facts(), **facts}, extra=extra)
    print(f"{component}: {folders.summary(parts)}: {output}")


def _fit(component: str, path: pathlib.Path, folder: pathlib.Path, values, dtype) -> list[FittedPart]:
    parts = COMPONENTS[component](folder) if component != "llama" else [_llama_part(folder, values)]
    fitted = []
    for part in parts:
        checkpoint = open_checkpoint(path if path.is_file() else folder / part.folder)
        if component == "llama" and values.delta:
            checkpoint = vicuna.with_delta(checkpoint, open_checkpoint(values.delta), values.growth)
        if component == "llama" and values.vocab_size:
            checkpoint = vicuna.truncate_vocab(checkpoint, values.vocab_size)
        fitted.append(folders.fit(part, checkpoint, dtype))
    return fitted


def _llama_json(folder: pathlib.Path, values) -> dict[str, Any]:
    """The config of what comes out: the delta's if there is one, with the rows that are kept."""
    config = hf_config.read_config((pathlib.Path(values.delta) if values.delta else folder) / "config.json")
    return {**config, "vocab_size": values.vocab_size or config.get("vocab_size")}


def _llama_part(folder: pathlib.Path, values) -> Part:
    return components.llama_part(LlamaConfig.from_dict(_llama_json(folder, values)))


def _other_files(component: str, folder: pathlib.Path, parts: list[FittedPart], values=None) -> dict[str, Any]:
    """JSON files that the published folder lacks, or that describe more than is converted."""
    if component == "llama" and values and (values.delta or values.vocab_size):
        return {"config.json": _llama_json(folder, values)}
    if component == "imagebind" and not (folder / "config.json").exists():
        return {"config.json": dataclasses.asdict(ImageBindConfig.huge())}
    return folders.pipeline_index(folder, [fitted.part.folder for fitted in parts])


def _fit_lora(values, folder: pathlib.Path, dtype) -> tuple[list[FittedPart], dict[str, Any]]:
    if not values.base:
        raise UserError("--base is missing: the folder of the language model that the adapter belongs to")
    base = hf_config.read_config(pathlib.Path(values.base) / "config.json")
    part = components.lora_part(LlamaConfig.from_dict(base), components.lora_config(folder))
    return [folders.fit(part, open_checkpoint(folder), dtype)], {components.BASE_CONFIG: base}


def delta_state(config: ExperimentConfig, delta: pathlib.Path) -> tuple[nnx.State, Any]:
    """The parameters of the model that a delta belongs to, and the delta's table."""
    model = load.model_config(dataclasses.replace(config.model, delta=str(delta)))
    return load.abstract_state(model), load.delta_table(model)


def _fit_delta(values, path: pathlib.Path, dtype) -> list[FittedPart]:
    state, table = delta_state(values.config, path)
    checkpoint = open_checkpoint(path)
    wanted, found, held = nextgpt_delta.fit_delta(checkpoint, state, table, allow_partial=values.allow_partial)
    print(f"{checkpoint.source} holds {', '.join(held)}")
    parameters = {name: parameter.cast(dtype) for name, parameter in found.parameters.items()}
    return [FittedPart(Part("", wanted, table), checkpoint, parameters, found.sources, found.left)]


def _import_system(output: pathlib.Path, values) -> None:
    """Every part that a config names, each in a folder called as the last part of its path there."""
    named = load.part_folders(values.config.model)
    folders_of = [pathlib.Path(path).name for _, path in named.values()]
    if twice := [name for name in folders_of if folders_of.count(name) > 1]:
        raise UserError(f"two parts lie in folders called {twice[0]}: rename one")
    found, parts = {}, {}
    dtype = np.dtype(values.dtype) if values.dtype else None
    for name, (_, path) in named.items():
        below = pathlib.Path(values.source) / pathlib.Path(path).name
        found[name] = below if values.source and below.exists() else pathlib.Path(path)
        if not found[name].exists():
            places = [str(p) for p in dict.fromkeys((below, pathlib.Path(path))) if values.source or p != below]
            raise UserError(f"model.{name}: not found (looked for {' and '.join(places)})")
    model = dataclasses.replace(values.config.model, **{name: str(path) for name, path in found.items()})
    config = dataclasses.replace(values.config, model=model)
    for name, (component, _) in named.items():
        if orbax_params.is_converted(found[name]):
            raise UserError(f"model.{name}: {found[name]} is converted already")
        if component == "delta":
            state, table = delta_state(config, found[name])
            wanted, fitted, _ = nextgpt_delta.fit_delta(
                checkpoint := open_checkpoint(found[name]), state, table, allow_partial=values.allow_partial
            )
            cast = {key: parameter.cast(dtype) for key, parameter in fitted.parameters.items()}
            parts[name] = [FittedPart(Part("", wanted, table), checkpoint, cast, fitted.sources, fitted.left)]
        else:
            parts[name] = folders.fit_component(component, found[name], dtype)
    if values.report:
        whole = {name: folders.report(named[name][0], str(found[name]), some) for name, some in parts.items()}
        with atomic_write(values.report) as temporary:
            temporary.write_text(json.dumps(whole, indent=1) + "\n")
    if values.dry_run:
        for name, some in parts.items():
            print(f"{name} fits: {folders.summary(some)}")
        return
    with atomic_folder(output, sum(folders.bytes_of(f) for some in parts.values() for f in some)) as scratch:
        manifest: dict[str, Any] = {"config": config_hash(values.config), "template": model.template, "parts": {}}
        for name, (component, path) in named.items():
            folder = found[name] if found[name].is_dir() else found[name].parent
            target = scratch / pathlib.Path(path).name
            extra = _other_files(component, folder, parts[name])
            facts = hub.Source(found[name]).facts()
            folders.import_folder(component, folder, target, parts[name], facts=facts, extra=extra)
            manifest["parts"][name] = {"folder": target.name, **folders.read_manifest(target)}
            print(f"{name}: {folders.summary(parts[name])}: {output / target.name}")
        (scratch / folders.MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    overrides = [f"--config.model.{name}={output / pathlib.Path(path).name}" for name, (_, path) in named.items()]
    print("use it with " + " ".join(overrides))


def config_hash(config: ExperimentConfig) -> str:
    """SHA-256 of a config's model section, whatever file it came from."""
    model = dataclasses.asdict(config.model)
    return hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()
