"""The command that answers, on the tiny random system."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from nextgpt_jax.cli import infer
from nextgpt_jax.config import ServingConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.requests import RequestFile
from nextgpt_jax.media import read_audio, write_mp4, write_wav
from nextgpt_jax.prompts import Input
from tests import tiny
from tests.inference.requests import IMAGE, TONE, request


def answer_file(engine, path, options, output):
    infer.answer_file(engine, ServingConfig(rows=4), RequestFile(str(path)), options, str(output), {})


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
    answer_file(tiny_engine, path, {"max_new_tokens": 12}, tmp_path / "out")
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
    assert written == {"replies.jsonl", "replies.run.json", *first["images"], *first["videos"], *first["audios"]}


def test_options_hold_for_all_lines_and_lines_may_differ(tiny_engine, tmp_path, monkeypatch):
    (tmp_path / "r.jsonl").write_text('{"prompt": "a\u2028b"}\n{"prompt": "b", "seed": 2}\n', encoding="utf-8")
    asked, validate = [], tiny_engine.validate
    monkeypatch.setattr(tiny_engine, "validate", lambda request: asked.append(request) or validate(request))
    answer_file(
        tiny_engine, tmp_path / "r.jsonl", {"seed": 7, "modality": "text", "num_inference_steps": None}, tmp_path
    )
    one, two = asked
    assert (one.seed, two.seed) == (7, 2) and one.modality == two.modality == "text"
    assert one.temperature == tiny_engine.defaults.temperature and one.turns[0].human == ("a\u2028b",)


def test_one_reply_as_json(tiny_engine, tmp_path, capsys):
    infer.answer_one(tiny_engine, request("draw", modality="image"), str(tmp_path), True)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last.keys() == {"text", "images", "videos", "audios", "tokens", "seconds"}
    first = Image.open(last["images"][0]).tobytes()
    infer.answer_one(tiny_engine, request("draw", modality="image", seed=9), str(tmp_path), True)
    assert Image.open(last["images"][0]).tobytes() == first  # nothing is overwritten
    assert len(list(tmp_path.glob("*.png"))) >= 2


def test_chat_keeps_the_conversation(tiny_engine, tmp_path, capsys, monkeypatch):
    Image.fromarray(IMAGE).save(tmp_path / "seen.png")
    typed = ["draw one", f"/image {tmp_path / 'seen.png'}", "what is this?", "/image nowhere.png", "and?"]
    typed += ["/help", "/new", "hello", "/quit", ""]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(typed)))
    turns = []
    answer = tiny_engine.generate
    monkeypatch.setattr(tiny_engine, "generate", lambda r, on_step=None: turns.append(r[0].turns) or answer(r, on_step))
    options = {"modality": "image", "temperature": 0.0}
    infer.chat(tiny_engine, options, str(tmp_path / "out"))
    assert [len(t) for t in turns] == [1, 2, 1]
    assert turns[1][0].assistant and isinstance(turns[1][1].human[0], Input)
    output = capsys.readouterr().out
    assert "nowhere.png" in output and "commands:" in output


class Terminal(io.StringIO):
    """A terminal that records what is written, and when the answer is complete."""

    def isatty(self):
        return True


def test_a_terminal_shows_the_answer_as_it_comes(tiny_engine, tmp_path, monkeypatch):
    asked = request("draw and play", modality="image,audio", temperature=1.0, max_new_tokens=40)
    (expected,) = tiny_engine.generate([asked])
    texts = [event.text for event in tiny_engine.stream(asked) if event.text]
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setattr(tiny_engine, "generate", lambda *_: pytest.fail("the answer was not streamed"))
    infer.answer_one(tiny_engine, asked, str(tmp_path), True)
    *text, line = terminal.getvalue().removesuffix("\n").split("\n")
    printed = json.loads(line)
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    assert sorted(printed["images"] + printed["audios"]) == paths and len(paths) == len(expected.media)
    assert sorted(text[-len(paths) :]) == paths
    assert "\n".join(text[: -len(paths)]) == expected.text == printed["text"] == "".join(texts)


def test_a_request_that_fails_by_a_fault_does_not_end_the_others(tiny_engine, tmp_path, monkeypatch, capsys):
    encode = tiny_engine.encode

    def fail(inputs):
        if inputs:
            raise RuntimeError("out of memory")
        return encode(inputs)

    monkeypatch.setattr(tiny_engine, "encode", fail)
    Image.fromarray(IMAGE).save(tmp_path / "seen.png")
    (tmp_path / "r.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "images": ["seen.png"]}\n{"prompt": "c"}\n')
    with pytest.raises(SystemExit, match="1 requests failed by a fault"):
        answer_file(tiny_engine, tmp_path / "r.jsonl", {"modality": "text"}, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert lines[1] == {"error": "RuntimeError: out of memory"} and "text" in lines[0] and "text" in lines[2]
    assert "2 of 3 requests answered" in capsys.readouterr().out


def test_a_chat_outlives_a_full_disk(tiny_engine, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise UserError("image_000.png can't be written: No space left on device")

    monkeypatch.setattr(infer, "save_media", full)
    monkeypatch.setattr("sys.stdin", io.StringIO("draw\ndraw\n/quit\n"))
    infer.chat(tiny_engine, {"modality": "image", "temperature": 0.0}, str(tmp_path))
    assert capsys.readouterr().out.count("error: image_000.png can't be written: No space left") == 2


def test_a_prompt_and_a_file_can_be_compiled_ahead(tiny_engine, tiny_root, tmp_path, capsys, monkeypatch):
    warmed = []
    monkeypatch.setattr(tiny_engine, "warm_up", lambda **options: warmed.append(options))
    monkeypatch.setattr(infer, "load_engine", lambda *_: tiny_engine)
    monkeypatch.setattr(infer, "configure_jax", lambda: None)
    monkeypatch.setattr("nextgpt_jax.serving.warmup.warm_up", lambda engine, config: warmed.append(config))
    (tmp_path / "requests.jsonl").write_text('{"prompt": "hi", "modality": "text"}\n' * 3)
    flags = ["infer.py", "--config=configs/keypad.py", f"--output={tmp_path}", "--max_new_tokens=9", "--warmup"]
    model, name = tiny.experiment(tiny_root, "stage3").model, "config.model"
    flags += [f"--{name}.{field}={getattr(model, field)}" for field in ("llm", "encoder", "image_decoder", "delta")]
    infer.main([*flags, "--prompt=draw", "--modality=image"])
    infer.main([*flags, f"--requests={tmp_path / 'requests.jsonl'}"])
    infer.main(flags)
    prompt, file, alone = warmed
    assert (prompt["output_modalities"], prompt["input_modalities"], prompt["max_new_tokens"]) == (["image"], [], 9)
    assert len(prompt["prompt_tokens"]) == 1
    assert alone == {"max_new_tokens": 9} and file.rows == 32
    assert "compiled all programs" in capsys.readouterr().err


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
    answer_file(tiny_engine, tmp_path / "requests.jsonl", {}, tmp_path / "out")
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
        (["--prompt=hi", "--edit=image"], "edit 'image' needs the image that is edited among the inputs"),
        (["--prompt=hi", "--strength=0.5"], "strength goes with edit"),
        (["--chat", "--edit=image"], "--edit goes with --prompt or --requests"),
        (["--prompt=hi", "--image=docs/images/keypad.png", "--edit=image", "--strength=0.01"], "give at least 0.05"),
        (["--prompt=hi", "--image=docs/images/keypad.png", "--edit=image", "--modality=text"], "'text' has no image"),
        (["--requests=nowhere.jsonl"], "no such file"),
        (["--prompt=hi", "--output=README.md"], "README.md is a file"),
        (["--prompt=hi", "--step=30"], "--step chooses a checkpoint of --workdir .--steps: the number of denoising"),
        (["--prompt=hi", "--workdir=runs", "--step=bset"], "--step: 'bset' is not best, latest or .*did you mean best"),
    ],
)
def test_bad_command_lines(argv, message, tmp_path, monkeypatch):
    monkeypatch.setattr(infer, "load_engine", lambda *a: pytest.fail("loaded the weights before checking the input"))
    with pytest.raises(UserError, match=message):
        infer.main(["infer.py", "--config=configs/keypad.py", f"--output={tmp_path / 'out'}", *argv])
    assert not (tmp_path / "out").exists()
