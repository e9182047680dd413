"""Reading PyTorch checkpoints lazily, tensor by tensor: safetensors or pickles, one file or an index of shards.

Tensors are read at their offset in the file. Memory-mapped pages would count as memory of this process.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from nextgpt_jax.errors import UserError, printable
from nextgpt_jax.files import refuse_lfs_pointer
from nextgpt_jax.json_files import read_json
from nextgpt_jax.weights.weight_files import Layout, find_weights, is_index

_OF_TRAINERS = (  # what .ckpt files hold beside the weights: callbacks, settings, numbers
    *("pytorch_lightning.", "lightning.", "omegaconf."),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"),
)
SAFETENSORS_DTYPES = {  # names in the headers of safetensors files
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
        "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
    }.items()
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A lazy tensor of a checkpoint; `read` reads its values."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def cast(self, dtype: np.dtype) -> "Tensor":
        """The tensor with another dtype, if it holds floating-point numbers."""
        if self.dtype == dtype or not (self.dtype.kind == "f" or self.dtype == ml_dtypes.bfloat16):
            return self
        return Tensor(self.shape, dtype, lambda: self.read().astype(dtype))


class Checkpoint(Mapping[str, np.ndarray]):
    """Lazy tensors by key; `checkpoint[key]` reads one.

    Attributes:
      source: its name in error messages.
      tensors: shape, dtype and reader of each tensor.
      files: the files that were opened.
    """

    def __init__(self, source: str, tensors: Mapping[str, Tensor], files: tuple[pathlib.Path, ...] = ()):
        self.source = source
        self.tensors = dict(tensors)
        self.files = files

    @classmethod
    def of(cls, source: str, arrays: Mapping[str, np.ndarray]) -> "Checkpoint":
        """A checkpoint of arrays in memory."""
        return cls(source, {k: Tensor(v.shape, v.dtype, lambda v=v: v) for k, v in arrays.items()})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {key: tensor.shape for key, tensor in self.tensors.items()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Checkpoint":
        """A checkpoint of the same source and files with other tensors."""
        return Checkpoint(self.source, tensors, self.files)

    def cast(self, dtype: np.dtype | type | None) -> "Checkpoint":
        """The checkpoint with floating-point tensors of another dtype. None: unchanged."""
        if dtype is None:
            return self
        return self.with_tensors({key: tensor.cast(np.dtype(dtype)) for key, tensor in self.tensors.items()})

    def __getitem__(self, key: str) -> np.ndarray:
        return self.tensors[key].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def open_checkpoint(path: str | pathlib.Path, layout: Layout | None = None) -> Checkpoint:
    """Opens a file, or a folder with one checkpoint in the hub's layout.

    Args:
      path: a file, whatever its name, or a folder.
      layout: which of a folder's files count (weight_files.py). None: the only ones that it has.

    Raises:
      UserError: there is no checkpoint, a file is unreadable, a shard is missing, or a key is in two shards.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"no such checkpoint: {path}")
    file = find_weights(path, layout) if path.is_dir() else path
    if is_index(file.name):
        return _open_shards(file)
    return Checkpoint(str(file), _open_file(file), (file,))


def shard_names(index: pathlib.Path) -> list[str]:
    """The names of the files that an index lists, in its folder. They may be missing.

    Raises:
      UserError: the index cannot be read, lists nothing, or names a file elsewhere.
    """
    return sorted(set(_weight_map(index).values()))


def _weight_map(index: pathlib.Path) -> dict[str, str]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) and name for name in weight_map.values()):
        raise UserError(f"{index} has no weight_map of keys and file names")
    if not weight_map:
        raise UserError(f"{index} lists no tensors")
    for name in weight_map.values():
        if (index.parent / name).parent != index.parent or "\0" in name or name in (".", ".."):
            raise UserError(f"{index} points outside its folder: {name!r}")
    return weight_map


def _open_shards(index: pathlib.Path) -> Checkpoint:
    folder, weight_map = index.parent, _weight_map(index)
    tensors: dict[str, Tensor] = {}
    files = []
    for name in sorted(set(weight_map.values())):
        shard = folder / name
        if not os.path.isfile(shard):  # Path.is_file raises for names that no file can have
            whole = folder / index.name.removesuffix(".index.json")
            remedy = f": remove the index to read {whole.name}" if whole.is_file() else ""
            raise UserError(f"{index} names a shard that is not there: {name}{remedy}")
        found = _open_file(shard)
        if twice := tensors.keys() & found.keys():
            raise UserError(f"{sorted(twice)[0]} is in more than one shard of {folder}")
        tensors |= found
        files.append(shard)
    if lost := weight_map.keys() - tensors.keys():
        raise UserError(f"{index} lists {sorted(lost)[0]}, which no shard holds")
    return Checkpoint(str(folder), tensors, tuple(files))


def _open_file(path: pathlib.Path) -> dict[str, Tensor]:
    refuse_lfs_pointer(path)
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path)


def _open_safetensors(path: pathlib.Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass  # checks that the header is consistent with the data
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size), object_pairs_hook=_once)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None
    header.pop("__metadata__", None)
    tensors = {}
    for key, entry in header.items():
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            raise UserError(f"{path}: {key} has the dtype {entry['dtype']}, which is not supported")
        dtype, shape = SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"])
        tensors[key] = Tensor(shape, dtype, _reader(path, 8 + size + entry["data_offsets"][0], dtype, shape))
    return tensors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)} is there twice")
    return found


def _reader(
    path: pathlib.Path, offset: int, dtype: np.dtype, shape: tuple[int, ...], strides: tuple[int, ...] | None = None
) -> Callable[[], np.ndarray]:
    """A function that reads an array at `offset` bytes. `strides` are in elements; None: C order."""
    count = math.prod(shape)
    if strides is not None and count:
        count = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))

    def read() -> np.ndarray:
        try:
            flat = np.fromfile(path, np.uint8, count * dtype.itemsize, offset=offset)
        except OSError as error:
            raise UserError(f"{path} can't be read: {error.strerror or error}") from None
        if flat.size != count * dtype.itemsize:
            raise UserError(f"{path} has become shorter while it was read")
        flat = flat.view(dtype)
        if strides is None:
            return flat.reshape(shape)
        return np.lib.stride_tricks.as_strided(flat, shape, [n * dtype.itemsize for n in strides])

    return read


def _open_pickle(path: pathlib.Path) -> dict[str, Tensor]:
    try:
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode
    except ImportError:
        raise UserError(
            f"{path} is a pickle, and reading it needs PyTorch: pip install 'nextgpt-jax[convert]', convert it on a "
            "machine that has it, or take the model's safetensors files"
        ) from None
    try:
        if zipped := zipfile.is_zipfile(path):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            trainers: list[Any] = [(_Ignored, name) for name in names if name.startswith(_OF_TRAINERS)]
            with torch.serialization.safe_globals(trainers), FakeTensorMode():  # reads the offsets of the values only
                content = torch.load(path, map_location="cpu", weights_only=True)
        else:  # saved by torch < 1.6
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types
        raise UserError(f"{path} is not a readable weights file: {_reason(error)}") from None
    for name in ("state_dict", "model"):  # of trainers, beside their settings
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict")

    dtypes = {getattr(torch, dtype.name): dtype for dtype in SAFETENSORS_DTYPES.values()}
    tensors = {}
    for key, value in content.items():
        if not isinstance(value, torch.Tensor) or not isinstance(key, str):
            continue
        if value.dtype not in dtypes:
            raise UserError(f"{path}: {key} has the dtype {value.dtype}, which is not supported")
        dtype, shape = dtypes[value.dtype], tuple(value.shape)
        if zipped:
            offset = value.untyped_storage()._checkpoint_offset + value.storage_offset() * dtype.itemsize
            read = _reader(path, offset, dtype, shape, value.stride())
        else:
            read = _in_memory(value, dtype)
        tensors[key] = Tensor(shape, dtype, read)
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    return tensors


def _reason(error: Exception) -> str:
    """Why torch.load failed, without its advice to run the code in the file."""
    message = printable(str(error))
    if found := re.search(r"Unsupported (?:global|class): (?:GLOBAL )?(\S+)", message):
        return f"it holds objects of the type {found[1]}, and only tensors are read"
    _, begin, rest = message.partition("WeightsUnpickler error:")
    lines = [line.strip() for line in (rest if begin else message).splitlines() if line.strip()]
    reason = lines[0].partition(". ")[0].rstrip(".") if lines else "it ends early"
    return f"it is no pickle of tensors ({reason})" if begin else reason


class _Ignored:
    """Stands in for a class or function that a pickle names beside its tensors: nothing of the named one is run."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Ignored":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _in_memory(tensor, dtype: np.dtype) -> Callable[[], np.ndarray]:
    import torch

    bits = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}[dtype.itemsize]  # torch has no numpy bfloat16

    return lambda: tensor.detach().contiguous().view(getattr(torch, bits)).numpy().view(dtype)
