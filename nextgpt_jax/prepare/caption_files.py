"""Caption embeddings that the reference's code computed: one .npy file per output, named in a record or after its
medium."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.prompts import Output

CHECKED = 2  # files of each modality in a shard whose captions are encoded, too; they are compared with all equal ones
TOLERANCE = 0.02  # of their norm: the files may have been computed in float16


def caption_files(record: Mapping[str, Any], outputs: Sequence[Output], folder: pathlib.Path) -> list[pathlib.Path]:
    """The file of each output; it may not exist.

    They are those that `<modality>_caption_embeddings` names, in the order of the outputs, and else MEDIUM.npy in
    `folder`, where MEDIUM is the name of the record's medium (`<modality>_name`, `mm_name`).
    """
    named = {}
    for modality in {output.modality for output in outputs}:
        listed = record.get(f"{modality}_caption_embeddings") or record.get(f"{modality}_caption_embedding") or []
        names = [listed] if isinstance(listed, str) else [*listed]
        medium = record.get(f"{modality}_name") or record.get("mm_name")
        if not names and isinstance(medium, str):
            names = [f"{pathlib.PurePosixPath(medium).name}.npy"]
        named[modality] = iter([pathlib.PurePosixPath(str(name)).name for name in names])
    return [folder / next(named[output.modality], "") for output in outputs]


def read_embedding(path: pathlib.Path, shape: Sequence[int]) -> np.ndarray:
    """An embedding, float32 of `shape`; axes of length 1 before it are left out.

    Raises:
      UserError: the file is damaged, or of another shape, or not finite.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is no readable .npy file: {first_line(error)}") from None
    while found.ndim > len(shape) and found.shape[0] == 1:
        found = found[0]
    if found.shape != tuple(shape) or not np.issubdtype(found.dtype, np.floating):
        raise UserError(f"{path} is {found.dtype} {list(found.shape)}, and the text encoder gives {list(shape)}")
    found = found.astype(np.float32)
    if not np.isfinite(found).all():
        raise UserError(f"{path} has values that are not finite")
    return found


def check_equal(path: pathlib.Path, found: np.ndarray, computed: np.ndarray, modality: str) -> None:
    """Checks that a file's embedding is what this model's text encoder gives.

    Raises:
      UserError: it is not.
    """
    off = float(np.linalg.norm(found - computed) / np.linalg.norm(computed))
    if off > TOLERANCE:
        raise UserError(
            f"{path} is {off:.2g} (relative) off what model.{modality}_decoder computes for its caption: it is of "
            "another text encoder or caption; leave out --caption_embeddings to compute all"
        )
