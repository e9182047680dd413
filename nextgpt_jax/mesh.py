"""The device mesh, and what the one in use (jax.set_mesh) is made of.

data     parts of the batch; across slices of TPUs it runs over the data-center network
fsdp     parts of the batch, and shards of every large parameter, which are gathered where they are used
tensor   heads, MLP widths and the vocabulary of the language model
"""

import logging
import math
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from nextgpt_jax.config import MeshConfig
from nextgpt_jax.errors import UserError, first_line

AXES = ("data", "fsdp", "tensor")


def available_devices() -> list[jax.Device]:
    """JAX's devices.

    Raises:
      UserError: JAX_PLATFORMS names a platform that is not there.
    """
    logger, wanted = logging.getLogger("jax._src.xla_bridge"), jax.config.jax_platforms
    logger.disabled = bool(wanted)  # it prints the traceback of a plugin that finds no driver; the error has the reason
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # an assertion, where the platform's plugin is not installed
        if not wanted:
            raise
        reason = f" ({first_line(error)})" if isinstance(error, RuntimeError) else ""
        raise UserError(
            f"JAX_PLATFORMS={wanted}: there is no such device here, or its JAX plugin is not installed{reason}; "
            "JAX_PLATFORMS= takes what there is"
        ) from None
    finally:
        logger.disabled = False


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (or of those given), with the axes AXES.

    Devices of several slices differ in the data axis, so that only gradients travel between slices.

    Raises:
      UserError: the sizes do not match the devices.
    """
    devices = available_devices() if devices is None else list(devices)
    sizes = {axis: getattr(config, axis) for axis in AXES}
    if any(n < 1 and n != -1 for n in sizes.values()) or list(sizes.values()).count(-1) > 1:
        raise UserError(f"config.mesh: {_product(sizes)}: sizes are at least 1, or -1 for one that takes what is left")
    fixed = math.prod(n for n in sizes.values() if n != -1)
    if len(devices) % fixed if -1 in sizes.values() else len(devices) != fixed:
        needed = f"a multiple of {fixed}" if -1 in sizes.values() else fixed
        raise UserError(f"config.mesh: {_product(sizes)} needs {needed} devices, found {len(devices)}")
    sizes = {axis: len(devices) // fixed if n == -1 else n for axis, n in sizes.items()}
    slices = num_slices(devices)
    if sizes["data"] % slices:
        raise UserError(f"config.mesh: data={sizes['data']} is not divisible by the {slices} slices")
    shape = tuple(sizes.values())
    if slices > 1:
        within = (shape[0] // slices, *shape[1:])
        arranged = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)
    elif devices[0].platform == "tpu":
        arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        arranged = np.array(devices).reshape(shape)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _product(sizes: dict[str, int]) -> str:
    return " x ".join(f"{axis}={n}" for axis, n in sizes.items())


def data_parallel_mesh(mesh: Mesh) -> Mesh:
    """The same devices with tensor merged into fsdp, for models without tensor parallelism: every device gets its own
    part of the batch. Parameters stay where they are."""
    data, fsdp, tensor = mesh.devices.shape
    return Mesh(mesh.devices.reshape(data, fsdp * tensor, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def num_slices(devices: Iterable[jax.Device]) -> int:
    """The number of TPU slices that the devices belong to (1 for other devices)."""
    return len({getattr(device, "slice_index", None) or 0 for device in devices})


def num_domains(devices: Iterable[jax.Device]) -> int:
    """The number of groups of devices with direct links, which a network connects: TPU slices, or hosts of GPUs."""
    devices = list(devices)
    if devices[0].platform == "gpu":
        return len({device.process_index for device in devices})
    return num_slices(devices)


def platform(mesh: Mesh | None = None) -> str:
    """ "cpu", "gpu" or "tpu": of a mesh, of the mesh in use, or else of the default device."""
    if mesh:
        return mesh.devices.flat[0].platform
    device = mesh_device()
    return device.platform if device else jax.default_backend()


def mesh_device() -> jax.sharding.AbstractDevice | None:
    """The platform and kind of the devices of the mesh in use; None without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh.abstract_device
