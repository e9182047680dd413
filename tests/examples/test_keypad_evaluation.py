"""The evaluation against models that are known: one that always does what is asked, and one that never does."""

import itertools
import types

import numpy as np
import pytest

from examples.keypad import conversations, exhibits, gallery, language, tasks, world
from examples.keypad.language import Request, Thing
from examples.keypad.pretrain.imagebind import IMAGEBIND
from examples.keypad.things import everything
from examples.keypad.variations import VARIATIONS
from nextgpt_jax import media
from nextgpt_jax.config import EvalConfig, GenerationDefaults
from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.types import Outcome
from nextgpt_jax.inference.types import MediaOutput, Response
from nextgpt_jax.modalities import MODALITIES
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
        return Response(
            self._text(request) or "", [self.medium(t) for t in self._things(request)], 0, ("said",), "stop", 1
        )

    def medium(self, thing):
        index = np.flatnonzero(self._labels == thing.digit)[0]
        if thing.modality == "image":
            return MediaOutput("image", self._images[index])
        if thing.modality == "video":
            moving = world.movie(self._inks[index], thing.direction, np.random.default_rng(1))
            return MediaOutput("video", media.Video(moving, world.FPS))
        return MediaOutput("audio", media.Audio(world.clean_tone(thing.digit, 0.5), world.RATE))


def _outcome(sample, folder, things=lambda request: request.made):
    """The answer of one who makes `things` and knows what to say."""
    request = sample.references["request"]
    made = {}
    for i, thing in enumerate(things(request)):
        path = folder / f"{sample.id.replace('/', '_')}_{i}{MODALITIES[thing.modality].suffix}"
        media.write(thing.modality, path, MAKER.medium(thing).content)
        made.setdefault(thing.modality, []).append(path)
    return Outcome(sample, request.answer or "", made)


MAKER = Known([])


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return tasks.samples(tmp_path_factory.mktemp("inputs"), every=4)


@pytest.fixture(scope="module")
def obeyed(samples, tmp_path_factory):
    """The answers of one who always does what is asked."""
    folder = tmp_path_factory.mktemp("obeyed")
    return [_outcome(sample, folder) for sample in samples]


def test_who_does_all_that_is_asked_is_right(samples, obeyed):
    metric, distance = tasks.metrics(samples, EvalConfig())
    numbers = np.concatenate([metric.measure(obeyed[:100]), metric.measure(obeyed[100:])])
    figures = metric.aggregate(numbers)
    assert figures["words"] == figures["tones"] == figures[tasks.TALKING] == figures[tasks.READING] == 100
    assert min(figures["digits"], figures["motions"]) > 85 and min(figures.values()) > 60, (
        "the judge may misread a scan"
    )
    assert len(figures) == 5 + 16 + 2 + sum(map(len, VARIATIONS.values()))
    assert figures["right"] == pytest.approx(100 * metric.scores(numbers).mean())
    assert 0 < distance.aggregate(distance.measure(obeyed))["FD of digits"] < 20  # of ten different images
    lines = tasks.table(figures, samples)
    assert lines[1].split()[:4] == ["text", "10", "of", "10"]
    assert "images, white on black: 10 of 10 are named correctly" in lines


def test_who_does_something_else_is_wrong(samples, tmp_path):
    other = {
        "image": lambda t: t._replace(digit=(t.digit + 1) % 10),
        "audio": lambda t: t._replace(digit=(t.digit + 1) % 10),
        "video": lambda t: t._replace(direction={"up": "down", "down": "up", "left": "up", "right": "up"}[t.direction]),
    }
    some = [sample for sample in samples if sample.references["request"].made][::3]
    outcomes = [_outcome(sample, tmp_path, lambda r: [other[t.modality](t) for t in r.made]) for sample in some]
    figures = tasks.Right(some).aggregate(tasks.Right(some).measure(outcomes))
    assert figures["right"] < 5 and figures["motions"] < 5 and "words" not in figures


def test_samples_are_held_out_and_named(samples):
    assert len({sample.id for sample in samples}) == len(samples)
    assert {language.normal(sample.prompt) for sample in samples} <= language.held_out()
    assert all(path.is_file() for sample in samples for paths in sample.inputs.values() for path in paths)


@pytest.mark.parametrize("extra", ["none", "twice", "spurious"])
def test_exactly_what_is_asked_for_must_come_out(extra):
    image, tone = Thing("image", 1), Thing("audio", 1)
    request = Request("draw a one and play it", made=(image, tone))
    things = {"none": [], "twice": [image, tone, tone], "spurious": [image, tone, Thing("video", 1, "up")]}[extra]
    assert not request.fulfilled("", things) and request.fulfilled("", [tone, image])
    assert not Request("what is two plus three?", answer="five").fulfilled("Two plus three is five.", [tone])


def test_conversations_go_on_from_what_was_answered(tmp_path):
    turns = itertools.zip_longest(*language.CONVERSATIONS)
    engine = Known([request for at_once in turns for request in at_once if request is not None])
    answers = conversations.conversations(conversations.Examination(engine, tmp_path))
    assert [len(some) for some in answers] == [len(c) for c in language.CONVERSATIONS]
    assert [[a.request for a in some] for some in answers] == [list(c) for c in language.CONVERSATIONS]
    longest = max(engine.asked, key=lambda request: len(request.turns)).turns
    assert [turn.assistant for turn in longest] == [("said",)] * (len(longest) - 1) + [None]
    assert sum(all(a.right() for a in some) for some in answers) >= 14  # the judge may misread a scan


def test_a_conversation_that_outgrows_the_context_is_wrong_from_there(tmp_path):
    requests = [Request("hello", answer=""), Request("hello again", answer="")]
    engine = Known(requests, text=lambda request: "Hello!")
    engine.room, history = 1, []
    answers = [conversations.Examination(engine, tmp_path).ask([request], [history])[0] for request in requests]
    assert [answer.right() for answer in answers] == [True, False] and len(history) == 1 == len(engine.asked)


def test_what_is_shown_differs_from_time_to_time_and_is_held_out(tmp_path):
    shows = exhibits.Exhibits(tmp_path)
    things = [Thing("image", 3), Thing("audio", 3), Thing("video", 3, "left")]
    shown = [[shows.show(thing) for thing in things] for _ in range(3)]
    for paths, thing in zip(zip(*shown, strict=True), things, strict=True):
        assert len({path.read_bytes() for path in paths}) == 3
        assert [exhibits.judged(thing.modality, path) for path in paths].count(thing) >= 2
    trained = {image.tobytes() for image in world.scans()[0][world.TRAIN]}
    assert not {media.read_image(paths[0]).tobytes() for paths in shown} & trained


def test_the_gallery_shows_every_modality(obeyed):
    pairs = {(s, t): tasks.category(s, t) for s in language.MODALITIES for t in language.MODALITIES}
    picture = gallery.gallery({p: [o for o in obeyed if o.sample.category == name] for p, name in pairs.items()})
    assert picture.width > 900 and picture.height > 600
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 200


def test_the_judges_read_real_media(tmp_path):
    """The ceiling of the figures."""
    shows = exhibits.Exhibits(tmp_path)
    for modality, copies in (("image", 10), ("audio", 5), ("video", 2)):
        things = everything(modality) * copies
        assert np.mean([exhibits.judged(modality, shows.show(thing)) == thing for thing in things]) > 0.85
