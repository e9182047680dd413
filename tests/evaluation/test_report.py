"""The report of a run: one file, without a network."""

import base64
import html.parser
import re

import numpy as np
import pytest

from nextgpt_jax import media
from nextgpt_jax.evaluation.embedding import Embedder
from nextgpt_jax.evaluation.measuring import Measured
from nextgpt_jax.evaluation.report import write_report
from nextgpt_jax.evaluation.types import Outcome, Sample
from tests.evaluation.small import Length, NeedsJava

EVIL = '<script src="https://evil.example/x.js"></script>\x1b[31m'


class Page(html.parser.HTMLParser):
    """The tags of a page, their addresses and its text."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.addresses, self.text, self._open = [], [], "", []
        self.feed(content)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "poster")]
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def outcomes(tmp_path):
    media.write("image", tmp_path / "small.png", np.full((8, 8, 3), 90, np.uint8))
    media.write("image", tmp_path / "large.png", np.random.default_rng(0).integers(0, 255, (400, 300, 3), np.uint8))
    media.write("video", tmp_path / "a.mp4", media.Video(np.zeros((4, 16, 16, 3), np.uint8), 4.0))
    media.write("audio", tmp_path / "a.wav", media.Audio(np.zeros(800, np.float32), 8000))
    (tmp_path / "x.npy").write_bytes(b"0")
    files = {name: [tmp_path / name] for name in ("small.png", "large.png", "a.mp4", "a.wav", "x.npy")}
    made = {"image": files["small.png"], "video": files["a.mp4"], "audio": files["a.wav"]}
    found = [Outcome(Sample(f"s{i}", f"prompt {i}"), "x" * i) for i in range(40)]
    found[0] = Outcome(
        Sample("<0>", EVIL, {"image": files["large.png"], "depth": files["x.npy"]}, {"captions": [EVIL, "b"]}),
        EVIL,
        made,
    )
    return found


def test_a_report(outcomes, tmp_path):
    np.save(tmp_path / "length.npy", np.array([[len(o.text) * 1.0, 0] for o in outcomes]))
    figures = [
        {"name": "Length", "value": 3.25, "paper": None, "count": 40, "protocol": "characters"},
        {"name": "FID", "value": 12.0, "paper": 11.28, "count": 40, "protocol": EVIL},
        {"name": "SPICE", "value": None, "error": "not computed: java is not installed"},
    ]
    result = {
        "task": "small", "title": EVIL, "protocol": "40 prompts", "differences": "none", "samples": 40,
        "subset": {"limit": 40, "of": 100, "seed": 0}, "unanswered": 1, "errors": [{"id": "s3", "error": EVIL}],
        "figures": figures, "date": "2026", "seed": 0, "config_hash": "0", "weights": {"llm": "1"}, "versions": {},
    }  # fmt: skip
    measured = [Measured(Length(), {"Length": 3.25}, numbers=tmp_path / "length.npy"), Measured(NeedsJava(), {}, "no")]
    content = write_report(tmp_path, result, measured, outcomes.__getitem__, {3: EVIL}).read_text()
    page = Page(content)
    assert "script" not in page.tags and "\x1b" not in content
    assert page.addresses and all(address.startswith("data:") for address in page.addresses)
    assert "default-src 'none'" in content
    assert {"img", "video", "audio"} <= set(page.tags)
    for wanted in ("a subset of 40 of 100", "11.28", "not computed: java is not installed", "x.npy (cannot be shown)"):
        assert wanted in page.text, wanted
    assert "not answered: <script" in page.text and "evil.example" in page.text
    best = page.text[page.text.index("Best by") : page.text.index("Worst by")]
    worst = page.text[page.text.index("Worst by") : page.text.index("24 of 40")]
    assert "<0>" in best and re.findall(r"\bs\d+\b", best) == ["s39", "s38", "s37", "s36", "s35"]  # <0> is long
    assert re.findall(r"\bs\d+\b", worst) == ["s1", "s2", "s3", "s4", "s5", "s6"]


def test_what_is_embedded_is_bounded(outcomes):
    (large,), (small,) = outcomes[0].sample.inputs["image"], outcomes[0].media["image"]
    embed = Embedder(budget=40_000)
    shown = embed(large)
    assert shown.startswith("<img") and len(shown) < 60_000
    assert base64.b64decode(Embedder()(small).partition("base64,")[2].partition('"')[0]).startswith(b"\x89PNG")
    embed = Embedder(budget=10)
    assert "not embedded" in embed(small) and "small.png" in embed(small)
    assert "cannot be shown" in embed(small.with_name("none.png"))
