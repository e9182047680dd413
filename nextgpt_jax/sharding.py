"""Where arrays lie: the mesh, and one table from every parameter to it. Nothing is cut along a mesh axis elsewhere.

data     rows of the batch; across slices it runs over the data-centre network
fsdp     rows of the batch, and shards of every large parameter, which is gathered where it is used
tensor   heads, MLP widths and the vocabulary of the language model

A parameter's path gives its logical axes (PARAMETERS), and a logical axis the mesh axes it lies on (RULES). Encoders,
decoders and projections have no logical axes of their own: the widest axis that divides lies on all of fsdp and tensor.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nextgpt_jax.config import MeshConfig
from nextgpt_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
RULES = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "widest": ("fsdp", "tensor"),
}

# Path -> logical axes; the first row that matches counts. None: not sharded. LARGEST_DIM finds its axis by size, and in
# LARGEST_DIM_PER_LAYER not among stacked layers, which are sliced one by one.
LARGEST_DIM, LARGEST_DIM_PER_LAYER = "widest", "widest but the first"
PARAMETERS: tuple[tuple[str, tuple[str | None, ...] | str], ...] = (
    (r"llm\.embed_tokens\.embedding", ("vocab", "embed")),
    (r"llm\.lm_head\.kernel", ("embed", "vocab")),
    (r"llm\.norm\.scale", (None,)),
    (r"llm\.layers\.\w+norm\.scale", (None, None)),
    (r"llm\.layers\.self_attn\.[qkv]_proj\.kernel", (None, "embed", "heads")),
    (r"llm\.layers\.self_attn\.[qkv]_proj\.lora_a", (None, "embed", None)),
    (r"llm\.layers\.self_attn\.[qkv]_proj\.lora_b", (None, None, "heads")),
    (r"llm\.layers\.self_attn\.o_proj\.kernel", (None, "heads", "embed")),
    (r"llm\.layers\.self_attn\.o_proj\.lora_a", (None, "heads", None)),
    (r"llm\.layers\.self_attn\.o_proj\.lora_b", (None, None, "embed")),
    (r"llm\.layers\.mlp\.(gate|up)_proj\.kernel", (None, "embed", "mlp")),
    (r"llm\.layers\.mlp\.(gate|up)_proj\.lora_a", (None, "embed", None)),
    (r"llm\.layers\.mlp\.(gate|up)_proj\.lora_b", (None, None, "mlp")),
    (r"llm\.layers\.mlp\.down_proj\.kernel", (None, "mlp", "embed")),
    (r"llm\.layers\.mlp\.down_proj\.lora_a", (None, "mlp", None)),
    (r"llm\.layers\.mlp\.down_proj\.lora_b", (None, None, "embed")),
    (r"llm\.layers\.self_attn\.[qkv]_proj\.kernel_scale", (None, None, "heads")),
    (r"llm\.layers\.mlp\.(gate|up)_proj\.kernel_scale", (None, None, "mlp")),
    (r"llm\.layers\.\w+\.(o|down)_proj\.kernel_scale", (None, None, "embed")),
    (r"signal_(embed|head)", (None, "embed")),
    (r"input_proj\..*", LARGEST_DIM),
    (r"output_proj\.\w+\.(encoder|decoder|layers)\..*", LARGEST_DIM_PER_LAYER),
    (r"output_proj\..*", LARGEST_DIM),
    (r"encoders\.imagebind\.towers\.\w+\.trunk\.blocks\..*", LARGEST_DIM_PER_LAYER),
    (r"encoders\.imagebind\.towers\..*", LARGEST_DIM),
    (r"decoders\.\w+\.text_encoder\.layers\..*", LARGEST_DIM_PER_LAYER),
    (r"decoders\.\w+\.(text_encoder|unet|vae|vocoder)\..*", LARGEST_DIM),
)
MIN_SHARDED_SIZE = 2**16  # elements: replicating smaller parameters costs less than gathering them


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (or of those given), with the axes AXES.

    Devices of several slices differ in the data axis, so that only gradients travel between slices.

    Raises:
      UserError: the sizes do not match the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {axis: getattr(config, axis) for axis in AXES}
    if any(n < 1 and n != -1 for n in sizes.values()) or list(sizes.values()).count(-1) > 1:
        raise UserError(f"config.mesh: {_words(sizes)}: sizes are at least 1, or -1 for one that takes what is left")
    fixed = math.prod(n for n in sizes.values() if n != -1)
    sizes = {axis: len(devices) // fixed if n == -1 else n for axis, n in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        raise UserError(
            f"config.mesh: {_words(sizes)} has {math.prod(sizes.values())} places for {len(devices)} devices"
        )
    slices = num_slices(devices)
    if sizes["data"] % slices:
        raise UserError(f"config.mesh: data={sizes['data']} does not divide into {slices} slices")
    shape = tuple(sizes.values())
    if slices > 1:
        within = (shape[0] // slices, *shape[1:])
        placed = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)
    elif devices[0].platform == "tpu":
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        placed = np.array(devices).reshape(shape)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def data_parallel_mesh(mesh: Mesh) -> Mesh:
    """The same devices with those of the tensor axis put to the fsdp axis, for models that have no heads on it: every
    device then has rows of its own. Parameters stay where they are."""
    data, fsdp, tensor = mesh.devices.shape
    return Mesh(mesh.devices.reshape(data, fsdp * tensor, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def move_to_data_parallel(model: nnx.Module, mesh: Mesh) -> None:
    """Puts the encoder and the decoders of a model, which may be abstract, on `data_parallel_mesh(mesh)`, in place.

    JAX refuses programs with cuDNN's attention whose arrays are on two meshes, if only by name.
    """
    if mesh.shape["tensor"] == 1:
        return
    mesh = data_parallel_mesh(mesh)

    def moved(path, leaf):
        where = NamedSharding(mesh, parameter_spec(".".join(map(str, path)), leaf.shape, mesh))
        value = leaf.get_raw_value()
        if isinstance(value, jax.ShapeDtypeStruct):
            return leaf.replace(jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=where))
        return leaf.replace(jax.device_put(value, where))

    state = nnx.state(model, lambda path, _: path[0] in ("encoders", "decoders"))
    nnx.update(model, nnx.from_flat_state([(path, moved(path, leaf)) for path, leaf in nnx.to_flat_state(state)]))


def round_up_to_shards(rows: int, mesh: Mesh | None) -> int:
    """The next number of rows that divides into the places of a mesh (None: one place)."""
    places = num_batch_shards(mesh) if mesh else 1
    return -(-rows // places) * places


def num_slices(devices: Iterable[jax.Device]) -> int:
    """How many slices of TPUs the devices belong to (others are one slice)."""
    return len({getattr(device, "slice_index", None) or 0 for device in devices})


def num_domains(devices: Iterable[jax.Device]) -> int:
    """How many groups of devices are linked directly, and to others over a network: slices of TPUs, hosts of GPUs."""
    devices = list(devices)
    if devices[0].platform == "gpu":
        return len({device.process_index for device in devices})
    return num_slices(devices)


def _words(sizes: dict[str, int]) -> str:
    return " x ".join(f"{axis}={n}" for axis, n in sizes.items())


def logical_axes(path: str, shape: Sequence[int]) -> tuple[str | None, ...] | str:
    """The row of PARAMETERS for the dotted path of a parameter.

    Raises:
      ValueError: there is none, or it has another number of axes: the table is wrong.
    """
    axes = next((axes for pattern, axes in PARAMETERS if re.fullmatch(pattern, path)), None)
    if axes is None or (not isinstance(axes, str) and len(axes) != len(shape)):
        raise ValueError(f"no row of sharding.PARAMETERS fits the parameter {path} {list(shape)}")
    return axes


def parameter_spec(path: str, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """How a parameter lies on a mesh.

    Raises:
      UserError: an axis does not divide.
    """
    axes = logical_axes(path, shape)
    if isinstance(axes, str):
        return _widest(shape, 1 if axes == LARGEST_DIM_PER_LAYER else 0, mesh)
    for size, axis in zip(shape, axes, strict=True):
        if axis and size % _size(mesh, RULES[axis]):
            where = " x ".join(f"mesh.{name}={mesh.shape[name]}" for name in RULES[axis])
            raise UserError(f"{path} {list(shape)}: {size} ({axis}) does not divide into {where}")
    return PartitionSpec(*(RULES[axis] if axis else None for axis in axes))


def _widest(shape: Sequence[int], first: int, mesh: Mesh) -> PartitionSpec:
    for names in (RULES[LARGEST_DIM], RULES["embed"]):
        places = [i for i in range(first, len(shape)) if shape[i] % _size(mesh, names) == 0]
        if places and math.prod(shape) >= MIN_SHARDED_SIZE:
            widest = max(places, key=lambda i: shape[i])
            return PartitionSpec(*(names if i == widest else None for i in range(len(shape))))
    return PartitionSpec()


def _size(mesh, names: Sequence[str]) -> int:
    return math.prod(mesh.shape[name] for name in names)


def place(state: nnx.State, mesh: Mesh) -> nnx.State:
    """An abstract state whose leaves say where on the mesh they lie.

    Raises:
      UserError: as `parameter_spec`.
    """

    def leaf(path, value):
        spec = parameter_spec(".".join(map(str, path)), value.shape, mesh)
        return value.replace(jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=NamedSharding(mesh, spec)))

    return nnx.from_flat_state([(path, leaf(path, value)) for path, value in nnx.to_flat_state(state)])


def validate_heads(mesh: Mesh, **heads: int) -> None:
    """Checks that whole heads lie on the tensor axis.

    Raises:
      UserError: they do not divide.
    """
    for name, count in heads.items():
        if count % mesh.shape["tensor"]:
            raise UserError(f"config.mesh.tensor={mesh.shape['tensor']} does not divide the model's {count} {name}")


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """How arrays with rows of a batch along `axis` lie on a mesh."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, RULES["batch"]))


def cache_sharding(mesh: Mesh, stacked: bool) -> NamedSharding:
    """How a key/value cache [B, S, heads, d], or [layers, B, S, heads, d] if `stacked`, lies on a mesh."""
    return NamedSharding(mesh, PartitionSpec(*[None] * stacked, RULES["batch"], None, RULES["heads"], None))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(rows: int) -> int:
    """Into how many parts the rows of a batch are cut by the mesh in use (1: they do not divide, or no mesh)."""
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else num_batch_shards(mesh)
    return 1 if rows % shards else shards


def num_batch_shards(mesh) -> int:
    """How many parts of a batch a mesh has places for."""
    return _size(mesh, RULES["batch"])


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Tells the compiler where an activation lies, on the mesh in use (jax.set_mesh); nothing without one.

    `axes` are logical axes, None for one that is whole on each device. Those not given, and those that do not divide,
    are left to the compiler.
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
    """Tells the compiler that nothing but the rows along `axis` is cut, on the mesh in use; nothing without one.

    Rows that do not divide are whole on every device. Results of programs need this: what the compiler chooses for
    itself may have no name on the mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    rows = RULES["batch"] if x.shape[axis] % num_batch_shards(mesh) == 0 else None
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*[None] * axis, rows))


def replicate_params(module: nnx.Module) -> nnx.Module:
    """The module with its parameters whole on every device of the mesh in use. For loops: they gather in every round
    what is cut, and in none what was gathered before them."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return module
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), module)


def shard_map_attention(
    function: Callable[..., jax.Array], arrays: Sequence[jax.Array], lengths: jax.Array | None = None
) -> jax.Array:
    """function(*arrays, lengths) run by each device on its rows and heads of `arrays` [B, T, heads, d] and its rows of
    `lengths` [B], on the mesh in use; without lengths, function(*arrays).

    For kernels that the compiler cannot partition. Axes that do not divide are whole on every device.
    """
    arguments = (*arrays,) if lengths is None else (*arrays, lengths)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*arguments)
    rows = RULES["batch"] if arrays[0].shape[0] % num_batch_shards(mesh) == 0 else None
    heads = RULES["heads"] if all(x.shape[2] % _size(mesh, RULES["heads"]) == 0 for x in arrays) else None
    spec = PartitionSpec(rows, None, heads, None)
    specs = (spec,) * len(arrays) + (PartitionSpec(rows),) * (lengths is not None)
    return jax.shard_map(function, in_specs=specs, out_specs=spec, check_vma=False)(*arguments)


def platform(mesh: Mesh | None = None) -> str:
    """ "cpu", "gpu" or "tpu": that of a mesh, of the mesh in use, or else of the default device."""
    if mesh:
        return mesh.devices.flat[0].platform
    device = mesh_device()
    return device.platform if device else jax.default_backend()


def mesh_device() -> jax.sharding.AbstractDevice | None:
    """The platform and kind of the devices of the mesh in use; None without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh.abstract_device


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """The rows of a global batch that this process feeds, and the way from them to arrays on the mesh."""

    mesh: Mesh
    size: int  # of the global batch

    def __post_init__(self):
        if self.size % num_batch_shards(self.mesh):
            places = " x ".join(f"mesh.{name}={self.mesh.shape[name]}" for name in RULES["batch"])
            raise UserError(
                f"a batch (data.batch_size / optim.grad_accum_steps) of {self.size} rows does not divide into {places}"
            )

    @property
    def indices(self) -> list[int]:
        """The numbers of the rows that devices of this process hold."""
        indices = batch_sharding(self.mesh).addressable_devices_indices_map((self.size,)).values()
        return sorted({row for (rows,) in indices for row in range(*rows.indices(self.size))})

    def to_global(self, batch: dict) -> dict:
        """The local rows [len(indices), ...] of each leaf as an array of the whole batch [size, ...] on the mesh."""
        sharding, place = batch_sharding(self.mesh), {row: i for i, row in enumerate(self.indices)}

        def one(rows: np.ndarray) -> jax.Array:
            def read(index):
                wanted = range(*index[0].indices(self.size))
                return rows[place[wanted[0]] : place[wanted[-1]] + 1]

            return jax.make_array_from_callback((self.size, *rows.shape[1:]), sharding, read)

        return jax.tree.map(one, batch)
