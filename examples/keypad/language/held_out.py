"""The prompts of the evaluation. None of them occurs in the training text; see `held_out`."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from examples.keypad.language.turns import MARKS, words_alone
from examples.keypad.talk import NUMBERS, WORDS, a
from examples.keypad.things import DIRECTIONS, Thing

MODALITIES = ("text", *MARKS)


class Request(NamedTuple):
    """One turn: its inputs, the required outputs, and the required words of the reply."""

    human: str
    seen: tuple[Thing, ...] = ()
    made: tuple[Thing, ...] = ()
    answer: str | None = None

    def accepts(self, text: str) -> bool:
        """True if a reply has the words of the answer, and no number or direction beyond it, prompt and inputs."""
        if self.answer is None:
            return True
        shown = " ".join(f"{thing.digit} {thing.direction}" for thing in self.seen)
        said, needed, known = (set(normal(t).split()) for t in (text, self.answer, f"{self.human} {shown}"))
        return bool(said) and needed <= said and not (said & _VALUES) - needed - known

    def fulfilled(self, text: str, made: Sequence[Thing | None]) -> bool:
        """True if the outputs, as they were judged, are exactly the requested ones, and the text is accepted."""
        return sorted(made, key=str) == sorted(self.made, key=str) and self.accepts(text)


_DRAWING = (
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

EDITS = ("now {}", "make it {}", "turn it into {}", "change it to {}", "edit: {} instead")  # of what is shown

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
    "so, what tones can you play?",
    "hey, which videos can you make?",
    "do you hear tones well?",
    "please tell me what a tone is",
    "no tone please, just say two",
    "no video please, just say seven",
    "hi, what is the opposite of up?",
    "so what is the opposite of left, please?",
    "please play a nice song",
    "show me a video of a horse",
    "can you see in which direction a digit goes?",
    "thank you, that was a nice tone",
    "hello, do you like to play tones?",
    "how many keys are on a telephone?",
    "only say the word four, please",
    "so, is 5 smaller than 6?",
    "tell me how many letters zero has",
    "what digit do you find before nine?",
    "hey, count from 3 to 7",
    "so, what is your favourite tone?",
)

_FACTS = (
    ("which digit do you find right after four?", "five"),
    ("so, what number is next after 7?", "eight"),
    ("hi, tell me what comes after zero", "one"),
    ("ok, after nine comes which number?", "ten"),
    ("please tell me, what comes right before six?", "five"),
    ("now, which number stands before two?", "one"),
    ("what number do you find before 9?", "eight"),
    ("hello, which digit is right before 1?", "zero"),
    ("so, is the number 4 an even one?", "even"),
    ("hey, is nine an odd or an even number?", "odd"),
    ("tell me: odd or even, the digit two?", "even"),
    ("please say whether 7 is odd or even", "odd"),
    ("and one plus six makes what?", "seven"),
    ("so what do 3 and 4 make together?", "seven"),
    ("hi, how much do you get for two plus two?", "four"),
    ("tell me the sum of five and four", "nine"),
    ("please add the digits 6 and 2", "eight"),
    ("now, how much is nine plus 9?", "eighteen"),
    ("so what is left if you take two from eight?", "six"),
    ("hey, nine minus three makes what?", "six"),
    ("tell me how much is seven minus 3", "four"),
    ("hello, how much is 6 minus one?", "five"),
    ("of two and eight, which is the larger one?", "eight larger"),
    ("tell me the smaller one, 3 or 6", "three smaller"),
    ("so which number is bigger, one or nine?", "nine larger"),
    ("please say which is less, seven or four", "four smaller"),
    ("can you count up from one to four?", "one two three four"),
    ("hi, count for me from 5 to 9", "five six seven eight nine"),
    ("please list all the digits from 0 to 3", "zero one two three"),
    ("so, how long is the word eight?", "eight five"),
    ("tell me how many letters there are in two", "two three"),
    ("hey, how many letters has the digit six?", "six three"),
    ("which number do you find between 2 and 4?", "three"),
    ("so, what lies between seven and nine?", "eight"),
    ("what do you get if you double three?", "six"),
    ("tell me, how much is two times 2?", "four"),
    ("hello, is three larger than five?", "no"),
    ("so, is eight bigger than 6?", "yes"),
    ("without a picture, please just say nine", "nine"),
    ("hi, what is the opposite of down?", "up"),
)

_HEARING = (
    "which key do you hear in this?",
    "please tell me the number that was dialled here",
    "so, what digit did i press?",
    "can you recognise this tone for me?",
)

_WATCHING = (
    ("which way does this digit go?", "{digit} {direction}"),
    ("please describe what moves in this clip", "{digit} {direction}"),
    ("so, what digit is moving in the video?", "{digit}"),
    ("tell me in which direction it is going", "{direction}"),
)

_PLAYING = (
    "please let me hear the tone of the digit {digit}",
    "could you dial the number {digit} on your keypad?",
    "hello! what does the key {digit} sound like?",
    "i would like you to press {digit} for me",
)

_MOVING = (
    "could you show me how a handwritten {digit} moves {direction}?",
    "please make a short clip of the number {digit} going {direction}",
    "i would love a video where the digit {digit} moves {direction}",
    "now let a nice {digit} travel {direction}",
)

_FROM_MEDIA = {
    ("image", "image"): (
        "please copy the digit in this picture",
        "could you write the same number by hand?",
        "now draw this one again for me",
        "make one more picture of this digit",
    ),
    ("image", "audio"): (
        "please play the tone of the digit that i wrote",
        "could you dial this number for me?",
        "how does the digit in the picture sound?",
        "so, press the key of this digit",
    ),
    ("image", "video"): (
        "please let the digit that i wrote move {direction}",
        "could you make a clip of this number going {direction}?",
        "i want to see this digit travel {direction}",
        "so, animate what is written here, moving {direction}",
    ),
    ("audio", "image"): (
        "please draw the digit of the key that you hear",
        "could you write down the number that was dialled?",
        "i would like a picture of this key's digit",
        "which key is it? draw it on paper",
    ),
    ("audio", "audio"): (
        "please let me hear the same key again",
        "could you dial this number once more?",
        "so, play the same tone once more for me",
        "now press the key that you hear",
    ),
    ("audio", "video"): (
        "please let the digit of this key move {direction}",
        "could you show the number that was dialled going {direction}?",
        "make a clip of the digit that you hear moving {direction}",
        "which key is it? let it travel {direction}",
    ),
    ("video", "image"): (
        "please draw the digit that moves in this clip",
        "could you write the moving number on paper?",
        "i would like a picture of the digit in this video",
        "which digit is it? draw it for me",
    ),
    ("video", "audio"): (
        "please play the tone of the digit that moves",
        "could you dial the number in this clip?",
        "how does the moving digit sound?",
        "which digit is it? play its tone for me",
    ),
    ("video", "video"): (
        "please let the same digit move {direction}",
        "could you make this number go {direction} in a video?",
        "i want to see the digit in this clip travel {direction}",
        "so, make the digit go the other way",
    ),
}


def held_out_requests(source: str, target: str) -> list[Request]:
    """About forty requests from one modality ("text" or a medium) to another, over all digits and directions."""
    return list(_requests(source, target))


def _requests(source: str, target: str) -> Iterator[Request]:
    if source == target == "text":
        yield from (Request(human, answer=answer) for human, answer in _FACTS)
    elif source == "text":
        for i, (phrasing, digit) in enumerate((p, d) for p in _SPOKEN[target] for d in range(10)):
            thing = _thing(target, digit, i)
            yield Request(phrasing.format(digit=WORDS[digit], direction=thing.direction), made=(thing,))
    elif target == "text":
        for k in range(40):
            digit, phrasings = k % 10, _ASKED[source]
            phrasing, answer = phrasings[(k // 10 + digit) % len(phrasings)]
            thing = _thing(source, digit, k)
            words = {"digit": WORDS[digit], "direction": thing.direction}
            yield Request(f"{MARKS[source]}\n{phrasing}", seen=(thing,), answer=answer.format(**words))
    else:
        for i, (phrasing, digit) in enumerate((p, d) for p in _FROM_MEDIA[source, target] for d in range(10)):
            seen, thing = _thing(source, digit, i), _thing(target, digit, i // 10 + i + 1)
            if "other way" in phrasing:
                thing = seen._replace(direction=DIRECTIONS[DIRECTIONS.index(seen.direction) ^ 1])
            human = f"{MARKS[source]}\n{phrasing.format(direction=thing.direction)}"
            yield Request(human, seen=(seen,), made=(thing,))


_ASKED = {
    "image": tuple((question, "{digit}") for question in HELD_OUT_QUESTIONS),
    "audio": tuple((question, "{digit}") for question in _HEARING),
    "video": _WATCHING,
}
_SPOKEN = {"image": _DRAWING, "audio": _PLAYING, "video": _MOVING}


def _thing(modality: str, digit: int, i: int) -> Thing:
    return Thing(modality, digit, DIRECTIONS[i % 4] if modality == "video" else "")


def _image(digit: int) -> Thing:
    return Thing("image", digit)


def _tone(digit: int) -> Thing:
    return Thing("audio", digit)


def _video(digit: int, direction: str) -> Thing:
    return Thing("video", digit, direction)


CONVERSATIONS: tuple[tuple[Request, ...], ...] = (
    (
        Request("here is a tone <audio>: so, which key was it?", (_tone(7),), answer="seven"),
        Request("now draw that digit on paper for me", made=(_image(7),)),
        Request("and let it go left, please", made=(_video(7, "left"),)),
        Request("ok, now the other way, please", made=(_video(7, "right"),)),
    ),
    (
        Request("hello! please draw a clear three for me", made=(_image(3),)),
        Request("ok, and what does it sound like?", made=(_tone(3),)),
        Request("so, is that digit odd or even?", answer="three odd"),
    ),
    (
        Request("<image>\nplease name the digit i wrote for me", (_image(5),), answer="five"),
        Request("could you now play its tone for me?", made=(_tone(5),)),
        Request("so, what comes after it? draw that one", made=(_image(6),)),
    ),
    (
        Request("<video>\nso, which way does the digit move?", (_video(2, "up"),), answer="two up"),
        Request("please let it move down now", made=(_video(2, "down"),)),
        Request("ok, now draw it by hand", made=(_image(2),)),
        Request("and now press its key, please", made=(_tone(2),)),
    ),
    (
        Request("show me a good nine, then play its tone, please", made=(_image(9), _tone(9))),
        Request("ok, do the same with four", made=(_image(4), _tone(4))),
        Request("so, which key did you play?", answer="four"),
    ),
    (
        Request("hey, play the key six for me now", made=(_tone(6),)),
        Request("and now the next key, please", made=(_tone(7),)),
        Request("please draw that digit now", made=(_image(7),)),
    ),
    (
        Request("please make a video of a one moving up for me", made=(_video(1, "up"),)),
        Request("ok, which way did it move?", answer="one up"),
        Request("well, now let it move right", made=(_video(1, "right"),)),
        Request("and now again, but with eight", made=(_video(8, "right"),)),
    ),
    (
        Request("<image> <audio> so, are these the same digit?", (_image(4), _tone(4)), answer="yes four"),
        Request("ok, let that digit move down", made=(_video(4, "down"),)),
        Request("well, draw it too, please", made=(_image(4),)),
    ),
    (
        Request("<audio> <audio> so, do both have the same digit?", (_tone(2), _tone(8)), answer="no two eight"),
        Request("please draw the number eight for me now", made=(_image(8),)),
        Request("ok, and play it on the telephone", made=(_tone(8),)),
    ),
    (
        Request("<audio>\nnow draw the digit of this tone for me", (_tone(0),), made=(_image(0),)),
        Request("please let it go right", made=(_video(0, "right"),)),
        Request("well, is the zero odd or even, please?", answer="zero even"),
        Request("ok, dial that number again for me", made=(_tone(0),)),
    ),
    (
        Request("<image>\nnow let this digit move up for me", (_image(6),), made=(_video(6, "up"),)),
        Request("ok, and now down, please", made=(_video(6, "down"),)),
        Request("so, what digit did you move?", answer="six down"),
    ),
    (
        Request("please draw the number that comes after one for me", made=(_image(2),)),
        Request("ok, now the next one, please", made=(_image(3),)),
        Request("and play the tone of that one, please", made=(_tone(3),)),
        Request("well, thanks, that was very nice", answer=""),
    ),
    (
        Request("good morning to you, my friend", answer=""),
        Request("so, let me hear the tone of nine", made=(_tone(9),)),
        Request("ok, please write it on paper", made=(_image(9),)),
        Request("and show me it moving left, please", made=(_video(9, "left"),)),
        Request("hey, what comes before nine, please?", answer="eight"),
    ),
    (
        Request("<video>\nnow play the key of the moving digit", (_video(5, "left"),), made=(_tone(5),)),
        Request("please draw the same digit for me now", made=(_image(5),)),
        Request("<image>\nok, is this the same digit?", (_image(5),), answer="yes five"),
    ),
    (
        Request("<video>\nplease move it the other way now", (_video(3, "right"),), made=(_video(3, "left"),)),
        Request("ok, and now let it go up", made=(_video(3, "up"),)),
        Request("well, play its tone now", made=(_tone(3),)),
    ),
    (
        Request("please dial the number one and draw it for me", made=(_image(1), _tone(1))),
        Request("ok, let it move right now", made=(_video(1, "right"),)),
        Request("so, where did it go?", answer="one right"),
    ),
    (
        Request("<image>\nso, what digit is on the paper?", (_image(8),), answer="eight"),
        Request("<audio>\nok, and which key is this one?", (_tone(3),), answer="three"),
        Request("<video>\nand which digit moves here, please?", (_video(7, "down"),), answer="seven"),
        Request("well, now draw that digit", made=(_image(7),)),
    ),
    (
        Request("hi, let a beautiful four move left", made=(_video(4, "left"),)),
        Request("and now play its tone and draw it", made=(_image(4), _tone(4))),
        Request("so, please tell me what comes after it", answer="four five"),
    ),
    (
        Request("<audio>\nplease play the next key for me", (_tone(4),), made=(_tone(5),)),
        Request("ok, which tone did you play?", answer="five"),
        Request("so, draw the digit before it", made=(_image(4),)),
    ),
    (
        Request("please draw a two, and let it move down too", made=(_image(2), _video(2, "down"))),
        Request("ok, the same with seven, please", made=(_image(7), _video(7, "down"))),
        Request("now play its key for me, please", made=(_tone(7),)),
        Request("so, please, is it odd or even?", answer="seven odd"),
    ),
)


def normal(text: str) -> str:
    """The normal form of a text: lower case, digits spelled out, no punctuation."""
    spelled = re.sub(r"\d", lambda m: WORDS[int(m.group())], words_alone(text).lower())
    return " ".join(re.findall(r"[a-z']+|[+=-]", spelled))


def held_out() -> frozenset[str]:
    """The normal forms of all prompts of the evaluation."""
    requests = [r.human for s in MODALITIES for t in MODALITIES for r in held_out_requests(s, t)]
    conversations = [request.human for conversation in CONVERSATIONS for request in conversation]
    edits = [wording.format(a(word)) for wording in EDITS for word in WORDS]
    return frozenset(map(normal, (*requests, *HELD_OUT_QUESTIONS, *TEXT_ONLY, *conversations, *edits)))


_VALUES = {*NUMBERS, *DIRECTIONS}
