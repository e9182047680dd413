"""Editing media of a prompt on the tiny random system."""

import dataclasses

import numpy as np
import pytest

from nextgpt_jax import media
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.editing import load_edit
from nextgpt_jax.inference.requests import make_request, parse_request
from nextgpt_jax.inference.types import Edit
from tests.compilations import compilations
from tests.inference.requests import IMAGE, TONE, request

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
CONTENTS = {"image": IMAGE, "video": (FRAMES, 4.0), "audio": (TONE, 16000)}
OPTIONS = {"temperature": 0.0, "num_inference_steps": 3, "guidance_scale": 2.0, "max_new_tokens": 28}


@pytest.fixture(scope="module")
def edit(tiny_engine):
    """A request to edit a medium."""

    def make(name="image", content=None, **options):
        content = CONTENTS[name] if content is None else content
        arguments = {"edit": name, "strength": 0.7} | OPTIONS | options
        return make_request("make it new", {name: [content]}, arguments, tiny_engine.config, tiny_engine.defaults)

    return make


def made(response):
    (medium,) = response.media
    return {"video": lambda m: m.frames, "audio": lambda m: m.samples}.get(medium.modality, lambda m: m)(medium.content)


def distance(one, other):
    return np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).max()


def test_an_edit_is_the_same_alone_and_in_a_batch(tiny_engine, edit):
    """Also beside media that are new, of another strength, or inverted."""
    requests = [
        edit(seed=3), edit(content=FRAMES[0], seed=4), edit(strength=1.0, sampler="unipc"), edit(inversion=True),
        request("draw", modality="image", seed=3),
    ]  # fmt: skip
    together = [made(response) for response in tiny_engine.generate(requests)]
    for one, found in zip(requests, together, strict=True):
        alone = made(tiny_engine.generate([one])[0])
        assert alone.shape == found.shape == (16, 16, 3) and distance(alone, found) <= 1
    assert len({found.tobytes() for found in together}) == len(together)


@pytest.mark.parametrize("name", ["image", "video"])
def test_the_original_matters_and_compiles_nothing(tiny_engine, edit, name):
    other = {"image": IMAGE[::-1].copy(), "video": (FRAMES[::-1].copy(), 4.0), "audio": (TONE[::-1].copy(), 16000)}
    base = edit(name)
    first = made(tiny_engine.generate([base])[0])
    replaced = dataclasses.replace(base, edit=edit(name, other[name]).edit)  # the language model sees the same
    programs = compilations()
    changes = [replaced, dataclasses.replace(base, seed=1)]
    changes += [dataclasses.replace(base, edit=dataclasses.replace(base.edit, strength=s)) for s in (0.4, 1.0)]
    for changed in changes:
        assert not np.array_equal(made(tiny_engine.generate([changed])[0]), first)
    assert compilations() == programs


def test_an_inversion_draws_nothing(tiny_engine, edit):
    one, other = (made(tiny_engine.generate([edit(inversion=True, seed=s)])[0]) for s in (1, 2))
    assert distance(one, other) <= 1
    seen = []
    tiny_engine.generate([edit(inversion=True)], lambda done, count: seen.append((done, count)))
    assert seen == [(i, 4) for i in range(1, 5)], "two of three steps, backwards and forwards"


def test_what_is_edited_is_made(tiny_engine, edit):
    assert edit("audio").modality == "audio" and edit("image", modality="auto").modality == "auto"
    tiny_engine.validate(edit("image", modality="image,audio", max_new_tokens=48))


@pytest.mark.parametrize(
    "name,options,message",
    [
        ("image", {"strength": 0.0}, "strength is out of range: 0 "),
        ("image", {"strength": 1.5}, "strength is out of range: 1.5"),
        ("audio", {"strength": 0.1}, "strength=0.1 leaves none of 3 steps: give at least 0.334"),
        ("image", {"modality": "text"}, "modality 'text' has no image"),
        ("image", {"modality": "audio"}, "modality 'audio' has no image"),
        ("image", {"edit": "smell"}, "edit 'smell' is not one of image, video, audio"),
        ("image", {"edit": "audio"}, "edit 'audio' needs the audio that is edited"),
        ("image", {"edit": None}, "strength goes with edit"),
        ("image", {"inversion": True, "sampler": "unipc"}, "leave out sampler='unipc'"),
    ],
)
def test_what_cannot_be_edited(tiny_engine, edit, name, options, message):
    with pytest.raises(UserError, match=message):
        tiny_engine.validate(edit(name, **options))


def test_an_edit_fits_its_decoder_and_its_prompt(tiny_engine, edit):
    good = edit()
    for wrong in (IMAGE, good.edit.content.astype(np.float32)):
        with pytest.raises(UserError, match=r"expected uint8 \[16, 16, 3\]: load it with"):
            tiny_engine.validate(dataclasses.replace(good, edit=Edit("image", wrong)))
    with pytest.raises(UserError, match="the prompt needs an input of that modality"):
        tiny_engine.validate(dataclasses.replace(request("draw", modality="image"), edit=good.edit))
    assert load_edit({}, {}, tiny_engine.config, tiny_engine.defaults) is None


def test_fields_of_a_requests_file(tmp_path):
    line = '{"prompt": "a nine", "images": ["a.png"], "edit": "image", "strength": 1, "inversion": true}'
    record = parse_request(line, tmp_path)
    assert record.options == {"edit": "image", "strength": 1, "inversion": True}
    for field, value in (("inversion", "1"), ("strength", "true"), ("edit", "true"), ("strength", '"0.5"')):
        with pytest.raises(UserError, match=f"{field} should be"):
            parse_request(f'{{"prompt": "a", "{field}": {value}}}', tmp_path)


def test_the_blank_spectrogram_is_silence(tiny_engine, edit):
    audio = edit("audio", (np.zeros(800, np.float32), 8000))
    assert isinstance(tiny_engine.generate([audio])[0].media[0].content, media.Audio)
