"""From published PyTorch weights to converted folders: `convert_checkpoint`."""

import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.errors import UserError, nearest
from nextgpt_jax.files import atomic_folder, atomic_write, base_name, check_new_folder, normal_path
from nextgpt_jax.models import hf_config, registry
from nextgpt_jax.pipeline import saved
from nextgpt_jax.weights import assemble, components, hub, nextgpt_delta, orbax_params, weight_files
from nextgpt_jax.weights.components import COMPONENTS, LAYOUTS, Part
from nextgpt_jax.weights.tokenizers import load_tokenizer, tokenizer_files
from nextgpt_jax.weights.torch_checkpoint import open_checkpoint

from . import folders, single_files, vicuna
from .deltas import delta_model
from .folders import MatchedPart
from .options import SYSTEM, check_options

KNOWN = (*LAYOUTS, SYSTEM)
DTYPES = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class _Conversion:
    """A component whose parts were opened and checked, and what its folder gets besides the parameters."""

    component: str
    source: hub.Source
    parts: list[MatchedPart]
    manifest: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    json_files: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    companions: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    staging: tempfile.TemporaryDirectory | None = None  # of a single file, in place of the source's folder

    @property
    def folder(self) -> pathlib.Path:
        return pathlib.Path(self.staging.name) if self.staging else _folder(self.source.path)

    @property
    def nbytes(self) -> int:
        return sum(matched.nbytes for matched in self.parts)

    @property
    def summary(self) -> str:
        return folders.summary(self.parts)

    def write(self, output: pathlib.Path) -> None:
        manifest = {**self.source.manifest_entries(), **self.manifest}
        folders.write_converted(
            self.component,
            self.folder,
            output,
            self.parts,
            manifest=manifest,
            json_files=self.json_files,
            companions=self.companions,
        )


def convert_checkpoint(
    component: str,
    source: str | os.PathLike = "",
    output: str | os.PathLike | None = None,
    *,
    config: ExperimentConfig | None = None,
    dtype: str | None = None,
    revision: str = "",
    base: str | os.PathLike = "",
    delta: str | os.PathLike = "",
    growth: Literal["zero", "mean"] = "zero",
    vocab_size: int = 0,
    allow_partial: bool = False,
    tokenizer: str | os.PathLike = "",
    prediction_type: str = "",
    ema: bool = False,
    dry_run: bool = False,
    report: str | os.PathLike = "",
    verbose: bool = False,
) -> dict[str, Any]:
    """Converts published PyTorch weights to Orbax parameters, tensor by tensor, in bounded memory.

    Everything is checked before the first tensor is read: each key of the source is used or known to hold no weights,
    and each parameter is filled by a tensor of its shape. The output folder appears when it is complete and on disk.

        convert_checkpoint("llm", "lmsys/vicuna-7b-v1.5", "converted/vicuna", dtype="bfloat16")

    Args:
      component: a key of LAYOUTS, or "nextgpt": every part that `config` names.
      source: a folder or file in the published layout, or a hub id OWNER/NAME[@REVISION]. For "nextgpt" optional: a
        folder that is searched for the parts first, by the last component of their paths in `config`.
      output: the new folder; not needed with `dry_run`.
      config: for "delta" and "nextgpt": names the parts and the sizes of the projections.
      dtype: one of DTYPES, for floating-point tensors. Default: each keeps its own.
      revision: branch, tag or commit of a hub repository.
      base: for "lora": the folder of the language model that the adapter belongs to.
      delta: for "llm": weights to add to those of `source`, as Vicuna v0 was published.
      growth: how embedding and head grow to the rows of `delta` before the addition: rows of zeros, or of the mean row.
      vocab_size: for "llm": keep only the first rows of embedding and head. 0: all.
      allow_partial: for "delta": accept a file without some pieces, such as one output projection.
      tokenizer: for a decoder in one file: a folder or hub id with the tokenizer of its text encoder.
      prediction_type: for a decoder in one file: "epsilon" or "v_prediction"; "": as published.
      ema: for a decoder in one file: take the moving average of the UNet's weights.
      dry_run: check everything and write nothing but `report`.
      report: a file to write the returned report to, as JSON.
      verbose: print one line per component.

    Returns:
      The report: each parameter with its source keys, shape and dtype. For "nextgpt": a report for each part, by its
      field of ModelConfig.

    Raises:
      UserError: an argument is missing or unknown, the source is missing, damaged or does not fit (all mismatches are
        listed), or the output exists or cannot be written.
    """
    check_component(component)
    options: dict[str, Any] = {
        "config": config,
        "revision": revision,
        "base": str(base),
        "delta": str(delta),
        "growth": growth != "zero",
        "vocab_size": vocab_size,
        "allow_partial": allow_partial,
        "tokenizer": str(tokenizer),
        "prediction_type": prediction_type,
        "ema": ema,
    }
    check_options(component, [name for name, value in options.items() if value])
    if config is None and component in ("delta", SYSTEM):
        raise UserError(f"{component} needs --config, which names the parts that it belongs to")
    if component == "lora" and not str(base):
        raise UserError("--base is missing: the folder of the language model that the adapter belongs to")
    if output is None and not dry_run:
        raise UserError("--output=DIR is missing")
    config, output = config or ExperimentConfig(), output or ""  # where they are not needed
    cast = parse_dtype(dtype)
    if component == SYSTEM:
        conversions = _match_system(config, source, cast, allow_partial, verbose)
        reports = {
            name: folders.report(found.component, str(found.source.path), found.parts)
            for name, found in conversions.items()
        }
    else:
        if not str(source):
            raise UserError(f"--source is missing: {LAYOUTS[component]}")
        found = _find(source, component, revision=revision)
        if single_files.is_single(component, found.path):
            match = single_files.match(found.path, tokenizer, cast, prediction_type=prediction_type, ema=ema)
            _print(verbose, f"{found.path} is {match.manifest['kind']}; {match.manifest['taken']}")
            conversion = _Conversion(component, found, match.parts, match.manifest, staging=match.staging)
        elif tokenizer or prediction_type or ema:
            raise UserError(f"{found.path} is a folder: --tokenizer, --prediction_type and --ema are of single files")
        elif component == "delta":
            conversion = _match_delta(found, config, cast, allow_partial, verbose)
        elif component == "lora":
            conversion = _match_lora(found, base, cast)
        elif is_language_model(component):
            conversion = _match_language_model(
                component, found, cast, delta=delta, growth=growth, vocab_size=vocab_size
            )
        else:
            conversion = _match_component(component, found, cast)
        conversions = {component: conversion}
        reports = folders.report(component, found.manifest_entries(), conversion.parts)
    size = sum(found.nbytes for found in conversions.values()) if dry_run else 0  # else checked again later
    target = check_new_folder(output, size) if str(output) else pathlib.Path()
    lines = [f"{name} fits: {conversion.summary}" for name, conversion in conversions.items()]
    if not dry_run and component == SYSTEM:
        lines = _write_system(target, config, conversions)
    elif not dry_run:
        conversion.write(target)
        lines = [f"{component}: {conversion.summary}: {target}"]
    write_report(report, reports)
    for line in lines:
        _print(verbose, line)
    return reports


def write_report(path: str | os.PathLike, report: Mapping[str, Any]) -> None:
    """Writes a report as JSON, if `path` is one."""
    if str(path):
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n")


def _print(verbose: bool, line: str) -> None:
    if verbose:
        print(line, flush=True)


def check_component(component: str) -> None:
    """Checks a component's name.

    Raises:
      UserError: it is unknown; the nearest name is suggested.
    """
    if component not in KNOWN:
        raise UserError(f"unknown component {component!r} (there are {', '.join(KNOWN)}){nearest(component, KNOWN)}")


def is_language_model(component: str) -> bool:
    """Whether the component is a language model, by any of its names."""
    return component in COMPONENTS and COMPONENTS[component] is components.language_model


def parse_dtype(dtype: str | None) -> np.dtype | None:
    """The numpy dtype of a name in DTYPES, or None.

    Raises:
      UserError: another name.
    """
    if dtype not in (*DTYPES, None):
        raise UserError(f"--dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    return np.dtype(dtype) if dtype else None


def _find(source: str | os.PathLike, component: str, **options: str) -> hub.Source:
    found = hub.find(source, component, **options)  # type: ignore[arg-type]
    return found._replace(path=normal_path(found.path))


def _folder(path: pathlib.Path) -> pathlib.Path:
    return path if path.is_dir() else path.parent


def _match_component(component: str, source: hub.Source, dtype: np.dtype | None) -> _Conversion:
    """A component of one or several parts that has no options of its own."""
    folder = _folder(source.path)
    parts = []
    for part in COMPONENTS[component](folder):
        checkpoint = open_checkpoint(source.path if source.path.is_file() else folder / part.folder, part.layout)
        parts.append(folders.match_part(part, checkpoint, dtype))
    json_files = folders.pipeline_index(folder, [matched.part.folder for matched in parts])
    if COMPONENTS[component] is components.encoder and not (folder / "config.json").exists():
        json_files["config.json"] = dataclasses.asdict(registry.read_encoder(folder))  # the release has none
    return _Conversion(component, source, parts, json_files=json_files)


def _match_language_model(
    component: str,
    source: hub.Source,
    dtype: np.dtype | None,
    *,
    delta: str | os.PathLike,
    growth: Literal["zero", "mean"],
    vocab_size: int,
) -> _Conversion:
    folder, manifest = _folder(source.path), {}
    checkpoint = open_checkpoint(source.path, weight_files.TRANSFORMERS)
    if str(delta):
        change = _find(delta, "llm", field="--delta")
        folder = _folder(change.path)
        checkpoint = vicuna.with_delta(checkpoint, open_checkpoint(change.path, weight_files.TRANSFORMERS), growth)
        manifest = {"delta": change.hub_id or str(change.path)}
    config = hf_config.read_config(folder / "config.json")
    config["vocab_size"] = vocab_size or config.get("vocab_size")
    if vocab_size:
        checkpoint = vicuna.truncate_vocab(checkpoint, vocab_size)
    part = components.llm_part(registry.language_model_config(config, folder / "config.json"))
    parts = [folders.match_part(part, checkpoint, dtype)]
    load_tokenizer(folder)  # raises: without it, the result could not answer
    json_files = {"config.json": config} if manifest or vocab_size else {}
    return _Conversion(component, source, parts, manifest, json_files)


def _match_lora(source: hub.Source, base: str | os.PathLike, dtype: np.dtype | None) -> _Conversion:
    folder = _folder(source.path)
    path = hub.find(base, "llm", field="--base", weights=False).path / "config.json"
    config = hf_config.read_config(path)
    part = components.lora_part(registry.language_model_config(config, path), components.lora_config(folder))
    parts = [folders.match_part(part, open_checkpoint(source.path, part.layout), dtype)]
    return _Conversion("lora", source, parts, json_files={components.BASE_CONFIG: config})


def _match_delta(
    source: hub.Source, config: ExperimentConfig, dtype: np.dtype | None, allow_partial: bool, verbose: bool
) -> _Conversion:
    state, table, layout = delta_model(config.model, source.path)
    checkpoint = open_checkpoint(source.path, weight_files.DELTA)
    wanted, match, pieces = nextgpt_delta.match_delta(checkpoint, state, table, allow_partial=allow_partial)
    _print(verbose, f"{checkpoint.source} holds {', '.join(pieces)}")
    parts = [MatchedPart.of(Part("", wanted, table), checkpoint, match, dtype)]
    manifest = {"config": config_hash(config), "layout": dataclasses.asdict(layout)}
    own = tokenizer_files(_folder(source.path))  # or that of its language model, which export needs
    llm = _find(config.model.llm, "llm", field="model.llm").path
    return _Conversion("delta", source, parts, manifest, companions=own or tokenizer_files(llm))


def _match_system(
    config: ExperimentConfig, source: str | os.PathLike, dtype: np.dtype | None, allow_partial: bool, verbose: bool
) -> dict[str, _Conversion]:
    """Every part that a config names, by the names of `folders_by_part`."""
    if str(source) and not pathlib.Path(source).is_dir():
        raise UserError(f"--source: no such folder: {str(source)!r}")
    named = assemble.folders_by_part(config.model)
    names = [base_name(path) for _, path in named.values()]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two parts are in folders called {twice[0]}: rename one")
    found = {}
    for part, (component, path) in named.items():
        field, below = "model." + part.partition(".")[0], pathlib.Path(source) / base_name(path)
        if str(source) and not below.exists() and not pathlib.Path(path).exists() and not hub.is_hub_id(path):
            raise UserError(f"{field}: not found (looked for {below} and {path})")
        place = below if str(source) and below.exists() else path
        found[part] = _find(place, component, field=field)
        components.refuse_single_file(component, found[part].path)
        if orbax_params.is_converted(found[part].path):
            raise UserError(f"{field}: {place} is converted already")
    model = assemble.with_folders(config.model, {part: source.path for part, source in found.items()})
    config = dataclasses.replace(config, model=model)
    conversions = {}
    for part, (component, _) in named.items():
        if component == "delta":
            conversions[part] = _match_delta(found[part], config, dtype, allow_partial, verbose)
        else:
            conversions[part] = _match_component(component, found[part], dtype)
    return conversions


def _write_system(output: pathlib.Path, config: ExperimentConfig, conversions: Mapping[str, _Conversion]) -> list[str]:
    """Writes each part to a folder called as the last component of its path in the config. The whole is a folder for
    NExTGPT.from_pretrained. Returns lines that say what there is."""
    named = {part: base_name(path) for part, (_, path) in assemble.folders_by_part(config.model).items()}
    size = sum(conversion.nbytes for conversion in conversions.values())
    with atomic_folder(output, size) as scratch:
        manifest: dict[str, Any] = {"config": config_hash(config), "template": config.model.template, "parts": {}}
        for field, conversion in conversions.items():
            folder = scratch / named[field]
            conversion.write(folder)
            manifest["parts"][field] = {"folder": folder.name, **folders.read_manifest(folder)}
        folders.write_json(scratch / folders.MANIFEST, manifest)
        saved.write(scratch, config, assemble.join_folders(named))
    folders_of_parts = assemble.join_folders({part: output / name for part, name in named.items()})
    lines = [f"{field}: {conversion.summary}: {output / named[field]}" for field, conversion in conversions.items()]
    return [*lines, "use it with " + " ".join(f"--config.model.{f}={path}" for f, path in folders_of_parts.items())]


def config_hash(config: ExperimentConfig) -> str:
    """SHA-256 of a config's model section, which is independent of the file that it came from."""
    model = dataclasses.asdict(config.model)
    return hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()
