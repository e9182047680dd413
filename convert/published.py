"""Folders in the published layout: what they will hold, before it is written."""

import dataclasses
import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from nextgpt_jax.files import atomic_folder, format_size
from nextgpt_jax.weights import matching, orbax_params
from nextgpt_jax.weights.components import COMPONENTS, Part
from nextgpt_jax.weights.safetensors_writer import save_safetensors
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, open_checkpoint
from nextgpt_jax.weights.torch_writer import save_torch

from . import folders


@dataclasses.dataclass(frozen=True)
class PublishedFolder:
    """Contents of a folder; of the tensors, nothing is read yet.

    Attributes:
      weights: checkpoints by their file's path: .safetensors, or .pt for torch.
      copied: files by their path, which are copied as they are.
      json_files: JSON data by path; these replace copied files.
    """

    weights: Mapping[str, Checkpoint]
    copied: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    json_files: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        tensors = [tensor for checkpoint in self.weights.values() for tensor in checkpoint.tensors.values()]
        return sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors)

    @property
    def summary(self) -> str:
        """Number of files and size in one line."""
        names = self.weights.keys() | self.copied.keys() | self.json_files.keys()
        return f"{len(names)} files, weights of {format_size(self.nbytes)}"

    def report(self) -> dict[str, Any]:
        """The tensors of each file, with shape and dtype, and the names of the other files, as JSON data."""
        weights = {
            file: {key: {"shape": list(t.shape), "dtype": str(t.dtype)} for key, t in checkpoint.tensors.items()}
            for file, checkpoint in self.weights.items()
        }
        return {"weights": weights, "other_files": sorted(self.copied.keys() | self.json_files.keys())}

    def write(self, output: pathlib.Path) -> None:
        """Writes the folder, weights above 5 GB in shards.

        Raises:
          UserError: it exists, the disk is too small, or a source file cannot be read any more.
        """
        with atomic_folder(output, self.nbytes) as folder:
            for name, file in self.copied.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, folder / name)
            for name, content in self.json_files.items():
                folders.write_json(folder / name, content)
            for name, checkpoint in self.weights.items():
                save = save_torch if name.endswith(".pt") else save_safetensors
                save(checkpoint, folder / name)


def component_folder(component: str, source: pathlib.Path, dtype: np.dtype | None) -> PublishedFolder:
    """A converted folder in the published layout.

    Raises:
      UserError: the source is not a complete converted folder.
    """
    folders.read_manifest(source)
    parts = COMPONENTS[component](source)
    parameters = [orbax_params.parameters(source / part.folder, part.state, part.table) for part in parts]
    return parts_folder(source, list(zip(parts, parameters, strict=True)), dtype)


def parts_folder(
    source: pathlib.Path, parts: list[tuple[Part, dict[str, matching.Parameter]]], dtype: np.dtype | None
) -> PublishedFolder:
    """The parameters of parts in the published layout, with the companion files of the converted folder `source`."""
    weights = {}
    for part, parameters in parts:
        tensors = matching.export_parameters(parameters, part.state, part.table)
        tensors = restore_unmatched(tensors, source / part.folder)
        weights[str(pathlib.PurePosixPath(part.folder, part.file))] = tensors.cast(dtype)
    return PublishedFolder(weights, folders.companion_files(source, [part.folder for part, _ in parts]))


def restore_unmatched(tensors: Checkpoint, folder: pathlib.Path) -> Checkpoint:
    """`tensors` and those of the source checkpoint that the converted `folder` holds without converting them."""
    for name in folders.UNMATCHED_NAMES:
        if (folder / name).is_file():
            return tensors.with_tensors({**tensors.tensors, **open_checkpoint(folder / name).tensors})
    return tensors
