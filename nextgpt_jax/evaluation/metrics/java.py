"""METEOR and SPICE, which are Java programs: those of an installed pycocoevalcap are run.

Where Java or a file is missing, `measure` raises UserError, which says what to install; a run goes on with its other
metrics and reports that this one was not computed.
"""

import importlib.util
import json
import math
import pathlib
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.metrics.captions import Cider, references
from nextgpt_jax.evaluation.metrics.ptb import tokenize
from nextgpt_jax.evaluation.types import Outcome, Sample

_UTF8 = "-Dfile.encoding=UTF-8"
# METEOR 1.5 for English, task "rank": the weights of exact matches, stems, synonyms and paraphrases, and parameters.
_STAGES = np.array([1.0, 0.6, 0.8, 0.6])
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_STATISTICS = 23
_MODELS = "stanford-corenlp-3.6.0"


def _java() -> str:
    found = shutil.which("java")
    if found is None:
        raise UserError("Java is missing: install a Java runtime (apt-get install default-jre-headless)")
    return found


def _folder(name: str) -> pathlib.Path:
    """A folder of pycocoevalcap."""
    try:
        spec = importlib.util.find_spec("pycocoevalcap")
    except (ImportError, ValueError):
        spec = None
    for place in spec.submodule_search_locations or () if spec else ():
        if (folder := pathlib.Path(place) / name).is_dir():
            return folder
    raise UserError("its Java program is missing: pip install 'nextgpt-jax[captions]'")


def _reason(output: str) -> str:
    """The line of a Java program's messages that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "Exception" in line or "Error" in line), lines[0] if lines else "no message")


class Meteor:
    """METEOR 1.5 of the corpus, as pycocoevalcap computes it.

    The numbers of an outcome are the statistics of the reference that fits best; figures are computed from their sums
    here, so that two runs can be compared without Java.
    """

    name = "meteor"
    protocol = "METEOR 1.5, English, normalized text; PTB tokens without punctuation, in lower case"
    higher_is_better = True

    def __init__(self, samples: Sequence[Sample] = (), scale: float = 100.0):
        """
        Args:
          scale: figures are multiplied with it; 100: percent.
        """
        self._scale = scale
        self._process: subprocess.Popen[str] | None = None

    def measure(self, outcomes: Sequence[Outcome]) -> Float[np.ndarray, "n 23"]:
        """Statistics.

        Raises:
          UserError: Java or the program is missing, or it fails.
        """
        return np.array([self._statistics(outcome) for outcome in outcomes], np.float64).reshape(-1, _STATISTICS)

    def _statistics(self, outcome: Outcome) -> list[float]:
        answer = tokenize(outcome.text).replace("|||", "").replace("  ", " ")
        line = self._ask(" ||| ".join(["SCORE", *references(outcome.sample), answer]))
        try:
            found = [float(number) for number in line.split()]
        except ValueError:
            found = []
        if len(found) != _STATISTICS:
            raise UserError(f"METEOR's Java program gives other numbers than version 1.5: {line[:80]!r}")
        return found

    def _ask(self, line: str) -> str:
        process = self._process or self._start()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = process.stdout.readline()
        if not answer:
            self._messages.seek(0)
            raise UserError(f"METEOR's Java program ended: {_reason(self._messages.read().decode(errors='replace'))}")
        return answer

    def _start(self) -> subprocess.Popen[str]:
        folder = _folder("meteor")
        command = [_java(), _UTF8, "-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
        self._messages = tempfile.TemporaryFile()
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, cwd=folder, stdin=pipe, stdout=pipe, stderr=self._messages, text=True, encoding="utf-8"
        )
        weakref.finalize(self, _end, self._process)
        return self._process

    def aggregate(self, numbers: Float[np.ndarray, "n 23"]) -> dict[str, float]:
        """METEOR."""
        return {"METEOR": self._scale * float(_meteor(np.sum(numbers, 0, dtype=np.float64, keepdims=True))[0])}

    def scores(self, numbers: Float[np.ndarray, "n 23"]) -> Float[np.ndarray, " n"]:
        """METEOR of each outcome."""
        return self._scale * _meteor(np.asarray(numbers, np.float64))


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _meteor(numbers: Float[np.ndarray, "n 23"]) -> Float[np.ndarray, " n"]:
    """Denkowski & Lavie (2014): the harmonic mean of weighted precision and recall, less the penalty of fragments."""
    lengths, function_words = numbers[:, 0:2], numbers[:, 2:4]  # of the answer and of the reference
    stages = numbers[:, 4:20].reshape(-1, 4, 2, 2)  # stage, content or function words, answer or reference
    chunks, words = numbers[:, 20], numbers[:, 21:23]
    kinds = np.array([_DELTA, 1 - _DELTA])
    matched = np.einsum("nska,s,k->na", stages, _STAGES, kinds)
    total = _DELTA * (lengths - function_words) + (1 - _DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.nan_to_num(matched / total).T
        mean = np.nan_to_num(precision * recall / (_ALPHA * precision + (1 - _ALPHA) * recall))
        fragments = np.nan_to_num(chunks / words.mean(1))
    same = (chunks == 1) & (words == lengths).all(1)
    return mean * (1 - _GAMMA * np.where(same, 0.0, fragments) ** _BETA)


class Spice:
    """SPICE, the mean F of propositions, as pycocoevalcap computes it. The numbers of an outcome are its F."""

    name = "spice"
    protocol = "SPICE 1.0; PTB tokens without punctuation, in lower case"
    higher_is_better = True

    def __init__(self, samples: Sequence[Sample] = (), scale: float = 100.0):
        """
        Args:
          scale: figures are multiplied with it; 100: percent.
        """
        self._scale = scale

    def measure(self, outcomes: Sequence[Outcome]) -> Float[np.ndarray, "n 1"]:
        """F of each.

        Raises:
          UserError: Java, the program or its models are missing, or it fails.
        """
        return np.array(_spice(outcomes), np.float64).reshape(-1, 1)

    def aggregate(self, numbers: Float[np.ndarray, "n 1"]) -> dict[str, float]:
        """The mean."""
        return {"SPICE": self._scale * float(np.mean(numbers))}

    def scores(self, numbers: Float[np.ndarray, "n 1"]) -> Float[np.ndarray, " n"]:
        """F of each outcome."""
        return self._scale * np.asarray(numbers[:, 0], np.float64)


class Spider:
    """SPIDEr, the mean of SPICE and CIDEr-D (Liu et al., 2017), as the evaluations of AudioCaps and DCASE compute it:
    both from pycocoevalcap, whose CIDEr is CIDEr-D. The numbers of an outcome are its SPICE and its CIDEr-D."""

    name = "spider"
    protocol = "mean of SPICE 1.0 and CIDEr-D, document frequencies of the run's references; PTB tokens"
    higher_is_better = True

    def __init__(self, samples: Sequence[Sample], scale: float = 1.0):
        """
        Args:
          samples: all of the run.
          scale: figures are multiplied with it; 1: as in tables of AudioCaps.
        """
        self._scale, self._cider = scale, Cider(samples, scale=1.0)

    def measure(self, outcomes: Sequence[Outcome]) -> Float[np.ndarray, "n 2"]:
        """SPICE and CIDEr-D of each. Raises UserError as `Spice.measure` does."""
        return np.stack([_spice(outcomes), [self._cider.score(outcome) for outcome in outcomes]], 1)

    def aggregate(self, numbers: Float[np.ndarray, "n 2"]) -> dict[str, float]:
        """SPIDEr and SPICE."""
        spice, cider = np.mean(numbers, 0)
        return {"SPIDEr": self._scale * float(spice + cider) / 2, "SPICE": self._scale * float(spice)}

    def scores(self, numbers: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
        """SPIDEr of each outcome."""
        return self._scale * np.asarray(numbers, np.float64).mean(1)


def _spice(outcomes: Sequence[Outcome]) -> list[float]:
    """SPICE's F of each outcome, from 0 to 1."""
    folder, java = _folder("spice"), _java()
    if lacking := [
        name for name in (f"{_MODELS}.jar", f"{_MODELS}-models.jar") if not (folder / "lib" / name).is_file()
    ]:
        raise UserError(
            f"{folder / 'lib' / lacking[0]} is missing: python -m pycocoevalcap.spice.get_stanford_models "
            "downloads Stanford CoreNLP 3.6.0 (0.5 GB)"
        )
    items = [
        {"image_id": index, "test": tokenize(outcome.text), "refs": references(outcome.sample)}
        for index, outcome in enumerate(outcomes)
    ]
    with tempfile.TemporaryDirectory() as temporary:
        given, made = pathlib.Path(temporary) / "in.json", pathlib.Path(temporary) / "out.json"
        given.write_text(json.dumps(items))
        command = [java, _UTF8, "-Xmx8G", "-jar", "spice-1.0.jar", given, "-out", made, "-subset", "-silent"]
        done = subprocess.run(command, cwd=folder, capture_output=True)
        try:
            found = {row["image_id"]: float(row["scores"]["All"]["f"]) for row in json.loads(made.read_bytes())}
            scores = [found[index] for index in range(len(outcomes))]
        except (OSError, ValueError, LookupError, TypeError):
            reason = _reason((done.stderr + done.stdout).decode(errors="replace"))
            raise UserError(f"SPICE's Java program failed: {reason}") from None
    if any(math.isnan(score) for score in scores):
        raise UserError("SPICE's Java program gives a score that is no number")
    return scores
