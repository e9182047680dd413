"""Requests that come and go while others are answered, on the tiny random system."""

import dataclasses
import threading
import time

import numpy as np
import pytest

from nextgpt_jax.config import ServingConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.types import Edit
from nextgpt_jax.serving.answers import Cancelled, QueueFull, TimedOut
from nextgpt_jax.serving.batcher import Batcher
from nextgpt_jax.serving.warmup import warm_up
from tests.compilations import compilations
from tests.inference.requests import CLIPS, IMAGE, read, request

CONFIG = ServingConfig(rows=4, max_new_tokens=48, queue=64)


@pytest.fixture(scope="module")
def engine(tiny_engine):
    return tiny_engine


@pytest.fixture(scope="module")
def batcher(engine):
    with Batcher(engine, CONFIG) as batcher:
        yield batcher


def mixed_requests():
    """Of all kinds, lengths and options."""
    image, video = read("image", IMAGE), read("video", CLIPS)
    options = [
        {"modality": "image,audio", "max_new_tokens": 40},
        {"modality": "text", "temperature": 1.5, "max_new_tokens": 3},
        {"modality": "video", "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 30},
        {"temperature": 1.0, "top_k": 5},
    ]
    prompts = [("draw",), (image, "what is this?"), (video, image, "and a longer prompt with more words"), ("hi",)]
    return [request(*prompts[i % 4], seed=i, **options[i // 4 % 4]) for i in range(16)]


def edit(**options):
    content = np.roll(IMAGE[:16, :16], 3)
    image = request(read("image", IMAGE), "draw it anew", modality="image", **options)
    return dataclasses.replace(image, edit=Edit("image", content, strength=0.7))


def contents(response):
    return [np.asarray(getattr(m.content, "frames", getattr(m.content, "samples", m.content))) for m in response.media]


def test_answers_are_those_of_the_engine_alone_and_together(engine, batcher):
    """Tokens are equal; media up to what other batch sizes of the decoders change in float32."""
    requests = mixed_requests()
    expected = engine.generate(requests)
    alone = [batcher.submit(r).result() for r in requests[:6]]
    together = [batcher.submit(r) for r in requests]
    for answer, wanted in zip(together, expected, strict=True):
        *events, last = answer.events()
        assert "".join(event.text for event in events) == last.response.text
        assert last.response.prompt_tokens == answer.prompt_tokens > 0
        shown = [event.media for event in events if event.media]
        assert [id(m) for m in shown] == [id(m) for m in last.response.media]
        check_equal(last.response, wanted)
    for found, wanted in zip(alone, expected):
        check_equal(found, wanted)


def check_equal(found, wanted):
    assert found.segments == wanted.segments and found.tokens == wanted.tokens and found.text == wanted.text
    assert [m.modality for m in found.media] == [m.modality for m in wanted.media]
    for one, other in zip(contents(found), contents(wanted), strict=True):
        tolerance = 1 if other.dtype == np.uint8 else 1e-5
        np.testing.assert_allclose(one.astype(float), other.astype(float), atol=tolerance)


def test_edits_are_sampled_beside_what_is_new(engine, batcher):
    requests = [edit(seed=1), request("draw", modality="image", seed=1), edit(seed=1, num_inference_steps=2)]
    answers = [batcher.submit(r) for r in requests]
    for asked, answer in zip(requests, answers, strict=True):
        check_equal(answer.result(), engine.generate([asked])[0])


def test_requests_of_many_threads_are_not_crossed(engine, batcher):
    requests = mixed_requests()
    expected = [response.tokens for response in engine.generate(requests)]
    found: dict[int, int] = {}

    def client(i: int) -> None:
        time.sleep(0.01 * (i % 5))
        found[i] = batcher.submit(requests[i]).result().tokens

    threads = [threading.Thread(target=client, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(requests))] == expected


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(engine, batcher):
    asked = request("hi", modality="text", max_new_tokens=40)
    whole = batcher.submit(asked).result()
    assert whole.finish_reason == "length" and whole.tokens == 40
    stop = whole.text[5:8]
    *events, last = batcher.submit(asked, stops=[stop, "never there"]).events()
    assert last.response.text == whole.text[: whole.text.index(stop)].strip() and last.response.finish_reason == "stop"
    assert "".join(event.text for event in events).strip() == last.response.text
    assert batcher.submit(asked, stops=["never there"]).result().text == whole.text


def test_cancelled_and_late_requests_free_their_rows(batcher):
    before = batcher.stats().ended
    long = request("hi", modality="text", max_new_tokens=48, temperature=1.0)
    answers = [batcher.submit(long) for _ in range(8)]
    for answer in answers[:7]:
        answer.cancel()
    late = batcher.submit(long, timeout=0.0)
    with pytest.raises(TimedOut, match="time limit"):
        late.result()
    assert answers[7].result().tokens > 0
    for answer in answers[:7]:
        with pytest.raises(Cancelled):
            answer.result()
    answers[7].cancel()  # after its end
    stats = batcher.stats()
    assert stats.ended - before == {"cancelled": 7, "timed_out": 1, "answered": 1}
    assert (stats.waiting, stats.decoding, stats.media) == (0, 0, 0)


def test_media_of_a_cancelled_request_are_not_made(batcher):
    made = batcher.stats().sampled
    answer = batcher.submit(request("draw", modality="image", num_inference_steps=1000))
    next(event for event in answer.events() if event.text or batcher.stats().media)
    answer.cancel()
    with pytest.raises(Cancelled):
        answer.result()
    assert batcher.submit(request("hi", modality="text")).result() and batcher.stats().sampled == made


def test_a_full_queue_refuses(engine):
    with Batcher(engine, ServingConfig(rows=1, max_new_tokens=48, queue=2)) as batcher:
        long = request("hi", modality="text", max_new_tokens=48)
        answers = []
        with pytest.raises(QueueFull, match="2 requests are waiting: try again later"):
            for _ in range(100):
                answers.append(batcher.submit(long))
        assert all(answer.result().tokens == 48 for answer in answers)
        assert batcher.stats().ended == {"answered": len(answers), "refused": 1}
    with pytest.raises(Cancelled, match="shutting down"):
        batcher.submit(long)


def test_closing_without_waiting_gives_up_what_runs(engine):
    batcher = Batcher(engine, CONFIG)
    answers = [batcher.submit(request("hi", max_new_tokens=48)) for _ in range(8)]
    batcher.close(drain=False)
    for answer in answers:
        if not answer.ended:
            pytest.fail("an answer has no end")
    assert batcher.stats().ended["cancelled"] >= 1


@pytest.mark.parametrize(
    "asked, message",
    [
        (request("word " * 200), "tokens"),
        (request("hi", max_new_tokens=49), "max_new_tokens is 49, but serving.max_new_tokens is 48"),
        (request("hi", seed=-1), "seed is out of range"),
        (request("hi", modality="image,audio", max_new_tokens=3), "needs .* new tokens but has room for 3"),
    ],
)
def test_requests_that_cannot_be_answered_are_refused_at_once(batcher, asked, message):
    with pytest.raises(UserError, match=message):
        batcher.submit(asked)


@pytest.mark.parametrize(
    "field, value", [("rows", 0), ("context", 10**9), ("queue", -1), ("timeout", 0.0), ("media_batches", -1)]
)
def test_settings_out_of_range(engine, field, value):
    with pytest.raises(UserError, match=f"serving.{field} is {value}"):
        Batcher(engine, ServingConfig(**{field: value}))


def test_a_decoder_that_fails_for_one_request_fails_only_that(engine, batcher, monkeypatch):
    start = engine.media_sampler.start

    def fail(groups):
        if any(group.request.seed == 13 for group in groups):
            raise RuntimeError("no picture")
        return start(groups)

    monkeypatch.setattr(engine.media_sampler, "start", fail)
    asked = [request("draw", modality="image", seed=seed) for seed in (12, 13, 14, 15)]
    answers = [batcher.submit(r) for r in asked]
    with pytest.raises(RuntimeError, match="no picture"):
        answers[1].result()
    assert all(len(answers[i].result().media) >= 1 for i in (0, 2, 3))


def test_a_fault_while_decoding_ends_what_runs_and_nothing_after_it(engine, monkeypatch):
    with Batcher(engine, CONFIG) as batcher:
        rows = batcher.device_rows
        advance, calls = rows.advance, []

        def fail(steps, tokens=None):
            calls.append(steps)
            if len(calls) == 2:
                raise RuntimeError("out of memory")
            return advance(steps, tokens)

        monkeypatch.setattr(rows, "advance", fail)
        lost = batcher.submit(request("hi", max_new_tokens=48))
        with pytest.raises(RuntimeError, match="out of memory"):
            lost.result()
        assert batcher.submit(request("hi", modality="text")).result().tokens == 16


def test_everything_can_be_compiled_ahead(engine, monkeypatch):
    """With a cache in 8 bits, and for batches of at most two media: larger ones are compiled in the same way."""
    monkeypatch.setattr(engine.media_sampler, "batch_size", lambda modality: 2)
    seen = []
    config = ServingConfig(rows=2, context=64, max_new_tokens=32, kv_cache="int8")
    options = {"prompt_tokens": [16, 24], "output_modalities": ("image", "audio")}
    warm_up(engine, config, **options, on_program=lambda done, all: seen.append((done, all)))
    assert seen[-1][0] == seen[-1][1] > 5
    before = compilations()
    with Batcher(engine, config) as batcher:
        for r in (request("draw", modality="image,audio"), request(read("image", IMAGE), "what?", modality="text")):
            batcher.submit(r).result()
    assert compilations() == before
