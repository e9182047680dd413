"""The engine behind every table: match, check everything, then move the tensors one by one.

A conversion either fills every target with a tensor of the right shape and uses every key of the source, or it raises
one ConversionError that lists all problems, before anything is written.
"""

import collections
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

from convert.checkpoints import Checkpoint
from convert.rules import Rule, Table, Transform
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_write


class ConversionError(UserError):
    """The checkpoint and the model do not fit; the message lists how."""


class Source(NamedTuple):
    """Where a Flax parameter comes from: the spellings of each of its PyTorch tensors (several if it is stacked)."""

    keys: tuple[tuple[str, ...], ...]
    stacked: bool
    transform: Transform
    torch_shape: tuple[int, ...]


def flat_paths(state: nnx.State) -> dict[tuple, str]:
    """The dotted name of every leaf: {("layers", "norm", "scale"): "layers.norm.scale"}."""
    return {path: ".".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}


def plan(state: nnx.State, table: Table) -> dict[str, Source]:
    """Which PyTorch tensors fill each parameter of `state` (abstract or real), keyed by dotted path.

    Raises:
      ValueError: no row or several rows of the table match a parameter: the table is wrong.
    """
    sources = {}
    for path, leaf in nnx.to_flat_state(state):
        name = ".".join(map(str, path))
        matches = [(r, found) for r in table.rules if (found := r.match(name)) is not None]
        if len(matches) != 1:
            rows = [r.flax for r, _ in matches]
            raise ValueError(f"{len(matches)} rows match the parameter {name} {leaf.shape}: {rows}")
        sources[name] = _source(*matches[0], leaf.shape)
    return sources


def _source(row: Rule, indices: dict[str, str], shape: tuple[int, ...]) -> Source:
    stack = row.stacked_index()
    layers = [{**indices, stack: str(i)} for i in range(shape[0])] if stack else [indices]
    view = np.broadcast_to(np.zeros(()), shape[1:] if stack else shape)
    keys = tuple(tuple(dict.fromkeys(t.format(**layer) for t in row.torch)) for layer in layers)
    return Source(keys, bool(stack), row.transform, row.transform.to_torch(view).shape)


def torch_shapes(state: nnx.State, table: Table) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the PyTorch checkpoint that fits `state`, in the spelling that export writes."""
    return {key[0]: s.torch_shape for s in plan(state, table).values() for key in s.keys}


def load(
    checkpoint: Checkpoint, state: nnx.State, table: Table, *, dtype=jnp.float32, allow_unused: bool = False
) -> nnx.State:
    """Fills `state` (usually abstract) from `checkpoint`.

    Floating-point tensors are cast to `dtype`. `allow_unused` takes a part out of a larger checkpoint.

    Raises:
      ConversionError: keys missing, unexpected or of the wrong shape; all of them are listed.
    """
    sources, checkpoint = plan(state, table), table.view(checkpoint)
    chosen, problems, used = {}, [], collections.Counter()
    for name, source in sources.items():
        for spellings in source.keys:
            key = next((k for k in spellings if k in checkpoint.shapes), None)
            if key is None:
                problems.append(f"missing {spellings[0]} {list(source.torch_shape)}")
                continue
            used[key] += 1
            chosen[name, spellings] = key
            if checkpoint.shapes[key] != source.torch_shape:
                found, wanted = list(checkpoint.shapes[key]), list(source.torch_shape)
                problems.append(f"{key} has shape {found}, the model needs {wanted}")
    if not allow_unused:
        ignored = re.compile("|".join(f"(?:{p})" for p in table.ignored) or r"(?!)")
        rest = [k for k in checkpoint.shapes if k not in used and not ignored.fullmatch(k)]
        problems += [f"unexpected {key} {list(checkpoint.shapes[key])}" for key in rest]
    if problems:
        raise ConversionError(_summary(checkpoint.source, problems))

    def read(name: str, leaf) -> jax.Array:
        source = sources[name]
        arrays = [source.transform.to_flax(checkpoint[chosen[name, k]]) for k in source.keys]
        array = np.stack(arrays) if source.stacked else arrays[0]
        return jnp.asarray(array, dtype if jnp.issubdtype(array.dtype, jnp.floating) else None)

    names = flat_paths(state)
    return nnx.from_flat_state(
        [(path, leaf.replace(read(names[path], leaf))) for path, leaf in nnx.to_flat_state(state)]
    )


def _summary(source: str, problems: list[str], shown: int = 8) -> str:
    more = f"; and {len(problems) - shown} more" if len(problems) > shown else ""
    return f"{source} does not fit the model: {'; '.join(problems[:shown])}{more}"


def export(state: nnx.State, table: Table) -> dict[str, np.ndarray]:
    """The PyTorch tensors of `state`, contiguous, in the dtype they have."""
    sources, tensors = plan(state, table), {}
    for path, leaf in nnx.to_flat_state(state):
        source = sources[".".join(map(str, path))]
        array = np.asarray(leaf[...])
        for key, value in zip(source.keys, array if source.stacked else [array], strict=True):
            tensors[key[0]] = np.ascontiguousarray(source.transform.to_torch(value)).reshape(source.torch_shape)
    return tensors


def save_safetensors(tensors: Mapping[str, np.ndarray], path: str | pathlib.Path, *, dtype=None) -> None:
    """Writes a safetensors file that is either whole or not there; floats are cast to `dtype` if given."""
    if dtype is not None:
        tensors = {k: v.astype(dtype) if jnp.issubdtype(v.dtype, jnp.floating) else v for k, v in tensors.items()}
    with atomic_write(path) as temporary:
        safetensors.numpy.save_file(dict(tensors), temporary, metadata={"format": "pt"})
