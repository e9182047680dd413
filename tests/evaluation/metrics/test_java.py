"""METEOR, SPICE and SPIDEr: what is asked of the Java programs, and what is made of their numbers."""

import os
import sys

import numpy as np
import pytest

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.metrics.captions import Cider
from nextgpt_jax.evaluation.metrics.java import Meteor, Spice, Spider
from nextgpt_jax.evaluation.types import Outcome, Sample

# What meteor-1.5.jar gives for SCORE lines, and then for EVAL.
STATISTICS = {
    "SCORE ||| a man speaks ||| a man talks loudly ||| a man is speaking loudly":
        "5.0 4.0 2.0 1.0 2.0 2.0 1.0 1.0 0.0 0.0 0.0 0.0 1.0 1.0 0.0 0.0 0.0 0.0 0.0 0.0 2.0 4.0 4.0",
    "SCORE ||| the cat sits on the mat ||| the cat sat on a mat":
        "6.0 6.0 3.0 3.0 2.0 2.0 2.0 2.0 0.0 0.0 0.0 0.0 1.0 1.0 0.0 0.0 0.0 0.0 0.0 0.0 2.0 5.0 5.0",
    "SCORE ||| a dog ||| ": " ".join(["0.0 2.0 0.0 1.0", *["0.0"] * 19]),
    "SCORE ||| the quick brown fox jumps ||| a fast brown fox leaps over ||| the fast fox jumped over the dog":
        "7.0 6.0 3.0 2.0 2.0 2.0 1.0 1.0 0.0 0.0 0.0 0.0 1.0 1.0 0.0 0.0 0.0 0.0 0.0 0.0 2.0 4.0 4.0",
}  # fmt: skip
SCORES = [0.44237387418816354, 0.4337389988176927, 0.0, 0.31732118890529054]
OUTCOMES = [
    Outcome(Sample(str(number), "", references={"captions": captions}), answer)
    for number, (captions, answer) in enumerate(
        [
            (("A man speaks.", "A man talks loudly"), "A man is speaking, loudly!"),
            (("The cat sits on the mat.",), "the cat sat on a mat"),
            (("a dog",), ""),
            (("The quick brown fox jumps", "A fast brown fox leaps over"), "The fast fox jumped over the dog."),
        ]
    )
]

JAVA = f"""#!{sys.executable}
import json, pathlib, sys
if "meteor-1.5.jar" in sys.argv:
    known = {STATISTICS!r}
    for line in sys.stdin:
        answer = known.get(line.rstrip("\\n"))
        if answer is None:
            sys.exit("starting\\nException in thread main: unknown " + line)
        print(answer, flush=True)
else:
    given, made = (pathlib.Path(sys.argv[sys.argv.index(name) + 1]) for name in ("spice-1.0.jar", "-out"))
    items = json.loads(given.read_text())
    if any(item["test"] == "fail" for item in items):
        sys.exit("java.lang.OutOfMemoryError: Java heap space")
    rows = [dict(image_id=item["image_id"], scores=dict(All=dict(f=len(item["test"]) / 100))) for item in items]
    made.write_text(json.dumps(rows[::-1]))
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The folder of a pycocoevalcap with all files, and a Java that answers like its programs."""
    lib = tmp_path / "pycocoevalcap" / "spice" / "lib"
    lib.mkdir(parents=True)
    (tmp_path / "pycocoevalcap" / "meteor").mkdir()
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (lib / name).touch()
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text(JAVA)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent) + os.pathsep + os.environ["PATH"])
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "pycocoevalcap"


def test_meteor_of_the_corpus_and_of_each_answer(package):
    metric = Meteor(scale=1)
    numbers = np.concatenate([metric.measure(OUTCOMES[:1]), metric.measure(OUTCOMES[1:])])
    np.testing.assert_allclose(metric.scores(numbers), SCORES, rtol=1e-12)
    lines = [np.array(line.split(), float) for line in STATISTICS.values()]
    np.testing.assert_array_equal(numbers, lines)
    unlike = np.zeros((2, 23))  # "cat", whose references are "a dog" and ""
    unlike[:, 0], unlike[0, 1], unlike[0, 3] = 1, 2, 1
    figures = metric.aggregate(np.concatenate([numbers, unlike]))
    assert figures == {"METEOR": pytest.approx(0.3225039359349113, rel=1e-12)}  # what EVAL gives for all six


def test_spice_and_spider(package):
    lengths = np.array([24, 20, 0, 32]) / 100
    metric = Spice()
    numbers = metric.measure(OUTCOMES)
    np.testing.assert_allclose(metric.scores(numbers), 100 * lengths)
    assert metric.aggregate(numbers) == {"SPICE": pytest.approx(100 * lengths.mean())}
    samples = [outcome.sample for outcome in OUTCOMES]
    spider, cider = Spider(samples), Cider(samples, scale=1)
    numbers = spider.measure(OUTCOMES)
    mean = cider.aggregate(cider.measure(OUTCOMES))["CIDEr"]
    figures = spider.aggregate(numbers)
    assert figures == {"SPIDEr": pytest.approx((mean + lengths.mean()) / 2), "SPICE": pytest.approx(lengths.mean())}
    assert spider.scores(numbers).mean() == pytest.approx(figures["SPIDEr"])


def test_what_is_missing_is_named(package, monkeypatch):
    (package / "spice" / "lib" / "stanford-corenlp-3.6.0-models.jar").unlink()
    with pytest.raises(UserError, match="3.6.0-models.jar is missing: python -m pycocoevalcap.spice"):
        Spice().measure(OUTCOMES)
    monkeypatch.setenv("PATH", "")
    for metric in (Meteor(), Spice()):
        with pytest.raises(UserError, match="^Java is missing: install a Java runtime"):
            metric.measure(OUTCOMES)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for metric in (Meteor(), Spice(), Spider([])):
        with pytest.raises(UserError, match=r"^its Java program is missing: pip install 'nextgpt-jax\[captions\]'"):
            metric.measure(OUTCOMES)


def test_failures_of_the_programs_are_told(package):
    other = Outcome(Sample("1", "", references={"captions": ("b",)}), "fail")
    with pytest.raises(UserError, match="METEOR's Java program ended: Exception in thread main: unknown SCORE"):
        Meteor().measure([other])
    with pytest.raises(UserError, match="SPICE's Java program failed: java.lang.OutOfMemoryError: Java heap space"):
        Spice().measure([other])


@pytest.mark.slow
def test_meteor_equals_pycocoevalcap():
    """With the Java program; 20 s."""
    original = pytest.importorskip("pycocoevalcap.meteor.meteor").Meteor()
    known = {o.sample.id: [caption.lower().strip(".") for caption in o.sample.references["captions"]] for o in OUTCOMES}
    answers = ["a man is speaking loudly", "the cat sat on a mat", "", "the fast fox jumped over the dog"]
    figure, each = original.compute_score(known, {o.sample.id: [text] for o, text in zip(OUTCOMES, answers)})
    metric = Meteor(scale=1)
    numbers = metric.measure(OUTCOMES)
    assert metric.aggregate(numbers)["METEOR"] == pytest.approx(figure, rel=1e-12)
    np.testing.assert_allclose(metric.scores(numbers), each, rtol=1e-12)
