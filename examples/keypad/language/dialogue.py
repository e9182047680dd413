"""Conversations of several turns, which refer to earlier inputs, outputs and replies."""

import random

from examples.keypad.language.making import (
    any_thing,
    asked_by_name,
    made_from,
    opposite,
    request,
    several,
    several_by_name,
    several_from,
    way,
)
from examples.keypad.language.naming import figure, named, neighbour, recalled
from examples.keypad.language.reading import next_number, odd_or_even, reading, reading_another
from examples.keypad.language.talking import fact_turn, small_talk
from examples.keypad.language.turns import MARKS, Turn, made, remembered, styled
from examples.keypad.talk import phrases
from examples.keypad.things import Thing

_SAME_AGAIN = phrases("""
    again, please | do it again | once more | one more time, please | again | another one? | one more, please
    show me one more | please do that again | can you do it again? | one more | the same again, please
""")
_WITH_ANOTHER = phrases("""
    do it again with {other} | now with {other} | and {other}? | the same with {other} | now {other} | and now {other}
    do the same with {other} | {other} too, please | now do that with {other} | again, but with {other}
    the same for {other} | what about {other}? | and for {other}? | and {other}, please
""")
_NEXT_ONE = phrases("""
    and the next one? | the next, please | now the one that follows | and now the next | now the next one
    and the next digit? | now with the next digit | the same with the next one | and the one after it?
""")
_PREVIOUS_ONE = phrases("""
    and the one before? | the one before it, please | now the one before | now with the digit before it
    the same with the one before it | and the previous one?
""")
_OTHER_WAY = phrases("""
    move it the other way | now the other way | and the other way? | the other way, please | now move it back
    let it come back | make it go the other way | show it going the other way | the other way round, please
    now let it go the other way | turn it around | now the opposite direction | reverse it
""")
_OTHER_DIRECTION = phrases("""
    now {way} | and {way}? | now let it move {way} | now {way}, please | make it go {way} | and now {way}
    {way}, please
    let it move {way} | now move it {way} | move it {way} instead | can it move {way} too? | and {way}
    now make it {way}
""")
_LAST = {
    "image": phrases("""
        what did you draw? | which digit did you draw? | what digit is that? | what is it? | which digit is it?
        what did you write? | which one did you draw? | what is that digit? | what was that digit?
    """),
    "audio": phrases("""
        which key did you play? | what did you play? | which key was that? | what was that tone? | which key is it?
        what tone was that? | what did i hear? | which tone did you play? | which digit did you dial? | what was that?
    """),
    "video": phrases("""
        what did you show? | which way did it move? | which digit did you move? | what was in the video?
        where did it go?
        what moved? | which direction was that? | what did you show me? | in which direction did it move?
    """),
}
_NEXT_MADE = {
    "image": phrases("""
        what comes after it? draw that | what comes after it? draw it | which number comes next? draw it
        what is the next digit? draw that one | what follows it? show me in a picture
    """),
    "audio": phrases("""
        what comes after it? play that | what comes after it? play its tone | which number comes next? play it
        what is the next digit? play its key | what follows it? let me hear it
    """),
    "video": phrases("""
        what comes after it? let it move {way} | which number comes next? move it {way}
        what is the next digit? show it moving {way} | what follows it? make it move {way}
    """),
}


def dialogue(rng: random.Random) -> list[Turn]:
    """A dialogue of two to five turns."""
    turns = [_opening(rng)]
    digit = (turns[0].made or turns[0].seen)[-1].digit
    for _ in range(rng.choice((1, 1, 2, 2, 3, 3, 4))):
        digit, turn = _follow_up(rng, digit, turns)
        turns.append(turn)
    return turns


def _opening(rng: random.Random) -> Turn:
    kind, modality = rng.random(), rng.choice(tuple(MARKS))
    if kind < 0.4:
        return asked_by_name(rng, any_thing(rng, modality))
    if kind < 0.75:
        return reading(rng, any_thing(rng, modality))
    if kind < 0.92:
        return made_from(rng, any_thing(rng, modality), rng.choice(tuple(MARKS)))
    return several_by_name(rng)


def _follow_up(rng: random.Random, digit: int, turns: list[Turn]) -> tuple[int, Turn]:
    """A later turn, and the digit that it is about."""
    last = turns[-1]
    moved = [t for t in last.made if t.modality == "video"] or [t for t in last.seen if t.modality == "video"]
    kind = rng.random()
    if kind < 0.3:
        thing = any_thing(rng, rng.choice(tuple(MARKS)), digit)
        return digit, _made(rng, request(rng, thing, recalled(rng)), thing)
    if kind < 0.38:
        return digit, several(rng, digit, recalled(rng))
    if moved and kind < 0.52:
        if rng.random() < 0.4:
            thing = moved[0]._replace(direction=opposite(moved[0].direction), digit=digit)
            return digit, _made(rng, rng.choice(_OTHER_WAY), thing)
        thing = any_thing(rng, "video", digit)
        return digit, _made(rng, rng.choice(_OTHER_DIRECTION).format(way=way(rng, thing.direction)), thing)
    if last.made and kind < 0.62:
        return _varied(rng, digit, last.made)
    if last.made and kind < 0.68:
        thing = rng.choice(last.made)
        return digit, Turn(styled(rng, rng.choice(_LAST[thing.modality])), remembered(thing))
    if kind < 0.76:
        return _beside(rng, digit)
    if kind < 0.82:
        if rng.random() < 0.5 or digit == 9:
            return digit, odd_or_even(rng, digit)
        return digit + 1, next_number(rng, digit)
    if kind < 0.86:
        turn = reading_another(rng, digit)
        return turn.seen[0].digit, turn
    if kind < 0.9:
        return digit, small_talk(rng) if rng.random() < 0.5 else fact_turn(rng, digit)
    return _changed(rng)


def _made(rng: random.Random, text: str, *things: Thing) -> Turn:
    return made(*things)._replace(human=styled(rng, text))


def _varied(rng: random.Random, digit: int, things: tuple[Thing, ...]) -> tuple[int, Turn]:
    """A request for the last output again, or for another digit."""
    kind = rng.random()
    if kind < 0.3:
        return digit, _made(rng, rng.choice(_SAME_AGAIN), *things)
    if kind < 0.5 and digit < 9:
        text, digit = rng.choice(_NEXT_ONE), digit + 1
    elif kind < 0.6 and digit > 0:
        text, digit = rng.choice(_PREVIOUS_ONE), digit - 1
    else:
        digit = rng.randrange(10)
        other = rng.choice((figure(rng, digit), named(rng, digit, things[0].modality)))
        text = rng.choice(_WITH_ANOTHER).format(other=other)
    return digit, _made(rng, text, *(thing._replace(digit=digit) for thing in things))


def _beside(rng: random.Random, digit: int) -> tuple[int, Turn]:
    """A request for the digit after or before the current one."""
    step = rng.choice((1, 1, -1)) if 0 < digit < 9 else 1 if digit == 0 else -1
    thing = any_thing(rng, rng.choice(tuple(MARKS)), digit + step)
    if step > 0 and rng.random() < 0.4:
        text = rng.choice(_NEXT_MADE[thing.modality]).format(way=way(rng, thing.direction) if thing.direction else "")
    else:
        text = request(rng, thing, neighbour(rng, step))
    return digit + step, _made(rng, text, thing)


def _changed(rng: random.Random) -> tuple[int, Turn]:
    """A turn about something else."""
    thing, kind = any_thing(rng, rng.choice(tuple(MARKS))), rng.random()
    if kind < 0.35:
        turn = asked_by_name(rng, thing)
    elif kind < 0.65:
        turn = reading(rng, thing)
    elif kind < 0.9:
        turn = made_from(rng, thing, rng.choice(tuple(MARKS)))
    else:
        turn = several_from(rng, thing)
    return (turn.made or turn.seen)[-1].digit, turn
