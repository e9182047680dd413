"""Matches checkpoints with models by conversion tables, in both directions.

All mismatches are listed in one ConversionError before any tensor is read. Tensors and parameters are lazy: memory
holds one at a time.
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
from nextgpt_jax.weights.contiguous import contiguous
from nextgpt_jax.weights.rules import Rule, Table, Transform
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, Tensor


class ConversionError(UserError):
    """A checkpoint does not fit a model; the message lists the mismatches."""

    @classmethod
    def of(cls, source: str, problems: list[str], shown: int = 8, hint: str = "") -> "ConversionError":
        """The first `shown` problems of the checkpoint called `source`, and the number of the others.

        With a `hint`, which says what the checkpoint is, they matter less: the first one, and their number.
        """
        if hint:
            return cls(f"{source} does not fit the model: {hint} ({len(problems)} mismatches, first {problems[0]})")
        more = f"; and {len(problems) - shown} more" if len(problems) > shown else ""
        return cls(f"{source} does not fit the model: {'; '.join(problems[:shown])}{more}")


class MatchedRule(NamedTuple):
    """The rule of a table that applies to one Flax parameter, with its indices filled in.

    Attributes:
      keys: for each PyTorch tensor of the parameter (several if layers are stacked), its alternative spellings.
      stacked: whether the tensors are stacked on a leading axis.
      transform: from one PyTorch tensor to the parameter, or to its layer.
      torch_shape: of one PyTorch tensor.
    """

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


def match_rules(state: nnx.State, table: Table) -> dict[str, MatchedRule]:
    """The rule for each parameter of `state` (abstract or real), by dotted path.

    Raises:
      ValueError: no rule or several rules apply to a parameter: the table is wrong.
    """
    rules, names = {}, flat_paths(state)
    for path, leaf in nnx.to_flat_state(state):
        name = names[path]
        found = table.matching(name)
        if len(found) != 1:
            rows = [r.flax for r, _ in found]
            raise ValueError(f"{len(found)} rows match the parameter {name} {leaf.shape}: {rows}")
        rules[name] = _matched(*found[0], leaf.shape)
    return rules


def _matched(rule: Rule, indices: dict[str, str], shape: tuple[int, ...]) -> MatchedRule:
    stack = rule.stacked_index()
    layers = [{**indices, stack: str(i)} for i in range(shape[0])] if stack else [indices]
    abstract = np.broadcast_to(np.zeros(()), shape[1:] if stack else shape)
    keys = tuple(tuple(dict.fromkeys(t.format(**layer) for t in rule.torch)) for layer in layers)
    return MatchedRule(keys, bool(stack), rule.transform, rule.transform.to_torch(abstract).shape)


def torch_shapes(state: nnx.State, table: Table) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the PyTorch checkpoint that fits `state`, in the spelling that export writes."""
    return {key[0]: rule.torch_shape for rule in match_rules(state, table).values() for key in rule.keys}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A lazy Flax parameter.

    Attributes:
      shape, dtype: of the whole parameter.
      pieces: functions that read it: one for each layer if layers are stacked, else one.
      stacked: whether layers are stacked on the leading axis.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[Callable[[], np.ndarray], ...]
    stacked: bool

    @classmethod
    def of(cls, array: np.ndarray | jax.Array, stacked: bool) -> "Parameter":
        """A parameter that is in memory."""
        array = np.asarray(array)
        pieces = [lambda i=i: array[i] for i in range(len(array))] if stacked else [lambda: array]
        return cls(array.shape, array.dtype, tuple(pieces), stacked)

    def cast(self, dtype: np.dtype | None) -> "Parameter":
        """The parameter with another dtype, if it holds floating-point numbers. None: unchanged."""
        if dtype is None or self.dtype == dtype or not jnp.issubdtype(self.dtype, jnp.floating):
            return self
        pieces = [lambda read=read: read().astype(dtype) for read in self.pieces]
        return dataclasses.replace(self, dtype=np.dtype(dtype), pieces=tuple(pieces))

    def read(self) -> np.ndarray:
        """The whole parameter."""
        return np.stack([read() for read in self.pieces]) if self.stacked else contiguous(self.pieces[0]())


class Match(NamedTuple):
    """A checkpoint matched with a model.

    Attributes:
      parameters: the model's parameters by dotted path.
      source_keys: the checkpoint's keys for each parameter.
      unmatched: the checkpoint's other keys.
    """

    parameters: dict[str, Parameter]
    source_keys: dict[str, list[str]]
    unmatched: tuple[str, ...]


def match(checkpoint: Checkpoint, state: nnx.State, table: Table, *, allow_unused: bool = False) -> Match:
    """Matches `checkpoint` with the parameters of `state` (abstract or real). No tensor is read.

    Args:
      checkpoint: the PyTorch tensors.
      state: the parameters to fill.
      table: the conversion table.
      allow_unused: accept keys that no rule uses: `state` is a part of what the checkpoint holds.

    Raises:
      ConversionError: keys are missing, unexpected or of the wrong shape; all of them are listed.
    """
    rules, checkpoint = match_rules(state, table), table.preprocess(checkpoint)
    parameters, chosen, problems = {}, collections.defaultdict(list), []
    for name, rule in rules.items():
        tensors = []
        for spellings in rule.keys:
            key = next((k for k in spellings if k in checkpoint.tensors), None)
            if key is None:
                problems.append(f"missing {spellings[0]} {list(rule.torch_shape)}")
                continue
            chosen[name].append(key)
            tensors.append(checkpoint.tensors[key])
            if tensors[-1].shape != rule.torch_shape:
                found, wanted = list(tensors[-1].shape), list(rule.torch_shape)
                problems.append(f"{key} has shape {found}, the model needs {wanted}")
        if not problems:
            parameters[name] = _parameter(rule, tensors)
    ignored = re.compile("|".join(f"(?:{p})" for p in table.ignored) or r"(?!)")
    used = {key for keys in chosen.values() for key in keys}
    unmatched = [key for key in checkpoint.tensors if key not in used]
    if not allow_unused:
        unexpected = [key for key in unmatched if not ignored.fullmatch(key)]
        problems += [f"unexpected {key} {list(checkpoint.tensors[key].shape)}" for key in unexpected]
    if problems:
        raise ConversionError.of(checkpoint.source, problems, hint=table.hint(checkpoint.shapes))
    return Match(parameters, dict(chosen), tuple(unmatched))


def _parameter(rule: MatchedRule, tensors: list[Tensor]) -> Parameter:
    dtype = functools.reduce(jnp.promote_types, (tensor.dtype for tensor in tensors))
    abstract = rule.transform.to_flax(np.broadcast_to(np.zeros((), np.int8), rule.torch_shape))
    shape = (len(tensors), *abstract.shape) if rule.stacked else abstract.shape
    pieces = [
        lambda tensor=tensor: rule.transform.to_flax(tensor.read()).astype(dtype, copy=False) for tensor in tensors
    ]
    return Parameter(shape, np.dtype(dtype), tuple(pieces), rule.stacked)


def load(
    checkpoint: Checkpoint, state: nnx.State, table: Table, *, dtype=jnp.float32, allow_unused: bool = False
) -> nnx.State:
    """Fills `state` (usually abstract) from `checkpoint`; floating-point tensors are cast to `dtype`.

    Raises:
      ConversionError: see `match`.
    """
    return fill(state, match(checkpoint, state, table, allow_unused=allow_unused).parameters, dtype)


def fill(state: nnx.State, parameters: Mapping[str, Parameter], dtype=jnp.float32) -> nnx.State:
    """`state` with the values of matched parameters; floating-point ones are cast to `dtype`. Shardings of leaves are
    kept."""
    names = flat_paths(state)

    def filled(path, leaf):
        array = parameters[names[path]].cast(dtype).read()
        sharding = sharding_of(leaf)
        if sharding is None:
            return leaf.replace(jax.device_put(array))  # jnp.asarray compiles a program for each shape
        return leaf.replace(jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]))

    return nnx.from_flat_state([(path, filled(path, leaf)) for path, leaf in nnx.to_flat_state(state)])


def export(state: nnx.State, table: Table) -> Checkpoint:
    """The PyTorch tensors of `state`, contiguous, in their dtypes."""
    rules, names = match_rules(state, table), flat_paths(state)
    leaves = {names[path]: leaf[...] for path, leaf in nnx.to_flat_state(state)}
    return export_parameters({name: Parameter.of(leaves[name], r.stacked) for name, r in rules.items()}, state, table)


def export_parameters(parameters: Mapping[str, Parameter], state: nnx.State, table: Table) -> Checkpoint:
    """The PyTorch tensors of the parameters of `state` (abstract or real)."""
    tensors = {}
    for name, rule in match_rules(state, table).items():
        parameter = parameters[name]
        for key, read in zip(rule.keys, parameter.pieces, strict=True):
            tensors[key[0]] = Tensor(rule.torch_shape, parameter.dtype, _torch_reader(rule, read))
    return Checkpoint("exported", tensors)


def _torch_reader(rule: MatchedRule, read: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    return lambda: contiguous(rule.transform.to_torch(read())).reshape(rule.torch_shape)
