"""The official client's calls, on the tiny random system: answers are those of the batcher."""

import dataclasses
import io
import json

import numpy as np
import pytest
import soundfile

from nextgpt_jax.inference.requests import make_request
from nextgpt_jax.media import read_video
from nextgpt_jax.prompts import Turn, human_segments
from tests.inference.requests import IMAGE, TONE, read
from tests.serving.http.media import content_of, part, pixels_of, png, text, url, user, wav

STEPS = {"steps": 2}


def expected(batcher, prompt, modality, seed, history=(), temperature=None, **paths):
    options = {"modality": modality, "seed": seed, "num_inference_steps": 2, "temperature": temperature}
    engine = batcher.engine
    request = make_request(prompt, {}, options, engine.config, engine.defaults, history)
    inputs = {name: [read(name, x).content for x in found] for name, found in paths.items()}
    request = dataclasses.replace(request, turns=(*history, Turn(human_segments(prompt, inputs))))
    return batcher.submit(request).result()


def check_pixels(data, wanted):
    """Other batch sizes of the decoder round otherwise in float32."""
    np.testing.assert_allclose(pixels_of(data).astype(int), wanted.astype(int), atol=1)


@pytest.fixture(scope="module")
def answer(client):
    """An answer to an image, with an image and a tone."""
    return client.chat.completions.create(
        model="keypad",
        messages=[user(text("what is this?"), part(png()))],
        seed=3,
        temperature=0,
        extra_body=STEPS | {"modality": "image,audio"},
    )


def test_chat_with_an_image(batcher, answer):
    wanted = expected(batcher, "what is this?", "image,audio", 3, temperature=0, image=[IMAGE])
    (choice,) = answer.choices
    assert choice.message.content == wanted.text and choice.finish_reason == wanted.finish_reason
    image, audio = choice.message.media
    assert (image["type"], audio["type"]) == ("image_url", "audio_url")
    check_pixels(content_of(image["image_url"]["url"]), wanted.media[0].content)
    samples, rate = soundfile.read(io.BytesIO(content_of(audio["audio_url"]["url"])))
    assert rate == wanted.media[1].content.sample_rate
    np.testing.assert_allclose(samples, np.clip(wanted.media[1].content.samples, -1, 1), atol=1e-4)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (wanted.prompt_tokens, wanted.tokens)
    assert usage.total_tokens == wanted.prompt_tokens + wanted.tokens and answer.seed == 3


def test_conversation(batcher, client, answer):
    """The model's message goes back as it came: of its media it knows that it made them."""
    first = expected(batcher, "what is this?", "image,audio", 3, temperature=0, image=[IMAGE])
    question = human_segments("what is this?", {"image": [read("image", IMAGE).content]})
    media = tuple(s for s in first.segments if not isinstance(s, str))
    history = [Turn(question, ((first.text,) if first.text else ()) + media)]
    wanted = expected(batcher, "and this?", "text", 5, history, 0, audio=[TONE])
    sound = {"type": "input_audio", "input_audio": {"data": url(wav()).partition(",")[2], "format": "wav"}}
    messages = [user(text("what is this?"), part(png())), answer.choices[0].message, user(sound, text("and this?"))]
    options = {"seed": 5, "temperature": 0, "extra_body": {"modality": "text"}}
    again = client.chat.completions.create(model="keypad", messages=messages, **options)
    assert again.usage.prompt_tokens == wanted.prompt_tokens
    assert again.choices[0].message.content == wanted.text


def test_streams_with_usage(batcher, client):
    extra = STEPS | {"media_format": "url", "modality": "image"}
    chunks = list(
        client.chat.completions.create(
            model="keypad",
            messages=[user("draw")],
            seed=1,
            n=2,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=extra,
        )
    )
    assert chunks[-1].choices == [] and all(chunk.usage is None for chunk in chunks[:-1])
    total = 0
    for index in range(2):
        wanted = expected(batcher, "draw", "image", 1 + index, temperature=0)
        total += wanted.tokens
        choices = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == index]
        assert choices[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in choices) == wanted.text
        assert [c.finish_reason for c in choices] == [None] * (len(choices) - 1) + [wanted.finish_reason]
        found = [p["image_url"]["url"] for c in choices for p in getattr(c.delta, "media", [])]
        fetched = [client._client.get(place) for place in found]
        assert [r.headers["content-type"] for r in fetched] == ["image/png"] * len(wanted.media)
        for response, medium in zip(fetched, wanted.media, strict=True):
            check_pixels(response.content, medium.content)
    assert chunks[-1].usage.completion_tokens == total


def test_stops_and_limits(client):
    ask = {"model": "keypad", "messages": [user("hi")], "temperature": 0, "extra_body": {"modality": "text"}}
    whole = client.chat.completions.create(**ask).choices[0]
    assert whole.finish_reason == "length" and len(whole.message.content) > 8
    mark = whole.message.content[5:8]
    stopped = client.chat.completions.create(**ask, stop=mark).choices[0]
    assert stopped.message.content == whole.message.content.partition(mark)[0].strip()
    assert stopped.finish_reason == "stop"
    cut = client.chat.completions.create(**ask, max_completion_tokens=2)
    assert cut.usage.completion_tokens == 2 and cut.choices[0].finish_reason == "length"


def test_multipart_chat(batcher, client, address):
    message = user(text("what is this?"), {"type": "image_url", "image_url": {"url": "upload:photo"}})
    body = {"model": "keypad", "messages": [message], "modality": "text", "seed": 3, "temperature": 0}
    response = client._client.post(
        f"{address}/v1/chat/completions",
        data={"request": json.dumps(body)},
        files={"photo": ("a.png", png(), "image/png")},
        headers=client.auth_headers,
    )
    wanted = expected(batcher, "what is this?", "text", 3, temperature=0, image=[IMAGE])
    assert response.json()["choices"][0]["message"]["content"] == wanted.text


def test_images(batcher, client):
    found = client.images.generate(prompt="draw", n=2, size="16x16", extra_body=STEPS | {"seed": 7})
    for i, image in enumerate(found.data):
        wanted = expected(batcher, "draw", "image", 7 + i)
        check_pixels(content_of(f";base64,{image.b64_json}"), wanted.media[0].content)
    other = client.images.generate(prompt="draw", response_format="url", output_format="webp", extra_body=STEPS)
    fetched = client._client.get(other.data[0].url)
    assert fetched.headers["content-type"] == "image/webp" and pixels_of(fetched.content).shape == (16, 16, 3)
    name, last = other.data[0].url[:-6], other.data[0].url[-6]
    assert client._client.get(f"{name}{'y' if last == 'x' else 'x'}.webp").status_code == 404


def test_image_edits(batcher, client, tmp_path):
    (tmp_path / "seen.png").write_bytes(png())
    engine = batcher.engine
    options = {"modality": "image", "seed": 7, "num_inference_steps": 2, "edit": "image", "strength": 0.5}
    request = make_request("draw", {"image": [tmp_path / "seen.png"]}, options, engine.config, engine.defaults)
    wanted = batcher.submit(request).result().media[0].content
    extra = STEPS | {"seed": 7, "strength": 0.5}
    found = client.images.edit(image=("seen.png", png()), prompt="draw", extra_body=extra)
    check_pixels(content_of(f";base64,{found.data[0].b64_json}"), wanted)
    chat = client.chat.completions.create(
        model="keypad",
        messages=[user(text("draw"), part(png()))],
        seed=7,
        extra_body=STEPS | {"edit": "image", "strength": 0.5},
    )
    check_pixels(content_of(chat.choices[0].message.media[0]["image_url"]["url"]), wanted)


def test_sound(batcher, client, address):
    options = {"model": "keypad", "voice": "auto", "extra_body": STEPS | {"seed": 2}}
    wanted = expected(batcher, "sing", "audio", 2).media[0].content
    for kind in ("wav", "flac", "pcm"):
        data = client.audio.speech.create(input="sing", response_format=kind, **options).content
        raw = {"format": "RAW", "channels": 1, "samplerate": 8000, "subtype": "PCM_16"} if kind == "pcm" else {}
        samples, _ = soundfile.read(io.BytesIO(data), **raw)
        np.testing.assert_allclose(samples, np.clip(wanted.samples, -1, 1), atol=1e-4)
    body = {"prompt": "sing", "seed": 2, "n": 2} | STEPS
    response = client._client.post(f"{address}/v1/audio/generations", json=body, headers=client.auth_headers)
    samples, _ = soundfile.read(io.BytesIO(content_of(f";base64,{response.json()['data'][0]['b64_json']}")))
    np.testing.assert_allclose(samples, np.clip(wanted.samples, -1, 1), atol=1e-4)


def test_videos(batcher, client, tmp_path):
    begun = client.videos.create(prompt="a film", size="16x16", seconds="1", extra_body=STEPS | {"seed": 4})
    assert begun.status == "queued" and begun.seed == 4
    done = client.videos.poll(begun.id, poll_interval_ms=20)
    assert done.status == "completed" and done.progress == 100 and done.completed_at >= done.created_at
    client.videos.download_content(begun.id).write_to_file(tmp_path / "film.mp4")
    wanted = expected(batcher, "a film", "video", 4).media[0].content
    assert read_video(tmp_path / "film.mp4").frames.shape == wanted.frames.shape
    options = {"extra_body": STEPS, "poll_interval_ms": 20}
    other = client.videos.create_and_poll(prompt="a", input_reference=("a.png", png(), "image/png"), **options)
    assert other.status == "completed"
    assert [v.id for v in client.videos.list(limit=1)] == [other.id, begun.id]  # two pages
    assert [v.id for v in client.videos.list(order="asc")] == [begun.id, other.id]
    for video in (begun, other):
        assert client.videos.delete(video.id).deleted
    assert list(client.videos.list()) == []


def test_embeddings(batcher, client):
    found = client.embeddings.create(model="keypad", input=["a seven", "a tone of two"])
    vectors = np.array([item.embedding for item in found.data])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-6)
    assert vectors.shape == (2, 128) and found.usage.total_tokens > 6
    (image,) = client.embeddings.create(model="keypad", input=[part(png())], encoding_format="float").data
    (wanted,) = batcher.engine.encode([read("image", IMAGE)])
    np.testing.assert_allclose(image.embedding, wanted[0] / np.linalg.norm(wanted), atol=1e-5)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["keypad"]
    assert "video" in client.models.retrieve("keypad").output_modalities
