"""Requests to change what is shown: "make it a nine"."""

import random

from examples.keypad.language.making import polite
from examples.keypad.language.naming import named
from examples.keypad.language.turns import Turn, made, shown, styled
from examples.keypad.talk import phrases
from examples.keypad.things import Thing

_CHANGES = phrases("""
    make it {new} | make it {new} | make this {new} | make that {new} | make {new} of it | make {new} out of this
    turn it into {new} | turn this into {new} | turn this one into {new} | change it to {new} | change this to {new}
    change it into {new} | change the digit to {new} | replace it with {new} | replace this with {new}
    edit it to {new} | transform it into {new} | convert it to {new} | let it be {new} | let it become {new}
    swap it for {new} | edit it: make it {new} | edit this: {new} instead | change that into {new}
    turn the digit into {new}
""")
_WISHES = phrases("""
    {new} instead | {new} instead | {new} instead of this | now {new} | now {new} instead | edit: {new} | rather {new}
    it should be {new} | this should be {new} | i want {new} instead | i would like it to be {new} | i meant {new}
    i want it to be {new} | no, {new} | can it be {new}? | now {new}, in the same place | now as {new} | edit: now {new}
    the same, but {new} | like this, but {new} | could this be {new} instead?
""")


def edited(rng: random.Random, seen: Thing) -> Turn:
    """From an input to another digit in its place; a video keeps its direction."""
    thing = seen._replace(digit=rng.choice([digit for digit in range(10) if digit != seen.digit]))
    new = named(rng, thing.digit, rng.choice(("image", seen.modality)))
    imperative = rng.random() < 0.6
    text = polite(rng, rng.choice(_CHANGES if imperative else _WISHES).format(new=new), imperative)
    return made(thing)._replace(human=shown(rng, styled(rng, text), seen), seen=(seen,))
