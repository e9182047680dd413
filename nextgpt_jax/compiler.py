"""XLA's options for our programs, by platform, in one place."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from nextgpt_jax import sharding

OPTIONS: dict[str, dict[str, Any]] = {
    "gpu": {
        # Products of one array with several kernels (queries, keys and values) would become one product with the joined
        # kernels, which are joined anew each time: 3 times the traffic of those weights, 8 of 31 GB in a prefill of
        # 512 tokens of the 7B.
        "xla_gpu_dot_merger_threshold_mb": 0,
        # Collectives need nothing: by default gathers of a layer's weights run beside the products before it. Of the
        # 25.8 GB that a step of stage 3 gathers on 8 H100s (fsdp=8, 16 rows each), 4.6 arrive with no product beside
        # them, as compiled; xla_gpu_enable_pipelined_collectives leaves that, ..._pipelined_all_gather makes it 17.7.
    },
}


def jit(function: Callable, **arguments: Any) -> Callable:
    """jax.jit(function, **arguments) with the options of the platform: of the mesh in use, or of the default device.

    The result has `trace` and `lower`, as that of jax.jit has.
    """

    @functools.cache
    def compiled(platform: str) -> Callable:
        return jax.jit(function, compiler_options=OPTIONS.get(platform), **arguments)

    def for_platform(name: str) -> Callable:
        return lambda *args, **kwargs: getattr(compiled(sharding.platform()), name)(*args, **kwargs)

    call = functools.wraps(function)(for_platform("__call__"))
    call.trace, call.lower = for_platform("trace"), for_platform("lower")
    return call
