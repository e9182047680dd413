"""The language of the embedded world: what people say around ten handwritten digits, and what they are answered.

Everything is composed from small lists by a seeded `random.Random`. `<image>` in a human turn stands for a scan that is
shown, in a reply for a picture that is drawn. The evaluation prompts at the top never occur in what is composed.
"""

import random
import re
from typing import NamedTuple

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUMBERS = (*WORDS, "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen")
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


def a(noun: str) -> str:
    """With its indefinite article: "a seven", "an eight", "an 8"."""
    return f"an {noun}" if noun[0] in "aeiou8" and noun != "one" else f"a {noun}"


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
_VERBS = ("draw", "sketch", "paint", "make", "create", "generate", "produce", "show", "write", "pen", "render")
_VERBS_ME = ("draw me", "sketch me", "paint me", "make me", "show me", "write me", "give me", "create for me", "get me")
_VERBS_PICTURE = ("draw", "paint", "make", "create", "generate", "produce", "show me", "give me", "make me", "sketch")
_PICTURES = (
    *("a picture", "an image", "a drawing", "a sketch", "a painting", "the picture", "a nice picture"),
    *("a small picture", "a handwritten picture", "an image by hand", "a scan", "one picture"),
)
_REQUEST_CLOSINGS = ("", "", "", "", " please", " for me", ", please", " now", " by hand", " on paper", " if you can")
_ADJECTIVES = ("", "", "", "handwritten ", "nice ", "good ", "new ", "beautiful ", "clear ")
_WISHES = (
    *("i want {a_picture} of {thing}", "i would like {a_picture} of {thing}", "i'd like to see {thing}"),
    *("i would like to see {thing}", "let me see {thing}", "i need {a_picture} of {thing}", "{a_picture} of {thing}"),
    *("{a_picture} of {thing} please", "may i see {thing}?", "may i see {a_picture} of {thing}?", "can i see {thing}?"),
    *("can i get {a_picture} of {thing}?", "could i have {thing}?", "may i have {thing} in your handwriting?"),
    *("i would love {a_picture} of {thing}", "handwrite {thing}", "what would {thing} look like? show me"),
    *("i love {word}. draw it", "my favourite digit is {word}. draw it for me", "{thing}, written by hand, please"),
    *("do you have {a_picture} of {thing}? show it", "how about {a_picture} of {thing}?", "{word}! draw it, please"),
    *("take a pen and write {thing}", "put {thing} on paper", "show me how {thing} looks on paper", "{thing}: draw it"),
    *("show me your {word}", "show me your handwritten {word}", "draw your best {word}", "i would love to see {thing}"),
    *("would you show me {thing} by hand?", "is it possible to see {thing} drawn by hand? please draw it"),
    *("hello! i want {thing}", "i want to see {thing} written by hand", "write {thing} by hand"),
    *("the digit i want to see is {word}", "i am looking for {a_picture} of {thing}", "your task: draw {thing}"),
)
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
_BEING = (
    *("is this", "is this", "is it", "is that here", "is shown", "is shown here", "is written here", "do you see"),
    *("can you see here", "did i write", "have i written", "is in the picture", "is in the image", "is on the paper"),
    *("is in this scan", "does this show", "do you see here", "could this be", "has somebody written", "is on this"),
    *("does it say", "can you read here", "do you recognise", "am i looking at", "is that on the paper"),
)
_COMMANDS = ("read", "name", "identify", "recognise", "say", "tell me", "read me", "look at this and name")
_COMMANDED = (
    *("this digit", "the digit", "the number", "the digit in the picture", "the number in the image", "this number"),
    *("what is written here", "the digit on the paper", "which digit this is", "what this is", "what number you see"),
    *("this handwritten digit", "the digit that you see", "the figure", "the number in this picture", "what you see"),
)
_OPEN_QUESTIONS = (
    *("what is this?", "what do you see?", "what's this?", "what is in the picture?", "what does it say?"),
    *("what's in the image?", "what did i write?", "what is written here?", "what does this scan show?", "what is it?"),
    *("can you read this?", "read this for me", "describe this image", "what can be seen here?", "tell me what it is"),
    *("do you know this digit?", "and this?", "and what is this?", "somebody wrote this. what is it?", "what is here?"),
    *("i wrote a digit. which one?", "i wrote this by hand, can you read it?", "look at this. what is it?"),
    *("which one is this?", "guess the digit", "this is a handwritten digit. which one?", "what could this be?"),
    *("so, what is that?", "please tell me the handwritten digit", "what is the digit?", "what is the number here?"),
)
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
        answer = f"This is {a(word)}, so it is {_parity(digit)}."
    else:
        question = rng.choice(("what comes after this digit?", "which number comes next?", "what comes after it?"))
        answer = f"This is {a(word)}, and {NUMBERS[digit + 1]} comes after it."
    return Turn(_shown(rng, _styled(rng, question)), answer, seen=(digit,))


def reading_two(rng: random.Random, first: int, second: int) -> Turn:
    """A question about two pictures at once."""
    one, two = WORDS[first], WORDS[second]
    kind = rng.random()
    if kind < 0.6:
        question = rng.choice(
            ("what are these two digits?", "which digits are these?", "read these two digits", "name both digits")
            + ("what do you see in the two pictures?", "which two numbers do you see?", "what are the two numbers?")
        )
        answer = f"The first is {a(one)} and the second is {a(two)}."
    elif kind < 0.8:
        question = rng.choice(("what is the sum of these?", "add these two digits", "what do they add up to?"))
        answer = _sentence(f"{one} plus {two} is {NUMBERS[first + second]}.")
    else:
        question = rng.choice(("are these the same digit?", "are both digits the same?", "is it the same digit twice?"))
        answer = f"Yes, both are {a(one)}." if first == second else f"No, {a(one)} and {a(two)}."
    return Turn(f"{IMAGE} {IMAGE} {_styled(rng, question)}", answer, seen=(first, second))


def copying(rng: random.Random, digit: int) -> Turn:
    """A picture in, a picture of the same digit out."""
    request = rng.choice(
        ("copy this digit", "draw the same digit", "draw this digit again", "please write this digit in your own hand")
        + ("can you draw this one too?", "show me the same digit in your handwriting", "draw it again for me")
    )
    reply = f"Here is a handwritten {WORDS[digit]}.{IMAGE}"
    return Turn(_shown(rng, _styled(rng, request)), reply, seen=(digit,), drawn=(digit,))


def _shown(rng: random.Random, text: str) -> str:
    return rng.choice((f"{IMAGE}\n{text}",) * 3 + (f"{IMAGE} {text}",) * 2 + (f"{text} {IMAGE}", f"{text}\n{IMAGE}"))


# --- (c) text only --------------------------------------------------------------------------------------------------

_WHO = "I am a small model that knows handwritten digits."
_CAN = "I can draw a digit, read a digit, and answer small questions about numbers."
_SMALL_TALK = (
    (
        "Hello! Which digit would you like?",
        *(
            "hello",
            "hi",
            "hey",
            "hello there",
            "hi there",
            "good day",
            "greetings",
            "hello!",
            "hello you",
            "hi, friend",
        ),
        *("hello again", "hello to you", "hi again"),
    ),
    ("Good morning!", "good morning", "good morning, friend", "a good morning to you", "good morning to all"),
    ("Good evening!", "good evening", "good evening, friend", "a good evening to you", "good evening to all"),
    (
        "I am fine, thank you.",
        *("how are you?", "how are you doing?", "how is it going?", "are you well?", "how do you feel today?"),
        *("how do you do?", "how are you this morning?", "is everything fine?", "how are things today?"),
    ),
    (
        "You are welcome!",
        *("thanks", "thank you", "thanks a lot", "thank you very much", "many thanks", "great, thank you", "thanks!"),
        *("that is very nice, thank you", "very good, thanks", "well done, thank you", "thank you, that is all"),
        *("that is nice of you, thanks", "thank you so much", "thanks for that"),
    ),
    (
        _WHO,
        *("who are you?", "what are you?", "what is your name?", "tell me who you are", "do you have a name?"),
        *("are you a robot?", "are you a person?", "are you a human?", "introduce yourself", "are you a program?"),
        *(
            "tell me your name",
            "is there a person there?",
            "are you a person or a robot?",
            "what kind of program is it?",
        ),
    ),
    (
        _CAN,
        *("what can you do?", "what do you know?", "how can you help me?", "what can i ask you?", "help"),
        *("can you help me?", "what are you good at?", "what can i do here?", "tell me what you can do"),
        *("how do you work?", "what are you able to do?", "what can you do for me today?", "what would you do for me?"),
    ),
    (
        "I can draw the digits from zero to nine.",
        *("what can you draw?", "can you draw?", "do you know how to draw?", "which digits can you draw?"),
        *("do you draw pictures?", "which pictures can you make?", "can you paint?", "what pictures do you have?"),
        *("are you able to draw?", "what kind of pictures can you draw?", "do you like to draw?", "can you write?"),
    ),
    (
        "Yes, I like all digits.",
        *("do you like digits?", "do you like numbers?", "are digits fun?", "do you love numbers?"),
        *("do you enjoy digits?", "are numbers fun for you?", "do you find digits nice?"),
    ),
    (
        "I like seven most.",
        *("what is your favourite digit?", "which digit do you like most?", "do you have a favourite number?"),
        *("what digit do you like best?", "what number do you love most?", "your favourite digit?"),
    ),
    (
        "Why was six afraid of seven? Because seven ate nine.",
        *("tell me a joke", "do you know a joke?", "make me laugh", "say something funny", "a joke, please"),
        *("please tell a joke", "can you tell me a joke?", "tell me something funny"),
    ),
    (
        "Goodbye!",
        *("bye", "goodbye", "see you", "see you later", "bye bye", "have a nice day", "good night", "i have to go"),
        *("goodbye, friend", "thanks and goodbye", "that was all, bye", "goodbye for now", "bye and thank you"),
    ),
    (
        "There are ten digits, from zero to nine.",
        *("how many digits are there?", "how many digits exist?", "which digits are there?", "list the digits"),
        *("what is a digit?", "how many digits does a keypad have?", "how many digits do we use?", "what are digits?"),
        *("how many digits are on a keypad?", "does a keypad have all digits?", "how many digits can you read?"),
        *("do you know all ten digits?", "how many of the digits do you know?", "are there ten digits?"),
    ),
    (
        "A keypad has the digits one to nine in three rows, and zero below.",
        *("what does a keypad look like?", "what is a keypad?", "describe a keypad", "how does a keypad look?"),
        *("tell me about keypads", "what is on a keypad?", "how are the digits set on a keypad?"),
    ),
    (
        "Yes, I can read handwritten digits.",
        *("can you read?", "can you see?", "do you have eyes?", "can you read handwriting?", "can you read digits?"),
        *("are you able to read handwriting?", "could you read a digit?", "can you look at pictures?"),
    ),
    (
        "I only know digits.",
        *("what is the weather like?", "what time is it?", "what is the capital of france?", "where do you live?"),
        *("draw a cat", "can you draw a house?", "paint me a dog", "show me a picture of a tree", "sing a song"),
        *("do you like music?", "how old are you?", "who won the game?", "what day is it?", "draw the letter b"),
        *("write a poem", "what did you eat?", "is it going to rain?", "make a picture of a car", "sketch a horse"),
    ),
    (
        "I am glad to hear that.",
        *("i am fine", "i am happy", "i am doing well", "i feel good today", "today is a good day", "i like you"),
        *("you are nice", "you are very good", "that was great", "i like your digits", "this is fun"),
    ),
    (
        "I am sorry. I will try to do better.",
        *("that is wrong", "this is not right", "no, that is not it", "you are wrong", "i do not like it"),
        *("that was not good", "this does not look right", "i am sad"),
    ),
    (
        "All right.",
        *("ok", "okay", "yes", "no", "fine", "good", "i see", "sure", "great", "nice", "very good", "well", "right"),
        *("wait a moment", "no picture, please", "please stop", "do not draw anything", "nothing, thank you"),
    ),
)
_SHAPES = (
    "A zero is a closed oval.",
    "A one is a single upright stroke.",
    "A two is a hook that ends in a flat line.",
    "A three is two bows, one above the other.",
    "A four is an open corner crossed by an upright stroke.",
    "A five is a bar, a short stroke and a bow.",
    "A six is a curve that ends in a ring below.",
    "A seven is a bar with a slanted stroke.",
    "An eight is two rings, one above the other.",
    "A nine is a ring with a stroke below.",
)
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


def _parity(n: int) -> str:
    return "odd" if n % 2 else "even"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _fact(rng: random.Random) -> tuple[str, str]:
    """A plain question about numbers and its answer."""

    def name(n: int) -> str:
        return NUMBERS[n] if rng.random() < 0.7 else str(n)

    n, m = rng.randrange(10), rng.randrange(10)
    low, high = min(n, m), max(n, m)
    word = WORDS[n]
    kind = rng.randrange(13)
    if kind == 0:
        question = rng.choice(
            (
                "what comes after {}?",
                "what number comes after {}?",
                "which number follows {}?",
                "what is next after {}?",
            )
            + ("which digit comes after {}?", "what comes right after {}?", "after {} comes what?", "what follows {}?")
        )
        return question.format(name(n)), f"{NUMBERS[n + 1]} comes after {word}."
    if kind == 1:
        n = rng.randrange(1, 10)
        question = rng.choice(
            ("what comes before {}?", "what number comes before {}?", "which number is before {}?")
            + ("which digit comes right before {}?", "before {} comes what?", "which digit stands before {}?")
        )
        return question.format(name(n)), f"{WORDS[n - 1]} comes before {WORDS[n]}."
    if kind == 2:
        question = rng.choice(
            ("is {} odd or even?", "is {} even or odd?", "is the number {} odd or even?", "odd or even: {}?")
            + ("is {} an odd number?", "is {} an even number?", "is the digit {} even?", "is {} odd?")
        )
        return question.format(name(n)), f"{word} is {_parity(n)}."
    if kind == 3:
        question = rng.choice(
            ("how do you spell {}?", "spell {}", "how is {} spelled?", "can you spell {}?", "what letters make {}?")
            + ("spell the number {}", "how does one spell {}?", "spell the word {}", "please spell {}")
        )
        return question.format(name(n)), f"{word} is spelled {' '.join(word)}."
    if kind in (4, 5):
        question = rng.choice(
            ("what is {} plus {}?", "how much is {} plus {}?", "add {} and {}", "{} plus {}?", "{} + {} = ?")
            + ("what is the sum of {} and {}?", "what do {} and {} make?", "what do you get if you add {} and {}?")
        )
        return question.format(name(n), name(m)), f"{word} plus {WORDS[m]} is {NUMBERS[n + m]}."
    if kind == 6:
        question = rng.choice(
            ("what is {} minus {}?", "how much is {} minus {}?", "{} minus {}?", "{} - {} = ?", "take {1} from {0}")
            + ("what do you get if you take {1} from {0}?", "what is left of {} without {}?")
        )
        return question.format(name(high), name(low)), f"{WORDS[high]} minus {WORDS[low]} is {WORDS[high - low]}."
    if kind == 7:
        if n == m:
            low, high = (n, n + 1) if n < 9 else (8, 9)
        larger = rng.random() < 0.5
        adjective = rng.choice(("larger", "bigger", "greater") if larger else ("smaller", "less"))
        question = rng.choice(
            ("which is {0}, {1} or {2}?", "what is {0}, {1} or {2}?", "which number is {0}: {1} or {2}?")
            + ("between {1} and {2}, which one is {0}?", "{1} or {2}, which is {0}?", "is {1} or {2} {0}?")
        )
        pair = rng.sample((low, high), 2)
        answer = (
            f"{WORDS[high]} is larger than {WORDS[low]}." if larger else f"{WORDS[low]} is smaller than {WORDS[high]}."
        )
        return question.format(adjective, name(pair[0]), name(pair[1])), answer
    if kind == 8:
        low = min(low, 7)
        high = max(high, low + 2)
        question = rng.choice(
            ("count from {} to {}", "can you count from {} to {}?", "count {} to {}", "count up from {} to {}")
            + ("list the digits from {} to {}", "say the digits from {} to {}", "which digits go from {} to {}?")
        )
        return question.format(name(low), name(high)), ", ".join(WORDS[low : high + 1]) + "."
    if kind == 9:
        question = rng.choice(
            ("how many letters are in {}?", "how many letters does {} have?", "how long is the word {}?")
            + ("count the letters of {}", "how many letters has the word {}?", "how many letters make {}?")
        )
        return question.format(name(n)), f"{word} has {WORDS[len(word)]} letters."
    if kind == 10:
        question = rng.choice(
            (
                "what does {} look like?",
                "describe {}",
                "how does one write {}?",
                "how do you draw {}?",
                "how is {} drawn?",
            )
            + (
                "describe {} in words",
                "tell me in words what {} looks like",
                "what shape has {}?",
                "explain {} in words",
            )
            + (
                "in words, what does {} look like?",
                "tell me how to draw {}",
                "tell me how one writes {}",
                "how is {} made?",
            )
        )
        thing = rng.choice((a(word), a(str(n)), f"the digit {word}", f"the digit {n}", f"the number {word}"))
        return question.format(thing), _SHAPES[n]
    if kind == 11:
        n = rng.randrange(1, 9)
        if rng.random() < 0.5:
            question = rng.choice(
                ("what is between {} and {}?", "which number is between {} and {}?", "what comes between {} and {}?")
                + ("which digit lies between {} and {}?", "between {} and {} comes what?")
            )
            answer = f"{WORDS[n]} is between {WORDS[n - 1]} and {WORDS[n + 1]}."
            return question.format(name(n - 1), name(n + 1)), answer
        question = rng.choice(
            (
                "what is two times {}?",
                "what is {} doubled?",
                "double {}",
                "how much is twice {}?",
                "what is {} times two?",
            )
            + ("what do you get for twice {}?", "what is the double of {}?")
        )
        return question.format(name(n)), f"twice {WORDS[n]} is {NUMBERS[2 * n]}."
    if rng.random() < 0.5:
        question = rng.choice(("is {} larger than {}?", "is {} bigger than {}?", "is the number {} larger than {}?"))
        if n == m:
            answer = f"no, both are {word}."
        else:
            answer = f"{'yes' if n > m else 'no'}, {word} is {'larger' if n > m else 'smaller'} than {WORDS[m]}."
        return question.format(name(n), name(m)), answer
    question = rng.choice(
        ("say {}", "just say {}", "say {} and nothing else", "do not draw, just say {}", "only say {}")
        + ("no picture, just say {}", "say the word {}", "just write the word {}", "without a picture, say {}")
    )
    return question.format(name(n)), f"{word}."


def talking(rng: random.Random) -> Turn:
    """Small talk or a plain question, answered in words."""
    if rng.random() < 0.35:
        answer, *questions = rng.choice(_SMALL_TALK)
        question = rng.choice(questions)
        if rng.random() < 0.15:
            question = rng.choice(("hello, ", "hi, ", "hey, ", "so, ", "please, ", "well, ", "ok, ")) + question
        if "?" not in question and rng.random() < 0.25:
            question += "!"
        return Turn(_styled(rng, question), answer)
    question, answer = _fact(rng)
    opening = rng.choice(_TALK_OPENINGS)
    if opening in ("do you know ", "can you tell me ", "please tell me ") and not question.startswith(
        ("what", "how", "which")
    ):
        opening = rng.choice(("", "please "))
    closing = "" if question.endswith("?") else rng.choice(("", "", ", please", " for me"))
    return Turn(_styled(rng, opening + question + closing), _sentence(answer))


def _styled(rng: random.Random, text: str) -> str:
    """As people type: sometimes with a capital letter, sometimes without the final mark."""
    if rng.random() < 0.35:
        text = re.sub(r"\bi\b", "I", _sentence(text))
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
        request = rng.choice(
            (
                "now draw the next one",
                "and the next one?",
                "draw the next digit",
                "draw the one after it",
                "the next, please",
            )
            + ("show me the digit that comes next", "now the one that follows", "and now the next")
        )
        return digit + 1, _drawn(rng, request, digit + 1)
    if kind < 0.4 and digit > 0:
        request = rng.choice(("now draw the one before it", "draw the digit before", "and the one before?"))
        return digit - 1, _drawn(rng, request, digit - 1)
    if kind < 0.55:
        request = rng.choice(
            (
                "draw another one",
                "one more, please",
                "again, please",
                "draw the same digit",
                "draw it again",
                "another one?",
            )
            + ("show me one more", "now you draw it", "can you draw it too?", "draw the same one for me")
        )
        return digit, _drawn(rng, request, digit)
    if kind < 0.65 and drew:
        question = rng.choice(("what did you draw?", "which digit did you draw?", "what digit is that?", "what is it?"))
        return digit, Turn(_styled(rng, question), f"I drew {a(WORDS[digit])}.")
    if kind < 0.75:
        question = rng.choice(("is it odd or even?", "is that odd or even?", "odd or even?", "is that digit even?"))
        return digit, Turn(_styled(rng, question), _sentence(f"{WORDS[digit]} is {_parity(digit)}."))
    if kind < 0.85:
        question = rng.choice(("what comes after it?", "which number comes next?", "what is the next number?"))
        return digit, Turn(_styled(rng, question), _sentence(f"{NUMBERS[digit + 1]} comes after {WORDS[digit]}."))
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
