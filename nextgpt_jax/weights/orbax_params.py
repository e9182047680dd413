"""Converted parameters on disk: an Orbax checkpoint in the folder params/ of a part.

It is written layer by layer, so memory holds one layer at a time. Each parameter is a plain zarr array in chunks of at
most 32 MiB: a process that needs a slice reads little more than that. Orbax restores it without arguments, as numpy
arrays by the attribute names of the modules (PyTreeCheckpointer, StandardCheckpointer), or as jax.Arrays with a target.
"""

import asyncio
import collections
import contextlib
import logging
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax import nnx

from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.files import normal_path
from nextgpt_jax.weights.contiguous import contiguous
from nextgpt_jax.weights.matching import ConversionError, Parameter, flat_paths, match_rules, sharding_of
from nextgpt_jax.weights.rules import Table

FOLDER = "params"
_CHUNK_BYTES = 32 * 2**20
_PENDING_BYTES = 256 * 2**20  # limit of reads or writes in flight
_ALIGNMENT = 64  # bytes: JAX uses an aligned numpy array on a CPU device without copying it


def is_converted(folder: pathlib.Path) -> bool:
    """Whether a part's folder holds converted parameters."""
    return (folder / FOLDER).is_dir()


def save(parameters: Mapping[str, Parameter], folder: pathlib.Path) -> None:
    """Writes parameters, by dotted path, to the new folder `folder`/params.

    The files of the arrays are not synced to disk: the `atomic_folder` around them does so once.

    Raises:
      UserError: the folder cannot be written, for example because the disk is full.
    """
    try:
        with _quiet():
            registry = ocp.type_handlers.create_type_handler_registry((Parameter, _Streamed()))
            handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry)
            ocp.Checkpointer(handler).save(_place(folder), args=ocp.args.PyTreeSave(_nested(parameters)))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} can't be written: {first_line(error)}") from None


def _place(folder: pathlib.Path) -> pathlib.Path:
    return normal_path(folder / FOLDER)


def _nested(parameters: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in parameters.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


class _Streamed(ocp.type_handlers.NumpyHandler):
    """Writes lazy Parameters piece by piece, in the format of Orbax's own handlers of arrays, which read them."""

    def typestr(self) -> str:  # for a jax.Array, Orbax would ask for the sharding
        return "np.ndarray"

    async def serialize(
        self,
        values: Sequence[Parameter],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.type_handlers.SaveArgs] | None = None,
    ) -> list:
        """Writes everything before it returns, so there are no futures."""
        unsynced = ts.Context({"file_io_sync": False})
        pending: collections.deque[tuple[int, ts.WriteFutures]] = collections.deque()
        for parameter, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            array = await ts.open(_spec(info.parent_dir / info.name, parameter), create=True, context=unsynced)
            for i, read in enumerate(parameter.pieces):
                piece = await asyncio.to_thread(lambda read=read: contiguous(read()))
                target = array[i] if parameter.stacked else array
                pending.append((piece.nbytes, target.write(piece, can_reference_source_data_indefinitely=True)))
                del piece
                while sum(size for size, _ in pending) > _PENDING_BYTES:
                    await pending.popleft()[1]
        while pending:
            await pending.popleft()[1]
        return []


def _spec(path: Any, parameter: Parameter) -> ts.Spec:
    bfloat16 = parameter.dtype == ml_dtypes.bfloat16
    metadata = {
        "shape": list(parameter.shape),
        "chunks": _chunks(parameter),
        "dtype": "bfloat16" if bfloat16 else parameter.dtype.str,
        "compressor": None,  # weights are nearly incompressible
    }
    return ts.Spec({"driver": "zarr", "kvstore": {"driver": "file", "path": str(path)}, "metadata": metadata})


def _chunks(parameter: Parameter) -> list[int]:
    chunk = [1, *parameter.shape[1:]] if parameter.stacked else list(parameter.shape)
    while math.prod(chunk) * parameter.dtype.itemsize > _CHUNK_BYTES:
        widest = max(range(len(chunk)), key=chunk.__getitem__)
        chunk[widest] = -(-chunk[widest] // 2)
    return [max(1, n) for n in chunk]


def restore(folder: pathlib.Path, state: nnx.State, *, dtype=jnp.float32) -> nnx.State:
    """Fills `state` (abstract) from `folder`/params, floating-point parameters as `dtype`.

    Each process reads the slices of its own devices only. A leaf without a sharding goes to the default device.
    Parameters that are not in `state` are not read. Reading in pieces keeps the host's peak memory near the size of the
    result.

    Raises:
      ConversionError: parameters are missing or of the wrong shape; all of them are listed.
      UserError: the folder is damaged.
    """
    check(folder, state)
    return read(folder, state, dtype=dtype)


def read(folder: pathlib.Path, state: nnx.State, *, dtype=jnp.float32) -> nnx.State:
    """As `restore`, without its check: for reading parts of a state that was checked as a whole.

    Raises:
      UserError: the folder is damaged.
    """
    names, place = flat_paths(state), _place(folder)
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def filled(path, leaf):
        sharding = sharding_of(leaf) or default
        return leaf.replace(_restored(place / names[path], sharding, dtype))

    try:
        return nnx.from_flat_state([(path, filled(path, leaf)) for path, leaf in nnx.to_flat_state(state)])
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / FOLDER} can't be read: {first_line(error)}") from None


def _restored(path: pathlib.Path, sharding: jax.sharding.Sharding, dtype) -> jax.Array:
    array = ts.open({"driver": "zarr", "kvstore": {"driver": "file", "path": str(path)}}).result()
    kept = np.dtype(array.dtype.numpy_dtype)
    target = np.dtype(dtype) if jnp.issubdtype(kept, jnp.floating) else kept
    shards: dict[str, np.ndarray] = {}  # read once for all devices with the same slice

    def read(index: tuple[slice, ...]) -> np.ndarray:
        if str(index) not in shards:
            shards[str(index)] = _read(array[index], target)
        return shards[str(index)]

    return jax.block_until_ready(jax.make_array_from_callback(array.shape, sharding, read))


def _read(array: ts.TensorStore, dtype: np.dtype) -> np.ndarray:
    """The values in aligned memory."""
    size = math.prod(array.shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    found = memory[begin : begin + size].view(dtype).reshape(array.shape)
    if not array.shape:
        found[...] = array.read().result()
        return found
    array = array[ts.d[:].translate_to[0]]  # slices of tensorstore keep the original indices
    rows = max(1, _PENDING_BYTES * len(found) // max(1, size))
    for first in range(0, len(found), rows):
        last = min(first + rows, len(found))
        found[first:last] = array[first:last].read().result()
    return found


def check(folder: pathlib.Path, state: nnx.State) -> None:
    """Checks that `folder`/params has all parameters of `state` (abstract or real).

    Raises:
      ConversionError: parameters are missing or of the wrong shape; all of them are listed.
      UserError: the folder is not complete.
    """
    kept, problems, names = saved(folder), [], flat_paths(state)
    for path, leaf in nnx.to_flat_state(state):
        name = names[path]
        if name not in kept:
            problems.append(f"missing {name} {list(leaf.shape)}")
        elif tuple(kept[name].shape) != tuple(leaf.shape):
            problems.append(f"{name} has shape {list(kept[name].shape)}, the model needs {list(leaf.shape)}")
    if problems:
        raise ConversionError.of(str(folder / FOLDER), problems)


def saved(folder: pathlib.Path) -> dict[str, Any]:
    """Shape and dtype (Orbax's ArrayMetadata) of the parameters of `folder`/params by dotted path.

    Raises:
      UserError: the folder is not complete.
    """
    path = _place(folder)
    try:
        with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return dict(_flat(checkpointer.metadata(path).item_metadata.tree))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no complete set of converted parameters: {first_line(error)}") from None


def saved_state(folder: pathlib.Path) -> nnx.State:
    """The abstract parameters of `folder`/params.

    Raises:
      UserError: the folder is not complete.
    """
    leaves = {name: jax.ShapeDtypeStruct(kept.shape, kept.dtype) for name, kept in saved(folder).items()}
    return nnx.from_flat_state([(tuple(name.split(".")), nnx.Param(leaf)) for name, leaf in leaves.items()])


def parameters(folder: pathlib.Path, state: nnx.State, table: Table) -> dict[str, Parameter]:
    """The parameters of `state` in `folder`/params, lazily.

    Raises:
      ConversionError, UserError: see `restore`.
    """
    check(folder, state)
    place = _place(folder)
    return {name: _opened(place / name, rule.stacked) for name, rule in match_rules(state, table).items()}


def _opened(path: pathlib.Path, stacked: bool) -> Parameter:
    array = ts.open({"driver": "zarr", "kvstore": {"driver": "file", "path": str(path)}}).result()
    places = range(array.shape[0]) if stacked else [...]
    pieces = tuple(lambda at=at: array[at].read().result() for at in places)
    return Parameter(tuple(array.shape), np.dtype(array.dtype.numpy_dtype), pieces, stacked)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences Orbax's warnings about optional metadata that these checkpoints do not have."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
