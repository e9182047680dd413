"""What a run shows while it trains: the progress bar, lines of metrics, their files, throughput, a profile."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.config_files import config_to_dict
from nextgpt_jax.data.layouts import describe_layout
from nextgpt_jax.errors import printable
from nextgpt_jax.training.distributed import print_on_main
from nextgpt_jax.training.evaluating import Found
from nextgpt_jax.training.losses import Batch
from nextgpt_jax.training.metrics import MetricsLog, describe, describe_validation, window_means
from nextgpt_jax.training.optimizer import learning_rate
from nextgpt_jax.training.sampling import Sample
from nextgpt_jax.training.source_losses import losses_by_source
from nextgpt_jax.training.step import alignment_weights
from nextgpt_jax.training.throughput import ThroughputMeter

_T = TypeVar("_T")
_SHOWN = 100  # characters of an answer


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
        sources: Sequence[str] = (),
        profile: tuple[int, int] | None = None,
    ):
        """
        Args:
          folder: of the run.
          start: the step where it goes on.
          steps: of the whole run.
          sources: names of those of the samples.
          profile: first and last step of a trace, which is written to FOLDER/profile.
        """
        self._folder, self._start, self._steps, self._profile = folder, start, steps, profile
        self._began = 0.0  # when the first step was compiled
        self._main = jax.process_index() == 0
        self._schedule = learning_rate(config.optim, steps)
        self._sources, self._weights = sources, alignment_weights(config)
        self._window: list[dict[str, jax.Array]] = []  # metrics since the last line
        self._meter = ThroughputMeter(mesh, config.data.batch_size)
        disable = None if self._main else True
        self._bar = tqdm(total=steps, initial=start, unit="step", disable=disable, leave=False)
        settings = config_to_dict(config)
        self._log = MetricsLog(folder, start, self._main, wandb_project=config.train.wandb_project, settings=settings)

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(self._log)
        self._stack.enter_context(self._bar)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def waiting(self, batches: Iterable[_T]) -> Iterator[_T]:
        """The same batches; the time that each is waited for is measured."""
        return self._meter.waiting(batches)

    def call(self, step: int, update: Callable, arguments: tuple, batch: Batch) -> Any:
        """update(*arguments), which trains on a batch; what it compiles is said, and is no time of the step."""
        if self._profile and step == self._profile[0]:
            jax.profiler.start_trace(str(self._folder / "profile"))
        if not self._meter.is_new(batch):
            self._meter.count(update, arguments, batch)
            return update(*arguments)
        begin = time.perf_counter()
        with self._meter.paused():
            self._meter.count(update, arguments, batch)
            found = update(*arguments)
        if self._main:
            seconds = time.perf_counter() - begin
            self.say(f"step {step}: compiled for {describe_layout(batch)} in {seconds:.1f} s")
        self._began = self._began or time.perf_counter()
        return found

    def end_step(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """After `call`, whose results are still being computed; waits for those of the step before."""
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
        found = window_means(values) | losses_by_source(values, self._sources, self._weights)
        sums = {name: sum(float(m[name]) for m in values) for name in ("tokens", "media")}
        found |= self._meter.rates(**sums)
        found |= {"learning_rate": float(self._schedule(step - 1))}
        self._window = []
        self._log.write(step, found)
        if self._main:
            of_each = (time.perf_counter() - self._began) / (step - self._start)
            self.say(describe(step, self._steps, found, of_each * (self._steps - step)))
        return found

    def validation(self, step: int, found: Mapping[str, float]) -> None:
        """Shows and writes the losses on held-out samples."""
        self._log.write(step, found)
        if self._main:
            self.say(describe_validation(step, found))

    def samples(self, step: int, found: Sequence[Sample]) -> None:
        """Shows and writes answers to prompts; the first one is printed."""
        self._log.write_samples(step, found)
        first, n = found[0], sum(len(sample.media) for sample in found)
        text = " ".join(printable(first.text).split())
        self.say(f"samples at step {step} ({len(found)} answers, {n} media): {text[:_SHOWN]}")

    def evaluation(self, step: int, found: Found) -> None:
        """Shows and writes the figures of an evaluation, and some of its answers."""
        self._log.write(step, {f"evaluation/{name}": value for name, value in found.figures.items()})
        self._log.write_samples(step, [Sample(*answer) for answer in found.answers], "evaluation")
        figures = ", ".join(f"{name} {value:.4f}" for name, value in found.figures.items())
        self.say(f"evaluation at step {step}: {'; '.join([figures, *found.problems])}")

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        tqdm.write(line)

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Excludes the time spent inside from that of the steps."""
        return self._meter.paused()
