"""The language of the keypad world: requests and questions about ten digits, and the replies.

Everything is composed from small lists by a seeded `random.Random`. `<image>`, `<audio>` and `<video>` are placeholders
of inputs in a human turn, of outputs in a reply. The prompts of the evaluation (held_out.py) are never composed.
"""

import random

from examples.keypad.language.dialogue import dialogue
from examples.keypad.language.editing import edited
from examples.keypad.language.held_out import (
    CONVERSATIONS,
    EDITS,
    HELD_OUT_QUESTIONS,
    MODALITIES,
    TEXT_ONLY,
    Request,
    held_out,
    held_out_requests,
    normal,
)
from examples.keypad.language.making import any_thing, asked_by_name, made_from, several_by_name, several_from
from examples.keypad.language.reading import reading, reading_two
from examples.keypad.language.talking import talking
from examples.keypad.language.turns import MARKS, Turn, made, words_alone
from examples.keypad.talk import WORDS
from examples.keypad.things import DIRECTIONS, Thing, caption, captions

__all__ = [
    "CONVERSATIONS",
    "DIRECTIONS",
    "EDITS",
    "HELD_OUT_QUESTIONS",
    "MARKS",
    "MODALITIES",
    "TEXT_ONLY",
    "WORDS",
    "Request",
    "Thing",
    "Turn",
    "caption",
    "captions",
    "conversation",
    "edited",
    "held_out",
    "held_out_requests",
    "made",
    "normal",
    "talking",
    "words_alone",
]

_HELD_OUT = held_out()


def conversation(rng: random.Random) -> list[Turn]:
    """One conversation of the instruction set, without prompts of the evaluation."""
    while True:
        turns = _conversation(rng)
        if not any(normal(turn.human) in _HELD_OUT for turn in turns):
            return turns


def _conversation(rng: random.Random) -> list[Turn]:
    kind = rng.random()
    if kind < 0.07:
        return [edited(rng, _any(rng))]
    if kind < 0.24:
        return [talking(rng)]
    if kind < 0.37:
        return [asked_by_name(rng, _any(rng, image=0.3, audio=0.3))]
    if kind < 0.49:
        return [reading(rng, _any(rng, image=0.35, audio=0.25))]
    if kind < 0.69:  # from video to video is harder: the digit, and the direction
        seen = _any(rng, image=0.25, audio=0.25)
        weights = {"image": 1, "audio": 1, "video": 3 if seen.modality == "video" else 1}
        return [made_from(rng, seen, rng.choices(tuple(weights), tuple(weights.values()))[0])]
    if kind < 0.72:
        return [reading_two(rng)]
    if kind < 0.76:
        return [several_by_name(rng) if rng.random() < 0.6 else several_from(rng, _any(rng))]
    if kind < 0.95:
        return dialogue(rng)
    makers = (talking, lambda rng: asked_by_name(rng, _any(rng)), lambda rng: reading(rng, _any(rng)), reading_two)
    return [rng.choice(makers)(rng) for _ in range(rng.choice((2, 2, 3, 4)))]


def _any(rng: random.Random, image: float = 1 / 3, audio: float = 1 / 3) -> Thing:
    """A random thing; videos have the remaining probability."""
    return any_thing(rng, rng.choices(tuple(MARKS), (image, 1.0 - image - audio, audio))[0])
