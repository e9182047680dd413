"""Requests for media: draw a digit, play its key, let it move. By name, from an input, several at once."""

import random
import re

from examples.keypad.language.naming import figure, named, neighbour, pointed, riddled
from examples.keypad.language.turns import Turn, made, shown, styled
from examples.keypad.talk import phrases
from examples.keypad.things import DIRECTIONS, Thing

_OPENINGS = (
    *("", "", "", "please ", "please ", "could you ", "can you ", "would you ", "will you ", "could you please "),
    *("can you please ", "would you please ", "would you kindly ", "i want you to ", "i'd like you to ", "now "),
    *("i would like you to ", "i need you to ", "hey, ", "hello, please ", "hi, can you ", "hello! could you "),
    *(
        "good morning, please ",
        "ok, now ",
        "so, ",
        "next, ",
        "go ahead and ",
        "kindly ",
        "try to ",
        "may i ask you to ",
    ),
    *("my friend, ", "would you mind trying to ", "i wonder if you could ", "for fun, ", "your task: ", "then "),
)
_WISH_OPENINGS = ("", "", "", "hello! ", "hi, ", "please, ", "hey, ", "so, ", "ok, ", "now ", "and ", "well, ")
_CLOSINGS = ("", "", "", "", " please", " for me", ", please", " now", " if you can")

# --- pictures

_VERBS = phrases("draw | sketch | paint | make | create | generate | produce | show | write | pen | render")
_VERBS_ME = phrases("draw me | sketch me | paint me | make me | show me | write me | give me | create for me | get me")
_VERBS_PICTURE = phrases("""
    draw | paint | make | create | generate | produce | show me | give me | make me | sketch | show
""")
_PICTURES = phrases("""
    a picture | an image | a drawing | a sketch | a painting | the picture | a nice picture | a small picture
    a handwritten picture | an image by hand | a scan | one picture
""")
_BY_HAND = ("", "", "", "", " by hand", " on paper", " in your handwriting")
_DRAWING_WISHES = phrases("""
    i want {a_picture} of {it} | i would like {a_picture} of {it} | i would like to see {it} written
    i'd like to see {it} on paper | let me see {it} in writing | i need {a_picture} of {it} | {a_picture} of {it}
    {a_picture} of {it} please | may i see {a_picture} of {it}? | can i see {it} on paper? | handwrite {it}
    can i get {a_picture} of {it}? | could i have {a_picture} of {it}? | may i have {it} in your handwriting?
    i would love {a_picture} of {it} | {it}, written by hand, please | i would love to see {it} in a picture
    do you have {a_picture} of {it}? show it | how about {a_picture} of {it}? | i want to see {it} written by hand
    take a pen and write {it} | put {it} on paper | show me how {it} looks on paper | {it}: draw it
    would you show me {it} by hand? | is it possible to see {it} drawn by hand? please draw it | write {it} by hand
    i am looking for {a_picture} of {it} | how does one write {it}? show me | write {it} down | please write {it} down
    make your best picture of {it}
""")
_DRAWING_BY_NAME = phrases("""
    what would {thing} look like? show me | i love {word}. draw it | my favourite digit is {word}. draw it for me
    {word}! draw it, please | show me your {word} | show me your handwritten {word} | draw your best {word}
    the digit i want to see is {word} | hello! i want {thing} | i'd like to see {thing} | i would like to see {thing}
    let me see {thing} | may i see {thing}? | could i have {thing}? | i would love to see {thing} | can i see {thing}?
""")

# --- tones

_TONES = phrases("""
    the tone | the tone | the tone | the sound | the telephone tone | the key tone | a tone | the beep | the audio
""")
_TONE_VERBS = phrases("""
    play | play | play | play me | let me hear | let us hear | give me | make | produce | generate | sound | create
    send me
""")
_KEY_VERBS = phrases("play | play | dial | press | let me hear | sound | beep | ring | hit | push")
_TONE_WISHES = phrases("""
    i want to hear {tone} | i would like to hear {tone} | i'd like to hear {tone} | may i hear {tone}? | {tone}, please
    can i hear {tone}? | how does {it} sound? | what does {it} sound like? | let {tone} ring | i need {tone} | {tone}
    what is the tone of {it}? play it | which tone has {it}? play it | how does {it} sound on a telephone?
    what sound does {it} make? | i would love to hear {tone} | could i hear {tone}? | dial {it} on the telephone
    press {it} on the keypad | play {it} on the keypad | i am waiting for {tone} | i want {tone}
    let me listen to {tone}
    which sound does {it} make? | turn {it} into a tone | make {it} beep | how would {it} sound? | dial {it} for me
    take the telephone and dial {it} | play {it} on a telephone | listen! what does {it} sound like? play it
""")

# --- videos

_MOVES = (
    *(("move", "moving"),) * 5,
    *(("go", "going"), ("slide", "sliding"), ("glide", "gliding"), ("travel", "travelling")),
    *(("run", "running"), ("drift", "drifting"), ("wander", "wandering"), ("walk", "walking")),
)
_WAYS = {
    "left": ("left", "left", "left", "to the left", "to the left", "leftwards", "from right to left"),
    "right": ("right", "right", "right", "to the right", "to the right", "rightwards", "from left to right"),
    "up": ("up", "up", "up", "upwards", "to the top", "upwards", "from bottom to top"),
    "down": ("down", "down", "down", "downwards", "to the bottom", "downwards", "from top to bottom"),
}
_VIDEOS = phrases("a video | a video | a clip | a movie | a short video | an animation | a film | a small clip")
_MOVING_REQUESTS = phrases("""
    let {it} {move} {way} | let {it} {move} {way} | make {it} {move} {way} | show {it} {moving} {way}
    show me {it} {moving} {way} | make {a_video} of {it} {moving} {way} | show me {a_video} of {it} {moving} {way}
    create {a_video} of {it} {moving} {way} | generate {a_video} of {it} {moving} {way} | animate {it} {moving} {way}
    show me how {it} {move}s {way} | film {it} {moving} {way} | move {it} {way} | slide {it} {way} | push {it} {way}
    show {a_video} where {it} {move}s {way} | make {a_video} in which {it} {move}s {way} | have {it} {move} {way}
    show {a_video} of {it} that {move}s {way} | give me {a_video} of {it} {moving} {way} | move {it} {way}
    send {it} {way} | produce {a_video} of {it} {moving} {way} | draw {it} {moving} {way}
""")
_MOVING_WISHES = phrases("""
    i want to see {it} {move} {way} | i would like to see {it} {move} {way} | let me see {it} {moving} {way}
    can i see {it} {move} {way}? | may i see {it} {moving} {way}? | {it} {moving} {way}
    {a_video} of {it} {moving} {way}
    {it} {moving} {way}, please | i want {a_video} of {it} {moving} {way} | i need {a_video} of {it} {moving} {way}
    i would like {a_video} of {it} {moving} {way} | how does {it} look when it {move}s {way}?
    i'd love to see {it} {move} {way}
    can {it} {move} {way}? show me | could i have {a_video} where {it} {move}s {way}? | i want {it} to {move} {way}
    how would {it} look {moving} {way}? | may i have {a_video} of {it} that {move}s {way}?
""")
_UNDIRECTED = phrases("""
    show me {a_video} of {it} | make {a_video} of {it} | create {a_video} of {it} | animate {it} | let {it} move
    film {it} | show {it} in {a_video} | make {it} move | generate {a_video} of {it} | give me {a_video} of {it}
""")
DEFAULT_DIRECTION = "right"  # if a request for a video names none

_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


def opposite(direction: str) -> str:
    return _OPPOSITE[direction]


def way(rng: random.Random, direction: str) -> str:
    """A direction in words: "left", "to the left", "leftwards" ..."""
    return rng.choice(_WAYS[direction])


def action(rng: random.Random, thing: Thing, it: str) -> tuple[str, bool]:
    """A request with `it` for the digit, and whether it can follow "could you"."""
    return {"image": _drawing, "audio": _playing, "video": _moving}[thing.modality](rng, thing, it)


def _drawing(rng: random.Random, thing: Thing, it: str) -> tuple[str, bool]:
    if rng.random() < 0.6:
        if rng.random() < 0.35:
            return f"{rng.choice(_VERBS_PICTURE)} {rng.choice(_PICTURES)} of {it}", True
        verbs = _VERBS if it in ("it", "this", "this one", "that one") else _VERBS + _VERBS_ME
        return f"{rng.choice(verbs)} {it}{rng.choice(_BY_HAND)}", True
    return rng.choice(_DRAWING_WISHES).format(a_picture=rng.choice(_PICTURES), it=it), False


def _playing(rng: random.Random, thing: Thing, it: str) -> tuple[str, bool]:
    tone = rng.choice(_TONES)
    tone = f"its {tone.split()[-1]}" if it == "it" else it if "tone" in it else f"{tone} of {it}"
    kind = rng.random()
    if kind < 0.35:
        return f"{rng.choice(_TONE_VERBS)} {tone}", True
    if kind < 0.6:
        return f"{rng.choice(_KEY_VERBS)} {it}", True
    return rng.choice(_TONE_WISHES).format(tone=tone, it=it), False


def _moving(rng: random.Random, thing: Thing, it: str) -> tuple[str, bool]:
    move, moving = rng.choice(_MOVES)
    if thing.direction == DEFAULT_DIRECTION and rng.random() < 0.12:
        return rng.choice(_UNDIRECTED).format(it=it, a_video=rng.choice(_VIDEOS)), True
    imperative = rng.random() < 0.65
    request = rng.choice(_MOVING_REQUESTS if imperative else _MOVING_WISHES)
    words = {"it": it, "move": move, "moving": moving, "way": way(rng, thing.direction), "a_video": rng.choice(_VIDEOS)}
    return request.format(**words).replace("gos ", "goes "), imperative


def request(rng: random.Random, thing: Thing, it: str) -> str:
    """A whole request for one thing."""
    text, imperative = action(rng, thing, it)
    return polite(rng, text, imperative)


def polite(rng: random.Random, text: str, imperative: bool) -> str:
    """The request with polite words around it."""
    if not imperative:
        return rng.choice(_WISH_OPENINGS) + text
    text = rng.choice(_OPENINGS) + text + rng.choice(_CLOSINGS)
    return text + "?" if re.match(r"(.*[,!] )?(could|can|would|will|may) ", text) else text


def any_thing(rng: random.Random, modality: str, digit: int | None = None) -> Thing:
    """A random thing of a modality."""
    digit = rng.randrange(10) if digit is None else digit
    return Thing(modality, digit, rng.choice(DIRECTIONS) if modality == "video" else "")


def asked_by_name(rng: random.Random, thing: Thing) -> Turn:
    """A request without inputs."""
    if rng.random() < 0.09:
        text = request(rng, thing, riddled(rng, thing.digit, thing.modality))
    elif thing.modality == "image" and rng.random() < 0.2:
        words = {"thing": named(rng, thing.digit, "image"), "word": figure(rng, thing.digit)}
        text = rng.choice(_WISH_OPENINGS) + rng.choice(_DRAWING_BY_NAME).format(**words)
    else:
        text = request(rng, thing, named(rng, thing.digit, thing.modality))
    return made(thing)._replace(human=styled(rng, text))


# --- from what is shown

_AGAIN = {
    "image": phrases("""
        copy this digit | draw the same digit | draw this digit again | please write this digit in your own hand
        can you draw this one too? | show me the same digit in your handwriting | draw it again for me | copy it
        make a copy of this digit | the same digit again, please | one more of these, please | write the same again
    """),
    "audio": phrases("""
        play this key again | play it again | play this tone again | the same tone again, please | repeat this tone
        repeat it | repeat this key, please | press this key again | can you play this one too? | play the same tone
        once more, please | dial the same key | let me hear this tone again | play that again | copy this tone
    """),
    "video": phrases("""
        show that movement again | show this again | the same movement again, please | repeat this movement | repeat it
        show the same video | play this video again | make the same video | let it move like this again
        let it move the same way | copy this movement | move it this way again | once more, please | copy this video
    """),
}
_REVERSED = phrases("""
    move it the other way | now the other way | let it move the other way | show it moving the other way
    the other way, please | make it go the other way | turn it around | let it move in the other direction
    let this digit go back | let it come back | show the same digit going the other way | reverse it
    move it in the opposite direction | show it going the opposite way | play it backwards | make it return
""")
_SAME_WAY = phrases("""
    show {other} moving the same way | let {other} move the same way | do the same with {other}
    move {other} in the same direction | the same with {other} | make {other} move like this
    now {other} moving like this
    make the same video with {other} | let {other} move like that
""")


_ASKED_FIRST = {
    "image": phrases("""
        which digit is this? | what is this? | which number is it? | what did i write? | what is written here?
        which digit is it? | what digit do you see? | read this.
    """),
    "audio": phrases("""
        which key is this? | what is this? | which digit is it? | what did i press? | which key was pressed?
        which key is it? | what do you hear? | which tone is this?
    """),
    "video": phrases("""
        which digit is this? | what is this? | which digit moves here? | what moves? | which number is it?
        which digit is it? | what do you see? | watch this.
    """),
}


def made_from(rng: random.Random, seen: Thing, target: str) -> Turn:
    """From one input to one output: of the same digit, of its neighbor, or with another movement."""
    kind, digit = rng.random(), seen.digit
    if seen.modality == target and kind < (0.35 if target != "video" else 0.1):
        thing, text = seen, rng.choice(_AGAIN[target])
    elif seen.modality == target == "video" and kind < 0.25:
        thing, text = seen._replace(direction=opposite(seen.direction)), rng.choice(_REVERSED)
    elif seen.modality == target == "video" and kind < 0.35:
        thing = seen._replace(digit=rng.randrange(10))
        text = rng.choice(_SAME_WAY).format(other=named(rng, thing.digit, "video"))
    elif kind > 0.84:
        step = rng.choice((1, -1)) if 0 < digit < 9 else 1 if digit == 0 else -1
        thing = any_thing(rng, target, digit + step)
        text = request(rng, thing, neighbour(rng, step, seen.modality))
    elif kind > 0.74:
        thing = any_thing(rng, target, digit)
        brief = rng.choice(_BRIEF[target]).format(way=way(rng, thing.direction) if thing.direction else "")
        text = f"{rng.choice(_ASKED_FIRST[seen.modality])} {rng.choice(_BRIEF_OPENINGS)}{brief}{rng.choice(_CLOSINGS)}"
    else:
        thing = any_thing(rng, target, digit)
        text = request(rng, thing, pointed(rng, seen.modality))
    return made(thing)._replace(human=shown(rng, styled(rng, text), seen), seen=(seen,))


# --- several at once

_BRIEF_OPENINGS = ("", "", "", "please ", "then ", "now ", "and ")
_JOINS = (" and ", " and ", ", then ", " and then ", " and also ", ", and ", ". then ", ". also ", ", after that ")
_BRIEF = {
    "image": phrases(
        "draw it | write it | show it by hand | make a picture of it | draw it | write it down | sketch it"
    ),
    "audio": phrases("""
        play its tone | play its tone | let me hear it | play it | dial it | play its key | let me hear its tone
        press its key | play the tone | make its tone | sound it
    """),
    "video": phrases("""
        let it move {way} | move it {way} | show it moving {way} | make it move {way} | let it go {way}
        make a video of it moving {way} | let it slide {way} | show it going {way} | make it go {way}
    """),
}
_PAIRS = {
    ("audio", "image"): phrases("""
        a picture and the tone of {it} | {it} as a picture and as a tone | the tone and a picture of {it}
        draw and play {it} | show and play {it} | write and dial {it} | i want to see and hear {it}
        let me see and hear {it} | both a picture and the tone of {it} | an image and the sound of {it}
    """),
    ("image", "video"): phrases("""
        a picture of {it} and a video of it moving {way} | draw {it}, still and moving {way}
        an image and a video of {it} moving {way} | {it}, first as a picture, then moving {way}
    """),
    ("audio", "video"): phrases("""
        {it} moving {way} with its tone | the tone of {it}, and a video of it moving {way}
        a video of {it} moving {way} and its tone | move {it} {way} and play it | show {it} moving {way} with sound
    """),
    ("audio", "image", "video"): phrases("""
        a picture, the tone and a video of {it} moving {way} | draw {it}, play it and move it {way}
        everything you have of {it}, moving {way} | {it} as a picture, as a tone, and moving {way}
        draw {it}, let it move {way} and play its tone | the picture, the tone and the movement {way} of {it}
    """),
}


def several(rng: random.Random, digit: int, it: str) -> Turn:
    """A request for two or three media of a digit at once."""
    modalities = rng.choice((*list(_PAIRS)[:3], *list(_PAIRS)))
    things = [any_thing(rng, modality, digit) for modality in modalities]
    where = way(rng, next((t.direction for t in things if t.direction), "left"))
    if rng.random() < 0.3:
        text = rng.choice(_PAIRS[modalities]).format(it=it, way=where)
        text = polite(rng, text, text.split()[0] in ("draw", "show", "write", "move"))
    else:
        rng.shuffle(things)
        text, imperative = action(rng, things[0], it)
        for thing in things[1:]:
            text = text.rstrip("?") + rng.choice(_JOINS) + rng.choice(_BRIEF[thing.modality]).format(way=where)
        text = polite(rng, text, imperative)
    return made(*things)._replace(human=styled(rng, text))


def several_by_name(rng: random.Random) -> Turn:
    digit = rng.randrange(10)
    return several(rng, digit, named(rng, digit, rng.choice(("image", "image", "audio"))))


def several_from(rng: random.Random, seen: Thing) -> Turn:
    """From one input to two or three outputs."""
    turn = several(rng, seen.digit, pointed(rng, seen.modality))
    return turn._replace(human=shown(rng, turn.human, seen), seen=(seen,))
