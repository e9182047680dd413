"""Turns that are answered with text only: small talk and questions about numbers."""

import random

from examples.keypad import talk
from examples.keypad.language.making import any_thing, request
from examples.keypad.language.turns import Turn, styled

_OPENINGS = (
    *("", "", "", "", "", "hello, ", "hey, ", "hi, ", "please tell me, ", "tell me, ", "so, ", "ok, "),
    *("one question: ", "do you know ", "now, ", "can you tell me ", "and ", "please tell me "),
)

_OBJECTS = talk.phrases("""
    a cat | a dog | a house | a tree | a car | a horse | a bird | a flower | a fish | a boat | the sun | a face
    an apple
    a letter | the letter b | a person | a mountain | a star | a circle | a chair | a table | a robot | a train | a ball
""")
_SOUNDS = talk.phrases("""
    a song | a melody | some music | a nice song | a bird | a cat | a dog | a drum | a piano | a voice | a bell
    a horse
    a car | a tune | the rain | a guitar
""")


def talking(rng: random.Random) -> Turn:
    """Small talk, a question, or a request for something that this world does not have."""
    kind = rng.random()
    return small_talk(rng) if kind < 0.36 else beyond(rng) if kind < 0.44 else fact_turn(rng)


def small_talk(rng: random.Random) -> Turn:
    """A greeting, thanks, a question about the model ..."""
    topics = talk.SMALL_TALK.items()
    answer, questions = rng.choices(tuple(topics), [len(questions) for _, questions in topics])[0]
    question = rng.choice(questions)
    if rng.random() < 0.15:
        question = rng.choice(("hello, ", "hi, ", "hey, ", "so, ", "please, ", "well, ", "ok, ")) + question
    if "?" not in question and rng.random() < 0.25:
        question += "!"
    return Turn(styled(rng, question), answer)


def beyond(rng: random.Random) -> Turn:
    """A request for something other than a digit."""
    thing = any_thing(rng, rng.choice(("image", "audio", "video")))
    other = rng.choice(_SOUNDS if thing.modality == "audio" else _OBJECTS)
    return Turn(styled(rng, request(rng, thing, other)), "I only know digits.")


def fact_turn(rng: random.Random, digit: int | None = None) -> Turn:
    """A question about numbers, or about one digit."""
    question, answer = talk.fact(rng) if digit is None else talk.fact_about(rng, digit)
    opening = rng.choice(_OPENINGS)
    needs_clause = opening in ("do you know ", "can you tell me ", "please tell me ")
    if needs_clause and not question.startswith(("what", "how", "which")):
        opening = rng.choice(("", "please "))
    closing = "" if question.endswith("?") else rng.choice(("", "", ", please", " for me"))
    return Turn(styled(rng, opening + question + closing), talk.sentence(answer))
