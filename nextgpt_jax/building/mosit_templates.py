"""Conversations that mix modalities, put together from short pieces and the captions of a library.

They are plain: media are described by their captions, asked for by captions of others that are like them, and recalled.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from nextgpt_jax.building.captions import Caption
from nextgpt_jax.building.t2m_templates import fill, request_and_reply, tidy

_NOUNS = {
    "image": ("picture", "image"), "video": ("video", "clip"), "audio": ("sound", "recording"),
    "depth": ("depth map",), "thermal": ("thermal image",), "imu": ("motion recording",),
}  # fmt: skip
_QUESTIONS = {
    "audio": ("What do you hear in this {n}?", "Listen to this {n}. What is it?", "What is going on in this {n}?",
              "Can you tell me what this {n} is?", "What made this sound?", "Please describe this {n}."),
    "": ("What do you see in this {n}?", "What does this {n} show?", "Can you tell me what is in this {n}?",
         "Please describe this {n}.", "Look at this {n}. What is it about?", "What is going on in this {n}?",
         "Sum this {n} up in one line.", "I found this {n}. What does it show?"),
}  # fmt: skip
_ANSWERS = {
    "audio": ("I hear this: {c}.", "It sounds like this: {c}.", "In this {n}: {c}.", "{c}."),
    "": ("It shows this: {c}.", "I see this: {c}.", "In this {n}: {c}.", "{c}.", "This {n} shows the following: {c}."),
}  # fmt: skip
_GIVEN = (
    "Here is {a}.",
    "Take this {n}.",
    "This is {a} of mine.",
    "I have {a} for you.",
    "Look what I have: {a}.",
)
_MATCHING = (
    "Make {m} that goes with it.", "Is there {m} that suits it?", "Can you answer with {m} that fits?",
    "I would like {m} to go with it.", "Please reply with {m} on the same subject.", "Find {m} that matches.",
)  # fmt: skip
_MATCHED = (
    "Here is {m} that goes with it: {c}.",
    "This should fit: {c}.",
    "My suggestion: {c}.",
    "How about this: {c}.",
)
_FOLLOW = ("", "", "Next:", "Now something else.", "And then:", "One more thing.", "Nice. Now:", "Thank you. Next one:")
_OPENERS = (
    "Hello! Let us talk about this: {c}.", "Hi, today I am interested in this: {c}.", "I have a subject for us: {c}.",
    "Shall we look at something together? The subject is this: {c}.", "Good morning. I am thinking about this: {c}.",
)  # fmt: skip
_WELCOMES = (
    "With pleasure. What would you like to see or hear?", "Gladly. Show me something, or ask me for something.",
    "A good subject. Where shall we begin?", "I am all ears. Shall I make a picture, a video or a sound of it?",
)  # fmt: skip
_RECALLS = (
    "Remind me: what did {which} show?", "What was it again that {which} showed?",
    "Before I forget: what was in {which}?", "Let us go back to {which}. What was it?",
)  # fmt: skip
_RECALLED = ("It was this: {c}.", "That one showed this: {c}.", "As I said: {c}.", "This: {c}.")
_THANKS = (
    "That is all I wanted to know, thank you.",
    "Thanks, you have helped me a lot.",
    "Lovely, I like it. Thank you!",
)
_WELCOME_BACK = ("You are welcome.", "My pleasure. Come back whenever you like.", "Glad to hear that. Until next time!")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")


class Written(NamedTuple):
    """A turn's texts, without marks."""

    human: str
    model: str


def write_turns(
    topic: str,
    inputs: Sequence[Sequence[Caption]],
    outputs: Sequence[Sequence[Caption]],
    chance: random.Random,
) -> list[Written]:
    """The texts of a conversation.

    Args:
      inputs, outputs: of each turn, the media.
    """
    turns: list[Written] = []
    shown: list[Caption] = []
    for number, (given, made) in enumerate(zip(inputs, outputs, strict=True)):
        if given and made:
            turns.append(_answered_with_media(given, made, chance))
        elif given:
            turns.append(_described(given, chance))
        elif made:
            turns.append(_asked(made, number > 0, chance))
        elif not shown:
            turns.append(Written(fill(_OPENERS, tidy(topic), chance), chance.choice(_WELCOMES)))
        elif number == len(inputs) - 1 and chance.random() < 0.4:
            turns.append(Written(chance.choice(_THANKS), chance.choice(_WELCOME_BACK)))
        else:
            turns.append(_recalled(shown, chance))
        shown += [*given, *made]
    return turns


def _noun(modality: str, chance: random.Random) -> str:
    return chance.choice(_NOUNS[modality])


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _described(given: Sequence[Caption], chance: random.Random) -> Written:
    questions, answers = [], []
    for medium in given:
        noun, kind = _noun(medium.modality, chance), "audio" if medium.modality == "audio" else ""
        questions.append(chance.choice(_QUESTIONS[kind]).replace("{n}", noun))
        answers.append(_sentence(fill([t.replace("{n}", noun) for t in _ANSWERS[kind]], tidy(medium.text), chance)))
    return Written(" And the other: ".join(questions), " ".join(answers))


def _answered_with_media(given: Sequence[Caption], made: Sequence[Caption], chance: random.Random) -> Written:
    human = []
    for medium in given:
        noun = _noun(medium.modality, chance)
        human.append(chance.choice(_GIVEN).replace("{n}", noun).replace("{a}", _article(noun)))
    model = [_described([medium], chance).model for medium in given if chance.random() < 0.5]
    for medium in made:
        article = _article(_noun(medium.modality, chance))
        human.append(chance.choice(_MATCHING).replace("{m}", article))
        model.append(fill([text.replace("{m}", article) for text in _MATCHED], tidy(medium.text), chance))
    return Written(" ".join(human), " ".join(map(_sentence, model)))


def _asked(made: Sequence[Caption], later: bool, chance: random.Random) -> Written:
    pairs = [request_and_reply(medium.modality, medium.text, chance, short=later or len(made) > 1) for medium in made]
    follow = chance.choice(_FOLLOW) if later else ""
    return Written(" ".join(filter(None, [follow, *(q for q, _ in pairs)])), " ".join(a for _, a in pairs))


def _recalled(shown: Sequence[Caption], chance: random.Random) -> Written:
    medium = chance.choice(shown)
    same = [other for other in shown if other.modality == medium.modality]
    noun = _NOUNS[medium.modality][0]
    place = [other is medium for other in same].index(True)
    which = f"the {noun}" if len(same) == 1 else f"the {_ORDINALS[place]} {noun}"
    return Written(
        chance.choice(_RECALLS).replace("{which}", which), _sentence(fill(_RECALLED, tidy(medium.text), chance))
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
