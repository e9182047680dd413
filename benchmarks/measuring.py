"""Rows of benchmark results, random weights, and timing on the device at hand."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nextgpt_jax import chips

REPEATS = 3


@dataclasses.dataclass
class Result:
    """A row of the table. Seconds are medians; peak memory, in GiB, is as reported by each side's own allocator."""

    case: str
    setting: str
    seconds: float
    rate: float
    unit: str
    share: float | None = None  # of `share_of`
    share_of: str = ""
    peak: float | None = None
    first: float | None = None  # seconds of the first call, which compiles
    peers: dict[str, dict[str, float | None]] = dataclasses.field(default_factory=dict)
    note: str = ""

    def _rate_in(self, seconds: float) -> float:
        """The rate of doing the same work in `seconds`; a rate is in units per second, or is itself a time."""
        return self.rate * (seconds / self.seconds if self.unit in ("ms", "s") else self.seconds / seconds)

    def line(self) -> str:
        """The row as Markdown."""
        share = f"{self.share:.0%} of {self.share_of}" if self.share is not None else "-"
        peers = [
            f"{name}: {self._rate_in(found['seconds']):,.4g} {self.unit} ({memory(found['peak'])}), "
            f"{found['seconds'] / self.seconds:.2f} x"
            for name, found in self.peers.items()
        ]
        first = "-" if self.first is None else f"{self.first:.0f} s"
        cells = [self.case, self.setting, f"{self.rate:,.4g} {self.unit}", share, memory(self.peak), first,
                 "; ".join(peers) or "-", self.note or "-"]  # fmt: skip
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| case | setting | this project | share | peak memory | first call | peers, this project as fast as them | note |"
)


def memory(gib: float | None) -> str:
    """GiB as text."""
    return "?" if gib is None else f"{gib:.2f} GiB"


def filled(state: nnx.State, dtype=None) -> nnx.State:
    """Values for an abstract state, with its shardings: small random numbers, ones for scales, zeros for biases."""
    numbers = (0.02 * np.random.default_rng(0).standard_normal(10_000_019)).astype(np.float32)
    pool = functools.cache(numbers.astype)

    def values(path, leaf):
        kind = dtype if dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
        if path[-1] == "scale":
            made = np.ones(leaf.shape, kind)
        elif path[-1] in ("bias", "lora_b") or not jnp.issubdtype(kind, jnp.floating):
            made = np.zeros(leaf.shape, kind)
        else:
            made = np.resize(pool(np.dtype(kind)), leaf.shape)
        return jax.device_put(made, getattr(leaf.get_raw_value(), "sharding", None))

    return nnx.from_flat_state([(p, x.replace(values(p, x))) for p, x in nnx.to_flat_state(state)])


def times(call: Callable, repeats: int = REPEATS) -> tuple[float, float]:
    """Seconds of the first call, and the median of `repeats` later ones."""
    found = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return found[0], statistics.median(found[1:])


def peak_memory() -> float | None:
    """GiB that JAX has used at most, where the device reports it."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 2**30 if "peak_bytes_in_use" in stats else None


def mfu(rate: float) -> tuple[float | None, str]:
    """FLOP/s as a share of the peak that the device's maker publishes."""
    chip = chips.chip(jax.devices()[0].device_kind)
    return (rate / chip.flops, "peak FLOP/s") if chip else (None, "")
