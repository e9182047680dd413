"""RUN/result.json: the figures of a run, and all that they depend on."""

import dataclasses
import datetime
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.answers import Answers
from nextgpt_jax.evaluation.fingerprints import HASHED
from nextgpt_jax.evaluation.measuring import NUMBERS, Measured
from nextgpt_jax.evaluation.run import Run
from nextgpt_jax.files import atomic_write
from nextgpt_jax.json_files import read_json
from nextgpt_jax.training.provenance import versions

RESULT = "result.json"
_FORMAT = 1
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy", "pillow", "av", "transformers")
_FAILURES = 20  # of samples that could not be answered, those that are listed


def make_result(run: Run, measured: Sequence[Measured], answers: Answers) -> dict[str, Any]:
    """The content of result.json.

    Args:
      measured: by the metrics of the task.
    """
    errors = answers.errors()
    record = run.record()
    result = {
        "format": _FORMAT,
        "task": run.task.name,
        "source": run.source,
        "title": run.task.title,
        "protocol": run.task.protocol,
        "differences": run.task.differences,
        "samples": len(run),
        "subset": {"limit": len(run), "of": run.available, "seed": run.seed} if record["limit"] else None,
        "unanswered": len(errors),
        "errors": [{"id": run.samples[i].id, "error": error} for i, error in list(errors.items())[:_FAILURES]],
        "figures": [figure for one in measured for figure in _figures(run, one)],
        "seed": run.seed,
        "options": record["options"],
        "config": {**record["config"], "eval": dataclasses.asdict(run.config.eval)},
        "config_hash": config_hash(record["config"]),
        "weights": run.weights,
        "weights_hashed": HASHED,
        "samples_hash": record["samples"],
        "data": str(run.data),
        "versions": versions(_PACKAGES),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return json.loads(json.dumps(result, default=str))  # as it is read back


def _figures(run: Run, measured: Measured) -> list[dict[str, Any]]:
    """A row of each figure; of a metric that was not computed, one that says why."""
    metric, paper = measured.metric, run.task.paper
    common: dict[str, Any] = {
        "metric": metric.name,
        "protocol": metric.protocol,
        "higher_is_better": metric.higher_is_better,
    }
    if measured.error:
        return [{"name": metric.name, "value": None, "error": measured.error, **common}]
    assert measured.numbers
    common |= {"count": len(run), "numbers": f"{NUMBERS}/{measured.numbers.name}"}
    return [
        {"name": name, "value": value, "paper": paper.get(name), **common}
        if math.isfinite(value)
        else {"name": name, "value": None, "error": f"not computed: it is {value}", **common}
        for name, value in measured.figures.items()
    ]


def config_hash(settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of SHA-256 over settings as JSON."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_result(run: Run, result: Mapping[str, Any]) -> pathlib.Path:
    """Writes result.json, and the ids of the samples beside the numbers, in their order."""
    with atomic_write(run.folder / NUMBERS / "samples.json") as temporary:
        temporary.write_text(json.dumps([sample.id for sample in run.samples]) + "\n")
    file = run.folder / RESULT
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return file


def read_result(path: str | pathlib.Path) -> tuple[dict[str, Any], pathlib.Path]:
    """The result of a run, and its folder.

    Args:
      path: of the folder, or of its result.json.

    Raises:
      UserError: there is no result, or it is something else.
    """
    path = pathlib.Path(path)
    file = path / RESULT if path.is_dir() else path
    result = read_json(file)
    if not isinstance(result, dict) or result.get("format") != _FORMAT or "figures" not in result:
        raise UserError(f"{file} is no result of an evaluation of this version")
    return result, file.parent


def table(result: Mapping[str, Any]) -> list[str]:
    """The figures as lines of text."""
    rows = [("figure", "value", "paper", "protocol")]
    for figure in result["figures"]:
        paper = figure.get("paper")
        value = f"{figure['value']:.4f}" if figure["value"] is not None else "-"
        shown = "" if paper is None else f"{paper:g}"
        rows.append((figure["name"], value, shown, figure.get("error") or figure["protocol"]))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {value:>{widths[1]}}  {paper:>{widths[2]}}  {rest}".rstrip()
        for name, value, paper, rest in rows
    ]
    return [*notes(result), *lines]


def notes(result: Mapping[str, Any]) -> list[str]:
    """What is to be known about the figures, in one line each."""
    found = [f"{result['task']}: {result['title']}"]
    count = f"{result['samples']:,} samples, seed {result['seed']}"
    if subset := result["subset"]:
        count = f"a subset of {subset['limit']:,} of {subset['of']:,} samples, seed {result['seed']}"
    found.append(f"{count}; {result['protocol']}")
    if result["unanswered"]:
        first = result["errors"][0]
        found.append(
            f"{result['unanswered']:,} samples could not be answered and count as empty answers; "
            f"{first['id']}: {first['error']}"
        )
    return found
