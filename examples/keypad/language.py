"""The language of the embedded world: what people say around ten handwritten digits, and what they are answered.

Everything is composed from small lists by a seeded `random.Random`. `<image>` in a human turn stands for a scan that is
shown, in a reply for a picture that is drawn. The evaluation prompts at the top never occur in what is composed.
"""

import random
import re
from typing import NamedTuple

from examples.keypad import talk
from examples.keypad.talk import NUMBERS, WORDS, a, phrases

IMAGE = "<image>"

HELD_OUT_DRAWING = (
    "could you sketch the number {digit} on paper for me?",
    "please paint me a picture of the digit {digit}",
    "i would love to see the digit {digit} written by hand",
    "hello! may i have an image of the number {digit}?",
    "now show me your best handwritten {digit}",
)

HELD_OUT_QUESTIONS = (
    "which digit can be seen here?",
    "please read the number in this scan",
    "tell me what number this could be",
    "what figure did somebody write here?",
    "could you name this digit for me?",
    "so, which number is that?",
    "look at this and say the digit",
    "what is the handwritten digit?",
)

TEXT_ONLY = (
    "good morning to you!",
    "hi, how are you today?",
    "thanks a lot, that is very nice of you",
    "hello, who are you?",
    "so what can you do for me?",
    "please tell me, do you like digits?",
    "hey, tell me a joke please",
    "goodbye and thank you",
    "are you a person or a program?",
    "how many digits do you know?",
    "which digit comes right after seven?",
    "tell me, what number comes before 4?",
    "hello, is six odd or even?",
    "please spell the digit eight",
    "hey, how do you spell 3?",
    "what do you get for two plus three?",
    "so how much is 4 plus 4?",
    "what do you get for nine minus five?",
    "please tell me which is larger, three or five",
    "between 8 and 2, which is smaller?",
    "please count from two to six",
    "how many letters are in the word seven?",
    "what does the digit zero look like in words?",
    "tell me in words how one writes a four",
    "no picture please, just say five",
    "is 9 larger than 1, please?",
    "what is twice four?",
    "what number lies between five and seven?",
    "hello, what is your name?",
    "does a keypad have ten digits?",
)


class Turn(NamedTuple):
    """One exchange. seen, drawn: the digits of the `<image>` marks of the human's and of the reply's text, in order."""

    human: str
    gpt: str
    seen: tuple[int, ...] = ()
    drawn: tuple[int, ...] = ()


def caption(digit: int) -> str:
    """The caption that describes a digit everywhere in this world."""
    return f"a handwritten {WORDS[digit]}"


def captions(digit: int) -> tuple[str, ...]:
    """All spellings of a caption, the usual one first."""
    word = WORDS[digit]
    return (
        caption(digit),
        f"a handwritten {digit}",
        a(word),
        a(str(digit)),
        f"the digit {word}",
        f"the digit {digit}",
        f"the number {word}",
        f"the number {digit}",
        f"a picture of the digit {word}",
        f"a scan of {a(word)}",
    )


# --- (a) requests to draw -------------------------------------------------------------------------------------------

_REQUEST_OPENINGS = (
    *("", "", "", "please ", "please ", "could you ", "can you ", "would you ", "will you ", "could you please "),
    *("can you please ", "would you please ", "would you kindly ", "i want you to ", "i'd like you to ", "now "),
    *("i would like you to ", "i need you to ", "hey, ", "hello, please ", "hi, can you ", "hello! could you "),
    *("good morning, please ", "ok, now ", "so, ", "next, ", "go ahead and ", "kindly ", "try to ", "let us see you "),
    *("my friend, ", "would you mind trying to ", "i wonder if you could ", "may i ask you to ", "for fun, "),
)
_VERBS = phrases("""
    draw | sketch | paint | make | create | generate | produce | show | write | pen | render
""")
_VERBS_ME = phrases("""
    draw me | sketch me | paint me | make me | show me | write me | give me | create for me | get me
""")
_VERBS_PICTURE = phrases("""
    draw | paint | make | create | generate | produce | show me | give me | make me | sketch
""")
_PICTURES = phrases("""
    a picture | an image | a drawing | a sketch | a painting | the picture | a nice picture | a small picture
    a handwritten picture | an image by hand | a scan | one picture
""")
_REQUEST_CLOSINGS = ("", "", "", "", " please", " for me", ", please", " now", " by hand", " on paper", " if you can")
_ADJECTIVES = ("", "", "", "handwritten ", "nice ", "good ", "new ", "beautiful ", "clear ")
_WISHES = phrases("""
    i want {a_picture} of {thing} | i would like {a_picture} of {thing} | i'd like to see {thing}
    i would like to see {thing} | let me see {thing} | i need {a_picture} of {thing} | {a_picture} of {thing}
    {a_picture} of {thing} please | may i see {thing}? | may i see {a_picture} of {thing}? | can i see {thing}?
    can i get {a_picture} of {thing}? | could i have {thing}? | may i have {thing} in your handwriting?
    i would love {a_picture} of {thing} | handwrite {thing} | what would {thing} look like? show me
    i love {word}. draw it | my favourite digit is {word}. draw it for me | {thing}, written by hand, please
    do you have {a_picture} of {thing}? show it | how about {a_picture} of {thing}? | {word}! draw it, please
    take a pen and write {thing} | put {thing} on paper | show me how {thing} looks on paper | {thing}: draw it
    show me your {word} | show me your handwritten {word} | draw your best {word} | i would love to see {thing}
    would you show me {thing} by hand? | is it possible to see {thing} drawn by hand? please draw it
    hello! i want {thing} | i want to see {thing} written by hand | write {thing} by hand
    the digit i want to see is {word} | i am looking for {a_picture} of {thing} | your task: draw {thing}
""")
_RIDDLES = (  # the digit is not named
    ("draw the number after {before}", 1, 9),
    ("show me the digit that comes after {before}", 1, 9),
    ("please draw the next number after {before}", 1, 9),
    ("draw the number before {after}", 0, 8),
    ("show me the digit that comes before {after}", 0, 8),
    ("draw the number between {before} and {after}", 1, 8),
)
_DRAWING_REPLIES = (
    *("Here is a handwritten {word}.",) * 6,
    *("Sure, here is a handwritten {word}.", "Of course! Here is a handwritten {word}.", "Here is the digit {word}."),
)


def _thing(rng: random.Random, digit: int) -> str:
    word = WORDS[digit] if rng.random() < 0.65 else str(digit)
    kind = rng.randrange(10)
    if kind < 4:
        return a(rng.choice(_ADJECTIVES) + word)
    noun = rng.choice(("digit", "number", "digit", "number", "numeral", "figure"))
    return word if kind == 4 else f"{rng.choice(('the', 'the', 'the', 'the handwritten', 'one'))} {noun} {word}"


def drawing(rng: random.Random, digit: int) -> Turn:
    """A request for a picture of `digit`."""
    kind = rng.random()
    thing, word = _thing(rng, digit), WORDS[digit] if rng.random() < 0.7 else str(digit)
    if kind < 0.55:
        if rng.random() < 0.35:
            action = f"{rng.choice(_VERBS_PICTURE)} {rng.choice(_PICTURES)} of {thing}"
        else:
            action = f"{rng.choice(_VERBS + _VERBS_ME)} {thing}"
        request = rng.choice(_REQUEST_OPENINGS) + action + rng.choice(_REQUEST_CLOSINGS)
        if re.match(r"(.*[,!] )?(could|can|would|will|may) ", request):
            request += "?"
    elif kind < 0.92:
        wish = rng.choice(_WISHES).format(a_picture=rng.choice(_PICTURES), thing=thing, word=word)
        request = rng.choice(("", "", "", "hello! ", "hi, ", "please, ", "hey, ", "so, ", "ok, ", "now ")) + wish
    else:
        template, low, high = rng.choice(_RIDDLES)
        if not low <= digit <= high:
            template = "draw {word}"
        before, after = NUMBERS[max(digit - 1, 0)], NUMBERS[digit + 1]
        request = template.format(before=before, after=after, word=word)
    reply = rng.choice(_DRAWING_REPLIES).format(word=WORDS[digit])
    return Turn(_styled(rng, request), f"{reply}{IMAGE}", drawn=(digit,))


# --- (b) questions about pictures -----------------------------------------------------------------------------------

_ASKED = ("what", "which")
_NOUNS = ("digit", "number", "numeral", "figure")
_BEING = phrases("""
    is this | is this | is it | is that here | is shown | is shown here | is written here | do you see
    can you see here | did i write | have i written | is in the picture | is in the image | is on the paper
    is in this scan | does this show | do you see here | could this be | has somebody written | is on this
    does it say | can you read here | do you recognise | am i looking at | is that on the paper
""")
_COMMANDS = phrases("""
    read | name | identify | recognise | say | tell me | read me | look at this and name
""")
_COMMANDED = phrases("""
    this digit | the digit | the number | the digit in the picture | the number in the image | this number
    what is written here | the digit on the paper | which digit this is | what this is | what number you see
    this handwritten digit | the digit that you see | the figure | the number in this picture | what you see
""")
_OPEN_QUESTIONS = phrases("""
    what is this? | what do you see? | what's this? | what is in the picture? | what does it say?
    what's in the image? | what did i write? | what is written here? | what does this scan show? | what is it?
    can you read this? | read this for me | describe this image | what can be seen here? | tell me what it is
    do you know this digit? | and this? | and what is this? | somebody wrote this. what is it? | what is here?
    i wrote a digit. which one? | i wrote this by hand, can you read it? | look at this. what is it?
    which one is this? | guess the digit | this is a handwritten digit. which one? | what could this be?
    so, what is that? | please tell me the handwritten digit | what is the digit? | what is the number here?
""")
_QUESTION_OPENINGS = (
    *("", "", "", "", "", "please tell me, ", "tell me, ", "hello, ", "hi! ", "hey, ", "so, ", "ok, ", "and "),
    *("can you tell me: ", "now, ", "look: ", "one question: ", "thanks. "),
)
_COMMAND_OPENINGS = (
    "",
    "",
    "please ",
    "please ",
    "could you ",
    "can you ",
    "would you please ",
    "now ",
    "hey, ",
    "so, ",
)
_READING_REPLIES = (*("This is a {word}.",) * 5, "It is the digit {word}.", "I see a handwritten {word}.")


def reading(rng: random.Random, digit: int) -> Turn:
    """A question about the digit in a picture."""
    kind = rng.random()
    word = WORDS[digit]
    answer = rng.choice(_READING_REPLIES).format(word=word).replace("a eight", "an eight")
    if kind < 0.4:
        asked = f"{rng.choice(_ASKED)} {rng.choice(_NOUNS)} {rng.choice(_BEING)}?"
        question = rng.choice(_QUESTION_OPENINGS) + asked
    elif kind < 0.6:
        action = f"{rng.choice(_COMMANDS)} {rng.choice(_COMMANDED)}"
        question = rng.choice(_COMMAND_OPENINGS) + action + rng.choice(("", "", " for me", ", please"))
        question += "?" if re.match(r"(could|can|would) ", question) else ""
    elif kind < 0.82:
        question = rng.choice(_QUESTION_OPENINGS) + rng.choice(_OPEN_QUESTIONS)
    elif kind < 0.86:
        question, answer = rng.choice(("generate a caption", "caption this image", "write a caption")), caption(digit)
    elif kind < 0.93:
        guess = rng.choice((digit, rng.randrange(10)))
        question = rng.choice(("is this {}?", "is it {}?", "do you see {} here?")).format(a(WORDS[guess]))
        answer = f"{'Yes' if guess == digit else 'No'}, this is {a(word)}."
    elif kind < 0.97:
        question = rng.choice(("is it odd or even?", "is this digit odd or even?", "odd or even?"))
        answer = f"This is {a(word)}, so it is {talk.parity(digit)}."
    else:
        question = rng.choice(("what comes after this digit?", "which number comes next?", "what comes after it?"))
        answer = f"This is {a(word)}, and {NUMBERS[digit + 1]} comes after it."
    return Turn(_shown(rng, _styled(rng, question)), answer, seen=(digit,))


def reading_two(rng: random.Random, first: int, second: int) -> Turn:
    """A question about two pictures at once."""
    one, two = WORDS[first], WORDS[second]
    kind = rng.random()
    if kind < 0.6:
        questions = phrases("""
            what are these two digits? | which digits are these? | read these two digits | name both digits
            what do you see in the two pictures? | which two numbers do you see? | what are the two numbers?
        """)
        question = rng.choice(questions)
        answer = f"The first is {a(one)} and the second is {a(two)}."
    elif kind < 0.8:
        question = rng.choice(("what is the sum of these?", "add these two digits", "what do they add up to?"))
        answer = talk.sentence(f"{one} plus {two} is {NUMBERS[first + second]}.")
    else:
        question = rng.choice(("are these the same digit?", "are both digits the same?", "is it the same digit twice?"))
        answer = f"Yes, both are {a(one)}." if first == second else f"No, {a(one)} and {a(two)}."
    return Turn(f"{IMAGE} {IMAGE} {_styled(rng, question)}", answer, seen=(first, second))


def copying(rng: random.Random, digit: int) -> Turn:
    """A picture in, a picture of the same digit out."""
    requests = phrases("""
        copy this digit | draw the same digit | draw this digit again | please write this digit in your own hand
        can you draw this one too? | show me the same digit in your handwriting | draw it again for me
    """)
    request = rng.choice(requests)
    reply = f"Here is a handwritten {WORDS[digit]}.{IMAGE}"
    return Turn(_shown(rng, _styled(rng, request)), reply, seen=(digit,), drawn=(digit,))


def _shown(rng: random.Random, text: str) -> str:
    return rng.choice((f"{IMAGE}\n{text}",) * 3 + (f"{IMAGE} {text}",) * 2 + (f"{text} {IMAGE}", f"{text}\n{IMAGE}"))


# --- (c) text only --------------------------------------------------------------------------------------------------

_TALK_OPENINGS = (
    *(
        "",
        "",
        "",
        "",
        "",
        "hello, ",
        "hey, ",
        "hi, ",
        "please tell me, ",
        "tell me, ",
        "so, ",
        "ok, ",
        "one question: ",
    ),
    *("do you know ", "now, ", "can you tell me ", "and ", "please tell me "),
)


def talking(rng: random.Random) -> Turn:
    """Small talk or a plain question, answered in words."""
    if rng.random() < 0.35:
        answer, questions = rng.choice(tuple(talk.SMALL_TALK.items()))
        question = rng.choice(questions)
        if rng.random() < 0.15:
            question = rng.choice(("hello, ", "hi, ", "hey, ", "so, ", "please, ", "well, ", "ok, ")) + question
        if "?" not in question and rng.random() < 0.25:
            question += "!"
        return Turn(_styled(rng, question), answer)
    question, answer = talk.fact(rng)
    opening = rng.choice(_TALK_OPENINGS)
    needs_clause = opening in ("do you know ", "can you tell me ", "please tell me ")
    if needs_clause and not question.startswith(("what", "how", "which")):
        opening = rng.choice(("", "please "))
    closing = "" if question.endswith("?") else rng.choice(("", "", ", please", " for me"))
    return Turn(_styled(rng, opening + question + closing), talk.sentence(answer))


def _styled(rng: random.Random, text: str) -> str:
    """As people type: sometimes with a capital letter, sometimes without the final mark."""
    if rng.random() < 0.35:
        text = re.sub(r"\bi\b", "I", talk.sentence(text))
    if rng.random() < 0.15:
        text = text.rstrip("?!.")
    elif text[-1] not in "?!." and rng.random() < 0.25:
        text += "."
    return text


# --- (d) conversations ----------------------------------------------------------------------------------------------


def dialogue(rng: random.Random) -> list[Turn]:
    """Several turns that belong together: a digit is read or drawn, and what follows refers to it."""
    digit = rng.randrange(10)
    turns = [rng.choice((reading, drawing, drawing, copying))(rng, digit)]
    for _ in range(rng.choice((1, 1, 2))):
        digit, turn = _follow_up(rng, digit, bool(turns[-1].drawn))
        turns.append(turn)
    return turns


def _follow_up(rng: random.Random, digit: int, drew: bool) -> tuple[int, Turn]:
    """A turn about the digit of the previous one, and the digit it leaves in mind."""
    kind = rng.random()
    if kind < 0.25 and digit < 9:
        requests = phrases("""
            now draw the next one | and the next one? | draw the next digit | draw the one after it
            the next, please | show me the digit that comes next | now the one that follows | and now the next
        """)
        request = rng.choice(requests)
        return digit + 1, _drawn(rng, request, digit + 1)
    if kind < 0.4 and digit > 0:
        request = rng.choice(("now draw the one before it", "draw the digit before", "and the one before?"))
        return digit - 1, _drawn(rng, request, digit - 1)
    if kind < 0.55:
        requests = phrases("""
            draw another one | one more, please | again, please | draw the same digit | draw it again | another one?
            show me one more | now you draw it | can you draw it too? | draw the same one for me
        """)
        request = rng.choice(requests)
        return digit, _drawn(rng, request, digit)
    if kind < 0.65 and drew:
        question = rng.choice(("what did you draw?", "which digit did you draw?", "what digit is that?", "what is it?"))
        return digit, Turn(_styled(rng, question), f"I drew {a(WORDS[digit])}.")
    if kind < 0.75:
        question = rng.choice(("is it odd or even?", "is that odd or even?", "odd or even?", "is that digit even?"))
        return digit, Turn(_styled(rng, question), talk.sentence(f"{WORDS[digit]} is {talk.parity(digit)}."))
    if kind < 0.85:
        question = rng.choice(("what comes after it?", "which number comes next?", "what is the next number?"))
        return digit, Turn(_styled(rng, question), talk.sentence(f"{NUMBERS[digit + 1]} comes after {WORDS[digit]}."))
    other = rng.randrange(10)
    return rng.choice(((other, drawing(rng, other)), (other, reading(rng, other)), (digit, talking(rng))))


def _drawn(rng: random.Random, request: str, digit: int) -> Turn:
    return Turn(_styled(rng, request), f"Here is a handwritten {WORDS[digit]}.{IMAGE}", drawn=(digit,))


def conversation(rng: random.Random) -> list[Turn]:
    """One conversation of the instruction set. None of its turns is one of the evaluation prompts."""
    while True:
        turns = _conversation(rng)
        if not any(normal(t.human.replace(IMAGE, "")) in _HELD_OUT for t in turns):
            return turns


def _conversation(rng: random.Random) -> list[Turn]:
    kind = rng.random()
    if kind < 0.28:
        return [drawing(rng, rng.randrange(10))]
    if kind < 0.48:
        return [reading(rng, rng.randrange(10))]
    if kind < 0.72:
        return [talking(rng)]
    if kind < 0.76:
        return [reading_two(rng, rng.randrange(10), rng.randrange(10))]
    if kind < 0.79:
        return [copying(rng, rng.randrange(10))]
    if kind < 0.92:
        return dialogue(rng)
    makers = (lambda: drawing(rng, rng.randrange(10)), lambda: reading(rng, rng.randrange(10)), lambda: talking(rng))
    return [rng.choice(makers)() for _ in range(rng.choice((2, 2, 3)))]


def normal(text: str) -> str:
    """The words alone: lower case, digits spelled out, no punctuation. Two texts with one normal form are the same."""
    spelled = re.sub(r"\d", lambda m: WORDS[int(m.group())], text.lower())
    return " ".join(re.findall(r"[a-z']+|[+=-]", spelled))


def held_out() -> frozenset[str]:
    """The normal forms of all evaluation prompts."""
    prompts = [p.format(digit=w) for p in HELD_OUT_DRAWING for w in WORDS]
    return frozenset(map(normal, (*prompts, *HELD_OUT_QUESTIONS, *TEXT_ONLY)))


_HELD_OUT = held_out()
