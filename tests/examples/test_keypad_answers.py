"""The shipped weights answer as README says: loaded through the converter, asked through the engine, from files."""

import jax
import numpy as np
import pytest

from configs.keypad import get_config
from examples.keypad import editing, language
from examples.keypad.conversations import Examination
from examples.keypad.exhibits import Exhibits
from examples.keypad.language import MODALITIES, Request
from nextgpt_jax.cli.infer import load_engine
from nextgpt_jax.inference.requests import make_request
from nextgpt_jax.inference.responses import known_ids
from nextgpt_jax.prompts import Turn


@pytest.fixture(scope="module")
def engine():
    """With a quarter of the denoising steps of README's figures: the judge reads those media as well."""
    config = get_config()
    for modality in ("image", "video", "audio"):
        getattr(config.generation, modality).num_inference_steps = 5
    return load_engine(config, "")


@pytest.fixture(scope="module")
def examination(engine, tmp_path_factory):
    return Examination(engine, tmp_path_factory.mktemp("keypad"))


def test_every_pair_of_modalities(examination):
    """Two held-out requests of each, all in one batch."""
    pairs = [(source, target) for source in MODALITIES for target in MODALITIES]
    answers = examination.ask([r for pair in pairs for r in language.held_out_requests(*pair)[3::11][:2]])
    right = np.array([answer.right() for answer in answers]).reshape(4, 4, 2)
    assert right.mean() > 0.85
    assert right.mean((0, 2)).min() > 0.7 and right.mean((1, 2)).min() > 0.7


def test_just_talks_otherwise(examination):
    answers = examination.ask([Request(prompt) for prompt in language.TEXT_ONLY[::3]])
    assert not any(answer.made for answer in answers) and all(answer.text for answer in answers)


def test_a_conversation_goes_on(examination):
    """Two images, a tone and words, each after what was said and made before."""
    history: list[Turn] = []
    answers = [answer for request in language.CONVERSATIONS[11] for answer in examination.ask([request], [history])]
    assert len(history) == 4
    assert sum(answer.right() for answer in answers) >= 3


@pytest.mark.parametrize("modality", ["image", pytest.param("audio", marks=pytest.mark.slow)])
def test_words_edit_a_digit(engine, tmp_path, modality):
    chosen, exhibits = editing.cases(modality, 8), Exhibits(tmp_path / "shown")
    found = editing.measure(engine, chosen, exhibits, tmp_path, editing.WORDING, **editing.SETTINGS[modality])
    assert found.changed >= 6 and found.cases == 8
    little = editing.SETTINGS[modality] | {"strength": editing.SMALL}
    assert editing.measure(engine, chosen, exhibits, tmp_path, editing.WORDING, **little).kept >= 7


@pytest.mark.parametrize(
    "prompt, options",
    [
        ("please draw a seven", {"modality": "image", "temperature": 0.0}),
        ("please draw a seven", {"seed": 5}),
        ("play the tone of key seven", {"modality": "audio", "seed": 2, "temperature": 1.0}),
        ("what is two plus three?", {"temperature": 0.0}),
        ("what is two plus three?", {"seed": 3, "temperature": 1.5, "top_p": 0.9}),
        ("hello, who are you?", {"modality": "text", "seed": 7, "temperature": 2.0, "max_new_tokens": 40}),
        ("show me a nine, then play its tone", {"modality": "image,audio", "seed": 1}),
    ],
)
def test_streamed_answers_are_the_same(engine, prompt, options):
    request = make_request(prompt, {}, {"num_inference_steps": 2, **options}, engine.config, engine.defaults)
    (expected,) = engine.generate([request])
    *events, last = engine.stream(request)
    assert "".join(event.text for event in events) == expected.text == last.response.text
    assert last.response.tokens == expected.tokens and last.response.segments == expected.segments
    shown = [event.media.modality for event in events if event.media]
    assert shown == [medium.modality for medium in expected.media] == [m.modality for m in last.response.media]


def test_a_cache_in_8_bits_gives_the_same_answers(engine):
    """All at once, with the signal tokens of their media."""
    prompts = [
        "please draw a seven for me", "play the tone of key four", "show me a nine, then play its tone",
        "hello, who are you?", "please, what is two plus three?", "make a video of a two that moves up",
    ]  # fmt: skip
    options = {"temperature": 0.0, "max_new_tokens": 64}
    requests = [make_request(prompt, {}, options, engine.config, engine.defaults) for prompt in prompts]
    answers = []
    for kind in ("", "int8"):
        rows = engine.rows(len(prompts), context=128, max_new_tokens=64, kv_cache=kind)
        conversations = [engine.validate(request) for request in requests]
        shape = rows.shape(len(requests), max(len(c.ids) for c in conversations), 1)
        rows.join(range(len(requests)), requests, conversations, [], shape)
        progress = jax.device_get(rows.advance(100))
        answers.append([known_ids(progress, i) for i in range(len(prompts))])
    assert all(done and len(ids) > 3 for ids, done in answers[0])
    assert answers[0] == answers[1]
