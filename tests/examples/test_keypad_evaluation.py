"""The evaluation against models that are known: one that always does what is asked, and one that never does."""

import itertools
import types

import numpy as np
import pytest

from examples.keypad import evaluate, language, world
from examples.keypad.language import Request, Thing
from examples.keypad.pretrain.imagebind import IMAGEBIND
from nextgpt_jax import media
from nextgpt_jax.config import GenerationDefaults
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.types import MediaOutput, Response
from nextgpt_jax.models.encoders.imagebind import ImageBindConfig


class Known:
    """An engine that knows what will be asked, in order, and answers with `things` and `text` of a request."""

    defaults = GenerationDefaults()
    room = 5  # turns
    config = types.SimpleNamespace(
        input_encoders=dict.fromkeys(("image", "video", "audio"), ImageBindConfig.from_dict(IMAGEBIND))
    )

    def __init__(self, requests, text=lambda r: r.answer, things=lambda r: r.made):
        self._requests, self._text, self._things = iter(requests), text, things
        self._rng, self.asked = np.random.default_rng(0), []
        images, self._labels = (a[world.TRAIN] for a in world.scans())
        self._inks = world.ink()[world.TRAIN]
        self._images = images

    def validate(self, request):
        if len(request.turns) > self.room:
            raise UserError("the prompt is too long")

    def generate(self, asked):
        self.asked += asked
        return [self._reply(request) for request in itertools.islice(self._requests, len(asked))]

    def _reply(self, request):
        return Response(self._text(request) or "", [self._medium(t) for t in self._things(request)], 0, ("said",))

    def _medium(self, thing):
        index = np.flatnonzero(self._labels == thing.digit)[0]
        if thing.modality == "image":
            return MediaOutput("image", self._images[index])
        if thing.modality == "video":
            moving = world.movie(self._inks[index], thing.direction, np.random.default_rng(1))
            return MediaOutput("video", media.Video(moving, world.FPS))
        return MediaOutput("audio", media.Audio(world.clean_tone(thing.digit, 0.5), world.RATE))


def _pairs():
    sources = targets = language.MODALITIES
    return [
        request for target in targets for source in sources for request in language.held_out_requests(source, target)
    ]


@pytest.fixture(scope="module")
def obeyed(tmp_path_factory):
    """The answers, by pairs of modalities, of one who always does what is asked; and their folder."""
    folder, engine = tmp_path_factory.mktemp("obeyed"), Known(_pairs())
    answers = evaluate.cells(evaluate.Examination(engine, folder))
    return answers, folder


def test_who_does_all_that_is_asked_is_right(obeyed):
    answers, folder = obeyed
    shares = {pair: np.mean([a.right() for a in some]) for pair, some in answers.items()}
    assert len(shares) == 16
    assert all(share == 1.0 for (_, target), share in shares.items() if target in ("text", "audio"))
    assert all(share > 0.7 for share in shares.values()), "the judge may misread a scan"
    assert len(list((folder / "made").iterdir())) == sum(len(r.made) for r in _pairs())
    lines = evaluate.table(answers).splitlines()
    assert len(lines) == 5 and lines[1].split()[:4] == ["text", "40", "of", "40"]


def test_who_does_something_else_is_wrong(tmp_path):
    other = {
        "image": lambda t: t._replace(digit=(t.digit + 1) % 10),
        "audio": lambda t: t._replace(digit=(t.digit + 1) % 10),
        "video": lambda t: t._replace(direction={"up": "down", "down": "up", "left": "up", "right": "up"}[t.direction]),
    }
    requests = [r for r in _pairs() if r.made][::4]
    engine = Known(requests, things=lambda r: [other[t.modality](t) for t in r.made])
    answers = evaluate.Examination(engine, tmp_path).ask(requests)
    assert np.mean([a.right() for a in answers]) < 0.05


@pytest.mark.parametrize("extra", ["none", "twice", "spurious"])
def test_exactly_what_is_asked_for_must_come_out(tmp_path, extra):
    image, tone = Thing("image", 1), Thing("audio", 1)
    request = Request("draw a one and play it", made=(image, tone))
    things = {"none": [], "twice": [image, tone, tone], "spurious": [image, tone, Thing("video", 1, "up")]}[extra]
    (answer,) = evaluate.Examination(Known([request], things=lambda r: things), tmp_path).ask([request])
    assert not answer.right()
    both = evaluate.Examination(Known([request], things=lambda r: [tone, image]), tmp_path / "both").ask([request])
    assert both[0].right()


def test_talk_with_media_is_wrong(tmp_path):
    request = Request("what is two plus three?", answer="five")
    engine = Known([request], text=lambda r: "Two plus three is five.", things=lambda r: [Thing("audio", 5)])
    assert not evaluate.Examination(engine, tmp_path).ask([request])[0].right()


def test_conversations_go_on_from_what_was_answered(tmp_path):
    turns = itertools.zip_longest(*language.CONVERSATIONS)
    engine = Known([request for at_once in turns for request in at_once if request is not None])
    answers = evaluate.conversations(evaluate.Examination(engine, tmp_path))
    assert [len(some) for some in answers] == [len(c) for c in language.CONVERSATIONS]
    assert [[a.request for a in some] for some in answers] == [list(c) for c in language.CONVERSATIONS]
    longest = max(engine.asked, key=lambda request: len(request.turns)).turns
    assert [turn.assistant for turn in longest] == [("said",)] * (len(longest) - 1) + [None]
    assert sum(all(a.right() for a in some) for some in answers) >= 14, "the judge may misread a scan"


def test_a_conversation_that_outgrows_the_context_is_wrong_from_there(tmp_path):
    requests = [Request("hello", answer=""), Request("hello again", answer="")]
    engine = Known(requests, text=lambda request: "Hello!")
    engine.room, history = 1, []
    answers = [evaluate.Examination(engine, tmp_path).ask([request], [history])[0] for request in requests]
    assert [answer.right() for answer in answers] == [True, False] and len(history) == 1 == len(engine.asked)


def test_what_is_shown_differs_from_time_to_time_and_is_held_out(tmp_path):
    exhibits = evaluate.Exhibits(tmp_path)
    things = [Thing("image", 3), Thing("audio", 3), Thing("video", 3, "left")]
    shown = [[exhibits.show(thing) for thing in things] for _ in range(3)]
    for paths, thing in zip(zip(*shown, strict=True), things, strict=True):
        assert len({path.read_bytes() for path in paths}) == 3
        assert [evaluate.judged(thing.modality, path) for path in paths].count(thing) >= 2
    trained = {image.tobytes() for image in world.scans()[0][world.TRAIN]}
    assert not {media.read_image(paths[0]).tobytes() for paths in shown} & trained


def test_the_gallery_shows_every_modality(obeyed):
    picture = evaluate.gallery(obeyed[0])
    assert picture.width > 900 and picture.height > 600
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 200


def test_the_ceiling_is_high(tmp_path):
    shares = [float(word.rstrip("%")) for word in evaluate.ceiling(tmp_path).split() if word.endswith("%")]
    assert len(shares) == 3 and min(shares) > 85
