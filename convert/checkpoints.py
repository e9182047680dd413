"""Reading PyTorch checkpoints lazily, tensor by tensor: safetensors or pickles, one file or an index of shards."""

import json
import pathlib
import zipfile
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
import safetensors

from nextgpt_jax.errors import UserError
from nextgpt_jax.hub import read_json

# In order of preference, as the hub's folders have them.
_NAMES = ("model", "diffusion_pytorch_model", "pytorch_model", "adapter_model", "imagebind_huge")
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_NUMPY = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


class Checkpoint(Mapping[str, np.ndarray]):
    """Keys and shapes are known at once; a tensor is read when it is asked for."""

    def __init__(self, source: str, shapes: dict[str, tuple[int, ...]], readers: dict[str, Callable]):
        self.source = source
        self.shapes = shapes
        self._readers = readers

    def __getitem__(self, key: str) -> np.ndarray:
        return self._readers[key](key)

    def __iter__(self):
        return iter(self.shapes)

    def __len__(self):
        return len(self.shapes)


def open_checkpoint(path: str | pathlib.Path) -> Checkpoint:
    """Opens a file, or a folder that holds one checkpoint in the hub's layout.

    Raises:
      UserError: nothing there, an unreadable file, a shard missing, or a key in two shards.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return Checkpoint(str(path), *_open_file(path))
    if not path.is_dir():
        raise UserError(f"no such checkpoint: {path}")
    for suffix in _SUFFIXES:
        for name in _NAMES:
            index = path / f"{name}{suffix}.index.json"
            if index.is_file():
                return _open_shards(path, index)
            if (path / f"{name}{suffix}").is_file():
                return Checkpoint(str(path / f"{name}{suffix}"), *_open_file(path / f"{name}{suffix}"))
    wanted = ", ".join(f"{n}.safetensors" for n in _NAMES[:2])
    raise UserError(f"{path} holds no checkpoint (looked for {wanted} and their .bin, .pt, .pth and sharded forms)")


def _open_shards(folder: pathlib.Path, index: pathlib.Path) -> Checkpoint:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise UserError(f"{index} has no weight_map")
    shapes, readers = {}, {}
    for name in sorted(set(weight_map.values())):
        shard = folder / name
        if shard.parent != folder:
            raise UserError(f"{index} points outside its folder: {name}")
        if not shard.is_file():
            raise UserError(f"{index} names a shard that is not there: {name}")
        shard_shapes, shard_readers = _open_file(shard)
        if twice := shapes.keys() & shard_shapes.keys():
            raise UserError(f"{sorted(twice)[0]} is in more than one shard of {folder}")
        shapes |= shard_shapes
        readers |= shard_readers
    if lost := weight_map.keys() - shapes.keys():
        raise UserError(f"{index} lists {sorted(lost)[0]}, which no shard holds")
    return Checkpoint(str(folder), shapes, readers)


def _open_file(path: pathlib.Path):
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path)


def _open_safetensors(path: pathlib.Path):
    try:
        file = safetensors.safe_open(path, framework="numpy")
        slices = {key: file.get_slice(key) for key in file.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None
    shapes = {key: tuple(s.get_shape()) for key, s in slices.items()}
    if any(s.get_dtype() == "BF16" for s in slices.values()):  # numpy has no bfloat16: map the bytes
        return shapes, dict.fromkeys(shapes, _mapped_reader(path))
    return shapes, dict.fromkeys(shapes, file.get_tensor)


def _mapped_reader(path: pathlib.Path) -> Callable[[str], np.ndarray]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))

    def read(key: str) -> np.ndarray:
        entry = header[key]
        start, end = entry["data_offsets"]
        data = np.memmap(path, np.uint8, "r", offset=8 + size + start, shape=(end - start,))
        return data.view(_NUMPY[entry["dtype"]]).reshape(entry["shape"])

    return read


def _open_pickle(path: pathlib.Path):
    try:
        import torch
    except ImportError:
        raise UserError(f"{path} is a pickle: reading it needs torch (pip install 'nextgpt-jax[convert]')") from None
    try:
        zipped = zipfile.is_zipfile(path)  # files of torch < 1.6 are not, and cannot be mapped
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch raises many kinds; its first line says what is wrong
        raise UserError(f"{path} is not a readable weights file: {str(error).splitlines()[0]}") from None
    if not isinstance(tensors, dict):
        raise UserError(f"{path} holds a {type(tensors).__name__}, not a state dict")
    if isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    tensors = {key: value for key, value in tensors.items() if isinstance(value, torch.Tensor)}

    def read(key: str) -> np.ndarray:
        tensor = tensors[key].detach()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    return {key: tuple(value.shape) for key, value in tensors.items()}, dict.fromkeys(tensors, read)
