"""Two runs of a task: the differences of their figures, with confidence intervals by a paired bootstrap.

Samples that both have are drawn with replacement, the same ones of both runs, and each metric makes its figures of
their numbers again, so every figure has an interval: means, BLEU and Fréchet distances alike.
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.measuring import NUMBERS, aggregate, read_numbers
from nextgpt_jax.evaluation.results import read_result
from nextgpt_jax.evaluation.types import Metric
from nextgpt_jax.json_files import read_json

LEVEL = 0.95
_MANY, _FEW = 1000, 30  # resamples of cheap figures, and of expensive ones
_EXPENSIVE = 1 << 21  # numbers
_Z = 1.959964  # of LEVEL, for a normal distribution
MakeMetrics = Callable[[Sequence[str]], Sequence[Metric]]  # of the samples with these ids


class Side(NamedTuple):
    """One of the two runs."""

    folder: pathlib.Path
    result: dict[str, Any]
    ids: list[str]

    @classmethod
    def read(cls, path: str) -> "Side":
        """A run by its folder or result.json.

        Raises:
          UserError: there is none.
        """
        result, folder = read_result(path)
        return cls(folder, result, read_json(folder / NUMBERS / "samples.json"))

    def protocols(self) -> dict[str, str]:
        """By metric, of those that were computed."""
        return {f["metric"]: f["protocol"] for f in self.result["figures"] if f["value"] is not None}


class Difference(NamedTuple):
    """A figure of both runs on their common samples, and b - a with its interval; or why they are not compared."""

    name: str
    a: float = 0.0
    b: float = 0.0
    low: float = 0.0
    high: float = 0.0
    resamples: int = 0
    error: str = ""

    @property
    def differs(self) -> bool:
        """Whether the interval excludes 0."""
        return not self.error and not self.low <= 0 <= self.high


class Comparison(NamedTuple):
    """What a comparison found: the number of common samples, what else differs, in lines, and the figures."""

    samples: int
    notes: list[str]
    figures: list[Difference]


def compare(a: Side, b: Side, make_metrics: MakeMetrics, *, resamples: int | None = None, seed: int = 0) -> Comparison:
    """Compares two runs.

    Args:
      make_metrics: makes the metrics of a run, as they were made for it.
      resamples: drawn; None: 1,000, and 30 of figures that are expensive (features), whose intervals are those of a
        normal distribution.
      seed: of the resamples.

    Raises:
      UserError: the runs are of different tasks, or have no samples in common.
    """
    if a.result["task"] != b.result["task"]:
        raise UserError(f"{a.folder} is a run of {a.result['task']}, {b.folder} of {b.result['task']}")
    places = {id: row for row, id in enumerate(b.ids)}
    common = [(row, places[id]) for row, id in enumerate(a.ids) if id in places]
    if not common:
        raise UserError(f"{a.folder} and {b.folder} have no samples in common")
    rows = np.array(common).T
    of_a = make_metrics(a.ids)
    of_b = of_a if a.ids == b.ids else make_metrics(b.ids)
    protocols = a.protocols(), b.protocols()
    figures: list[Difference] = []
    for metrics in zip(of_a, of_b, strict=True):
        name = metrics[0].name
        if reason := _refusal(metrics, protocols):
            figures.append(Difference(name, error=reason))
            continue
        try:
            numbers = [
                read_numbers(side.folder / NUMBERS / f"{name}.npy")[part]
                for side, part in zip((a, b), rows, strict=True)
            ]
            figures += bootstrap(metrics, numbers, resamples=resamples, seed=seed)
        except UserError as error:
            figures.append(Difference(name, error=f"not compared: {error}"))
    return Comparison(len(common), _notes(a, b, len(common)), figures)


def _refusal(metrics: Sequence[Metric], protocols: Sequence[Mapping[str, str]]) -> str:
    """Why a metric of two runs is not compared; "": it is."""
    name = metrics[0].name
    found = [protocol.get(name) for protocol in protocols]
    for side, protocol in zip("AB", found, strict=True):
        if protocol is None:
            return f"not compared: {side} has no {name}"
    if found[0] != found[1]:
        return f"not compared: other protocols; A: {found[0]}; B: {found[1]}"
    if metrics[0].protocol != found[0]:
        return f"not compared: made with another protocol than this version's ({metrics[0].protocol})"
    return ""


def bootstrap(
    metrics: Sequence[Metric], numbers: Sequence[np.ndarray], *, resamples: int | None = None, seed: int = 0
) -> list[Difference]:
    """The figures of two runs, whose numbers [n, s] are of the same n samples, and the intervals of their differences.

    Raises:
      UserError: a figure of all samples cannot be computed.
    """
    expensive = max(some.size for some in numbers) > _EXPENSIVE
    count = resamples or (_FEW if expensive else _MANY)
    whole = [aggregate(metric, some) for metric, some in zip(metrics, numbers, strict=True)]
    names = [name for name in whole[0] if name in whole[1]]
    rng, drawn = np.random.default_rng(seed), np.full((count, len(names)), np.nan)
    for resample in drawn:
        chosen = rng.integers(0, len(numbers[0]), len(numbers[0]))
        try:
            first, second = (m.aggregate(some[chosen]) for m, some in zip(metrics, numbers, strict=True))
        except UserError:  # too few of a kind among those that were drawn
            continue
        resample[:] = [second.get(name, np.nan) - first.get(name, np.nan) for name in names]
    found = []
    for name, differences in zip(names, drawn.T, strict=True):
        a, b = whole[0][name], whole[1][name]
        if not np.isfinite(a - b):
            found.append(Difference(name, error=f"not compared: it is {a} in A, {b} in B"))
            continue
        known = differences[np.isfinite(differences)]
        if len(known) < max(2, count // 2):
            found.append(Difference(name, a, b, error="no interval: it can't be computed of half of the resamples"))
            continue
        if expensive or count < _MANY // 10:  # few resamples have no tails; those of a Fréchet distance are biased
            margin = _Z * float(np.std(known, ddof=1))
            low, high = b - a - margin, b - a + margin
        else:
            low, high = (float(q) for q in np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        found.append(Difference(name, a, b, low, high, count))
    return found


def _notes(a: Side, b: Side, common: int) -> list[str]:
    """What else differs between two runs, and what their figures are of."""
    sides = {"A": a, "B": b}
    found = [f"{name}: {side.folder}, {len(side.ids):,} samples" for name, side in sides.items()]
    if a.ids != b.ids:
        found.append(f"the runs have other samples: figures are of the {common:,} that both have")
    elif a.result["samples_hash"] != b.result["samples_hash"]:
        found.append("the samples of the runs have other prompts, inputs or options")
    one, two = (_flat({name: side.result[name] for name in _SAID}) for side in sides.values())
    for name in sorted(one.keys() | two.keys()):
        if (first := one.get(name)) != (second := two.get(name)):
            found.append(f"{name}: {first!r} in A, {second!r} in B")
    if a.result["weights"] == b.result["weights"]:
        found.append("both are of the same weights")
    return found


_SAID = ("seed", "options", "config", "protocol", "unanswered")


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in content.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def lines(comparison: Comparison) -> list[str]:
    """A comparison as lines of text."""
    rows = [("figure", "A", "B", "B - A", f"{LEVEL:.0%} interval")]
    for figure in comparison.figures:
        if figure.error:
            rows.append((figure.name, "", "", "", figure.error))
            continue
        interval = f"[{figure.low:+.4f}, {figure.high:+.4f}]{' *' if figure.differs else ''}"
        few = f" ({figure.resamples} resamples)" if figure.resamples < _MANY else ""
        values = (f"{figure.a:.4f}", f"{figure.b:.4f}", f"{figure.b - figure.a:+.4f}")
        rows.append((figure.name, *values, interval + few))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    table = [
        "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in (1, 2, 3)), row[4]]).rstrip()
        for row in rows
    ]
    return [*comparison.notes, *table, "* the interval excludes 0"]


def to_json(comparison: Comparison) -> str:
    """A comparison as JSON."""
    figures = [figure._asdict() | {"differs": figure.differs} for figure in comparison.figures]
    content = comparison._asdict() | {"figures": figures, "level": LEVEL}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
