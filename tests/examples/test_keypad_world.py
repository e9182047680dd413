import json
import random

import numpy as np
import pytest
from PIL import Image

from examples.keypad import language

pytest.importorskip("sklearn")
from examples.keypad import judge, prepare, world  # noqa: E402


@pytest.fixture(scope="module")
def training_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keypad") / "data"
    prepare.prepare(folder, conversations=3000)
    return folder


def _records(folder):
    return json.loads((folder / "instructions.json").read_text())


def _human(records):
    return [line["value"] for r in records for line in r["conversations"] if line["from"] == "human"]


def test_evaluation_prompts_are_not_in_the_training_text(training_set):
    held_out = language.held_out()
    assert len(held_out) == 10 * len(language.HELD_OUT_DRAWING) + len(language.HELD_OUT_QUESTIONS) + 30
    said = {language.normal(text.replace(language.IMAGE, "")) for text in _human(_records(training_set))}
    assert not said & held_out


def test_evaluation_prompts_use_words_of_the_training_text():
    rng = random.Random(0)
    turns = [turn for _ in range(20000) for turn in language.conversation(rng)]
    words = {word for turn in turns for word in language.normal(turn.human).split()}
    assert {word for prompt in language.held_out() for word in prompt.split()} <= words


def test_several_hundred_phrasings(training_set):
    """Counted with every digit replaced by the same word."""
    digit = {word: "one" for word in language.NUMBERS}
    kinds = {"drawn": set(), "seen": set(), "text": set()}
    for record in _records(training_set):
        kind = "drawn" if record["image_captions"] else "seen" if record["input_images"] else "text"
        for text in _human([record]):
            kinds[kind].add(" ".join(digit.get(w, w) for w in language.normal(text).split()))
    assert all(len(phrasings) > 300 for phrasings in kinds.values())


def test_marks_have_their_media(training_set):
    captions = {language.caption(digit) for digit in range(10)}
    for record in _records(training_set):
        speakers = [line["from"] for line in record["conversations"]]
        assert speakers == ["human", "gpt"] * (len(speakers) // 2)
        text = {who: [x["value"] for x in record["conversations"] if x["from"] == who] for who in ("human", "gpt")}
        assert sum(t.count(language.IMAGE) for t in text["human"]) == len(record["input_images"])
        assert sum(t.count(language.IMAGE) for t in text["gpt"]) == len(record["image_captions"])
        assert set(record["image_captions"]) <= captions
        assert all((training_set / "images" / name).is_file() for name in record["input_images"])


def test_text_only_turns_ask_for_no_picture():
    rng = random.Random(0)
    assert not any(turn.drawn or language.IMAGE in turn.gpt for turn in (language.talking(rng) for _ in range(2000)))


def test_held_out_scans_are_not_in_the_training_set(training_set):
    images, labels = world.scans()
    records = json.loads((training_set / "captions.json").read_text())
    files = sorted((training_set / "images").iterdir())
    assert [f.name for f in files] == [r["image_name"] for r in records]
    assert len(files) == 1437
    written = {np.asarray(Image.open(f)).tobytes() for f in files}
    assert not written & {image.tobytes() for image in images[world.HELD_OUT]}
    assert all(f.stem.endswith(str(d)) for f, d in zip(files, labels))
    assert all(r["caption"] in language.captions(int(r["image_name"][-5])) for r in records)


def test_preparing_again_gives_the_same_files(training_set, tmp_path):
    prepare.prepare(tmp_path / "data", conversations=3000)
    prepare.prepare(tmp_path / "data", conversations=3000)  # over what is there
    for name in ("captions.json", "instructions.json"):
        assert (tmp_path / "data" / name).read_bytes() == (training_set / name).read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_judge_reads_held_out_scans():
    images, labels = world.scans()
    right = judge.classify(images[world.HELD_OUT]) == labels[world.HELD_OUT]
    assert right.sum() >= 340


def test_augmentation_keeps_the_size_and_the_ink():
    ink = world.ink()[:16]
    other = world.augmented(ink, np.random.default_rng(0))
    assert other.shape == ink.shape and other.min() >= 0.0 and other.max() <= 1.0
    assert np.abs(other.mean((1, 2)) / ink.mean((1, 2)) - 1.0).max() < 0.5
    still = world.augmented(ink, np.random.default_rng(0), strength=0.0)
    assert np.abs(still - ink).max() < 1e-4
