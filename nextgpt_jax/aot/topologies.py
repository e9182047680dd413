"""Device topologies that XLA can compile for without the devices: TPUs by libtpu, NVIDIA GPUs by the CUDA plugin.

Neither needs a driver. The plugin compiles for a described GPU; unknown without the device are measured choices: which
cuDNN kernel a matmul or convolution takes, and its workspace.
"""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from nextgpt_jax.errors import UserError, first_line

# Matmuls by cuBLAS: without a device to time them on, Triton finds no tile sizes for some shapes.
GPU_COMPILER_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


@dataclasses.dataclass(frozen=True)
class GpuTarget:
    """A GPU as XLA describes it (xla/backends/gpu/target_config/specs in openxla/xla). Sizes in bytes."""

    kind: str  # JAX's device_kind
    capability: tuple[int, int]
    cores: int
    fpus: int  # per core
    clock: float  # GHz
    shared_memory: int  # per core
    shared_memory_block: int  # largest shared memory of a block
    l2: int
    memory: int
    bandwidth: int  # bytes/s


GPU_TARGETS: dict[str, GpuTarget] = {
    "a100": GpuTarget(
        "NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 167936, 166912, 41943040, 85100068864, 2039040000000
    ),
    "h100": GpuTarget(
        "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 233472, 232448, 52428800, 84942979072, 3352320000000
    ),
    "h200": GpuTarget("NVIDIA H200", (9, 0), 132, 128, 1.98, 233472, 232448, 52428800, 151397597184, 4800000000000),
    "b200": GpuTarget("NVIDIA B200", (10, 0), 148, 128, 1.965, 233472, 232448, 132644864, 191514411008, 7672320000000),
}
_GPUS = re.compile(rf"({'|'.join(GPU_TARGETS)}):(?:(\d+)x)?(\d+)")
_TPUS = re.compile(r"(v\d[a-z]*|tpu7x):(\d+(?:x\d+)*)")
_HOST_BOUNDS = (2, 2, 1)  # chips of a host along each axis, libtpu's default


def prepare_compilers() -> None:
    """Lets libtpu and the CUDA plugin load on a machine without their devices. Call it before JAX looks for devices."""
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # the check looks for a driver
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no device is used, so processes need no lock


def topology_devices(topology: str, num_slices: int = 1) -> Sequence[jax.Device]:
    """The devices of a topology, or of `num_slices` of them: TPUs such as v5e:4x4, or GPUs such as h100:8 (h100:2x8 for
    two hosts of eight). A chip of TPU v2, v3 and v7 (tpu7x:2x2x1) is two devices.

    Raises:
      UserError: there is no such topology, or its compiler is not installed.
    """
    if topology.split(":")[0] in GPU_TARGETS:
        if num_slices != 1:
            raise UserError("--num_slices is for TPUs: give the hosts of GPUs in the topology, such as h100:2x8")
        return _gpu_devices(topology)
    if not (found := _TPUS.fullmatch(topology)):
        raise UserError(
            f"--topology={topology}: give a TPU and its shape, such as v5e:4x4 or tpu7x:2x2x1, or GPUs "
            f"({', '.join(GPU_TARGETS)}), such as h100:8"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology={topology}: the compiler for TPUs is missing: pip install 'nextgpt-jax[tpu]'")
    from jax.experimental import topologies

    options = _tpu_options(found[1], [int(n) for n in found[2].split("x")])
    if num_slices != 1:
        options["num_slices"] = num_slices
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:  # libtpu raises several types
        raise UserError(f"--topology={topology}: no such topology: {first_line(error)}") from None


def _tpu_options(kind: str, shape: Sequence[int]) -> dict[str, Any]:
    """What libtpu needs besides the name of a topology."""
    options: dict[str, Any] = {}
    if kind == "v4":  # both cores of a chip are one device, as on a TPU VM
        options["chip_config_name"] = "megacore"
    bounds = tuple(min(n, bound) for n, bound in zip((*shape, 1, 1), _HOST_BOUNDS))
    if bounds != _HOST_BOUNDS:  # a part of a host
        options["chips_per_host_bounds"] = bounds
    return options


def _gpu_devices(topology: str) -> Sequence[jax.Device]:
    from jax.experimental import topologies

    found = _GPUS.fullmatch(topology)
    if not found or not int(found[2] or 1) * int(found[3]):
        raise UserError(f"--topology={topology}: give a GPU, hosts and GPUs per host, such as h100:8 or h100:2x8")
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        raise UserError(f"--topology={topology}: the compiler for GPUs is missing: pip install 'nextgpt-jax[cuda]'")
    shape = f"1x{found[2] or 1}x{found[3]}"  # slices, hosts, devices per host
    try:
        return topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=_target_config(GPU_TARGETS[found[1]]), topology=shape
        ).devices
    except Exception as error:  # the plugin raises several types
        raise UserError(f"--topology={topology}: the CUDA plugin rejects it: {first_line(error)}") from None


def _target_config(target: GpuTarget) -> str:
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
