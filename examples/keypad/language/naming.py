"""References to a digit: by name, by its position among the digits, or to an input."""

import random

from examples.keypad.talk import NUMBERS, WORDS, a, phrases

_ADJECTIVES = ("", "", "", "handwritten ", "nice ", "good ", "new ", "beautiful ", "clear ")

_POINTED = {
    "image": phrases("""
        this digit | this digit | the digit in the picture | this number | this | the number in the image | that digit
        what is written here | the digit on the paper | this handwritten digit | the same digit | it | this one
        the digit that you see | the number that i wrote | the digit in this scan | the digit i wrote
    """),
    "audio": phrases("""
        this key | this key | this tone | the key that you hear | this digit | that digit | that key | this | it
        the digit of this tone | the digit of this key | the same key | the same digit | the key of this tone
        the key i pressed | this key's digit | the number that was dialled | the digit that you hear | what you hear
        that number
    """),
    "video": phrases("""
        this digit | this digit | the digit in the video | the moving digit | that digit | the digit that moves | it
        the number in this video | the same digit | this number | the digit in this clip | the digit that you see
        the number that moves here | this moving digit | the digit of this video | this
    """),
}
_RECALLED = phrases("""
    it | it | it | that digit | the same digit | this digit | that one | the same number | that number | this one
""")


def figure(rng: random.Random, n: int) -> str:
    """A number as a word or in figures."""
    return NUMBERS[n] if rng.random() < 0.7 else str(n)


def named(rng: random.Random, digit: int, modality: str) -> str:
    """ "a seven", "the digit 7", "key seven" ..."""
    word = WORDS[digit] if rng.random() < 0.65 else str(digit)
    kind = rng.randrange(10)
    if modality == "audio":
        if kind < 5:
            return f"{rng.choice(('', '', 'the ', 'the '))}key {word}"
        if kind == 5:
            return f"the {word} key"
        noun = rng.choice(("digit", "number"))
        return rng.choice((word, a(word), f"the {noun} {word}", f"the {noun} {word}"))
    if kind < 4:
        return a(rng.choice(_ADJECTIVES) + word)
    noun = rng.choice(("digit", "number", "digit", "number", "numeral", "figure"))
    return word if kind == 4 else f"{rng.choice(('the', 'the', 'the', 'the handwritten', 'one'))} {noun} {word}"


def riddled(rng: random.Random, digit: int, modality: str) -> str:
    """ "the number after six": the digit itself is not named."""
    noun = rng.choice(("number", "digit", "one", "number", "key" if modality == "audio" else "digit"))
    next_one = rng.choice(("the {noun} after {n}", "the {noun} that comes after {n}", "the next {noun} after {n}"))
    previous = rng.choice(("the {noun} before {n}", "the {noun} that comes before {n}", "the {noun} right before {n}"))
    options = [(next_one, digit - 1)] * (digit > 0) + [(previous, digit + 1)] * (digit < 9)
    if 0 < digit < 9 and rng.random() < 0.2:
        return f"the {noun} between {figure(rng, digit - 1)} and {figure(rng, digit + 1)}"
    template, other = rng.choice(options)
    return template.format(noun=noun, n=figure(rng, other))


def pointed(rng: random.Random, source: str) -> str:
    """A reference to the digit of an input in the same turn."""
    return rng.choice(_POINTED[source])


def recalled(rng: random.Random) -> str:
    """A reference to the digit of an earlier turn."""
    return rng.choice(_RECALLED)


def neighbour(rng: random.Random, step: int, source: str = "") -> str:
    """A reference to the digit after (step 1) or before (step -1) that of an input (`source`) or of an earlier turn."""
    anchor = rng.choice(("it", "this one", "that", pointed(rng, source) if source else "that one"))
    noun = rng.choice(("digit", "number", "one", "key" if source == "audio" else "digit"))
    if step > 0:
        return rng.choice(
            (
                f"the next {noun}",
                f"the next {noun}",
                f"the {noun} after {anchor}",
                f"the {noun} that comes after {anchor}",
            )
        )
    return rng.choice((f"the {noun} before {anchor}", f"the {noun} that comes before {anchor}", f"the previous {noun}"))
