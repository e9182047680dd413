"""Peak rates of accelerators by JAX's device kind, from the vendors' data sheets.

Memory of TPUs is the limit that their compiler enforces (libtpu 0.0.42 to 0.0.52).
"""

import dataclasses

GIB = 2**30
GPU_MEMORY_FRACTION = 0.92  # usable by programs: the rest is for CUDA and its libraries


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak rates of one device. Bandwidths in bytes/s; interconnect bandwidths one way, summed over a chip's links.

    A chip of TPU v2, v3 or TPU7x is two devices, each with half of its rates.
    """

    name: str
    flops: float  # FLOP/s, dense bfloat16 (float16 where there is no bfloat16)
    memory: float  # bytes usable by programs
    hbm_bandwidth: float
    ici_bandwidth: float  # within a slice (TPU), or NVLink or PCIe within a host (GPU)
    dcn_bandwidth: float  # between slices or hosts
    capability: tuple[int, int] = (0, 0)  # CUDA compute capability


def _usable(memory: float) -> float:
    return GPU_MEMORY_FRACTION * memory


# Lower-case substrings of the device kind; the first match counts.
CHIPS = {
    "v5 lite": Chip("TPU v5e", 197e12, 15.75 * GIB, 819e9, 4 * 45e9, 3.125e9),
    "v6 lite": Chip("TPU v6e", 918e12, 31.25 * GIB, 1640e9, 4 * 90e9, 12.5e9),
    "tpu7x": Chip("TPU7x", 2307e12 / 2, 94.75 * GIB, 7380e9 / 2, 6 * 90e9 / 2, 12.5e9 / 2),
    "v5": Chip("TPU v5p", 459e12, 95.74 * GIB, 2765e9, 6 * 90e9, 6.25e9),
    "v4": Chip("TPU v4", 275e12, 30.75 * GIB, 1228e9, 6 * 45e9, 6.25e9),
    "v3": Chip("TPU v3", 123e12 / 2, 15.48 * GIB, 900e9 / 2, 4 * 70e9 / 2, 6.25e9 / 2),
    "v2": Chip("TPU v2", 46e12 / 2, 7.48 * GIB, 700e9 / 2, 4 * 62e9 / 2, 6.25e9 / 2),
    "b200": Chip("NVIDIA B200", 2250e12, _usable(191514411008), 8000e9, 900e9, 50e9, (10, 0)),
    "h200": Chip("NVIDIA H200", 989e12, _usable(151397597184), 4800e9, 450e9, 50e9, (9, 0)),
    "h100": Chip("NVIDIA H100", 989e12, _usable(84942979072), 3350e9, 450e9, 50e9, (9, 0)),
    "a100": Chip("NVIDIA A100", 312e12, _usable(85100068864), 2039e9, 300e9, 25e9, (8, 0)),
    "l4": Chip("NVIDIA L4", 121e12, _usable(23.6e9), 300e9, 32e9, 12.5e9, (8, 9)),
    "v100": Chip("NVIDIA V100", 125e12, _usable(34e9), 900e9, 150e9, 12.5e9, (7, 0)),
}


def chip(device_kind: str) -> Chip | None:
    """The chip of a JAX device kind; None if its peak rates are unknown."""
    return next((chip for name, chip in CHIPS.items() if name in device_kind.lower()), None)
