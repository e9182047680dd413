"""The evaluation of the keypad model as a task: `nextgpt evaluate keypad --config=keypad`.

No training data is used: prompts come from language/held_out.py, inputs from the last 360 scans and new random tones,
and the judges (judge.py) were fit on real training scans only. All inputs and outputs go through files.
"""

import atexit
import collections
import functools
import itertools
import math
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from examples.keypad import judge, language, world
from examples.keypad.exhibits import Exhibits, judged
from examples.keypad.language import MODALITIES, Request
from examples.keypad.things import Thing
from examples.keypad.variations import VARIATIONS
from nextgpt_jax import media
from nextgpt_jax.config import EvalConfig
from nextgpt_jax.evaluation.metrics.frechet import Frechet
from nextgpt_jax.evaluation.types import Outcome, Sample, Task

READING, TALKING = "reading scans", "talking"
_DISTANCE = "FD of digits"
_COMPONENTS = 32  # of the features for it


def category(source: str, target: str) -> str:
    """Of the requests from one modality to another."""
    return f"{source} -> {target}"


def load(_: pathlib.Path) -> list[Sample]:
    """All samples, with files of held-out inputs that exist until the process ends."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="keypad-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return samples(folder)


def samples(folder: pathlib.Path, every: int = 1) -> list[Sample]:
    """The samples, with their inputs written below `folder`; of each category one out of `every`."""
    usual, varied = Exhibits(folder / "usual"), Exhibits(folder / "varied")
    return [
        _sample(f"{name}/{number:03d}", name, request, varied if variation else usual, variation)
        for name, variation, requests in _requests()
        for number, request in list(enumerate(requests))[::every]
    ]


def _requests() -> Iterator[tuple[str, str, list[Request]]]:
    """Categories, variations of their inputs, and requests. Answers of one kind follow each other."""
    for target, source in itertools.product(MODALITIES, MODALITIES):
        yield category(source, target), "", language.held_out_requests(source, target)
    yield READING, "", _scans()
    yield TALKING, "", [Request(prompt) for prompt in language.TEXT_ONLY]
    for modality, names in VARIATIONS.items():
        for variation in names:
            yield f"{modality}s, {variation}", variation, language.held_out_requests(modality, "text")


def _scans() -> list[Request]:
    """A question about each of the held-out scans."""
    labels = sorted(world.scans()[1][world.HELD_OUT].tolist())
    questions = itertools.cycle(language.HELD_OUT_QUESTIONS)
    marked = [(Thing("image", digit), f"{language.MARKS['image']}\n{next(questions)}") for digit in labels]
    return [Request(question, (thing,), answer=language.WORDS[thing.digit]) for thing, question in marked]


def _sample(name: str, category: str, request: Request, exhibits: Exhibits, variation: str) -> Sample:
    inputs: dict[str, list[pathlib.Path]] = {}
    for thing in request.seen:
        inputs.setdefault(thing.modality, []).append(exhibits.show(thing, variation))
    wanted = [language.caption(thing) for thing in request.made] or [request.answer or "no media"]
    return Sample(name, request.human, inputs, {"request": request, "wanted": wanted}, category=category)


class Right:
    """Whether answers are right: their media exactly the requested ones, as the judges read them, and their words
    accepted. The figures are shares in percent: of all, by what was to be made, and by category."""

    name, higher_is_better = "right", True
    protocol = "share in percent, read from files by judges that are no neural networks"

    def __init__(self, samples: Sequence[Sample]):
        self._categories = list(dict.fromkeys(sample.category for sample in samples))

    def measure(self, outcomes: Sequence[Outcome]) -> Float[np.ndarray, "n 6"]:
        """The category's number, right (1 or 0), and if asked for: words, digits, tones and motions (else NaN)."""
        return np.array([self._measured(outcome) for outcome in outcomes])

    def _measured(self, outcome: Outcome) -> tuple[float, ...]:
        request: Request = outcome.sample.references["request"]
        made = [judged(modality, path) for modality, paths in outcome.media.items() for path in paths]
        words = request.accepts(outcome.text)
        right = request.fulfilled(outcome.text, made)
        shares = [float(words) if request.answer is not None else math.nan]
        shares += [_share(modality, request, made) for modality in ("image", "audio", "video")]
        return (self._categories.index(outcome.sample.category), float(right), *shares)

    def aggregate(self, numbers: Float[np.ndarray, "n 6"]) -> dict[str, float]:
        """All shares that have samples."""
        numbers = np.asarray(numbers)
        columns = dict(zip(("right", "words", "digits", "tones", "motions"), numbers[:, 1:].T, strict=True))
        columns |= {name: numbers[numbers[:, 0] == i, 1] for i, name in enumerate(self._categories)}
        return {
            name: 100.0 * float(np.nanmean(values)) for name, values in columns.items() if not np.isnan(values).all()
        }

    def scores(self, numbers: Float[np.ndarray, "n 6"]) -> Float[np.ndarray, " n"]:
        """1 for right answers, 0 for others."""
        return numbers[:, 1]


def _share(modality: str, request: Request, made: Sequence[Thing | None]) -> float:
    """1 if all things of a modality that were asked for were made; of videos the direction counts."""
    key = (lambda thing: thing.direction) if modality == "video" else (lambda thing: str(thing.digit))
    wanted, found = ([key(t) for t in some if t and t.modality == modality] for some in (request.made, made))
    return float(sorted(wanted) == sorted(found)) if wanted else math.nan


@functools.cache
def _components() -> tuple[Float[np.ndarray, " 256"], Float[np.ndarray, "256 32"]]:
    """Mean and principal components of the judge's features of real training scans."""
    features = judge.features(world.scans()[0][world.TRAIN])
    mean = features.mean(0)
    return mean, np.linalg.svd(features - mean, full_matrices=False)[2][:_COMPONENTS].T


def digit_features(files: Sequence) -> Float[np.ndarray, "n 32"]:
    """Principal components of the judge's features of images."""
    mean, components = _components()
    return (judge.features(np.stack([media.read_image(file) for file in files])) - mean) @ components


class Digits(Frechet):
    """The Fréchet distance between drawn digits and the real ones that are held out."""

    def __init__(self, samples: Sequence[Sample]):
        super().__init__(
            digit_features,
            samples,
            width=_COMPONENTS,
            modality="image",
            references=_real_scans(),
            name="digits",
            figure=_DISTANCE,
            protocol=f"from the held-out scans, {_COMPONENTS} principal components of the judge's features",
        )

    def aggregate(self, numbers: Float[np.ndarray, "n s"]) -> dict[str, float]:
        """The distance alone: most answers have no image and need none."""
        return {_DISTANCE: super().aggregate(numbers)[_DISTANCE]}


@functools.cache
def _real_scans() -> pathlib.Path:
    """A folder with the held-out scans, until the process ends."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="keypad-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for number, image in enumerate(world.scans()[0][world.HELD_OUT]):
        media.write("image", folder / f"{number:03d}.png", image)
    return folder


def metrics(samples: Sequence[Sample], _: EvalConfig) -> list:
    """Shares of right answers, and the distance of drawn digits, if there are any to be drawn."""
    drawn = any(thing.modality == "image" for sample in samples for thing in sample.references["request"].made)
    return [Right(samples), *([Digits(samples)] if drawn else [])]


def table(figures: Mapping[str, float], samples: Sequence[Sample]) -> list[str]:
    """Right answers of all: a row per input modality, a column per output modality; then the other categories."""
    counts = collections.Counter(sample.category for sample in samples)

    def share(name: str) -> str:
        return f"{round(figures[name] * counts[name] / 100)} of {counts[name]}" if name in figures else "-"

    lines = ["correct / total    " + "".join(f"-> {target:<10}" for target in MODALITIES)]
    for source in MODALITIES:
        lines.append(f"{source:>16}   " + "".join(f"{share(category(source, target)):<13}" for target in MODALITIES))
    others = [READING, *(f"{modality}s, {name}" for modality, names in VARIATIONS.items() for name in names)]
    lines += [f"{name}: {share(name)} are named correctly" for name in others if name in figures]
    if TALKING in figures:
        lines.append(f"{TALKING}: {share(TALKING)} answers to text-only prompts have no media")
    return [line.rstrip() for line in lines]


TASKS = {
    "keypad": Task(
        name="keypad",
        title="the keypad world: any of text, images, videos and audio to any, and media as people bring them",
        layout={},
        load=load,
        metrics=metrics,
        options={},
        paper={},
        protocol="held-out prompts, scans and tones (docs/keypad.md)",
        table=table,
    )
}
