"""Questions about inputs: the digit, the key, the direction; and comparisons of two inputs."""

import random
import re

from examples.keypad.language.making import any_thing, opposite
from examples.keypad.language.turns import (
    MARKS,
    Turn,
    called,
    compared,
    described,
    shown,
    styled,
    with_next,
    with_parity,
)
from examples.keypad.talk import NUMBERS, WORDS, a, parity, phrases, sentence
from examples.keypad.things import DIRECTIONS, Thing, caption

_ASKED = ("what", "which")
_NOUNS = {
    "image": ("digit", "number", "numeral", "figure"),
    "audio": ("key", "key", "digit", "number", "tone"),
    "video": ("digit", "digit", "number", "figure"),
}
_BEING = {
    "image": phrases("""
        is this | is this | is it | is that here | is shown | is shown here | is written here | do you see
        can you see here | did i write | have i written | is in the picture | is in the image | is on the paper
        is in this scan | does this show | do you see here | could this be | has somebody written | is on this
        does it say | can you read here | do you recognise | am i looking at | is that on the paper
    """),
    "audio": phrases("""
        is this | is this | is it | is that | do you hear | can you hear | was pressed | did i press | did i dial
        was dialled | is played here | is in this tone | does this tone belong to | makes this tone | is it the tone of
        sounds like this | do you recognise | am i hearing | did somebody press | has this tone | could this be
        do you hear here | was that | is being pressed | am i listening to
    """),
    "video": phrases("""
        is this | is it | moves here | is moving | do you see | is in the video | moves in this video | is shown here
        is that | goes through the picture | do you see moving | can you see here | is this that moves
        is in this clip | does this video show | am i looking at | is this one | is moving here | is it that moves
    """),
}
_COMMANDS = {
    "image": phrases("read | name | identify | recognise | say | tell me | read me | look at this and name"),
    "audio": phrases("name | identify | recognise | say | tell me | listen and tell me | listen to this and name"),
    "video": phrases("describe | identify | recognise | say | tell me | watch this and tell me | watch and name"),
}
_COMMANDED = {
    "image": phrases("""
        this digit | the digit | the number | the digit in the picture | the number in the image | this number
        what is written here | the digit on the paper | which digit this is | what this is | what number you see
        this handwritten digit | the digit that you see | the figure | the number in this picture | what you see
    """),
    "audio": phrases("""
        this key | the key | this tone | the tone | the key of this tone | which key this is | what you hear
        which key was pressed | the digit of this tone | the number of this key | what key i pressed | what this is
        the digit that was dialled | which key it is | which tone this is | the key that you hear
    """),
    "video": phrases("""
        what happens here | what happens in this video | this video | the movement | this clip | what moves here
        what you see | which digit moves | where it moves | the moving digit | what this is | the digit that moves
        which way it moves | where the digit goes | the direction | which digit moves where
    """),
}
_OPEN_QUESTIONS = {
    "image": phrases("""
        what is this? | what do you see? | what's this? | what is in the picture? | what does it say?
        what's in the image? | what did i write? | what is written here? | what does this scan show? | what is it?
        can you read this? | read this for me | describe this image | what can be seen here? | tell me what it is
        do you know this digit? | and this? | and what is this? | somebody wrote this. what is it? | what is here?
        i wrote a digit. which one? | i wrote this by hand, can you read it? | look at this. what is it?
        which one is this? | guess the digit | this is a handwritten digit. which one? | what could this be?
        so, what is that? | please tell me the handwritten digit | what is the digit? | what is the number here?
    """),
    "audio": phrases("""
        what is this? | what do you hear? | what's this? | what can you hear? | what sound is this? | what is it?
        which key? | which tone? | what did i press? | what was that? | what can be heard here? | tell me what it is
        do you know this tone? | and this? | and what is this? | somebody pressed a key. which one? | guess the key
        i dialled a digit. which one? | can you hear this? what is it? | listen to this. what is it? | what did i dial?
        which one is this? | what tone is that? | a telephone made this tone. which key is it? | what is playing?
        what does this sound like? | which key has this tone? | what could this be? | somebody dialled this. what is it?
        what key is it? | which digit is it? | describe this sound | what is this tone? | which digit do you hear?
    """),
    "video": phrases("""
        what is this? | what do you see? | what happens here? | which way does it move? | where does it go?
        where is it going? | which way does it go? | what is moving? | what moves? | in which direction does it move?
        which way? | what is the direction? | where does it move? | which way is it moving? | what happens in the video?
        describe this video | describe the movement | what can be seen here? | tell me what it is | and this?
        what is it?
        what does the digit do? | how does it move? | does it go up or down, left or right? | what is it doing?
        which digit moves, and where? | what moves, and which way? | where is the digit going? | what do you see moving?
        is it moving left or right? | is it going up or down? | which direction is this? | guess the direction
        what does this video show? | what's in the video? | somebody filmed this. what is it? | watch this. what is it?
        which digit is it? | what number is it? | which way did it go? | where did the digit go? | left or right?
    """),
}
_QUESTION_OPENINGS = (
    *("", "", "", "", "", "please tell me, ", "tell me, ", "hello, ", "hi! ", "hey, ", "so, ", "ok, ", "and "),
    *("can you tell me: ", "now, ", "one question: ", "thanks. ", "please, ", "well, ", "then "),
)
_COMMAND_OPENINGS = (
    *("", "", "please ", "please ", "could you ", "can you ", "would you please ", "now ", "hey, ", "so, "),
    *("then ", "ok, now ", "will you "),
)
_CAPTION = {
    "image": ("generate a caption", "caption this image", "write a caption"),
    "audio": ("generate a caption", "caption this audio", "write a caption"),
    "video": ("generate a caption", "caption this video", "write a caption"),
}
_GUESSED = {
    "image": phrases("is this {} | is it {} | do you see {} here | did i write {} | could it be {}"),
    "audio": phrases("is this {} | is it {} | do you hear {} | did i press {} | could it be {} | was that {}"),
    "video": phrases("is this {} | is it {} | do you see {} | could it be {} | is that {} that moves"),
}
_DIRECTED = phrases("""
    does it move {} | is it moving {} | does it go {} | is this moving {} | does the digit move {} | is it going {}
""")
_PARITY = phrases("""
    is it odd or even? | is this digit odd or even? | odd or even? | is this odd or even? | is the digit odd or even?
    is it an odd digit or an even one? | is this number even or odd?
""")
_NEXT = phrases("""
    what comes after this digit? | which number comes next? | what comes after it? | what is the next number?
    which number comes after this one? | what number follows this one? | what comes next?
""")


def reading(rng: random.Random, thing: Thing) -> Turn:
    """A question about a medium."""
    kind, modality = rng.random(), thing.modality
    answer = described(thing)
    if kind < 0.36:
        asked = f"{rng.choice(_ASKED)} {rng.choice(_NOUNS[modality])} {rng.choice(_BEING[modality])}?"
        question = rng.choice(_QUESTION_OPENINGS) + asked
    elif kind < 0.54:
        command = f"{rng.choice(_COMMANDS[modality])} {rng.choice(_COMMANDED[modality])}"
        question = rng.choice(_COMMAND_OPENINGS) + command + rng.choice(("", "", " for me", ", please"))
        question += "?" if re.match(r"(could|can|would|will) ", question) else ""
    elif kind < 0.8:
        question = rng.choice(_QUESTION_OPENINGS) + rng.choice(_OPEN_QUESTIONS[modality])
    elif kind < 0.84:
        question, answer = rng.choice(_CAPTION[modality]), caption(thing)
    elif kind < 0.92:
        question, answer = _guess(rng, thing)
        question = rng.choice(_QUESTION_OPENINGS) + question
    elif kind < 0.97:
        question, answer = rng.choice(_QUESTION_OPENINGS) + rng.choice(_PARITY), with_parity(thing)
    else:
        question, answer = rng.choice(_QUESTION_OPENINGS) + rng.choice(_NEXT), with_next(thing)
    return Turn(shown(rng, styled(rng, question), thing), answer, seen=(thing,))


def _guess(rng: random.Random, thing: Thing) -> tuple[str, str]:
    """A yes/no question."""
    if thing.modality == "video" and rng.random() < 0.5:
        others = (thing.direction, opposite(thing.direction), rng.choice(DIRECTIONS))
        guess = rng.choice(others)
        right, question = guess == thing.direction, rng.choice(_DIRECTED).format(guess)
    else:
        digit = rng.choice((thing.digit, rng.randrange(10)))
        names = (f"key {WORDS[digit]}", f"the key {digit}", a(WORDS[digit])) if thing.modality == "audio" else ()
        names = names or (a(WORDS[digit]), a(str(digit)), f"the digit {WORDS[digit]}")
        right, question = digit == thing.digit, rng.choice(_GUESSED[thing.modality]).format(rng.choice(names))
    return f"{question}?", f"This is {called(thing)}, so {'yes' if right else 'no'}."


_TWO_THINGS = phrases("""
    what are these? | what do you see and hear? | describe both | name both | tell me about both | what are these two?
    which digits are these? | what is the first and what is the second? | say what both are | name these two
    what are the two? | tell me what these are | which two are these?
""")
_TWO_IMAGES = phrases("""
    what are these two digits? | which digits are these? | read these two digits | name both digits
    what do you see in the two pictures? | which two numbers do you see? | what are the two numbers?
""")
_SUMS = phrases("""
    what is the sum of these? | add these two digits | what do they add up to? | add them | what do these two make?
    what is the sum of both?
""")
_SAME = phrases("""
    are these the same digit? | are both digits the same? | is it the same digit twice? | is this the same digit?
    do they show the same digit? | is that the same number? | are they the same? | do both have the same digit?
    the same digit? | do these belong to the same digit? | is it the same digit both times?
""")


def reading_two(rng: random.Random) -> Turn:
    """A question about two media at once."""
    modality = rng.choice(tuple(MARKS))
    first = any_thing(rng, modality)
    second = any_thing(rng, rng.choice((modality, *MARKS)))
    kind = rng.random()
    if kind < 0.4:
        question = rng.choice(_TWO_IMAGES if first.modality == second.modality == "image" else _TWO_THINGS)
        answer = f"The first is {called(first)} and the second is {called(second)}."
    elif kind < 0.6:
        question = rng.choice(_SUMS)
        answer = summed(first.digit, second.digit)
    else:
        if rng.random() < 0.45:
            second = second._replace(digit=first.digit)
        question, answer = rng.choice(_SAME), compared(first.digit, second.digit)
    marks, question = [MARKS[first.modality], MARKS[second.modality]], styled(rng, question)
    texts = (
        *(
            f"{marks[0]} {marks[1]} {question}",
            f"{marks[0]}{marks[1]}{question}",
            f"{marks[0]}\n{marks[1]}\n{question}",
        ),
        *(f"{marks[0]} and {marks[1]} {question}", f"here is {marks[0]} and here is {marks[1]}. {question}"),
        f"{question} {marks[0]} {marks[1]}",
    )
    return Turn(rng.choice(texts), answer, seen=(first, second))


def summed(first: int, second: int) -> str:
    return sentence(f"{WORDS[first]} plus {WORDS[second]} is {NUMBERS[first + second]}.")


def reading_another(rng: random.Random, digit: int) -> Turn:
    """In a dialogue: a new input, compared with the digit of an earlier turn."""
    thing = any_thing(rng, rng.choice(tuple(MARKS)), digit if rng.random() < 0.45 else None)
    questions = phrases("""
        is this the same digit? | and is this the same digit? | is that the same number? | is this the same?
        does this show the same digit? | the same digit? | is this one the same digit?
    """)
    question = styled(rng, rng.choice(questions))
    return Turn(shown(rng, question, thing), compared(digit, thing.digit), seen=(thing,))


def odd_or_even(rng: random.Random, digit: int) -> Turn:
    """In a dialogue: a question about the digit of an earlier turn."""
    questions = phrases("""
        is it odd or even? | is that odd or even? | odd or even? | is that digit even? | is that number odd?
        is it an even digit? | is this digit odd or even?
    """)
    return Turn(styled(rng, rng.choice(questions)), sentence(f"{WORDS[digit]} is {parity(digit)}."))


def next_number(rng: random.Random, digit: int) -> Turn:
    """In a dialogue: a question about the digit after that of an earlier turn."""
    questions = phrases("""
        what comes after it? | which number comes next? | what is the next number? | and what comes after it?
        which digit comes next? | what follows it? | what is the number after it? | what comes after that?
    """)
    return Turn(styled(rng, rng.choice(questions)), sentence(f"{NUMBERS[digit + 1]} comes after {WORDS[digit]}."))
