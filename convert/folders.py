"""Converted folders: writing and reading them.

A converted folder has the layout of its source, with params/ (Orbax, see nextgpt_jax/weights/orbax_params.py) in place
of each weights file, and a manifest that records the source.
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
from nextgpt_jax.weights import matching, orbax_params, weight_files
from nextgpt_jax.weights.components import Part
from nextgpt_jax.weights.hub_files import COMPANION_FILES
from nextgpt_jax.weights.safetensors_writer import save_safetensors
from nextgpt_jax.weights.torch_checkpoint import Checkpoint

MANIFEST = "nextgpt_jax.json"
UNMATCHED = "unmatched.safetensors"  # tensors without weights (masks, position ids), kept for export
UNMATCHED_NAMES = (UNMATCHED, "left.safetensors")  # the second one in folders of version 0.1
_MAX_UNMATCHED_BYTES = 16 * 2**20  # larger ones are weights of parts that are not built
_COMPANION_FOLDERS = ("tokenizer", "scheduler", "feature_extractor", "additional_chat_templates")
_NOT_COMPANIONS = (*weight_files.INDICES, MANIFEST)


@dataclasses.dataclass(frozen=True)
class MatchedPart:
    """A part of a component and the tensors of its checkpoint that fill it. Nothing is read yet.

    Attributes:
      part: the folder, the abstract parameters and the conversion table.
      checkpoint: what was opened.
      parameters: the converted parameters by dotted path.
      source_keys: the checkpoint's keys for each parameter.
      unmatched: the checkpoint's keys that hold no weights.
    """

    part: Part
    checkpoint: Checkpoint
    parameters: dict[str, matching.Parameter]
    source_keys: dict[str, list[str]]
    unmatched: tuple[str, ...]

    @classmethod
    def of(cls, part: Part, checkpoint: Checkpoint, match: matching.Match, dtype: np.dtype | None) -> "MatchedPart":
        """The part with the tensors of `match`, cast to `dtype` (None: unchanged)."""
        parameters = {name: parameter.cast(dtype) for name, parameter in match.parameters.items()}
        return cls(part, checkpoint, parameters, match.source_keys, match.unmatched)

    @property
    def nbytes(self) -> int:
        """Bytes of the converted parameters."""
        return sum(math.prod(p.shape) * p.dtype.itemsize for p in self.parameters.values())


def match_part(part: Part, checkpoint: Checkpoint, dtype: np.dtype | None) -> MatchedPart:
    """Checks that a checkpoint fits a part.

    Raises:
      ConversionError: it does not; all mismatches are listed.
    """
    return MatchedPart.of(part, checkpoint, matching.match(checkpoint, part.state, part.table), dtype)


def report(component: str, source: Any, parts: list[MatchedPart]) -> dict[str, Any]:
    """Each parameter of a component with its source keys, shape and dtype, as JSON data."""
    return {
        "component": component,
        "source": source,
        "parts": {
            matched.part.folder or ".": {
                "checkpoint": matched.checkpoint.source,
                "parameters": {
                    name: {"from": matched.source_keys[name], "shape": list(p.shape), "dtype": str(p.dtype)}
                    for name, p in matched.parameters.items()
                },
                "ignored": list(matched.unmatched),
            }
            for matched in parts
        },
    }


def summary(parts: list[MatchedPart]) -> str:
    """Number of parameters, elements and bytes in one line."""
    count = sum(len(matched.parameters) for matched in parts)
    elements = sum(math.prod(p.shape) for matched in parts for p in matched.parameters.values())
    size = format_size(sum(matched.nbytes for matched in parts))
    return f"{count} parameters of {elements / 1e6:,.2f}M elements, {size}"


def write_converted(
    component: str,
    source: pathlib.Path,
    output: pathlib.Path,
    parts: list[MatchedPart],
    *,
    manifest: Mapping[str, Any],
    json_files: Mapping[str, Any],
    companions: Mapping[str, pathlib.Path],
) -> None:
    """Writes a converted folder.

    Args:
      component: its name, for the manifest.
      source: the folder with the companion files.
      output: the new folder.
      parts: the parameters.
      manifest: more entries of the manifest.
      json_files: JSON files by name, which the source does not have or which replace its own.
      companions: files by name, to copy if the source does not have them.

    Raises:
      UserError: the output exists, the disk is too small, or a source file cannot be read any more.
    """
    size = sum(matched.nbytes for matched in parts)
    with atomic_folder(output, size) as folder, concurrent.futures.ThreadPoolExecutor(1) as hashing:
        files = sorted({file for matched in parts for file in matched.checkpoint.files})
        digests = {file: hashing.submit(_sha256, file) for file in files}
        copied = {**companions, **companion_files(source, [matched.part.folder for matched in parts])}
        for name, file in copied.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
        for matched in parts:
            (folder / matched.part.folder).mkdir(parents=True, exist_ok=True)
            orbax_params.save(matched.parameters, folder / matched.part.folder)
            kept = {k: matched.checkpoint.tensors[k] for k in matched.unmatched if k in matched.checkpoint}
            if kept and sum(math.prod(t.shape) * t.dtype.itemsize for t in kept.values()) <= _MAX_UNMATCHED_BYTES:
                save_safetensors(Checkpoint("unmatched", kept), folder / matched.part.folder / UNMATCHED)
        for name, content in json_files.items():
            write_json(folder / name, content)
        content = {
            "component": component,
            **manifest,
            "license": license_of(source),
            "files": {
                str(f.relative_to(source) if f.is_relative_to(source) else f): {
                    "bytes": f.stat().st_size,
                    "sha256": digests[f].result(),
                }
                for f in files
            },
            "companion_files": {str(f.relative_to(folder)): _sha256(f) for f in _companion_files(folder)},
            "dtypes": dict(collections.Counter(str(p.dtype) for m in parts for p in m.parameters.values())),
            "ignored": [key for matched in parts for key in matched.unmatched],
        }
        write_json(folder / MANIFEST, content)


def companion_files(source: pathlib.Path, parts: Collection[str] = ()) -> dict[str, pathlib.Path]:
    """Configs, tokenizers and license terms of a folder and, in a pipeline, of the folders of its `parts`, by their
    path in the folder."""
    names = ("", *(parts if len(parts) > 1 else ()), *_COMPANION_FOLDERS)
    found = {str(pathlib.PurePosixPath(name, f.name)): f for name in names for f in sorted((source / name).glob("*"))}
    return {name: file for name, file in found.items() if _is_companion(file)}


def _companion_files(folder: pathlib.Path) -> list[pathlib.Path]:
    found = (*folder.glob("*"), *folder.glob("*/*"))
    return sorted(f for f in found if _is_companion(f) and orbax_params.FOLDER not in f.parts)


def _is_companion(file: pathlib.Path) -> bool:
    matches = any(file.match(p) for p in COMPANION_FILES) and not any(file.match(p) for p in _NOT_COMPANIONS)
    return matches and file.is_file()


def pipeline_index(source: pathlib.Path, parts: Collection[str]) -> dict[str, Any]:
    """{"model_index.json": its content} without parts that are not converted or not there, such as a safety checker:
    loaders would look for them. Empty if the folder has none."""
    if not (source / "model_index.json").is_file():
        return {}
    index = hf_config.read_config(source / "model_index.json")
    kept = {*parts, *(name for name in _COMPANION_FOLDERS if (source / name).is_dir())}
    index = {k: [None, None] if isinstance(v, list) and k not in kept else v for k, v in index.items()}
    return {"model_index.json": index}


def license_of(source: pathlib.Path) -> str:
    """The license that the model card states, or "not stated"."""
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


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def _sha256(file: pathlib.Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
