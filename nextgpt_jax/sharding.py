"""Sharding: the rules from parameters and batches to mesh axes (see mesh.py).

A parameter's path gives its logical axes, by rows that each family of models brings along, and RULES map a logical axis
to mesh axes. Only language models have logical axes; of other parameters the largest dimension divisible by
fsdp x tensor (or by fsdp) is sharded.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nextgpt_jax.errors import UserError

RULES = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "largest": ("fsdp", "tensor"),
}

# In place of axes: shards the largest divisible dimension, of stacked layers without the first, as they are sliced.
LARGEST_DIM, LARGEST_DIM_PER_LAYER = "largest", "largest per layer"
MIN_SHARDED_SIZE = 2**16  # elements: replicating smaller parameters costs less than gathering them

# (regular expression of a path, its logical axes with None for one that is not sharded, or one of the two above)
Row = tuple[str, tuple[str | None, ...] | str]
Rows = tuple[Row, ...]


def prefixed(prefix: str, rows: Iterable[Row]) -> Rows:
    """The rows of a submodule, by its dotted path `prefix` (a regular expression) in the module."""
    return tuple((rf"{prefix}\.{pattern}", axes) for pattern, axes in rows)


def logical_axes(path: str, shape: Sequence[int], rows: Rows) -> tuple[str | None, ...] | str:
    """The first of `rows` that matches the dotted path of a parameter.

    Raises:
      ValueError: none does, or it has another number of axes: the rows are wrong.
    """
    axes = next((axes for pattern, axes in rows if re.fullmatch(pattern, path)), None)
    if axes is None or (not isinstance(axes, str) and len(axes) != len(shape)):
        raise ValueError(f"no sharding row fits the parameter {path} {list(shape)}")
    return axes


def parameter_spec(path: str, shape: Sequence[int], mesh: Mesh, rows: Rows) -> PartitionSpec:
    """The partitioning of a parameter.

    Raises:
      UserError: an axis is not divisible.
      ValueError: no row fits.
    """
    axes = logical_axes(path, shape, rows)
    if isinstance(axes, str):
        return _largest_dim(shape, 1 if axes == LARGEST_DIM_PER_LAYER else 0, mesh)
    for size, axis in zip(shape, axes, strict=True):
        if axis and size % _size(mesh, RULES[axis]):
            where = " x ".join(f"mesh.{name}={mesh.shape[name]}" for name in RULES[axis])
            raise UserError(f"{path} {list(shape)}: {size} ({axis}) is not divisible by {where}")
    return PartitionSpec(*(RULES[axis] if axis else None for axis in axes))


def _largest_dim(shape: Sequence[int], first: int, mesh: Mesh) -> PartitionSpec:
    for names in (RULES["largest"], RULES["embed"]):
        divisible = [i for i in range(first, len(shape)) if shape[i] % _size(mesh, names) == 0]
        if divisible and math.prod(shape) >= MIN_SHARDED_SIZE:
            largest = max(divisible, key=lambda i: shape[i])
            return PartitionSpec(*(names if i == largest else None for i in range(len(shape))))
    return PartitionSpec()


def _size(mesh, names: Sequence[str]) -> int:
    return math.prod(mesh.shape[name] for name in names)


def with_shardings(state: nnx.State, mesh: Mesh, rows: Rows) -> nnx.State:
    """An abstract state whose leaves have their shardings on the mesh.

    Raises:
      UserError, ValueError: as `parameter_spec`.
    """

    def leaf(path, value):
        spec = parameter_spec(".".join(map(str, path)), value.shape, mesh, rows)
        return value.replace(jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=NamedSharding(mesh, spec)))

    return nnx.from_flat_state([(path, leaf(path, value)) for path, value in nnx.to_flat_state(state)])


def validate_heads(mesh: Mesh, **heads: int) -> None:
    """Checks that the tensor axis divides numbers of heads.

    Raises:
      UserError: it does not.
    """
    for name, count in heads.items():
        if count % mesh.shape["tensor"]:
            raise UserError(f"config.mesh.tensor={mesh.shape['tensor']} does not divide the model's {count} {name}")


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding of arrays whose `axis` is the batch."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, RULES["batch"]))


def cache_sharding(mesh: Mesh, stacked: bool) -> NamedSharding:
    """The sharding of a key/value cache [B, S, heads, d], or [layers, B, S, heads, d] if `stacked`."""
    return NamedSharding(mesh, PartitionSpec(*[None] * stacked, RULES["batch"], None, RULES["heads"], None))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def num_batch_shards(mesh) -> int:
    """The number of parts that a mesh splits a batch into."""
    return _size(mesh, RULES["batch"])


def batch_shards(size: int) -> int:
    """The number of parts that the mesh in use splits a batch of `size` into; 1 without a mesh, or if not divisible."""
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else num_batch_shards(mesh)
    return 1 if size % shards else shards


def round_up_to_shards(size: int, mesh: Mesh | None) -> int:
    """The next batch size that a mesh splits into equal parts (None: `size`)."""
    shards = num_batch_shards(mesh) if mesh else 1
    return -(-size // shards) * shards


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains the sharding of an activation on the mesh in use (jax.set_mesh); does nothing without one.

    `axes` are logical axes, None for one that is not sharded. Axes that are not given or not divisible are left to the
    compiler.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = [PartitionSpec.UNCONSTRAINED] * x.ndim
    for i, axis in enumerate(axes):
        if axis is None or x.shape[i] % _size(mesh, RULES[axis]) == 0:
            spec[i] = RULES[axis] if axis else None
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def constrain_batch(x: jax.Array, axis: int = 0) -> jax.Array:
    """Shards the batch `axis`, and nothing else, on the mesh in use; does nothing without one.

    A batch that is not divisible is replicated. Results of programs need this: the compiler's own choice may not be
    expressible in names of mesh axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    batch = RULES["batch"] if x.shape[axis] % num_batch_shards(mesh) == 0 else None
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*[None] * axis, batch))


def replicate_params(module: nnx.Module) -> nnx.Module:
    """The module with its parameters gathered on every device of the mesh in use: once before a loop instead of in
    every iteration."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return module
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), module)


def shard_map_attention(
    function: Callable[..., jax.Array], arrays: Sequence[jax.Array], lengths: jax.Array | None = None
) -> jax.Array:
    """function(*arrays, lengths), or function(*arrays) without lengths, on each device's part of the batch and heads.

    For kernels that the compiler cannot partition. Axes that are not divisible are replicated.

    Args:
      arrays: [B, T, heads, d] each.
      lengths: [B].
    """
    arguments = (*arrays,) if lengths is None else (*arrays, lengths)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*arguments)
    batch = RULES["batch"] if arrays[0].shape[0] % num_batch_shards(mesh) == 0 else None
    heads = RULES["heads"] if all(x.shape[2] % _size(mesh, RULES["heads"]) == 0 for x in arrays) else None
    spec = PartitionSpec(batch, None, heads, None)
    specs = (spec,) * len(arrays) + (PartitionSpec(batch),) * (lengths is not None)
    return jax.shard_map(function, in_specs=specs, out_specs=spec, check_vma=False)(*arguments)


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """The examples of a global batch that this process loads.

    Raises:
      UserError: the mesh does not split a batch of this size into equal parts.
    """

    mesh: Mesh
    size: int  # of the global batch

    def __post_init__(self):
        if self.size % num_batch_shards(self.mesh):
            shards = " x ".join(f"mesh.{name}={self.mesh.shape[name]}" for name in RULES["batch"])
            raise UserError(
                f"a batch (data.batch_size / optim.grad_accum_steps) of {self.size} rows is not divisible by {shards}"
            )

    @property
    def indices(self) -> list[int]:
        """The indices, in the global batch, of the examples on devices of this process."""
        found = batch_sharding(self.mesh).addressable_devices_indices_map((self.size,)).values()
        return sorted({row for (rows,) in found for row in range(*rows.indices(self.size))})

    def to_global(self, batch: dict) -> dict:
        """Arrays of the global batch [size, ...] on the mesh, from this process's examples [len(indices), ...]."""
        sharding, position = batch_sharding(self.mesh), {index: i for i, index in enumerate(self.indices)}

        def one(local: np.ndarray) -> jax.Array:
            def read(index):
                wanted = range(*index[0].indices(self.size))
                return local[position[wanted[0]] : position[wanted[-1]] + 1]

            return jax.make_array_from_callback((self.size, *local.shape[1:]), sharding, read)

        return jax.tree.map(one, batch)
