"""Writing a state dict as torch.save does, without torch: tensors are read and written one by one.

The file is a zip archive, uncompressed: data.pkl is the pickled dictionary, and data/0, data/1, ... are the values.
"""

import math
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

from nextgpt_jax.files import atomic_write
from nextgpt_jax.weights.torch_checkpoint import SAFETENSORS_DTYPES, Checkpoint, Tensor

_STORAGES = {
    "F64": "Double", "F32": "Float", "F16": "Half", "BF16": "BFloat16", "I64": "Long", "I32": "Int", "I16": "Short",
    "I8": "Char", "U8": "Byte", "BOOL": "Bool",
}  # fmt: skip
_STORAGE_OF = {SAFETENSORS_DTYPES[name]: f"{storage}Storage" for name, storage in _STORAGES.items()}
_ALIGNMENT = 64  # bytes
_HEADER = 30  # bytes of an entry's header before its name
_EXTRA, _ZIP64_EXTRA = struct.Struct("<HH"), 20  # id and size of an extra field; bytes that zipfile adds above 2 GiB
_TIME = (1980, 1, 1, 0, 0, 0)  # so that equal tensors give equal files


def save_torch(checkpoint: Checkpoint, path: str | pathlib.Path) -> None:
    """Writes a checkpoint to a file for `torch.load(path, weights_only=True)`, atomically.

    Raises:
      UserError: the file cannot be written, or a tensor cannot be read.
    """
    path = pathlib.Path(path)
    with (
        atomic_write(path) as temporary,
        temporary.open("wb") as opened,
        zipfile.ZipFile(opened, "w") as archive,
    ):

        def record(name: str, content: bytes | memoryview) -> None:
            entry, large = zipfile.ZipInfo(f"{path.stem}/{name}", _TIME), len(content) >= zipfile.ZIP64_LIMIT
            entry.extra = _padding(opened.tell(), entry, large)
            with archive.open(entry, "w", force_zip64=large) as file:
                file.write(content)

        record("data.pkl", _pickled(checkpoint.tensors))
        record("byteorder", b"little")
        for number, tensor in enumerate(checkpoint.tensors.values()):
            values = np.ascontiguousarray(tensor.read()).reshape(-1)
            record(f"data/{number}", values.view(np.uint8).data)
        record("version", b"3\n")


def _padding(begin: int, entry: zipfile.ZipInfo, large: bool) -> bytes:
    """The extra field of an entry's header at `begin`, after which its content is aligned, as torch maps it."""
    end = begin + _HEADER + len(entry.filename.encode()) + _EXTRA.size + large * _ZIP64_EXTRA
    return _EXTRA.pack(0x4246, -end % _ALIGNMENT) + bytes(-end % _ALIGNMENT)


def _pickled(tensors: Mapping[str, Tensor]) -> bytes:
    """The dictionary, whose tensors refer to storages by their numbers."""
    entries = [_text(key) + _tensor(number, tensor) for number, (key, tensor) in enumerate(tensors.items())]
    return pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + _MARK + b"".join(entries) + pickle.SETITEMS + pickle.STOP


_MARK = pickle.MARK


def _tensor(number: int, tensor: Tensor) -> bytes:
    """torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, backward_hooks)"""
    count = math.prod(tensor.shape)
    strides = [math.prod(tensor.shape[i + 1 :]) for i in range(len(tensor.shape))]
    storage = _tuple(
        _text("storage"), _global("torch", _STORAGE_OF[tensor.dtype]), _text(str(number)), _text("cpu"), _int(count)
    )
    arguments = _tuple(
        storage + pickle.BINPERSID,
        _int(0),
        _tuple(*map(_int, tensor.shape)),
        _tuple(*map(_int, strides)),
        pickle.NEWFALSE,
        _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE,
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _tuple(*items: bytes) -> bytes:
    return _MARK + b"".join(items) + pickle.TUPLE


def _text(text: str) -> bytes:
    encoded = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _int(number: int) -> bytes:
    if number < 2**31:
        return pickle.BININT + struct.pack("<i", number)
    encoded = pickle.encode_long(number)
    return pickle.LONG1 + bytes([len(encoded)]) + encoded
