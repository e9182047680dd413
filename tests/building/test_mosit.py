"""MosIT conversations: topics, patterns, matching, both ways of writing, and what training makes of them."""

import json
import os
import random
import re

import numpy as np
import pytest

import nextgpt_jax as ng
from examples.keypad import world
from nextgpt_jax.building.captions import Caption, read_library
from nextgpt_jax.building.matching import EmbeddedLibrary, WordLibrary, words
from nextgpt_jax.building.mosit import conversation_problem, make_plans, questions
from nextgpt_jax.building.mosit_templates import write_turns
from nextgpt_jax.building.topics import PATTERNS, TOPICS, parse_pattern, read_patterns, read_topics
from nextgpt_jax.chat.client import Rejected
from nextgpt_jax.cli import build_mosit, export_data
from nextgpt_jax.cli.flags import run_command
from nextgpt_jax.data.readers import read_samples
from nextgpt_jax.data.survey import survey
from nextgpt_jax.errors import UserError
from nextgpt_jax.media import write
from nextgpt_jax.prompts import Input, Output, Turn
from tests.chat.server import completion, serving

SUBJECTS = ("a dog on the beach", "rain in the forest", "an old train", "children at school", "a red flower", "waves")
ANY = ("--topics=library", "--min_similarity=0")  # any medium goes with any topic


@pytest.fixture
def library(tmp_path):
    """A file with 6 captioned files of each of three modalities, and rows that cannot be used."""
    rows = []
    for name, suffix in (("image", "jpg"), ("video", "mp4"), ("audio", "wav")):
        (tmp_path / f"{name}s").mkdir()
        for i, subject in enumerate(SUBJECTS):
            (tmp_path / f"{name}s" / f"{i}.{suffix}").write_bytes(b"x")
            rows.append({f"{name}_name": f"{i}.{suffix}", "caption": f"{subject} ({name})"})
    rows += [{"image_name": "gone.jpg", "caption": "nothing"}, {"image_name": "0.jpg", "caption": ""}]
    (tmp_path / "library.json").write_text(json.dumps(rows))
    return tmp_path / "library.json"


def build(*argv):
    return run_command(build_mosit.main, ["nextgpt prepare mosit", *argv])


def conversations(path):
    samples = read_samples("conversation", str(path))
    assert not survey(samples, 8).problems
    return list(samples)


def pattern_of(conversation):
    names = lambda segments: "+".join(s.modality for s in segments if not isinstance(s, str)) or "text"  # noqa: E731
    return ", ".join(f"{names(turn.human)}>{names(turn.assistant)}" for turn in conversation)


def test_the_library(library):
    found = read_library(str(library))
    assert len(found.captions) == 18 and found.skipped == {"missing": 1, "empty": 1}
    assert "no such image: " in found.examples[0] and found.captions[0].path.is_file()


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_templates_build_what_trains(library, tmp_path, suffix, capsys):
    path = tmp_path / "built" / f"mosit.{suffix}"
    assert not build(f"--library={library}", f"--output={path}", *ANY, "--number=60")
    shown = capsys.readouterr().out
    assert "18 media: 2 skipped" in shown and "similarities of their media" in shown
    found = conversations(path)
    assert len(found) > 40 and len({pattern_of(c) for c in found}) > 10
    assert {pattern_of(c) for c in found} <= set(PATTERNS)
    for conversation in found:
        assert conversation_problem(conversation) == ""
        for turn in conversation:
            for segment in turn.assistant:
                assert not isinstance(segment, Output) or segment.caption.startswith(SUBJECTS)
    again = tmp_path / "built" / "again.json"
    assert not build(f"--library={library}", f"--output={again}", *ANY, "--number=90")
    assert conversations(again)[: len(found)] == found
    assert not build(f"--library={library}", f"--output={again}", "--overwrite", *ANY, "--number=60", "--seed=1")
    assert conversations(again)[: len(found)] != found


def test_export_and_back(library, tmp_path):
    own, other = tmp_path / "own.json", tmp_path / "mosit.json"
    assert not build(f"--library={library}", f"--output={own}", *ANY, "--number=40")
    export_data.main(["export", str(own), f"--output={other}"])
    assert conversations(other) == conversations(own)
    for record in json.loads(other.read_text()):
        assert set(record) == {"image_list", "video_list", "audio_list", "conversation"}
        for message in record["conversation"]:
            names = re.findall(r"<(Image|Video|Audio)>(.*?)</\1>", message["value"])
            made = [re.fullmatch(r"mosit_([iva])_\d{7}_\d\d\.(jpg|mp4|wav)", name) for _, name in names]
            assert all(made) if message["from"] == "gpt" else not any(made)
    record = {"conversations": [{"from": "human", "value": "<depth> what?"}, {"from": "gpt", "value": "x"}],
              "input_depths": ["d.png"]}  # fmt: skip
    (tmp_path / "depth.json").write_text(json.dumps([record]))
    with pytest.raises(UserError, match="record 0: has depth, which the reference's MosIT has no list for"):
        export_data.main(["export", str(tmp_path / "depth.json"), f"--output={tmp_path / 'x.json'}"])
    assert not (tmp_path / "x.json").exists()


def test_patterns_and_topics(tmp_path):
    assert [str(pattern) for pattern in read_patterns("")] == list(PATTERNS) and len(set(PATTERNS)) == len(PATTERNS)
    assert {len(pattern.turns) for pattern in read_patterns("")} == {3, 4, 5, 6, 7}
    assert len(set(TOPICS)) == len(TOPICS) == len(read_topics(""))
    (tmp_path / "lines.txt").write_text("# mine\ntext > image+audio,imu>text , text>text\n\n")
    (pattern,) = read_patterns(str(tmp_path / "lines.txt"))
    assert str(pattern) == "text>image+audio, imu>text, text>text" and pattern.inputs() == {"imu"}
    assert read_topics("tea, a long walk,") == ["tea", "a long walk"]
    assert len(read_topics(str(tmp_path / "lines.txt"))) == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("image>text", "has 1 turns: give 3 to 7"), ("text>text, text>text, text>text", "has no medium"),
        ("image, text>text, text>text", "write turns as inputs>outputs"),
        ("text>imu, text>text, text>text", "'imu' is not one of text, image, video, audio"),
        ("imagge>text, text>text, text>text", "'imagge' is not one of .*did you mean image"),
    ],
)  # fmt: skip
def test_wrong_patterns(text, message):
    with pytest.raises(UserError, match=message):
        parse_pattern(text)


def test_words_find_media():
    captions = ["a dog runs on the beach", "Dogs bark", "a cat", "the beach at night, waves", "an office"]
    media = [Caption("image", text, None, str(i)) for i, text in enumerate(captions)]
    library = WordLibrary([*media, Caption("audio", "a dog", None, "")])
    near = library.nearest("dogs at the beach", "image", 5)
    assert [match.medium.source for match in near][:1] == ["0"] and near[-1].similarity == 0
    assert near == sorted(near, key=lambda match: -match.similarity) and len(near) == 5
    assert library.nearest("a dog", "audio", 5)[0].similarity == pytest.approx(1)
    assert library.nearest("a dog", "video", 5) == [] and library.modalities == {"image", "audio"}
    assert words("The dogs' glass, this year's") == ["dog", "glass", "year", "s"]


def test_imagebind_finds_media(tmp_path):
    """Embeddings are kept; files that have changed are read again, and those that cannot be read are left out."""
    imagebind = ng.ImageBind.from_pretrained("keypad")
    for digit in (0, 3, 7):
        tone = ng.Audio(world.tone(digit, np.random.default_rng(digit)), world.RATE)
        write("audio", tmp_path / f"{digit}.wav", tone)
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    media = [Caption("audio", "a tone", path, "") for path in sorted(tmp_path.glob("*.wav"))]
    cache, counts = tmp_path / "cache.npz", []
    library = EmbeddedLibrary(media, imagebind, "keypad", cache, lambda *numbers: counts.append(numbers))
    assert len(library.media) == 3 and "bad.wav" in library.unreadable[0] and counts == [(0, 4)]
    found = [library.nearest(f"the tone of key {word}", "audio", 3) for word in ("seven", "zero", "three")]
    assert [near[0].medium.path.stem for near in found] == ["7", "0", "3"]
    expected = imagebind.embed(audios=[tmp_path / "7.wav"], texts=["the tone of key seven"])
    seven, text = (v[0] / np.linalg.norm(v[0]) for v in expected.values())
    assert found[0][0].similarity == pytest.approx(seven @ text, abs=2e-3)

    counts.clear()
    again = EmbeddedLibrary(library.media, imagebind, "keypad", cache, lambda *numbers: counts.append(numbers))
    assert again.nearest("the tone of key seven", "audio", 3) == found[0] and not counts
    os.utime(tmp_path / "3.wav", (1, 1))
    EmbeddedLibrary(library.media, imagebind, "keypad", cache, lambda *numbers: counts.append(numbers))
    assert counts == [(2, 3)]
    cache.write_text("hello")
    with pytest.raises(UserError, match="cache.npz is no cache of embeddings"):
        EmbeddedLibrary(media, imagebind, "keypad", cache)


def answer(text, *made):
    return {"human": text, "assistant": f"Yes, {text}", "attachments": [{"kind": k, "description": d} for k, d in made]}


def reply(number, body):
    """What a good model answers: it reads what is asked for."""
    turns = []
    for line in body["messages"][-1]["content"].splitlines():
        if found := re.match(r"(\d+)\. The person attaches .*\. The assistant answers with text (.*)\.", line):
            kinds = [name for name in ("image", "video", "sound") if f" {name}" in found[2]]
            made = [("audio" if kind == "sound" else kind, f"{kind} number {found[1]} it is") for kind in kinds]
            turns.append(answer(f"message {found[1]}", *reversed(made)))
    return completion(json.dumps({"turns": turns}))


def test_an_endpoint_writes_them(library, tmp_path, capsys):
    path = tmp_path / "mosit.json"
    (tmp_path / "p.txt").write_text("image>text, text>image+audio, audio+image>video\n")
    with serving(lambda n, body: completion('{"turns": []}') if n == 0 else reply(n, body)) as server:
        argv = [f"--library={library}", f"--output={path}", *ANY, "--number=12",
                f"--patterns={tmp_path / 'p.txt'}", f"--endpoint={server.url}", "--model=m"]  # fmt: skip
        assert not build(*argv, "--dry_run") and not server.requests
        assert not build(*argv)
        shown = capsys.readouterr().out
        assert "questions to m at http://127.0.0.1" in shown and "rejected: 1 turns is too short" in shown
        asked = len(server.requests)
        assert not build(*argv, "--overwrite") and len(server.requests) == asked
    found = conversations(path)
    assert len(found) == asked - 1 > 4
    assert {pattern_of(c) for c in found} == {"image>text, text>image+audio, audio+image>video"}
    outputs = [s for turn in found[0] for s in turn.assistant if isinstance(s, Output)]
    assert outputs == [Output("image", "image number 2 it is"), Output("audio", "sound number 2 it is"),
                       Output("video", "video number 3 it is")]  # fmt: skip
    prompt = server.requests[0]["messages"][1]["content"]
    assert "The person attaches an image (it shows: " in prompt and "attaches an image and a sound." in prompt


GOOD = [answer("what is it?"), answer("draw it", ("image", "a dog that runs")), answer("and?")]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(), "turns is too short"),
        (lambda t: t.append(answer("more")), "turns is too long"),
        (lambda t: t[1].update(attachments=[]), "a turn with other attachments"),
        (lambda t: t[0].update(attachments=[{"kind": "image", "description": "a second dog"}]), "other attachments"),
        (lambda t: t[1]["attachments"][0].update(kind="depth"), "kind is 'depth', not one of"),
        (lambda t: t[1]["attachments"][0].update(description="a dog"), "description is too short"),
        (lambda t: t[1]["attachments"][0].update(description="see <image> there"), "a description has a tag"),
        (lambda t: t[2].update(human="What is it?"), "a message that repeats another"),
        (lambda t: t[2].update(assistant="I'm sorry, no"), "an answer is a refusal"),
        (lambda t: t[2].update(assistant="As an AI I cannot see it"), "an answer is a refusal"),
        (lambda t: t[2].update(human="   "), "a message is blank"),
        (lambda t: t[2].update(assistant="[IMG0]"), "an answer has a tag"),
        (lambda t: t[0].update(human="what is in the second picture?"), "a reference to a medium that is not there"),
        (lambda t: t[2].update(human="play the first sound"), "a reference to a medium that is not there"),
        (lambda t: t[2].update(extra=1), "an item of turns has unknown fields"),
        (lambda t: t[2].pop("human"), "an item of turns lacks human"),
    ],
)
def test_replies_that_do_not_fit(change, message, tmp_path):
    from nextgpt_jax.building.replies import check_schema

    library = WordLibrary([Caption("image", "a dog", tmp_path / "1.jpg", "")])
    plans = make_plans(library, ["dog"], [parse_pattern("image>text, text>image, text>text")], 1, 0.1, 0, False)
    (question,) = questions(plans.plans, tmp_path, 0)
    good = json.loads(json.dumps(GOOD))
    good[2]["assistant"] = "The second picture is mine."
    record = question.check({"turns": good})
    assert record["input_images"] == ["1.jpg"] and record["image_captions"] == ["a dog that runs"]
    change(turns := json.loads(json.dumps(GOOD)))
    with pytest.raises(Rejected, match=re.escape(message)):
        check_schema({"turns": turns}, question.schema)
        question.check({"turns": turns})


def test_plans_choose_near_and_different_media(tmp_path):
    media = [Caption("image", f"a dog and {i} cats", tmp_path / str(i), "") for i in range(3)]
    media.append(Caption("image", "a train", tmp_path / "x", ""))
    patterns = [parse_pattern("image+image>text, image>text, text>text")]
    made = make_plans(WordLibrary(media), ["dogs", "boats"], patterns, 40, 0.1, 0, False)
    assert made.plans and made.skipped == {"no image for 'boats'": 40 - len(made.plans)}
    for plan in made.plans:
        chosen = [medium for turn in plan.turns for medium in turn.inputs]
        assert len(set(chosen)) == 3 and media[3] not in chosen
    assert len(made.similarities) == 3 * len(made.plans) and min(made.similarities) >= 0.1


def test_templates_recall_the_right_medium():
    """Whatever is recalled is called by its number among those of its kind."""
    one, two, sound = (Caption(m, t, None, "") for m, t in (("image", "one dog"), ("image", "two"), ("audio", "tick")))
    for seed in range(60):
        turns = write_turns("x", [[one], [two, sound], [], []], [[], [], [], []], random.Random(seed))
        recalled = {"first picture": "ne dog", "second picture": "wo", "the sound": "ick"}
        for turn in turns[2:3]:
            assert any(name in turn.human and text in turn.model for name, text in recalled.items())


@pytest.mark.parametrize(
    "turns, problem",
    [
        ([Turn(("a",), ("b",))] * 2, "2 turns, not 3 to 7"), ([Turn(("a",), ("b",))] * 3, "no medium"),
        ([Turn((Input("image", "x"),), ("b",))] * 3, "a message without words"),
        ([Turn(("a",), ("b", Output("image", " ")))] * 3, "a medium without a caption"),
        ([Turn(("a",), ("b", Output("image", "c")))] * 3, ""),
    ],
)  # fmt: skip
def test_what_a_conversation_lacks(turns, problem):
    assert conversation_problem(tuple(turns)) == problem


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "--library=FILES is missing"),
        (["--library={l}"], "--output is missing"),
        (["--library={l}", "--output={o}", "--number=0"], "--number=0: give 1 or more"),
        (
            ["--library={l}", "--output={o}", "--topics=quasars"],
            "no topic has media in the library: give other --topics",
        ),
        (["--library={l}", "--output={o}", "--topics= ,"], "--topics: give topics with commas"),
        (["--library={l}", "--output={o}", "--topics=none.txt"], "no such file: none.txt"),
        (["--library={l}", "--output={o}", "--patterns={p}"], "has only audio, image, video, and no pattern goes with"),
        (["--library={l}", "--output={o}", "--imagebind={d}"], "imagebind"),
    ],
)
def test_mistakes(argv, message, library, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("imu>text, text>text, text>text")
    names = {"l": library, "o": tmp_path / "o.json", "p": tmp_path / "p.txt", "d": tmp_path / "images"}
    argv = [arg.format(**names) for arg in argv]
    assert build(*argv) == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "o.json").exists()
