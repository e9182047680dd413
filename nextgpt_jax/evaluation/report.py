"""RUN/report.html: the figures of a run and some of its samples, in one file that needs no network."""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nextgpt_jax.evaluation.embedding import Embedder, escape
from nextgpt_jax.evaluation.measuring import Measured, read_numbers
from nextgpt_jax.evaluation.results import notes
from nextgpt_jax.evaluation.types import Outcome
from nextgpt_jax.files import atomic_write

REPORT = "report.html"
_GRID = 24  # samples at equal distances
_EXTREMES = 6  # best and worst samples of a metric
_TEXTS = 5  # of a list of references
_CHARACTERS = 2000  # of a text

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ border-bottom: 1px solid #8884; padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }}
td.number {{ font-variant-numeric: tabular-nums; text-align: right; }}
.grid {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }}
.sample {{ border: 1px solid #8884; border-radius: .4rem; overflow-wrap: anywhere; padding: .7rem; }}
.sample p {{ margin: .3rem 0; white-space: pre-wrap; }}
.sample img, video, audio {{ margin: .2rem 0; max-width: 100%; }}
.sample img, .sample video {{ image-rendering: pixelated; min-width: 6rem; }}
.label {{ font-size: .8rem; opacity: .7; }}
.note {{ border-left: .3rem solid #c80; padding-left: .6rem; }}
</style>
</head>
<body>
"""


def write_report(
    folder: pathlib.Path,
    result: Mapping[str, Any],
    measured: Sequence[Measured],
    outcome: Callable[[int], Outcome],
    errors: Mapping[int, str],
) -> pathlib.Path:
    """Writes the report of a run.

    Args:
      folder: of the run.
      result: the content of result.json.
      outcome: gives the outcome of a sample by its index.
      errors: why samples could not be answered, by their index.
    """
    count, embed = result["samples"], Embedder()
    scored = {one.metric.name: scores for one in measured if (scores := _scores(one)) is not None}

    def cards(indices: Sequence[int]) -> str:
        return _grid([_card(outcome(i), errors.get(i, ""), _scores_of(scored, i), embed) for i in indices])

    parts = [_HEAD.format(title=escape(result["title"])), *_summary(result)]
    for one in measured:  # before the grid, so that media are embedded
        if one.metric.name in scored:
            best, worst = _extremes(scored[one.metric.name], one.metric.higher_is_better)
            title = escape(one.metric.name)
            parts += [f"<h2>Best by {title}</h2>", cards(best), f"<h2>Worst by {title}</h2>", cards(worst)]
    chosen = [i * count // min(count, _GRID) for i in range(min(count, _GRID))]
    parts += [f"<h2>{len(chosen)} of {count:,} samples</h2>", cards(chosen), *_provenance(result), "</body>\n</html>\n"]
    with atomic_write(folder / REPORT) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8", errors="backslashreplace")
    return folder / REPORT


def _scores(measured: Measured) -> np.ndarray | None:
    if measured.numbers is None or measured.error:
        return None
    scores = measured.metric.scores(read_numbers(measured.numbers))
    return None if scores is None else np.asarray(scores, np.float64)


def _scores_of(scored: Mapping[str, np.ndarray], index: int) -> dict[str, float]:
    return {name: float(scores[index]) for name, scores in scored.items()}


def _extremes(scores: np.ndarray, higher_is_better: bool) -> tuple[list[int], list[int]]:
    """The best samples, and the worst that are not among them; the first is the most extreme one."""
    known = np.flatnonzero(np.isfinite(scores))
    order = known[np.argsort(-scores[known] if higher_is_better else scores[known], kind="stable")].tolist()
    best = order[: min(_EXTREMES, -(-len(order) // 2))]
    return best, order[len(best) :][-_EXTREMES:][::-1]


def _summary(result: Mapping[str, Any]) -> list[str]:
    first, *rest = notes(result)
    kind = ' class="note"' if result["subset"] or result["unanswered"] else ""
    rows = "\n".join(map(_row, result["figures"]))
    found = [f"<h1>{escape(first)}</h1>", *(f"<p{kind}>{escape(line)}</p>" for line in rest)]
    if result["differences"]:
        found.append(f"<p>Known to differ from the paper: {escape(result['differences'])}</p>")
    found.append(
        "<table>\n<tr><th>Figure</th><th>Value</th><th>Paper</th><th>Samples</th><th>Protocol</th></tr>\n"
        f"{rows}\n</table>"
    )
    return found


def _row(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return f'<tr><td>{escape(figure["name"])}</td><td colspan="4">{escape(figure["error"])}</td></tr>'
    paper = "" if figure["paper"] is None else f"{figure['paper']:g}"
    numbers = [f"{figure['value']:.4f}", paper, f"{figure['count']:,}"]
    cells = "".join(f'<td class="number">{escape(number)}</td>' for number in numbers)
    return f"<tr><td>{escape(figure['name'])}</td>{cells}<td>{escape(figure['protocol'])}</td></tr>"


def _provenance(result: Mapping[str, Any]) -> list[str]:
    rows = {
        "date": result["date"],
        "seed": result["seed"],
        "config": f"{result['config_hash']} (result.json has its settings)",
        "weights": ", ".join(f"{part} {digest}" for part, digest in result["weights"].items()),
        "versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    }
    lines = "\n".join(f"<tr><th>{name}</th><td>{escape(str(value))}</td></tr>" for name, value in rows.items())
    return ["<h2>Made with</h2>", f"<table>\n{lines}\n</table>"]


def _grid(cards: Sequence[str]) -> str:
    return f'<div class="grid">\n{"".join(cards)}</div>'


def _card(outcome: Outcome, error: str, scores: Mapping[str, float], embed: Embedder) -> str:
    sample = outcome.sample
    category = f" ({sample.category})" if sample.category else ""
    parts = [f'<p class="label">{escape(sample.id + category)}</p>', _text(sample.prompt)]
    parts += [embed(path) for paths in sample.inputs.values() for path in paths]
    parts.append('<p class="label">answer</p>')
    parts += [_text(outcome.text)] if outcome.text else []
    parts += [embed(path) for paths in outcome.media.values() for path in paths]
    if error:
        parts.append(f'<p class="note">not answered: {escape(error)}</p>')
    for name, reference in sample.references.items():
        parts += _reference(name, reference, embed)
    if scores:
        shown = ", ".join(f"{name} {score:.4g}" for name, score in scores.items())
        parts.append(f'<p class="label">{escape(shown)}</p>')
    return f'<div class="sample">\n{chr(10).join(parts)}\n</div>\n'


def _text(text: str) -> str:
    return f"<p>{escape(text[:_CHARACTERS])}{'...' if len(text) > _CHARACTERS else ''}</p>"


def _reference(name: str, reference: Any, embed: Embedder) -> list[str]:
    """Texts and files; other references are not for people."""
    items = list(reference) if isinstance(reference, list | tuple) else [reference]
    shown = [
        embed(item) if isinstance(item, os.PathLike) else _text(str(item))
        for item in items[:_TEXTS]
        if isinstance(item, str | int | float | os.PathLike)
    ]
    return [f'<p class="label">{escape(name)}</p>', *shown] if shown else []
