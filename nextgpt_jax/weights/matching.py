"""The engine behind every table: match, check everything, then move the tensors one by one.

A conversion either fills every target with a tensor of the right shape and uses every key of the source, or it raises
one ConversionError that lists all problems, before anything is read or written. Nothing here holds more than it was
asked for: both sides are tensors that are read when they are needed.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.weights.rules import Rule, Table, Transform
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, Tensor


class ConversionError(UserError):
    """The checkpoint and the model do not fit; the message lists how."""

    @classmethod
    def of(cls, source: str, problems: list[str], shown: int = 8) -> "ConversionError":
        """The first problems of what is called `source`, and how many more there are."""
        more = f"; and {len(problems) - shown} more" if len(problems) > shown else ""
        return cls(f"{source} does not fit the model: {'; '.join(problems[:shown])}{more}")


class Source(NamedTuple):
    """Where a Flax parameter comes from: the spellings of each of its PyTorch tensors (several if it is stacked)."""

    keys: tuple[tuple[str, ...], ...]
    stacked: bool
    transform: Transform
    torch_shape: tuple[int, ...]


def flat_paths(state: nnx.State) -> dict[tuple, str]:
    """The dotted name of every leaf: {("layers", "norm", "scale"): "layers.norm.scale"}."""
    return {path: ".".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}


def sharding_of(leaf: nnx.Variable) -> jax.sharding.Sharding | None:
    """The sharding of a parameter, abstract or real; None if it has none."""
    return getattr(leaf.get_raw_value(), "sharding", None)


def plan(state: nnx.State, table: Table) -> dict[str, Source]:
    """Which PyTorch tensors fill each parameter of `state` (abstract or real), keyed by dotted path.

    Raises:
      ValueError: no row or several rows of the table match a parameter: the table is wrong.
    """
    sources, names = {}, flat_paths(state)
    for path, leaf in nnx.to_flat_state(state):
        name = names[path]
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


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A Flax parameter that is read when it is asked for: in one piece, or layer by layer if layers are stacked."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[Callable[[], np.ndarray], ...]
    stacked: bool

    @classmethod
    def of(cls, array: np.ndarray | jax.Array, stacked: bool) -> "Parameter":
        """One that is in memory."""
        array = np.asarray(array)
        pieces = [lambda i=i: array[i] for i in range(len(array))] if stacked else [lambda: array]
        return cls(array.shape, array.dtype, tuple(pieces), stacked)

    def cast(self, dtype: np.dtype | None) -> "Parameter":
        """With another dtype, if it is one of floating-point numbers."""
        if dtype is None or self.dtype == dtype or not jnp.issubdtype(self.dtype, jnp.floating):
            return self
        pieces = [lambda read=read: read().astype(dtype) for read in self.pieces]
        return dataclasses.replace(self, dtype=np.dtype(dtype), pieces=tuple(pieces))

    def read(self) -> np.ndarray:
        """The whole parameter."""
        return np.stack([read() for read in self.pieces]) if self.stacked else self.pieces[0]()


class Match(NamedTuple):
    """What fills a model: its parameters by dotted path, the checkpoint's keys for each, and the keys that are left."""

    parameters: dict[str, Parameter]
    sources: dict[str, list[str]]
    left: tuple[str, ...]


def fit(checkpoint: Checkpoint, state: nnx.State, table: Table, *, allow_unused: bool = False) -> Match:
    """Which parameters `checkpoint` gives `state` (abstract or real). Nothing is read yet.

    `allow_unused` takes a part out of a larger checkpoint.

    Raises:
      ConversionError: keys missing, unexpected or of the wrong shape; all of them are listed.
    """
    sources, checkpoint = plan(state, table), table.view(checkpoint)
    parameters, chosen, problems = {}, collections.defaultdict(list), []
    for name, source in sources.items():
        tensors = []
        for spellings in source.keys:
            key = next((k for k in spellings if k in checkpoint.tensors), None)
            if key is None:
                problems.append(f"missing {spellings[0]} {list(source.torch_shape)}")
                continue
            chosen[name].append(key)
            tensors.append(checkpoint.tensors[key])
            if tensors[-1].shape != source.torch_shape:
                found, wanted = list(tensors[-1].shape), list(source.torch_shape)
                problems.append(f"{key} has shape {found}, the model needs {wanted}")
        if not problems:
            parameters[name] = _parameter(source, tensors)
    ignored = re.compile("|".join(f"(?:{p})" for p in table.ignored) or r"(?!)")
    used = {key for keys in chosen.values() for key in keys}
    left = [key for key in checkpoint.tensors if key not in used]
    if not allow_unused:
        rest = [key for key in left if not ignored.fullmatch(key)]
        problems += [f"unexpected {key} {list(checkpoint.tensors[key].shape)}" for key in rest]
    if problems:
        raise ConversionError.of(checkpoint.source, problems)
    return Match(parameters, dict(chosen), tuple(left))


def _parameter(source: Source, tensors: list[Tensor]) -> Parameter:
    dtype = functools.reduce(jnp.promote_types, (tensor.dtype for tensor in tensors))
    view = source.transform.to_flax(np.broadcast_to(np.zeros((), np.int8), source.torch_shape))
    shape = (len(tensors), *view.shape) if source.stacked else view.shape
    pieces = [
        lambda tensor=tensor: source.transform.to_flax(tensor.read()).astype(dtype, copy=False) for tensor in tensors
    ]
    return Parameter(shape, np.dtype(dtype), tuple(pieces), source.stacked)


def load(
    checkpoint: Checkpoint, state: nnx.State, table: Table, *, dtype=jnp.float32, allow_unused: bool = False
) -> nnx.State:
    """Fills `state` (usually abstract) from `checkpoint`; floating-point tensors are cast to `dtype`.

    Raises:
      ConversionError: as `fit`.
    """
    return fill(state, fit(checkpoint, state, table, allow_unused=allow_unused).parameters, dtype)


def fill(state: nnx.State, parameters: Mapping[str, Parameter], dtype=jnp.float32) -> nnx.State:
    """`state` with parameters that fit it; floating-point ones are cast to `dtype`. Leaves with a sharding get it."""
    names = flat_paths(state)

    def filled(path, leaf):
        array = parameters[names[path]].cast(dtype).read()
        sharding = sharding_of(leaf)
        if sharding is None:
            return leaf.replace(jnp.asarray(array))
        return leaf.replace(jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]))

    return nnx.from_flat_state([(path, filled(path, leaf)) for path, leaf in nnx.to_flat_state(state)])


def export(state: nnx.State, table: Table) -> Checkpoint:
    """The PyTorch tensors of `state`, contiguous, in the dtype they have."""
    sources = plan(state, table)
    names = flat_paths(state)
    leaves = {names[path]: leaf[...] for path, leaf in nnx.to_flat_state(state)}
    return export_parameters({name: Parameter.of(leaves[name], s.stacked) for name, s in sources.items()}, state, table)


def export_parameters(parameters: Mapping[str, Parameter], state: nnx.State, table: Table) -> Checkpoint:
    """The PyTorch tensors of parameters that belong to `state` (abstract or real)."""
    tensors = {}
    for name, source in plan(state, table).items():
        parameter = parameters[name]
        for key, read in zip(source.keys, parameter.pieces, strict=True):
            tensors[key[0]] = Tensor(source.torch_shape, parameter.dtype, _torch_reader(source, read))
    return Checkpoint("exported", tensors)


def _torch_reader(source: Source, read: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    return lambda: np.ascontiguousarray(source.transform.to_torch(read())).reshape(source.torch_shape)
