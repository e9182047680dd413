"""The engine and the command line on the tiny random system."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from nextgpt_jax.errors import UserError
from nextgpt_jax.inference import cli, engine
from nextgpt_jax.inference.engine import Engine, Request
from nextgpt_jax.inference.requests import make_request, read_requests
from nextgpt_jax.load import load_system
from nextgpt_jax.prompts import Input, Output, Turn
from tests import tiny


@pytest.fixture(scope="module")
def config(tiny_root):
    return tiny.experiment(tiny_root, "stage3")


@pytest.fixture(scope="module")
def tiny_engine(config):
    return Engine(load_system(config.model, decoder_parts=("text_encoder", "unet", "vae")), config.decode)


def request(*segments, **options):
    defaults = dict(steps=3, guidance=2.0, temperature=0.0, max_new_tokens=16)
    return Request((Turn(segments),), **(defaults | options))


IMAGE = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)


def test_forced_image_and_text_only(tiny_engine):
    drawn, talked = tiny_engine.answer([request("draw", modality="image"), request("talk", modality="text")])
    assert len(drawn.images) >= 1 and drawn.images[0].shape == (16, 16, 3) and drawn.images[0].dtype == np.uint8
    assert any(isinstance(s, Output) for s in drawn.segments)
    assert talked.images == [] and talked.tokens <= 16


def test_a_batch_answers_as_one_by_one(tiny_engine):
    requests = [
        request("draw a seven", modality="image", seed=3, temperature=0.8),
        request(Input("image", IMAGE), "what is this? and what is", Input("image", IMAGE[::-1]), "?", seed=4),
        request("draw", modality="image", seed=5, steps=2, guidance=1.0, max_new_tokens=9),
    ]
    together = tiny_engine.answer(requests)
    for one, reply in zip(requests, together, strict=True):
        alone = tiny_engine.answer([one])[0]
        assert (alone.text, alone.tokens, len(alone.images)) == (reply.text, reply.tokens, len(reply.images))
        for a, b in zip(alone.images, reply.images, strict=True):
            np.testing.assert_allclose(a.astype(int), b.astype(int), atol=1)


def test_seeds_steps_and_guidance_matter_and_compile_nothing(tiny_engine):
    base = tiny_engine.answer([request("draw", modality="image")])[0].images[0]
    programs = engine._denoise._cache_size()
    for change in ({"seed": 1}, {"steps": 2}, {"guidance": 6.0}):
        other = tiny_engine.answer([request("draw", modality="image", **change)])[0].images[0]
        assert not np.array_equal(base, other), change
    assert engine._denoise._cache_size() == programs


def test_images_change_the_answer_s_hidden_states(tiny_engine):
    one = tiny_engine.answer([request(Input("image", IMAGE), "draw this", modality="image")])[0]
    other = tiny_engine.answer([request(Input("image", 255 - IMAGE), "draw this", modality="image")])[0]
    assert not np.array_equal(one.images[0], other.images[0])


def test_progress_is_reported(tiny_engine):
    seen = []
    reported = tiny_engine.answer([request("draw", modality="image")], lambda done, count: seen.append((done, count)))
    assert seen[:3] == [(1, 3), (2, 3), (3, 3)]
    silent = tiny_engine.answer([request("draw", modality="image")])
    np.testing.assert_array_equal(reported[0].images[0], silent[0].images[0])


@pytest.mark.parametrize(
    "segments, options, message",
    [
        (["word " * 200], {}, r"the prompt has \d+ tokens but the context holds 128"),
        (["hi"], {"steps": 0}, "steps is out of range: 0"),
        (["hi"], {"top_k": 10**12}, "top_k is out of range"),
        ([Input("image", np.zeros((1, 100, 3), np.uint8))], {}, "."),
        (["hi"], {"top_p": 0.0}, "top_p is out of range"),
        (["hi"], {"temperature": float("nan")}, "temperature is out of range"),
        (["hi"], {"modality": "smell"}, "'smell' is not one of auto, text, image"),
        (["hi"], {"modality": "image", "max_new_tokens": 3}, "needs 4 new tokens but has room for 3"),
    ],
)
def test_impossible_requests(tiny_engine, segments, options, message):
    with pytest.raises(UserError, match=message):
        tiny_engine.answer([request(*segments, **options)])


def test_an_empty_prompt_and_unreadable_images(config, tmp_path):
    with pytest.raises(UserError, match="the prompt is empty"):
        make_request("  ", [], {}, config.decode)
    with pytest.raises(UserError, match="nowhere.png"):
        make_request("what?", [str(tmp_path / "nowhere.png")], {}, config.decode)


def test_requests_file(tiny_engine, config, tmp_path, capsys):
    Image.fromarray(IMAGE).save(tmp_path / "seen.png")
    lines = [
        {"prompt": "draw", "modality": "image", "seed": 1},
        {"prompt": "what is this?", "images": ["seen.png"], "modality": "text"},
        {"prompt": "what?", "images": ["missing.png"]},
        {"prompt": "", "seed": 1},
        {"prompt": "hi", "sede": 1},
        {"prompt": "hi", "seed": "one"},
        {"prompt": "word " * 200},
        {"prompt": "<image> and <image>", "images": ["seen.png"]},
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join([*map(json.dumps, lines), "not json"]) + "\n")
    cli.answer_file(tiny_engine, read_requests(str(path), config.decode, {"max_new_tokens": 12}), str(tmp_path / "out"))
    replies = [json.loads(line) for line in (tmp_path / "out" / "replies.jsonl").read_text().splitlines()]
    assert len(replies) == 9
    assert [Image.open(tmp_path / "out" / name).size for name in replies[0]["images"]] == [(16, 16)] * len(
        replies[0]["images"]
    )
    assert replies[0]["images"] and replies[1]["images"] == [] and "text" in replies[1]
    wanted = ["missing.png", "empty", "did you mean seed?", "seed should be int", "context", "2 <image> marks", "JSON"]
    for reply, word in zip(replies[2:], wanted, strict=True):
        assert list(reply) == ["error"] and word in reply["error"], (reply, word)
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {"replies.jsonl", *replies[0]["images"]}


def test_engines_do_not_share_changes(config):
    system = load_system(config.model, decoder_parts=("text_encoder", "unet", "vae"))
    first, second = Engine(system, config.decode), Engine(system, config.decode)
    assert first.answer([request("draw")])[0].text == second.answer([request("draw")])[0].text


def test_options_hold_for_all_lines_and_lines_may_differ(config, tmp_path):
    (tmp_path / "r.jsonl").write_text('{"prompt": "a\u2028b"}\n{"prompt": "b", "seed": 2}\n', encoding="utf-8")
    one, two = read_requests(str(tmp_path / "r.jsonl"), config.decode, {"seed": 7, "modality": "text", "steps": None})
    assert (one.seed, two.seed) == (7, 2) and one.modality == two.modality == "text"
    assert one.steps == config.decode.steps and one.turns[0].human == ("a\u2028b",)


def test_one_reply_as_json(tiny_engine, config, tmp_path, capsys):
    cli.answer_one(tiny_engine, request("draw", modality="image"), str(tmp_path), True)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last.keys() == {"text", "images", "tokens", "seconds"}
    first = Image.open(last["images"][0]).tobytes()
    cli.answer_one(tiny_engine, request("draw", modality="image", seed=9), str(tmp_path), True)
    assert Image.open(last["images"][0]).tobytes() == first  # nothing is overwritten
    assert len(list(tmp_path.glob("*.png"))) >= 2


def test_chat_keeps_the_conversation(tiny_engine, config, tmp_path, capsys, monkeypatch):
    Image.fromarray(IMAGE).save(tmp_path / "seen.png")
    typed = ["draw one", f"/image {tmp_path / 'seen.png'}", "what is this?", "/image nowhere.png", "and?"]
    typed += ["/help", "/new", "hello", "/quit", ""]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(typed)))
    turns = []
    answer = tiny_engine.answer
    monkeypatch.setattr(tiny_engine, "answer", lambda r, on_step=None: turns.append(r[0].turns) or answer(r, on_step))
    options = {"modality": "image", "temperature": 0.0}
    cli.chat(tiny_engine, options, config.decode, str(tmp_path / "out"))
    assert [len(t) for t in turns] == [1, 2, 1]
    assert turns[1][0].assistant and isinstance(turns[1][1].human[0], Input)
    output = capsys.readouterr().out
    assert "nowhere.png" in output and "commands:" in output


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--prompt=hi", "--chat"], "one of --prompt"),
        ([], "one of --prompt"),
        (["--chat", "--image=x.png"], "--image goes with --prompt"),
        (["--prompt=what?", "--image=nowhere.png"], "nowhere.png"),
        (["--prompt="], "the prompt is empty"),
        (["--prompt=<image> and <image>"], "2 <image> marks but 0 images"),
        (["--requests=nowhere.jsonl"], "no such file"),
        (["--prompt=hi", "--output=README.md"], "README.md is a file"),
    ],
)
def test_bad_command_lines(argv, message, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "load_engine", lambda *a: pytest.fail("loaded the weights before checking the input"))
    with pytest.raises(UserError, match=message):
        cli.main(["infer.py", "--config=configs/keypad.py", f"--output={tmp_path / 'out'}", *argv])
    assert not (tmp_path / "out").exists()
