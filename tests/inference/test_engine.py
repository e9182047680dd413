"""The engine on the tiny random system."""

import jax
import numpy as np
import pytest

from nextgpt_jax.errors import UserError
from nextgpt_jax.inference import programs
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.prompts import Output
from nextgpt_jax.weights.load import load_system
from tests.compilations import compilations
from tests.inference.requests import CLIPS, IMAGE, TONE, read, request


def of(reply, kind):
    return [m.content for m in reply.media if m.modality == kind]


def test_forced_image_and_text_only(tiny_engine):
    drawn, talked = tiny_engine.generate([request("draw", modality="image"), request("talk", modality="text")])
    image = of(drawn, "image")[0]
    assert image.shape == (16, 16, 3) and image.dtype == np.uint8
    assert any(isinstance(s, Output) for s in drawn.segments)
    assert talked.media == [] and talked.tokens <= 16


def test_forced_video_and_audio(tiny_engine):
    """A list asks for each of its modalities, whatever the model would say; media come in the order of the reply."""
    (reply,) = tiny_engine.generate([request("now", modality="audio, video", max_new_tokens=40)])
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
        request(read("image", IMAGE), "what is this? and what is", read("video", CLIPS), "?", seed=4),
        request("draw", modality="image", seed=5, num_inference_steps=2, guidance_scale=1.0, max_new_tokens=9),
        request(read("audio", TONE), read("image", IMAGE), read("audio", -TONE), "all", modality="image,video,audio",
                max_new_tokens=48),
    ]  # fmt: skip
    together = tiny_engine.generate(requests)
    for one, reply in zip(requests, together, strict=True):
        alone = tiny_engine.generate([one])[0]
        assert (alone.text, alone.tokens, len(alone.media)) == (reply.text, reply.tokens, len(reply.media))
        assert all(same(a, b) for a, b in zip(alone.media, reply.media, strict=True))


def test_seeds_steps_guidance_and_sampler_matter_and_compile_nothing(tiny_engine):
    base = tiny_engine.generate([request("draw", modality="image")])[0].media[0].content
    programs = compilations()
    for change in ({"seed": 1}, {"num_inference_steps": 2}, {"guidance_scale": 6.0}, {"sampler": "unipc"}):
        other = tiny_engine.generate([request("draw", modality="image", **change)])[0].media[0].content
        assert not np.array_equal(base, other), change
    assert compilations() == programs


@pytest.mark.parametrize("name, content", [("image", IMAGE), ("video", CLIPS), ("audio", TONE)])
def test_media_change_the_answer_s_hidden_states(tiny_engine, name, content):
    other = content[::-1].copy() if name != "video" else content[:, ::-1]
    one, two = (tiny_engine.generate([request(read(name, c), "draw", modality="image")])[0] for c in (content, other))
    assert not np.array_equal(one.media[0].content, two.media[0].content)


def test_progress_is_reported(tiny_engine):
    seen = []
    reported = tiny_engine.generate([request("draw", modality="image")], lambda done, count: seen.append((done, count)))
    assert seen[:3] == [(1, 3), (2, 3), (3, 3)]
    silent = tiny_engine.generate([request("draw", modality="image")])
    np.testing.assert_array_equal(reported[0].media[0].content, silent[0].media[0].content)


def test_engines_do_not_share_changes(tiny_config):
    system = load_system(tiny_config.model)
    first, second = Engine(system, tiny_config.generation), Engine(system, tiny_config.generation)
    assert first.generate([request("draw")])[0].text == second.generate([request("draw")])[0].text


def test_what_is_compiled_ahead_is_not_compiled_later(tiny_engine):
    jax.clear_caches()
    tiny_engine.warm_up(prompt_tokens=[20, 40], max_new_tokens=48)
    before = compilations()
    assert before
    for modality in ("image", "video", "audio"):
        reply = tiny_engine.generate([request(read("image", IMAGE), "draw", modality=modality, max_new_tokens=48)])[0]
        assert [medium.modality for medium in reply.media] == [modality]
    assert compilations() == before


def test_no_more_is_sampled_together_than_the_config_says(tiny_engine, monkeypatch):
    """Nor is a batch filled up to more."""
    seen, start = [], programs.start_sampling
    monkeypatch.setattr(
        programs, "start_sampling", lambda m, hidden, *a, **k: seen.append(len(hidden)) or start(m, hidden, *a, **k)
    )
    monkeypatch.setattr(tiny_engine.defaults.image, "batch", 3)
    replies = tiny_engine.generate([request("draw", modality="image", max_new_tokens=4, seed=s) for s in range(4)])
    assert [len(reply.media) for reply in replies] == [1] * 4 and seen == [3, 1]


def streamed(engine, request):
    """The events of a stream as one response, whose parts are checked against the last event."""
    *events, last = engine.stream(request)
    assert last.response and not last.text and not last.media
    texts = [event.text for event in events if event.text]
    media = [event.media for event in events if event.media]
    assert [bool(event.text) for event in events] == [True] * len(texts) + [False] * len(media), "text comes first"
    assert last.response.text == "".join(texts)
    assert len(media) == len(last.response.media) and all(map(same, media, last.response.media))
    return last.response


@pytest.mark.parametrize(
    "options",
    [
        dict(modality="text", max_new_tokens=60),
        dict(modality="text", temperature=1.0, seed=1, max_new_tokens=33),
        dict(modality="auto", temperature=1.0, seed=2, max_new_tokens=40),
        dict(modality="image,video,audio", temperature=2.0, seed=3, max_new_tokens=60),
        dict(modality="image", max_new_tokens=4),
    ],
)
def test_a_stream_gives_what_generate_gives(tiny_engine, options):
    one = request(read("image", IMAGE), "now", **options)
    (expected,) = tiny_engine.generate([one])
    programs_before = compilations()
    found = streamed(tiny_engine, one)
    assert compilations() == programs_before
    assert (found.text, found.tokens, found.segments) == (expected.text, expected.tokens, expected.segments)
    assert found.finish_reason == expected.finish_reason and found.prompt_tokens == expected.prompt_tokens > 0
    assert expected.finish_reason == "stop" or expected.tokens == one.max_new_tokens
    assert len(found.media) == len(expected.media) and all(map(same, found.media, expected.media))


def test_a_stream_is_checked_before_it_begins(tiny_engine):
    with pytest.raises(UserError, match="steps is out of range"):
        tiny_engine.stream(request("draw", num_inference_steps=0))


def test_a_stream_reports_progress_and_can_be_left(tiny_engine):
    seen = []
    list(tiny_engine.stream(request("draw", modality="image", max_new_tokens=4), lambda *step: seen.append(step)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    events = tiny_engine.stream(request("say", modality="text", temperature=1.0, max_new_tokens=60))
    next(events)
    events.close()
    assert tiny_engine.generate([request("say")])[0].tokens
