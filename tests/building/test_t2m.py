"""T2M records by templates and by an endpoint, and what training makes of them."""

import collections
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.building.captions import Caption, read_captions
from nextgpt_jax.building.records import usable_records
from nextgpt_jax.building.t2m import from_templates, mentions, record_of
from nextgpt_jax.building.t2m_templates import PIECES, request_and_reply, tidy
from nextgpt_jax.cli import build_t2m, export_data
from nextgpt_jax.cli.flags import run_command
from nextgpt_jax.data.readers import read_samples
from nextgpt_jax.data.survey import survey
from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import output_modalities
from nextgpt_jax.prompts import Output
from tests.chat.server import completion, failure, serving

RAIN = 'rain on a roof and a man who says "well"'


def build(*argv):
    return run_command(build_t2m.main, ["nextgpt prepare t2m", *argv])


def outputs(path):
    """The outputs of each conversation of a file, as stage 3 reads it."""
    samples = read_samples("conversation", str(path))
    found = survey(samples, 8)
    assert not found.problems and found.inputs == {}
    return [[s for turn in sample for s in turn.assistant if isinstance(s, Output)] for sample in samples]


def test_captions(captions):
    found = read_captions(str(captions))
    assert [(c.modality, c.text) for c in found.captions] == [
        ("image", "a red lighthouse on a cliff ."), ("video", "A boy flies a kite on the beach"), ("audio", RAIN),
    ]  # fmt: skip
    assert found.skipped == {"empty": 1, "with a mark in them": 1, "repeated": 1, "unusable": 1}
    assert found.examples[-1] == f"{captions}, record 6: lacks caption"
    assert [c.modality for c in read_captions(str(captions), ["audio", "image"]).captions] == ["image", "audio"]
    drawn = {tuple(c.modality for c in read_captions(str(captions), number=2, seed=s).captions) for s in range(9)}
    assert len(drawn) > 2 and {len(names) for names in drawn} == {2}


@pytest.mark.parametrize("format", ["own", "reference"])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_templates_build_what_trains(captions, tmp_path, format, suffix, capsys):
    path = tmp_path / f"t2m.{suffix}"
    assert build(f"--captions={captions}", f"--output={path}", f"--format={format}", "--variants=2") in (0, None)
    assert "3 captions: 4 skipped" in (shown := capsys.readouterr().out) and f"{path}: 6 records\n" in shown
    expected = [
        ("image", "a red lighthouse on a cliff ."),
        ("video", "A boy flies a kite on the beach"),
        ("audio", RAIN),
    ]
    assert outputs(path) == [[Output(*pair)] for pair in expected for _ in range(2)]
    assert survey(read_samples("generation", str(path)), 8).outputs == {"image": 1, "video": 1, "audio": 1}


def test_records_follow_from_caption_and_seed():
    captions = [Caption("image", f"a dog with {i} legs", None, "") for i in range(200)]
    first, again, other = (list(from_templates(captions, 1, seed)) for seed in (0, 0, 1))
    assert first == again and sum(a != b for a, b in zip(first, other, strict=True)) > 190
    assert list(from_templates(captions[5:6], 1, 0)) == first[5:6]
    asked = {r["conversations"][0]["value"].replace(r["image_captions"][0], "") for r in first}
    assert len(asked) > 90 and len({r["id"] for r in first}) == 200


@pytest.mark.parametrize("modality", PIECES)
def test_pieces_are_different_and_hold_the_caption(modality):
    assert set(PIECES) == set(output_modalities())
    for pieces in PIECES[modality]:
        assert len(set(pieces)) == len(pieces) >= 16
    assert all(question.count("{c}") == 1 for question in PIECES[modality].questions)
    for seed in range(200):
        request, reply = request_and_reply(modality, 'a {c} that says "hi" .', random.Random(seed))
        assert 'a {c} that says "hi"' in request and request.count('"') == 2 and reply.count('"') in (0, 2)


@settings(max_examples=40)
@given(st.text(min_size=1), st.integers(0, 9))
def test_any_caption_can_be_asked_for(text, seed):
    request, reply = request_and_reply("video", text, random.Random(seed))
    assert tidy(text) in request and reply
    assert tidy(tidy(text)) == tidy(text) or text.count(".") > 1


def test_what_a_request_should_mention():
    assert mentions("Draw some lighthouses!", "a red lighthouse") and not mentions("Draw a house!", "a red lighthouse")
    assert mentions("anything", "a cat") and mentions("anything", "灯台の写真")


def reply(number, body):
    kind, text = body["messages"][-1]["content"].split("\n")[:2]
    words = text.removeprefix("Description: ")
    return completion(json.dumps({"request": f"I long for this: {words}", "reply": "There it is."}))


def test_an_endpoint_writes_them(captions, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    path = tmp_path / "t2m.json"
    sorry = {"request": "a red lighthouse", "reply": "I'm sorry, I cannot draw."}
    vague = {"request": "Please draw it now.", "reply": "There it is."}
    first = [failure(429, Retry_After="0"), completion(json.dumps(sorry)), completion(json.dumps(vague))]
    with serving(lambda n, body: first[n] if n < 3 else reply(n, body)) as server:
        argv = [f"--captions={captions}", f"--output={path}", f"--endpoint={server.url}", "--model=m"]
        prices = ["--price_in=1000", "--price_out=2000"]
        assert not build(*argv, *prices, "--dry_run") and not server.requests
        assert sorted(file.name for file in tmp_path.iterdir()) == ["captions.json"]
        assert "3 questions to m at http://127.0.0.1" in (shown := capsys.readouterr().out)
        assert "0 of them answered before; 3 to ask: about" in shown and "330 out, cost 1." in shown
        assert not build(*argv, *prices, "--concurrency=1")
        shown = capsys.readouterr().out
        assert "used 35 tokens in, 15 out, cost 0.07" in shown
        assert "3 records; rejected: 1 the reply is a refusal, 1 the request names nothing of the desc" in shown
        written = path.read_text()
        assert build(*argv) == 2 and "exists: give another name, or --overwrite" in capsys.readouterr().err
        assert not build(*argv, "--overwrite") and len(server.requests) == 6 and path.read_text() == written
    assert (
        set(server.keys) == {"Bearer secret"}
        and "secret" not in written + path.with_name("t2m.json.journal").read_text()
    )
    assert [o.modality for (o,) in outputs(path)] == ["image", "video", "audio"]
    assert json.loads(written)[2]["conversations"] == [
        {"from": "human", "value": f"I long for this: {RAIN}"}, {"from": "gpt", "value": "There it is. <audio>"},
    ]  # fmt: skip


def test_no_usable_reply_writes_nothing(captions, tmp_path, capsys):
    path = tmp_path / "t2m.json"
    with serving(lambda n, body: completion("no")) as server:
        argv = [f"--captions={captions}", f"--output={path}", f"--endpoint={server.url}", "--model=m", "--attempts=1"]
        assert build(*argv) == 2 and not path.exists()
    assert capsys.readouterr().err.endswith("error: no record is usable; rejected: 3 no JSON object\n")


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "--captions=FILES is missing"),
        (["--captions=x.json"], "--output is missing"),
        (["--captions=x.json", "--output=x.txt"], "x.txt should end in .json or .jsonl"),
        (["--captions={c}", "--output={c}"], "captions.json exists: give another name"),
        (["--captions=x.json", "--output={o}"], "no such file: x.json"),
        (["--captions={c}", "--output={o}", "--modalities=imu"], "'imu' is not one of image, video, audio"),
        (["--captions={c}", "--output={o}", "--modalities=depth,image"], "'depth' is not one of"),
        (["--captions={c}", "--output={o}", "--format=orig"], "'orig' is not own or reference"),
        (["--captions={c}", "--output={o}", "--variants=0"], "--variants 1 or more"),
        (["--captions={c}", "--output={o}", "--model=m"], "--model is for an endpoint"),
        (["--captions={c}", "--output={o}", "--dry_run"], "--dry_run is for an endpoint"),
        (["--captions={c}", "--output={o}", "--endpoint=http://h", "--model=m", "--request=[]"], "should be a JSON ob"),
        (["--captions={c}", "--output={o}", "--endpoint=http://h", "--model=m", "--attempts=0"], "--attempts=0: give"),
        (["--captions={c}", "--output={o}", "--endpont=http://h"], "unknown flag --endpont; did you mean endpoint"),
    ],
)
def test_mistakes(argv, message, captions, tmp_path, capsys):
    argv = [arg.replace("{c}", str(captions)).replace("{o}", str(tmp_path / "o.json")) for arg in argv]
    assert build(*argv) == 2 and message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["captions.json"]


def test_export_and_back(captions, tmp_path):
    own, other = tmp_path / "own.json", tmp_path / "reference.jsonl"
    assert not build(f"--captions={captions}", f"--output={own}")
    export_data.main(["export", str(own), f"--output={other}"])
    assert list(read_samples("conversation", str(own))) == list(read_samples("conversation", str(other)))
    record = json.loads(other.read_text().splitlines()[1])
    assert record["video_caption_embeddings"] == ["t2m_v_0000001_00.mp4.npy"]
    assert record["conversations"][1]["caption"] == "A boy flies a kite on the beach"
    for path, message in ((captions, "record 0: unknown field 'image_name'"), (other, "line 1 is of another schema")):
        with pytest.raises(UserError, match=message):
            export_data.main(["export", str(path), f"--output={tmp_path / 'x.json'}"])
    assert not (tmp_path / "x.json").exists()


def test_records_are_read_without_being_changed():
    record = record_of(Caption("image", "a dog", None, "x"), "a dog?", "Yes.", 0)
    before, rejected = json.dumps(record), collections.Counter()
    assert list(usable_records([record, {"conversations": []}], None, rejected)) == [record]
    assert json.dumps(record) == before and rejected.total() == 1
