"""XLA options by platform."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from nextgpt_jax.mesh import platform

OPTIONS: dict[str, dict[str, Any]] = {
    "gpu": {
        # By default matmuls of one array with several kernels (queries, keys and values) are merged into one, whose
        # kernel is concatenated at each call: 3 times the traffic of those weights, 8 of 31 GB in a prefill of 512
        # tokens of the 7B model.
        "xla_gpu_dot_merger_threshold_mb": 0,
        # Collectives need no option: by default all-gathers of a layer's weights overlap with the matmuls before it.
        # In a stage-3 step on 8 H100s (fsdp=8, 16 examples each), 4.6 of 25.8 GB are received with no matmul running;
        # xla_gpu_enable_pipelined_collectives does not change that, ..._pipelined_all_gather makes it 17.7 GB.
    },
}


def jit(function: Callable, **arguments: Any) -> Callable:
    """jax.jit(function, **arguments) with the options of the platform: the mesh's in use, or the default device's.

    The result has `trace` and `lower`, like that of jax.jit.
    """

    @functools.cache
    def compiled(name: str) -> Callable:
        return jax.jit(function, compiler_options=OPTIONS.get(name), **arguments)

    def for_platform(name: str) -> Callable:
        return lambda *args, **kwargs: getattr(compiled(platform()), name)(*args, **kwargs)

    call = functools.wraps(function)(for_platform("__call__"))
    call.trace, call.lower = for_platform("trace"), for_platform("lower")
    return call
