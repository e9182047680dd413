"""What a run shows while it trains: the progress bar, lines of metrics, their files, throughput, a profile."""

import contextlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.training.distributed import print_on_main
from nextgpt_jax.training.metrics import MetricsLog, describe, describe_validation, window_means
from nextgpt_jax.training.optimizer import learning_rate
from nextgpt_jax.training.throughput import ThroughputMeter


class Report:
    """Context manager for the steps of a run; process 0 shows and writes."""

    def __init__(
        self,
        folder: pathlib.Path,
        config: ExperimentConfig,
        mesh: Mesh,
        *,
        start: int,
        steps: int,
        profile: tuple[int, int] | None = None,
    ):
        """
        Args:
          folder: of the run.
          start: the step where it goes on.
          steps: of the whole run.
          profile: first and last step of a trace, which is written to FOLDER/profile.
        """
        self._folder, self._steps, self._profile = folder, steps, profile
        self._main = jax.process_index() == 0
        self._schedule = learning_rate(config.optim, steps)
        self._window: list[dict[str, jax.Array]] = []  # metrics since the last line
        self._meter = ThroughputMeter(mesh, config.data.batch_size)
        disable = None if self._main else True
        self._bar = tqdm(total=steps, initial=start, unit="step", disable=disable, leave=False)
        self._log = MetricsLog(folder, start, self._main)

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(self._log)
        self._stack.enter_context(self._bar)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def begin_step(self, step: int, update: Callable, arguments: tuple, shape: tuple[int, ...]) -> None:
        """Before the call update(*arguments) with a batch whose tokens have this shape."""
        if self._profile and step == self._profile[0]:
            jax.profiler.start_trace(str(self._folder / "profile"))
        self._meter.count(update, arguments, shape)

    def end_step(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """After the call, whose results are still being computed; waits for those of the step before."""
        if self._window:
            jax.block_until_ready(self._window[-1])  # at most one step ahead of the device, to hold few batches
        self._window.append(metrics)
        self._bar.update()
        if self._profile and step == self._profile[1]:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            first, last = self._profile
            print_on_main(f"profile of steps {first} to {last}: {self._folder / 'profile'}")

    def log(self, step: int) -> dict[str, float]:
        """Shows and writes the means over the steps since the last call."""
        values = jax.device_get(self._window)  # waits for the steps: before reading the clock
        found = window_means(values)
        found |= self._meter.rates(tokens=sum(float(m["tokens"]) for m in values))
        found |= {"learning_rate": float(self._schedule(step - 1))}
        self._window = []
        self._log.write(step, found)
        if self._main:
            self.say(describe(step, self._steps, found))
        return found

    def validation(self, step: int, found: Mapping[str, float]) -> None:
        """Shows and writes the losses on held-out samples."""
        self._log.write(step, found)
        if self._main:
            self.say(describe_validation(step, found))

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        tqdm.write(line)

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Excludes the time spent inside from that of the steps."""
        return self._meter.paused()
