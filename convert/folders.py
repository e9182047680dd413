"""Whole folders: from the hub's layout to converted parameters, and back.

A converted folder is the hub's with params/ (Orbax, see store.py) in place of each weights file, and MANIFEST, which
says what it was made from. It appears complete, under its name, or not at all.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import math
import pathlib
import re
import shutil
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_folder, format_size
from nextgpt_jax.models import hf_config
from nextgpt_jax.weights import matching, orbax_params
from nextgpt_jax.weights.components import COMPONENTS, Part
from nextgpt_jax.weights.hub import COMPANION_FILES
from nextgpt_jax.weights.safetensors_writer import save_safetensors
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, open_checkpoint

MANIFEST = "nextgpt_jax.json"
LEFT = "left.safetensors"  # tensors that hold no weights (masks, position ids), kept for the way back
_LEFT_BYTES = 16 * 2**20  # more than that are weights of parts that are not built
_BESIDE_PARTS = ("tokenizer", "scheduler", "feature_extractor")  # folders of a pipeline that hold no weights
_NOT_KEPT = ("*.index.json", "*.index.*.json", MANIFEST)


@dataclasses.dataclass(frozen=True)
class FittedPart:
    """A part with what its checkpoint gives it."""

    part: Part
    checkpoint: Checkpoint
    parameters: dict[str, matching.Parameter]
    sources: dict[str, list[str]]  # the checkpoint's keys by parameter
    ignored: tuple[str, ...]


def fit(part: Part, checkpoint: Checkpoint, dtype: np.dtype | None) -> FittedPart:
    """Checks that a checkpoint fits a part, and casts it to `dtype` (None: each tensor stays as it is)."""
    found = matching.fit(checkpoint, part.state, part.table)
    parameters = {name: parameter.cast(dtype) for name, parameter in found.parameters.items()}
    return FittedPart(part, checkpoint, parameters, found.sources, found.left)


def fit_component(component: str, source: pathlib.Path, dtype: np.dtype | None = None) -> list[FittedPart]:
    """Opens and checks all parts of a component before any is converted.

    Raises:
      UserError, ConversionError: a file is missing or damaged, or does not fit.
    """
    return [fit(part, open_checkpoint(source / part.folder), dtype) for part in COMPONENTS[component](source)]


def report(component: str, source: Any, parts: list[FittedPart]) -> dict[str, Any]:
    """What a conversion takes from where: every parameter with its keys, shape and dtypes."""
    return {
        "component": component,
        "source": source,
        "parts": {
            fitted.part.folder or ".": {
                "checkpoint": fitted.checkpoint.source,
                "parameters": {
                    name: {"from": fitted.sources[name], "shape": list(p.shape), "dtype": str(p.dtype)}
                    for name, p in fitted.parameters.items()
                },
                "ignored": list(fitted.ignored),
            }
            for fitted in parts
        },
    }


def summary(parts: list[FittedPart]) -> str:
    """The same in a line: how much there is."""
    count = sum(len(f.parameters) for f in parts)
    elements = sum(math.prod(p.shape) for f in parts for p in f.parameters.values())
    return f"{count} parameters of {elements / 1e6:,.2f}M elements, {format_size(sum(map(bytes_of, parts)))}"


def import_folder(
    component: str,
    source: pathlib.Path,
    output: pathlib.Path,
    parts: list[FittedPart],
    *,
    facts: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> None:
    """Writes the converted folder of parts that were fitted.

    `facts` go to its manifest; `extra` are JSON files by name that the source lacks or has otherwise.

    Raises:
      UserError: the output exists, there is no room, or a source file becomes unreadable.
    """
    with (
        atomic_folder(output, sum(map(bytes_of, parts))) as folder,
        concurrent.futures.ThreadPoolExecutor(1) as hashing,
    ):
        files = sorted({file for fitted in parts for file in fitted.checkpoint.files})
        digests = {file: hashing.submit(_sha256, file) for file in files}
        copy_beside(source, folder, [fitted.part.folder for fitted in parts])
        for fitted in parts:
            orbax_params.save(fitted.parameters, folder / fitted.part.folder)
            left = {key: fitted.checkpoint.tensors[key] for key in fitted.ignored if key in fitted.checkpoint}
            if left and sum(math.prod(t.shape) * t.dtype.itemsize for t in left.values()) <= _LEFT_BYTES:
                save_safetensors(Checkpoint("left", left), folder / fitted.part.folder / LEFT)
        for name, content in extra.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
        manifest = {
            "component": component,
            **facts,
            "licence": licence(source),
            "files": {
                str(f.relative_to(source) if f.is_relative_to(source) else f): {
                    "bytes": f.stat().st_size,
                    "sha256": digests[f].result(),
                }
                for f in files
            },
            "beside": {str(f.relative_to(folder)): _sha256(f) for f in _files_beside(folder)},
            "dtypes": dict(collections.Counter(str(p.dtype) for f in parts for p in f.parameters.values())),
            "ignored": [key for fitted in parts for key in fitted.ignored],
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def export_folder(component: str, source: pathlib.Path, output: pathlib.Path, *, dtype: np.dtype | None) -> None:
    """Writes a converted folder in the hub's layout.

    Raises:
      UserError: the source is no complete converted folder, the output exists, or there is no room.
    """
    read_manifest(source)
    parts = COMPONENTS[component](source)
    parameters = [orbax_params.parameters(source / part.folder, part.state, part.table) for part in parts]
    export_parts(source, output, list(zip(parts, parameters, strict=True)), dtype=dtype)


def export_parts(
    source: pathlib.Path,
    output: pathlib.Path,
    parts: list[tuple[Part, dict[str, matching.Parameter]]],
    *,
    dtype: np.dtype | None,
) -> None:
    """Writes parameters of parts in the hub's layout, with what stands beside them in `source`."""
    size = sum(math.prod(p.shape) * p.cast(dtype).dtype.itemsize for _, some in parts for p in some.values())
    with atomic_folder(output, size) as folder:
        copy_beside(source, folder, [part.folder for part, _ in parts])
        for part, parameters in parts:
            tensors = matching.export_parameters(parameters, part.state, part.table)
            save_safetensors(
                restore_unmatched(tensors, source / part.folder), folder / part.folder / part.file, dtype=dtype
            )


def restore_unmatched(tensors: Checkpoint, folder: pathlib.Path) -> Checkpoint:
    """The tensors with those that were left when `folder` was made."""
    if not (folder / LEFT).is_file():
        return tensors
    return tensors.with_tensors({**tensors.tensors, **open_checkpoint(folder / LEFT).tensors})


def copy_beside(source: pathlib.Path, target: pathlib.Path, parts: Collection[str]) -> None:
    """Copies what stands beside the weights of a folder and, in a pipeline, of `parts`: configs, tokenizers, terms."""
    for name in ("", *(parts if len(parts) > 1 else ()), *_BESIDE_PARTS):
        if name in ("", *parts):
            (target / name).mkdir(parents=True, exist_ok=True)
        for file in sorted((source / name).glob("*")):
            if _is_beside(file):
                (target / name).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target / name / file.name)


def _files_beside(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        f for f in (*folder.glob("*"), *folder.glob("*/*")) if _is_beside(f) and orbax_params.FOLDER not in f.parts
    )


def _is_beside(file: pathlib.Path) -> bool:
    return file.is_file() and any(file.match(p) for p in COMPANION_FILES) and not any(file.match(p) for p in _NOT_KEPT)


def pipeline_index(source: pathlib.Path, parts: Collection[str]) -> dict[str, Any]:
    """model_index.json without the parts that are not converted (a safety checker), which a loader would look for."""
    if not (source / "model_index.json").is_file():
        return {}
    index = hf_config.read_config(source / "model_index.json")
    kept = {*parts, *_BESIDE_PARTS}
    index = {k: [None, None] if isinstance(v, list) and k not in kept else v for k, v in index.items()}
    return {"model_index.json": index}


def licence(source: pathlib.Path) -> str:
    """The licence that the model card names, or "not stated"."""
    card = source / "README.md"
    if not card.is_file():
        return "not stated"
    found = re.search(r"^license(?:_name)?:\s*(\S.*?)\s*$", card.read_text(errors="replace")[:4000], re.MULTILINE)
    return found.group(1) if found else "not stated"


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of a converted folder.

    Raises:
      UserError: there is none.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is no converted folder (no {MANIFEST})")
    return hf_config.read_config(folder / MANIFEST)


def _sha256(file: pathlib.Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def bytes_of(fitted: FittedPart) -> int:
    return sum(math.prod(p.shape) * p.dtype.itemsize for p in fitted.parameters.values())
