"""The engine and the command line on the tiny random system."""

import copy
import functools
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from nextgpt_jax import media
from nextgpt_jax.cli import infer
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference import engine
from nextgpt_jax.inference.engine import Engine, Request, parse_modality
from nextgpt_jax.inference.requests import make_request, read_requests
from nextgpt_jax.media import read_audio, write_mp4, write_wav
from nextgpt_jax.models.encoders.imagebind import ImageBindConfig
from nextgpt_jax.prompts import Input, Output, Turn
from nextgpt_jax.weights.load import load_system, model_config
from tests import tiny
from tests.compilations import compilations


@pytest.fixture(scope="module")
def config(tiny_root):
    return tiny.experiment(tiny_root, "stage3")


@pytest.fixture(scope="module")
def system(config):
    return load_system(config.model)


@pytest.fixture(scope="module")
def tiny_engine(system, config):
    return Engine(system, config.generation)


def request(*segments, **options):
    defaults = dict(steps=3, guidance=2.0, temperature=0.0, max_new_tokens=16)
    return Request((Turn(segments),), **(defaults | options))


def shown(modality, content):
    """An input of the tiny system."""
    return Input(modality, media.preprocess(modality, content, ImageBindConfig.from_dict(tiny.IMAGEBIND)))


IMAGE = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
CLIPS = np.stack([IMAGE, 255 - IMAGE])[None]  # one clip of two frames
TONE = np.sin(np.arange(8000) / 3).astype(np.float32)


def of(reply, kind):
    return [m.content for m in reply.media if m.modality == kind]


def test_forced_image_and_text_only(tiny_engine):
    drawn, talked = tiny_engine.answer([request("draw", modality="image"), request("talk", modality="text")])
    image = of(drawn, "image")[0]
    assert image.shape == (16, 16, 3) and image.dtype == np.uint8
    assert any(isinstance(s, Output) for s in drawn.segments)
    assert talked.media == [] and talked.tokens <= 16


def test_forced_video_and_audio(tiny_engine):
    """A list asks for each of its modalities, whatever the model would say; media come in the order of the reply."""
    (reply,) = tiny_engine.answer([request("now", modality="audio, video", max_new_tokens=40)])
    assert {m.modality for m in reply.media} == {"video", "audio"}
    assert [m.modality for m in reply.media] == [s.modality for s in reply.segments if isinstance(s, Output)]
    video, audio = of(reply, "video")[0], of(reply, "audio")[0]
    assert video.frames.shape == (4, 16, 16, 3) and video.frames.dtype == np.uint8 and video.fps == 4.0
    assert audio.samples.shape == (800,) and audio.sample_rate == 8000 and np.isfinite(audio.samples).all()


def same(one, other):
    """Are two media equal, but for rounding?"""
    assert one.modality == other.modality
    if one.modality == "audio":
        return np.allclose(one.content.samples, other.content.samples, atol=1e-4)
    a, b = ((m.content.frames if m.modality == "video" else m.content).astype(int) for m in (one, other))
    return np.abs(a - b).max() <= 1


def test_a_batch_answers_as_one_by_one(tiny_engine):
    requests = [
        request("draw a seven", modality="image", seed=3, temperature=0.8),
        request(shown("image", IMAGE), "what is this? and what is", shown("video", CLIPS), "?", seed=4),
        request("draw", modality="image", seed=5, steps=2, guidance=1.0, max_new_tokens=9),
        request(shown("audio", TONE), shown("image", IMAGE), shown("audio", -TONE), "all", modality="image,video,audio",
                max_new_tokens=48),
    ]  # fmt: skip
    together = tiny_engine.answer(requests)
    for one, reply in zip(requests, together, strict=True):
        alone = tiny_engine.answer([one])[0]
        assert (alone.text, alone.tokens, len(alone.media)) == (reply.text, reply.tokens, len(reply.media))
        assert all(same(a, b) for a, b in zip(alone.media, reply.media, strict=True))


def test_seeds_steps_and_guidance_matter_and_compile_nothing(tiny_engine):
    base = tiny_engine.answer([request("draw", modality="image")])[0].media[0].content
    programs = compilations()
    for change in ({"seed": 1}, {"steps": 2}, {"guidance": 6.0}):
        other = tiny_engine.answer([request("draw", modality="image", **change)])[0].media[0].content
        assert not np.array_equal(base, other), change
    assert compilations() == programs


@pytest.mark.parametrize("name, content", [("image", IMAGE), ("video", CLIPS), ("audio", TONE)])
def test_media_change_the_answer_s_hidden_states(tiny_engine, name, content):
    other = content[::-1].copy() if name != "video" else content[:, ::-1]
    one, two = (tiny_engine.answer([request(shown(name, c), "draw", modality="image")])[0] for c in (content, other))
    assert not np.array_equal(one.media[0].content, two.media[0].content)


def test_progress_is_reported(tiny_engine):
    seen = []
    reported = tiny_engine.answer([request("draw", modality="image")], lambda done, count: seen.append((done, count)))
    assert seen[:3] == [(1, 3), (2, 3), (3, 3)]
    silent = tiny_engine.answer([request("draw", modality="image")])
    np.testing.assert_array_equal(reported[0].media[0].content, silent[0].media[0].content)


@pytest.mark.parametrize(
    "segments, options, message",
    [
        (["word " * 200], {}, r"the prompt has \d+ tokens but the context holds 128"),
        (["hi"], {"steps": 0}, "steps is out of range: 0"),
        (["hi"], {"top_k": 10**12}, "top_k is out of range"),
        ([Input("image", np.zeros((1, 100, 3), np.uint8))], {}, r"image of shape \[1, 100, 3\] is not what media.load"),
        (["hi"], {"top_p": 0.0}, "top_p is out of range"),
        (["hi"], {"temperature": float("nan")}, "temperature is out of range"),
        (["hi"], {"modality": "auto,image"}, "auto and text stand alone"),
        (["hi"], {"modality": "smell"}, "'smell' is not one of auto, text, image, video, audio"),
        (["hi"], {"modality": "image", "max_new_tokens": 3}, "needs 4 new tokens but has room for 3"),
        (["hi"], {"modality": "image,audio", "max_new_tokens": 11}, "needs 12 new tokens but has room for 11"),
        ([Input("depth", np.zeros((4, 4), np.float32))], {}, "encoder does not read depth .only image, video, audio."),
    ],
)
def test_impossible_requests(tiny_engine, segments, options, message):
    with pytest.raises(UserError, match=message):
        tiny_engine.answer([request(*segments, **options)])


def test_unknown_modality():
    with pytest.raises(ValueError, match="smell"):
        parse_modality(("image", "audio"), "smell")


@pytest.mark.parametrize("field, value", [("image.batch", 0), ("video.fps", 0.0), ("max_media", -1)])
def test_impossible_defaults(system, config, field, value):
    defaults = copy.deepcopy(config.generation)
    *parents, last = field.split(".")
    setattr(functools.reduce(getattr, parents, defaults), last, value)
    with pytest.raises(UserError, match=f"generation.{field} is {value}"):
        Engine(system, defaults)


def test_an_empty_prompt_and_unreadable_files(config, tmp_path):
    model = model_config(config.model)
    with pytest.raises(UserError, match="the prompt is empty"):
        make_request("  ", {}, {}, model, config.generation)
    for name in ("image", "video", "audio"):
        with pytest.raises(UserError, match="nowhere"):
            make_request("what?", {name: [str(tmp_path / "nowhere")]}, {}, model, config.generation)
    with pytest.raises(UserError, match="does not read thermal"):
        make_request("what?", {"thermal": ["x.png"]}, {}, model, config.generation)


def test_requests_file(tiny_engine, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "seen.png")
    write_wav(tmp_path / "heard.wav", TONE, 16000)
    write_mp4(tmp_path / "watched.mp4", np.stack([IMAGE, IMAGE]), 2)
    lines = [
        {"prompt": "draw", "modality": "image,audio", "seed": 1, "max_new_tokens": 20},
        {"prompt": "what is this?", "images": ["seen.png"], "modality": "text"},
        {"prompt": "<audio> or <video>?", "audios": ["heard.wav"], "videos": ["watched.mp4"], "modality": "text"},
        {"prompt": "what?", "images": ["missing.png"]},
        {"prompt": "", "seed": 1},
        {"prompt": "hi", "sede": 1},
        {"prompt": "hi", "seed": "one"},
        {"prompt": "word " * 200},
        {"prompt": "<image> and <image>", "images": ["seen.png"]},
        {"prompt": "hi", "audios": "heard.wav"},
        {"prompt": "hi", "depths": ["seen.png"]},
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join([*map(json.dumps, lines), "not json"]) + "\n")
    infer.answer_file(tiny_engine, read_requests(str(path)), {"max_new_tokens": 12}, str(tmp_path / "out"), size=5)
    replies = [json.loads(line) for line in (tmp_path / "out" / "replies.jsonl").read_text().splitlines()]
    assert len(replies) == 12
    first = replies[0]
    assert [Image.open(tmp_path / "out" / name).size for name in first["images"]] == [(16, 16)] * len(first["images"])
    assert len(read_audio(tmp_path / "out" / first["audios"][0], sample_rate=8000)) == 800
    for reply in replies[1:3]:
        assert (reply["images"], reply["videos"], reply["audios"]) == ([], [], []) and "text" in reply
    wanted = ["missing.png", "empty", "did you mean seed?", "seed should be int", "context", "2 <image> marks"]
    wanted += ["audios should be a list of paths", "does not read depth", "JSON"]
    for reply, word in zip(replies[3:], wanted, strict=True):
        assert list(reply) == ["error"] and word in reply["error"], (reply, word)
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {"replies.jsonl", *first["images"], *first["videos"], *first["audios"]}


def test_engines_do_not_share_changes(config):
    system = load_system(config.model)
    first, second = Engine(system, config.generation), Engine(system, config.generation)
    assert first.answer([request("draw")])[0].text == second.answer([request("draw")])[0].text


def test_options_hold_for_all_lines_and_lines_may_differ(tiny_engine, tmp_path, monkeypatch):
    (tmp_path / "r.jsonl").write_text('{"prompt": "a\u2028b"}\n{"prompt": "b", "seed": 2}\n', encoding="utf-8")
    asked, answer = [], tiny_engine.answer
    monkeypatch.setattr(tiny_engine, "answer", lambda r, on_step=None: asked.extend(r) or answer(r, on_step))
    options = {"seed": 7, "modality": "text", "steps": None}
    infer.answer_file(tiny_engine, read_requests(str(tmp_path / "r.jsonl")), options, str(tmp_path))
    one, two = asked
    assert (one.seed, two.seed) == (7, 2) and one.modality == two.modality == "text"
    assert one.temperature == tiny_engine.defaults.temperature and one.turns[0].human == ("a\u2028b",)


def test_one_reply_as_json(tiny_engine, config, tmp_path, capsys):
    infer.answer_one(tiny_engine, request("draw", modality="image"), str(tmp_path), True)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last.keys() == {"text", "images", "videos", "audios", "tokens", "seconds"}
    first = Image.open(last["images"][0]).tobytes()
    infer.answer_one(tiny_engine, request("draw", modality="image", seed=9), str(tmp_path), True)
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
    infer.chat(tiny_engine, options, str(tmp_path / "out"))
    assert [len(t) for t in turns] == [1, 2, 1]
    assert turns[1][0].assistant and isinstance(turns[1][1].human[0], Input)
    output = capsys.readouterr().out
    assert "nowhere.png" in output and "commands:" in output


def test_what_is_answered_is_kept_when_a_later_batch_fails(tiny_engine, tmp_path, monkeypatch):
    answer, batches = tiny_engine.answer, []

    def fail_second(requests, on_step=None):
        batches.append(requests)
        if len(batches) == 2:
            raise RuntimeError("out of memory")
        return answer(requests, on_step)

    monkeypatch.setattr(tiny_engine, "answer", fail_second)
    (tmp_path / "r.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    records = read_requests(str(tmp_path / "r.jsonl"))
    with pytest.raises(RuntimeError, match="out of memory"):
        infer.answer_file(tiny_engine, records, {"modality": "text"}, str(tmp_path), size=1)
    assert len((tmp_path / "replies.jsonl").read_text().splitlines()) == 1


def test_a_chat_outlives_a_full_disk(tiny_engine, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise UserError("image_000.png can't be written: No space left on device")

    monkeypatch.setattr(infer, "save_media", full)
    monkeypatch.setattr("sys.stdin", io.StringIO("draw\ndraw\n/quit\n"))
    infer.chat(tiny_engine, {"modality": "image", "temperature": 0.0}, str(tmp_path))
    assert capsys.readouterr().out.count("error: image_000.png can't be written: No space left") == 2


def test_what_is_compiled_ahead_is_not_compiled_later(tiny_engine):
    jax.clear_caches()
    tiny_engine.warm_up(prompt_tokens=[20, 40], max_new_tokens=48)
    before = compilations()
    assert before
    for modality in ("image", "video", "audio"):
        reply = tiny_engine.answer([request(shown("image", IMAGE), "draw", modality=modality, max_new_tokens=48)])[0]
        assert [medium.modality for medium in reply.media] == [modality]
    assert compilations() == before


def test_a_prompt_and_a_file_can_be_compiled_ahead(tiny_engine, tiny_root, tmp_path, capsys, monkeypatch):
    warmed = []
    monkeypatch.setattr(tiny_engine, "warm_up", lambda **options: warmed.append(options))
    monkeypatch.setattr(infer, "load_engine", lambda *_: tiny_engine)
    monkeypatch.setattr(infer, "configure_jax", lambda: None)
    (tmp_path / "requests.jsonl").write_text('{"prompt": "hi", "modality": "text"}\n' * 3)
    flags = ["infer.py", "--config=configs/keypad.py", f"--output={tmp_path}", "--max_new_tokens=9", "--warmup"]
    model, name = tiny.experiment(tiny_root, "stage3").model, "config.model"
    flags += [f"--{name}.{field}={getattr(model, field)}" for field in ("llm", "encoder", "image_decoder", "delta")]
    infer.main([*flags, "--prompt=draw", "--modality=image"])
    infer.main([*flags, f"--requests={tmp_path / 'requests.jsonl'}"])
    infer.main(flags)
    prompt, file, alone = warmed
    assert (prompt["outputs"], prompt["inputs"], prompt["max_new_tokens"]) == (["image"], [], 9)
    assert len(prompt["prompt_tokens"]) == 1
    assert (file["rows"], alone["rows"]) == (3, 1)
    assert "compiled all programs" in capsys.readouterr().err


def test_lengths_are_rounded_up_to_few(tiny_engine):
    buckets = [engine._token_bucket(n) for n in range(1, 2049)]
    assert all(n <= bucket <= max(32, 1.5 * n) for n, bucket in enumerate(buckets, 1))
    assert sorted(set(buckets)) == [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]


def test_no_more_is_sampled_together_than_the_config_says(tiny_engine, monkeypatch):
    """Nor is a batch filled up to more."""
    seen, begin = [], engine._begin
    monkeypatch.setattr(
        engine, "_begin", lambda m, hidden, *a, **k: seen.append(len(hidden)) or begin(m, hidden, *a, **k)
    )
    monkeypatch.setattr(tiny_engine.defaults.image, "batch", 3)
    replies = tiny_engine.answer([request("draw", modality="image", max_new_tokens=4, seed=s) for s in range(4)])
    assert [len(reply.media) for reply in replies] == [1] * 4 and seen == [3, 1]


def test_a_file_of_requests_survives_its_worst_lines(tiny_engine, tmp_path):
    good = json.dumps({"prompt": "hi", "modality": "text", "temperature": 0.0})
    bad = [
        '{"prompt": "\\ud83d hi"}',
        '{"prompt": "what?", "images": ["\\ud83d.png"]}',
        f'{{"prompt": "hi", "seed": {"9" * 5000}}}',
        "[" * 100_000,
        '{"prompt": "hi", "modality": "smell"}',
    ]
    lines = [good, *bad, good]
    (tmp_path / "requests.jsonl").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    infer.answer_file(tiny_engine, read_requests(str(tmp_path / "requests.jsonl")), {}, str(tmp_path / "out"), size=3)
    replies = [json.loads(line) for line in (tmp_path / "out" / "replies.jsonl").read_text().splitlines()]
    assert ["error" in reply for reply in replies] == [False, *[True] * len(bad), False]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--prompt=hi", "--chat"], "one of --prompt"),
        ([], "one of --prompt"),
        (["--chat", "--image=x.png"], "--image goes with --prompt"),
        (["--prompt=what?", "--image=nowhere.png"], "nowhere.png"),
        (["--prompt=what?", "--video=nowhere.mp4"], "nowhere.mp4"),
        (["--prompt=what?", "--audio=README.md"], "README.md"),
        (["--prompt=what?", "--imu=x.csv"], "does not read imu"),
        (["--prompt="], "the prompt is empty"),
        (["--prompt=hi", "--modality=smell"], "'smell' is not one of auto"),
        (["--prompt=hi", "--temperature=-1"], "temperature is out of range: -1"),
        (["--prompt=\ud83d hi"], "not valid Unicode"),
        (["--prompt=<image> and <image>"], "2 <image> marks but 0 images"),
        (["--requests=nowhere.jsonl"], "no such file"),
        (["--prompt=hi", "--output=README.md"], "README.md is a file"),
    ],
)
def test_bad_command_lines(argv, message, tmp_path, monkeypatch):
    monkeypatch.setattr(infer, "load_engine", lambda *a: pytest.fail("loaded the weights before checking the input"))
    with pytest.raises(UserError, match=message):
        infer.main(["infer.py", "--config=configs/keypad.py", f"--output={tmp_path / 'out'}", *argv])
    assert not (tmp_path / "out").exists()
