"""What a run shows of itself: means over a window of steps, the printed line, TensorBoard and metrics.jsonl."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from nextgpt_jax.files import append_text
from nextgpt_jax.training.losses import BY_SOURCE
from nextgpt_jax.training.sampling import Sample
from nextgpt_jax.training.source_losses import describe_sources
from nextgpt_jax.training.tensorboard import TensorBoard
from nextgpt_jax.training.wandb_log import WandbLog


def window_means(window: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The means of the metrics of several steps.

    The alignment loss of a modality is a mean over the groups of signal tokens, and absent if there were none: a step
    without any says nothing about it. Steps whose batch has no room for a modality have no such metrics.
    """
    names = dict.fromkeys(name for step in window for name in step)  # in order
    found = {}
    for name in names:
        modality = name.removeprefix("loss_alignment_")
        if name.startswith(("groups_", BY_SOURCE)):
            continue
        if f"groups_{modality}" in names:
            weights = [float(step.get(f"groups_{modality}", 0)) for step in window]
            if sum(weights):
                found[name] = sum(w * float(step[name]) for w, step in zip(weights, window, strict=True) if w) / sum(
                    weights
                )
        else:
            found[name] = sum(float(step[name]) for step in window) / len(window)
    return found


def describe(step: int, steps: int, metrics: Mapping[str, float], remaining: float = 0.0) -> str:
    """One line for people.

    Args:
      remaining: seconds to the end of the run; 0: not said.
    """
    m = metrics
    parts = [f"{name.removeprefix('loss_alignment_')} {value:.4f}" for name, value in m.items()
             if name.startswith("loss_alignment_") and "/" not in name]  # fmt: skip
    of_each = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    alignment = f"{m['loss_alignment']:.4f}{of_each}"
    eta = f"  ETA {tqdm.format_interval(remaining)}" if remaining else ""
    mfu = f", MFU {m['mfu']:.1%}" if "mfu" in m else ""
    return (
        f"step {step}/{steps}  loss {m['loss']:.4f} (language {m['loss_language']:.4f}, alignment {alignment})  "
        f"accuracy {m['token_accuracy']:.3f}  {m['step_seconds']:.3g} s, {m['tokens_per_second']:,.0f} tokens/s{mfu}  "
        f"waiting for data {m['data_wait_share']:.0%}, padding {m['padding_share']:.0%}  "
        f"grad norm {m['grad_norm']:.3g}  lr {m['learning_rate']:.2e}{eta}{describe_sources(m)}"
    )


def describe_validation(step: int, metrics: Mapping[str, float]) -> str:
    """The same for the losses on held-out samples."""
    shown = {name.removeprefix("validation_").replace("_", " "): value for name, value in metrics.items()}
    parts = [f"{name} {value:.4f}" for name, value in shown.items() if name != "loss" and "/" not in name]
    sources = describe_sources(metrics, "validation_")
    return f"validation at step {step}  loss {shown['loss']:.4f} ({', '.join(parts)}){sources}"


class MetricsLog:
    """Context manager that writes metrics to metrics.jsonl in a folder, to TensorBoard's files and to wandb.

    A resumed run drops what was written for steps that it makes again.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        start: int,
        enabled: bool,
        *,
        wandb_project: str = "",
        settings: Mapping[str, Any] | None = None,
    ):
        """
        Args:
          folder: of the run.
          start: the step where it goes on.
          enabled: False: nothing is written (all processes but the first).
          wandb_project: to log to as well; "": none.
          settings: the experiment config, for wandb.
        """
        self._file, self._enabled = folder / "metrics.jsonl", enabled
        self._others: list[TensorBoard | WandbLog] = [TensorBoard(folder, start, enabled)]
        if enabled and wandb_project:
            self._others.append(WandbLog(folder, wandb_project, settings or {}))
        if enabled and self._file.exists():
            lines = self._file.read_text().splitlines(keepends=True)
            self._file.write_text("".join(line for line in lines if json.loads(line)["step"] <= start))

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        for other in self._others:
            other.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step."""
        for other in self._others:
            other.write(step, metrics)
        if self._enabled:
            append_text(self._file, json.dumps({"step": step, **metrics}) + "\n")

    def write_samples(self, step: int, samples: Sequence[Sample], group: str = "samples") -> None:
        """Shows answers to prompts."""
        for other in self._others:
            other.write_samples(step, samples, group)
