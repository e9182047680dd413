"""Writing safetensors in the hub's layout: one file, or shards with an index, tensor by tensor."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np

from nextgpt_jax.files import atomic_write
from nextgpt_jax.weights.torch_checkpoint import SAFETENSORS_DTYPES, Checkpoint, Tensor

SHARD_BYTES = 5 * 10**9  # as transformers and diffusers cut them
_DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


def save_safetensors(
    checkpoint: Checkpoint, path: str | pathlib.Path, *, dtype=None, shard_bytes: int = SHARD_BYTES
) -> list[pathlib.Path]:
    """Writes a file that is either whole or not there; floats are cast to `dtype` if given. Returns what was written.

    Above `shard_bytes` there are several files, named as PATH with -00001-of-0000N, and PATH.index.json beside them.
    """
    path, dtype = pathlib.Path(path), None if dtype is None else np.dtype(dtype)
    tensors = {key: _cast(tensor, dtype) for key, tensor in checkpoint.tensors.items()}
    shards = _shards(tensors, shard_bytes)
    if len(shards) == 1:
        _write(tensors, path)
        return [path]
    names = [f"{path.stem}-{i + 1:05d}-of-{len(shards):05d}{path.suffix}" for i in range(len(shards))]
    for name, keys in zip(names, shards, strict=True):
        _write({key: tensors[key] for key in keys}, path.with_name(name))
    index = {
        "metadata": {"total_size": sum(map(_bytes, tensors.values()))},
        "weight_map": {key: name for name, keys in zip(names, shards, strict=True) for key in keys},
    }
    with atomic_write(path.with_name(f"{path.name}.index.json")) as temporary:
        temporary.write_text(json.dumps(index, indent=2) + "\n")
    return [path.with_name(name) for name in names]


def _cast(tensor: Tensor, dtype: np.dtype | None) -> Tensor:
    if dtype is None or not jnp.issubdtype(tensor.dtype, jnp.floating):
        return tensor
    return Tensor(tensor.shape, dtype, lambda: tensor.read().astype(dtype))


def _bytes(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize


def _shards(tensors: dict[str, Tensor], limit: int) -> list[list[str]]:
    shards, size = [[]], 0
    for key, tensor in tensors.items():
        if shards[-1] and size + _bytes(tensor) > limit:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += _bytes(tensor)
    return shards


def _write(tensors: dict[str, Tensor], path: pathlib.Path) -> None:
    # The widest dtypes first, as the library has it: then every tensor is aligned to its items.
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
