"""The whole model as Python users hold it, on the tiny random system."""

import json

import numpy as np
import pytest
from PIL import Image

import nextgpt_jax as ng
from nextgpt_jax import media

SHORT = ng.GenerationConfig(max_new_tokens=8, num_inference_steps=2)
OTHER = ng.GenerationConfig(seed=5, max_new_tokens=8)
ALL = ng.GenerationConfig(max_new_tokens=48, num_inference_steps=2)


def same(one, other):
    """Are two responses equal, but for the rounding of media?"""
    assert (one.text, one.num_tokens) == (other.text, other.num_tokens)
    assert [m.modality for m in one.media] == [m.modality for m in other.media]
    for a, b in zip(one.images, other.images, strict=True):
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1
    for a, b in zip(one.audios, other.audios, strict=True):
        np.testing.assert_allclose(a.samples, b.samples, atol=1e-4)
    return True


def test_media_come_as_pil_images_frames_with_a_rate_and_samples_with_a_rate(model, tmp_path):
    assert model.output_modalities == ("image", "video", "audio") and "image" in model.input_modalities
    reply = model("all", output_modalities=["image", "video", "audio"], generation_config=ALL)
    assert isinstance(reply.text, str) and 36 <= reply.num_tokens <= 48
    assert isinstance(reply.images[0], Image.Image) and reply.images[0].size == (16, 16)
    frames, fps = reply.videos[0]
    assert frames.shape == (4, 16, 16, 3) and frames.dtype == np.uint8 and fps == 4.0
    samples, rate = reply.audios[0]
    assert samples.shape == (800,) and samples.dtype == np.float32 and rate == 8000
    names = [path.name for path in reply.save(tmp_path)]
    assert sorted(names) == ["audio_000.wav", "image_000.png", "video_000.mp4"]
    assert [name.split("_")[0] for name in names] == [m.modality for m in reply.media]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "image_000.png")), np.asarray(reply.images[0]))
    assert reply.save(tmp_path)[names.index("image_000.png")].name == "image_001.png"


def test_files_and_their_contents_are_the_same_input(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 3), np.uint8)
    sound = media.Audio(np.random.default_rng(1).uniform(-0.5, 0.5, 4000).astype(np.float32), 8000)
    media.write("image", tmp_path / "a.png", pixels)
    media.write("audio", tmp_path / "a.wav", sound)
    saved = media.read_audio(tmp_path / "a.wav", sample_rate=8000)
    ways = [
        {"images": [tmp_path / "a.png"], "audios": [str(tmp_path / "a.wav")]},
        {"images": [Image.fromarray(pixels)], "audios": [(saved, 8000)]},
        {"images": [pixels], "media": {"audio": [(np.round(saved * 32768).astype(np.int16), 8000)]}},
    ]
    asked = {"prompt": "draw <image> with <audio>", "output_modalities": ["image"], "generation_config": SHORT}
    changed = {"images": [255 - pixels], "audios": [sound]}
    one, two, three, other = model.generate_batch([ng.Request(**asked, **way) for way in (*ways, changed)])
    assert same(one, two) and same(one, three)
    assert np.any(np.asarray(one.images[0]) != np.asarray(other.images[0]))


def test_an_edit_begins_from_its_medium(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 3), np.uint8)
    media.write("image", tmp_path / "a.png", pixels)
    made = [
        model.edit("draw", image=source, strength=0.5, generation_config=SHORT)
        for source in (pixels, tmp_path / "a.png")
    ]
    assert same(*made) and made[0].images[0].size == (16, 16)
    for given, found in (({}, "none"), ({"image": pixels, "audio": (np.zeros(9), 8000)}, "image and audio")):
        with pytest.raises(ng.UserError, match=f"give one of image, video and audio to edit, got {found}"):
            model.edit("draw", **given)


def test_a_batch_is_answered_as_its_requests_alone(model):
    requests = [
        ng.Request("draw", output_modalities=["image"], generation_config=SHORT),
        ng.Request("hello", output_modalities=[]),
        ng.Request(
            "draw", output_modalities=["image"], generation_config=ng.GenerationConfig(seed=5, max_new_tokens=8)
        ),
    ]
    found = model.generate_batch(requests)
    assert [len(reply.images) for reply in found] == [1, 0, 1] and not found[1].media
    for request, reply in zip(requests, found, strict=True):
        options = {"output_modalities": request.output_modalities, "generation_config": request.generation_config}
        assert same(model(request.prompt, **options), reply)


def test_a_stream_is_the_answer_in_parts(model):
    options = {"output_modalities": ["image"], "generation_config": SHORT}
    *events, last = model.stream("draw", **options)
    reply = model("draw", **options)
    assert same(last.response, reply)
    assert "".join(event.text for event in events) == reply.text
    assert [event.medium.modality for event in events if event.medium] == ["image"]
    with pytest.raises(ng.UserError, match="temperature"):
        model.stream("draw", generation_config=ng.GenerationConfig(temperature=-1.0))


def test_a_chat_remembers_and_a_refused_turn_leaves_no_trace(model):
    chat, fresh = model.chat(SHORT), model.chat(SHORT)
    first = chat.send("draw", output_modalities=["image"])
    assert len(first.images) == 1 and len(chat) == 1
    with pytest.raises(ng.UserError, match="does not read imu"):
        chat.send("what is this?", imus=[np.zeros((100, 6))])
    assert len(chat) == 1
    second, alone = chat.send("and now?", output_modalities=[]), fresh.send("and now?", output_modalities=[])
    assert len(chat) == 2 and second.text != alone.text


def test_a_saved_model_answers_as_before(model, workdir, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    again = ng.NExTGPT.from_pretrained(tmp_path / "saved")
    options = {"output_modalities": ["image"], "generation_config": SHORT}
    assert same(again("draw", **options), model("draw", **options))
    assert again.defaults == model.defaults
    with pytest.raises(ng.UserError, match="exists"):
        model.save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "nextgpt.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"model": content["model"] | {"llm": "../elsewhere"}}))
    with pytest.raises(ng.UserError, match="outside the folder"):
        ng.NExTGPT.from_pretrained(tmp_path / "saved")


def test_a_run_without_a_recorded_config_needs_one(workdir, tiny_root, tmp_path):
    moved = tmp_path / "run"
    moved.symlink_to(workdir)
    config = workdir / "config.json"
    content = config.read_text()
    config.unlink()
    try:
        with pytest.raises(ng.UserError, match="give config="):
            ng.NExTGPT.from_pretrained(moved)
    finally:
        config.write_text(content)


@pytest.mark.parametrize(
    "name, message",
    [
        ("keypadd", "did you mean keypad"),
        ("keypad:stage1", "no trained weights"),
        ("keypad:stage9", "unknown variant"),
        (".", "no training run"),
    ],
)
def test_what_is_no_model_is_named(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ng.UserError, match=message):
        ng.NExTGPT.from_pretrained(name)


def test_unknown_modalities_are_named(model):
    with pytest.raises(ng.UserError, match="smell"):
        model("hello", output_modalities=["smell"])
    with pytest.raises(ng.UserError, match="smell"):
        model("hello", media={"smell": ["rose.txt"]})
