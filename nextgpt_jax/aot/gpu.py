"""GPUs that XLA can compile for on a machine without one.

The CUDA plugin (the extra `cuda`) compiles for a described device; nothing is asked of a driver. What it cannot know
without a device are measured choices: cuDNN's workspaces, and which of its kernels a product or convolution takes.
"""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence

import jax

from nextgpt_jax.errors import UserError, first_line

# Products by cuBLAS: without a device to time them on, Triton finds no tile sizes for some shapes.
COMPILER_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


@dataclasses.dataclass(frozen=True)
class Target:
    """A device as XLA describes it (xla/backends/gpu/target_config/specs in openxla/xla). Sizes in bytes."""

    kind: str  # as JAX calls it
    capability: tuple[int, int]
    cores: int
    fpus: int  # of a core
    clock: float  # GHz
    shared_memory: int  # of a core
    shared_memory_block: int  # that a block may ask for
    l2: int
    memory: int
    bandwidth: int  # bytes a second


TARGETS = {
    "a100": Target(
        "NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 167936, 166912, 41943040, 85100068864, 2039040000000
    ),
    "h100": Target(
        "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 233472, 232448, 52428800, 84942979072, 3352320000000
    ),
    "h200": Target("NVIDIA H200", (9, 0), 132, 128, 1.98, 233472, 232448, 52428800, 151397597184, 4800000000000),
    "b200": Target("NVIDIA B200", (10, 0), 148, 128, 1.965, 233472, 232448, 132644864, 191514411008, 7672320000000),
}
PATTERN = re.compile(rf"({'|'.join(TARGETS)}):(?:(\d+)x)?(\d+)")


def prepare() -> None:
    """Lets the CUDA plugin load on a machine without a GPU. To be called before JAX looks for devices."""
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # which looks for a driver


def topology_devices(topology: str) -> Sequence[jax.Device]:
    """The devices of a topology such as h100:8, or of two hosts such as h100:2x8.

    Raises:
      UserError: there is no such topology, or no compiler for it.
    """
    from jax.experimental import topologies

    found = PATTERN.fullmatch(topology)
    if not found or not int(found[2] or 1) * int(found[3]):
        raise UserError(f"--topology={topology}: give a GPU, hosts and GPUs of a host, such as h100:8 or h100:2x8")
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        raise UserError(f"--topology={topology}: the compiler for GPUs is missing: pip install 'nextgpt-jax[cuda]'")
    shape = f"1x{found[2] or 1}x{found[3]}"  # slices, hosts, devices of a host
    try:
        return topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=_config(TARGETS[found[1]]), topology=shape
        ).devices
    except Exception as error:  # the plugin's are of several kinds
        raise UserError(f"--topology={topology}: the CUDA plugin refuses it: {first_line(error)}") from None


def _config(target: Target) -> str:
    """XLA's GpuTargetConfigProto in text form."""
    major, minor = target.capability
    extension = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} {extension} }}
  core_count: {target.cores} fpus_per_core: {target.fpus} clock_rate_ghz: {target.clock}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: {target.shared_memory}
  shared_memory_per_block_optin: {target.shared_memory_block} l2_cache_size: {target.l2}
  device_memory_size: {target.memory} memory_bandwidth: {target.bandwidth} device_address_bits: 64
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 minor: 0 }}
device_description_str: "{target.kind}"
"""
