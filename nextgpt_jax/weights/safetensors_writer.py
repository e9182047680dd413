"""Writing safetensors in the hub's layout: one file, or shards with an index. Tensors are read and written one by one.

huggingface_hub and safetensors write tensors that are in memory; a 7B model would need 14 GB.
"""

import json
import math
import pathlib
from collections.abc import Mapping

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory

from nextgpt_jax.files import atomic_write
from nextgpt_jax.weights.torch_checkpoint import SAFETENSORS_DTYPES, Checkpoint, Tensor

SHARD_BYTES = 5 * 10**9  # the hub's default
_DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


def save_safetensors(
    checkpoint: Checkpoint, path: str | pathlib.Path, *, dtype=None, shard_bytes: int = SHARD_BYTES
) -> list[pathlib.Path]:
    """Writes a checkpoint, each file atomically, and returns the paths of its files.

    Args:
      checkpoint: the tensors.
      path: of the file. Above `shard_bytes` the files are PATH with -00001-of-0000N, and PATH.index.json.
      dtype: cast floating-point tensors. Default: each keeps its own.
      shard_bytes: size limit of a file; a larger tensor has a file of its own.

    Raises:
      UserError: a file cannot be written, or a tensor cannot be read.
    """
    path, tensors = pathlib.Path(path), checkpoint.cast(dtype).tensors
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=_bytes,
        filename_pattern=f"{path.stem}{{suffix}}{path.suffix}",
        max_shard_size=shard_bytes,
    )
    for name, keys in split.filename_to_tensors.items():
        _write({key: tensors[key] for key in keys}, path.with_name(name))
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        with atomic_write(path.with_name(f"{path.name}.index.json")) as temporary:
            temporary.write_text(json.dumps(index, indent=2) + "\n")
    return [path.with_name(name) for name in split.filename_to_tensors]


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _write(tensors: Mapping[str, Tensor], path: pathlib.Path) -> None:
    # Wide dtypes first, as in the safetensors library, which aligns every tensor to its items.
    keys = sorted(tensors, key=lambda key: (-tensors[key].dtype.itemsize, key))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for key in keys:
        begin, end = end, end + _bytes(tensors[key])
        dtype, shape = _DTYPE_NAMES[tensors[key].dtype], list(tensors[key].shape)
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for key in keys:
            file.write(np.ascontiguousarray(tensors[key].read()).reshape(-1).view(np.uint8).data)
