"""What the parts of an evaluation give to each other: samples, their outcomes, and metrics of those."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from nextgpt_jax.config import EvalConfig


@dataclasses.dataclass(frozen=True)
class Sample:
    """An example of a dataset: a prompt, and what its answer is compared with.

    Attributes:
      id: unique in the task; the seed of the answer follows from it.
      prompt: text, with a placeholder such as `<image>` for each input.
      inputs: input files by modality.
      references: what metrics compare the answer with, by name: "captions" (texts), "answers", "image" (a file), ...
      options: fields of inference.Request that differ from the task's, such as `strength`.
      category: of the question, where a benchmark reports its categories.
    """

    id: str
    prompt: str
    inputs: Mapping[str, Sequence[pathlib.Path]] = dataclasses.field(default_factory=dict)
    references: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    category: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The answer to a sample.

    Attributes:
      text: without signal tokens.
      media: files of what was made, by modality, in order.
    """

    sample: Sample
    text: str = ""
    media: Mapping[str, Sequence[pathlib.Path]] = dataclasses.field(default_factory=dict)


class Metric(Protocol):
    """A metric in two halves: numbers of each outcome, and figures of the numbers of many.

    A comparison of two runs draws outcomes with replacement and aggregates their numbers again, so everything that a
    figure depends on has to be in them: the counts of n-grams for BLEU, the features for a Fréchet distance. What
    belongs to the references as a whole (their statistics, document frequencies) belongs to the metric.

    Attributes:
      name: of its folder of numbers, and in results: "bleu", "fid".
      protocol: what the figures depend on besides the answers, in one line: "clean-fid's resize, 2,048 features".
      higher_is_better: for the best and worst samples, and for choosing a checkpoint.
    """

    name: str
    protocol: str
    higher_is_better: bool

    def measure(self, outcomes: Sequence[Outcome]) -> Float[np.ndarray, "n s"]:
        """The numbers of each outcome. Called with consecutive parts of all outcomes; memory is bounded by a part.

        Raises:
          UserError: it needs something that is missing, such as Java; the run goes on without it and says why.
        """
        ...

    def aggregate(self, numbers: Float[np.ndarray, "n s"]) -> dict[str, float]:
        """The figures by name, the main one first, in the unit of the paper's table. `numbers` may be a memory map of
        many gigabytes: read it in blocks."""
        ...

    def scores(self, numbers: Float[np.ndarray, "n s"]) -> Float[np.ndarray, " n"] | None:
        """A score of each outcome, to find the best and worst; None if the metric has none."""
        ...


@runtime_checkable
class KeepsReplies(Protocol):
    """A metric that asks a judge, and keeps the replies in a folder of the run: nothing is asked twice."""

    def keep_in(self, folder: pathlib.Path) -> None:
        """Called before `measure`."""
        ...


@dataclasses.dataclass(frozen=True)
class Task:
    """A row of the table of tasks.

    Attributes:
      name: `nextgpt evaluate NAME`.
      title: in one line, for lists and reports.
      layout: the files that are read below --data, and where each comes from, for messages and docs.
      load: the samples below --data, in the dataset's order; raises UserError, which names a missing file, where it is
        looked for and where it comes from.
      metrics: makes the metrics for the samples of a run: `metrics(samples, settings)`, with settings such as
        paths of feature networks. Called before anything is generated, so that weights
        that are missing are reported first; raises UserError.
      options: fields of inference.Request: modality, temperature, max_new_tokens, ...
      paper: figures of the paper by the names that `aggregate` gives: {"FID": 11.28}.
      protocol: in one line: the split, the number of samples, the prompt.
      differences: what is known to differ from the paper's protocol, and why.
      table: `table(figures, samples)` gives lines that show the figures in a layout of the task's own, to be printed
        before them.
    """

    name: str
    title: str
    layout: Mapping[str, str]
    load: Callable[[pathlib.Path], Iterable[Sample]]
    metrics: Callable[[Sequence[Sample], EvalConfig], Sequence[Metric]]
    options: Mapping[str, Any]
    paper: Mapping[str, float]
    protocol: str
    differences: str = ""
    table: Callable[[Mapping[str, float], Sequence[Sample]], Sequence[str]] | None = None
