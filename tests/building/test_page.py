"""The web page: what it shows, and that no text becomes markup."""

import base64
import html.parser
import json
import re
import tarfile
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextgpt_jax.building.page import write_page
from nextgpt_jax.cli import view
from nextgpt_jax.cli.flags import run_command


class Parsed(html.parser.HTMLParser):
    """Attributes: `tags`: (name, attributes) in order, `texts`: of the elements h2, p, figcaption."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.stack = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.stack.append(tag)
        if tag in ("h2", "p", "figcaption"):
            self.texts.append("")

    def handle_endtag(self, tag):
        while self.stack.pop() != tag:
            pass

    def handle_data(self, text):
        if self.stack and self.stack[-1] in ("h2", "p", "b", "figcaption"):
            self.texts[-1] += text

    def sources(self):
        return {tag: attributes["src"] for tag, attributes in self.tags if "src" in attributes}


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def page_of(folder, records, name="data.json", **options):
    (folder / name).write_text(json.dumps(records))
    options = {"media_root": "", "limit": 0, "seed": 0, "embed": False} | options
    written = write_page(folder / "page.html", str(folder / name), **options)
    return written, Parsed((folder / "page.html").read_text())


def test_media_turns_and_problems(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "images" / "a & b#1.png")
    for name in ("c.mp4", "d.wav", "e.npy"):
        (tmp_path / name).write_bytes(b"bytes")
    record = {
        "conversations": turns("<image><video>\nwhat?", "two <b>dogs</b>", "<audio><imu><image>", "Sure. <video>"),
        "input_images": ["a & b#1.png", "gone.png"], "input_videos": "c.mp4", "input_audios": "d.wav",
        "input_imu": "e.npy", "video_captions": ["a dog's \"walk\""],
    }  # fmt: skip
    written, page = page_of(tmp_path, [record, {"image_name": "a & b#1.png", "caption": "a dog"}, {"image_nam": "x"}])
    assert written == (3, 3, 1)
    assert {tag: unquote(src) for tag, src in page.sources().items()} == {
        "img": "images/a & b#1.png", "video": "c.mp4", "audio": "d.wav",
    }  # fmt: skip
    named = ("image: images/gone.png (missing)", "imu: e.npy", 'video a dog\'s "walk"')
    for text in ("two <b>dogs</b>", "what?", "a dog", *named):
        assert text in page.texts
    assert "unknown field 'image_nam'; did you mean image_name?" in page.texts
    assert (
        "3 of 3 records; 1 cannot be used: 1 audio in, 3 image in, 1 imu in, 3 turns, 1 video in, 1 video out"
        in page.texts
    )
    assert not {"script", "iframe", "link"} & {tag for tag, _ in page.tags}


def test_media_in_the_page(tmp_path):
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    expected = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    _, page = page_of(tmp_path, [{"image_name": "a.png", "caption": "x"}], embed=True)
    assert page.sources() == {"img": expected}
    (tmp_path / "a.txt").write_text("a dot")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("a.png", "a.txt"):
            archive.add(tmp_path / name, name)
    write_page(tmp_path / "page.html", str(tmp_path / "a.tar"), "", 0, 0, False)
    page = Parsed((tmp_path / "page.html").read_text())
    assert page.sources() == {"img": expected} and "a dot" in page.texts


def test_a_part_of_a_large_file(tmp_path):
    records = [{"conversations": turns(f"question {i}", "answer")} for i in range(50)]
    shown = []
    for seed in (0, 0, 1):
        written, page = page_of(tmp_path, records, limit=5, seed=seed)
        assert written == (5, 50, 0)
        shown.append([text for text in page.texts if text.startswith("question")])
    assert shown[0] == shown[1] != shown[2]
    numbers = [int(text.split()[1]) for text in shown[0]]
    assert numbers == sorted(numbers)


@settings(max_examples=40)
@given(st.lists(st.text(st.sampled_from("<>/\"'&=;#-!ab \n\0\x1b\u2028é]")) | st.text(), min_size=3, max_size=3))
def test_no_text_becomes_markup(tmp_path_factory, texts):
    """The elements are those of a plain text, and each text comes back from its element."""
    folder = tmp_path_factory.mktemp("page")
    texts = [re.sub("<(image|video|audio|depth|thermal|imu)>", "", text).strip() or "x" for text in texts]

    def page(question, answer, caption):
        record = {"conversations": turns(question, f"{answer} <image>"), "image_captions": [caption]}
        return page_of(folder, [record])[1]

    plain, found = page("x", "y", "z"), page(*texts)
    assert found.tags == plain.tags
    question, answer, caption = (
        re.sub("[^\n\t\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]", "\ufffd", text) for text in texts
    )
    assert found.texts[-3:] == [question, answer, f"image {caption}"]


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "give the file first: nextgpt prepare view FILE"),
        (["--output={d}/p.html", "{f}"], "give the file first"),
        (["{f}"], "--output=PAGE.html is missing"),
        (["{f}", "--output=page.txt"], "page.txt is no .html"),
        (["{f}", "--output={d}/p.html", "--limit=-1"], "--limit=-1: give 0 or more"),
        (["{d}/none.json", "--output={d}/p.html"], "no such file"),
        (["{f}", "{f}", "--output={d}/p.html"], "unexpected argument"),
    ],
)
def test_mistakes(argv, message, tmp_path, capsys):
    (tmp_path / "f.json").write_text('[{"caption": "x", "image_name": "y"}]')
    argv = [arg.format(f=tmp_path / "f.json", d=tmp_path) for arg in argv]
    assert run_command(view.main, ["view", *argv]) == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "p.html").exists()


def test_the_command(tmp_path, capsys):
    (tmp_path / "f.json").write_text('[{"caption": "x", "image_name": "y"}]')
    assert not run_command(view.main, ["view", str(tmp_path / "f.json"), f"--output={tmp_path / 'p.html'}"])
    assert re.match(r".*p.html: 1 of 1 records, \d+ KB\n", capsys.readouterr().out)
