"""Throughput of training steps: time per step, examples, tokens and FLOPs per second, and MFU."""

import contextlib
import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from nextgpt_jax import chips, flops
from nextgpt_jax.training.losses import Batch

_T = TypeVar("_T")


class ThroughputMeter:
    """Measures steps between two calls of `rates`."""

    def __init__(self, mesh: Mesh, batch_size: int):
        self._devices, self._batch_size = mesh.size, batch_size
        self._chip = chips.chip(mesh.devices.flat[0].device_kind)
        self._flops_of_shape: dict[Any, float] = {}
        self._reset()

    def _reset(self) -> None:
        self._steps, self._flops, self._size, self._waited, self._since = 0, 0.0, 0, 0.0, time.perf_counter()

    def waiting(self, batches: Iterable[_T]) -> Iterator[_T]:
        """The same batches; the time that each lets its consumer wait is measured."""
        iterator = iter(batches)
        while True:
            begin = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - begin
            yield batch

    def is_new(self, batch: Batch) -> bool:
        """Whether no batch of this shape was counted yet: its call compiles."""
        return _shape(batch) not in self._flops_of_shape

    def count(self, update: Callable, arguments: tuple, batch: Batch) -> None:
        """Counts a call of a jitted function, which trains on a batch. FLOPs are counted once per shape."""
        shape = _shape(batch)
        if shape not in self._flops_of_shape:
            self._flops_of_shape[shape] = flops.count(update.trace(*arguments).jaxpr, branch=min).model
        self._steps, self._size = self._steps + 1, self._size + math.prod(batch["tokens"].shape)
        self._flops += self._flops_of_shape[shape]

    def rates(self, tokens: float, media: float) -> dict[str, float]:
        """The throughput since the last call, in which this many tokens and input media were trained on.

        padding_share is that of the batches' tokens. data_wait_share is the share of the time in which this process had
        no batch to give to the devices; they may still have been at work on the one before.

        FLOPs exclude those of frozen encoders, which depend on the number of media in a batch.
        """
        seconds = time.perf_counter() - self._since
        found = {
            "step_seconds": seconds / self._steps,
            "examples_per_second": self._steps * self._batch_size / seconds,
            "media_per_second": media / seconds,
            "padding_share": 1 - tokens / self._size,
            "data_wait_share": min(1.0, self._waited / seconds),
            "tokens_per_second": tokens / seconds,
            "tokens_per_second_per_device": tokens / seconds / self._devices,
            "model_tflops_per_device": self._flops / seconds / self._devices / 1e12,
        }
        if self._chip:
            found["mfu"] = found["model_tflops_per_device"] * 1e12 / self._chip.flops
        self._reset()
        return found

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time spent inside."""
        begin = time.perf_counter()
        yield
        self._since += time.perf_counter() - begin


def _shape(batch: Batch) -> Hashable:
    leaves, structure = jax.tree.flatten(batch)
    return structure, *(leaf.shape for leaf in leaves)
