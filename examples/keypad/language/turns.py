"""One exchange of the keypad world: prompt, inputs and outputs; and the sentences of the replies.

A reply is short and always names its subject: "Here is ..." with outputs, "This is ..." without. The conclusion comes
last, so that a model has generated its premises before it.
"""

import random
import re
from typing import NamedTuple

from examples.keypad.talk import NUMBERS, WORDS, a, parity, sentence
from examples.keypad.things import Thing

MARKS = {"image": "<image>", "video": "<video>", "audio": "<audio>"}  # in the order of outputs in replies
_ORDER = list(MARKS)


class Turn(NamedTuple):
    """seen, made: what the marks of the human's and of the reply's text stand for, in order."""

    human: str
    gpt: str
    seen: tuple[Thing, ...] = ()
    made: tuple[Thing, ...] = ()


def words_alone(text: str) -> str:
    """A turn's text without its placeholders."""
    return re.sub("|".join(MARKS.values()), "", text)


def called(thing: Thing) -> str:
    """The name of an input in replies: "a seven", "the tone of key seven", "a seven moving left"."""
    word = WORDS[thing.digit]
    return {"image": a(word), "audio": f"the tone of key {word}", "video": f"{a(word)} moving {thing.direction}"}[
        thing.modality
    ]


def made(*things: Thing) -> Turn:
    """The reply with outputs; a turn without its question."""
    things = tuple(sorted(things, key=lambda t: _ORDER.index(t.modality)))
    names = [f"a handwritten {WORDS[t.digit]}" if t.modality == "image" else called(t) for t in things]
    text = names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"
    return Turn("", f"Here is {text}.{''.join(MARKS[t.modality] for t in things)}", made=things)


def described(thing: Thing) -> str:
    """The reply that describes inputs."""
    return f"This is {called(thing)}."


def with_parity(thing: Thing) -> str:
    return f"This is {called(thing)}, so it is {parity(thing.digit)}."


def with_next(thing: Thing) -> str:
    return f"This is {called(thing)}, and {NUMBERS[thing.digit + 1]} comes after it."


def compared(first: int, second: int) -> str:
    """The reply to a comparison of two digits."""
    return f"The first is {WORDS[first]} and the second is {WORDS[second]}, so {'yes' if first == second else 'no'}."


def remembered(thing: Thing) -> str:
    """The reply to a question about an earlier output or input."""
    return f"{ {'image': 'I drew', 'audio': 'I played', 'video': 'I showed'}[thing.modality] } {called(thing)}."


def styled(rng: random.Random, text: str) -> str:
    """Variation of typing: sometimes a capital letter, sometimes no final punctuation."""
    if rng.random() < 0.35:
        text = re.sub(r"\bi\b", "I", sentence(text))
    if rng.random() < 0.15:
        text = text.rstrip("?!.")
    elif text[-1] not in "?!.>" and rng.random() < 0.25:
        text += "."
    return text


_INTRODUCTIONS = {
    "image": (
        *("here is a picture {mark}: {text}", "look at this {mark}. {text}", "i wrote this {mark}. {text}"),
        *("here is a digit {mark}. {text}", "this is my picture {mark}. {text}", "here is a scan {mark}. {text}"),
    ),
    "audio": (
        *("here is a tone {mark}: {text}", "listen to this {mark}. {text}", "i pressed a key {mark}. {text}"),
        *("i heard this {mark}. {text}", "this is a tone {mark}. {text}", "listen: {mark} {text}"),
    ),
    "video": (
        *("here is a video {mark}: {text}", "watch this {mark}. {text}", "here is a clip {mark}. {text}"),
        *("i filmed this {mark}. {text}", "this is a video {mark}. {text}", "look at this video {mark}. {text}"),
    ),
}


def shown(rng: random.Random, text: str, thing: Thing) -> str:
    """The text with the placeholder of an input, at one of the usual places."""
    mark = MARKS[thing.modality]
    if rng.random() < 0.2:
        return rng.choice(_INTRODUCTIONS[thing.modality]).format(mark=mark, text=text)
    return rng.choice((f"{mark}\n{text}", f"{mark}\n{text}", f"{mark} {text}", f"{mark}{text}", f"{text} {mark}"))
