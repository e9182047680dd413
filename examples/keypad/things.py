"""The contents of media in the keypad world (ten digits: written, moving or dialled) and their captions."""

from typing import NamedTuple

from examples.keypad.talk import WORDS, a

DIRECTIONS = ("left", "right", "up", "down")


class Thing(NamedTuple):
    """A handwritten digit ("image"), the tone of a digit's key ("audio"), or a digit that moves ("video")."""

    modality: str
    digit: int
    direction: str = ""  # of a video


def everything(modality: str) -> tuple[Thing, ...]:
    """All things of a modality, by digit, then by direction."""
    directions = DIRECTIONS if modality == "video" else ("",)
    return tuple(Thing(modality, digit, direction) for digit in range(10) for direction in directions)


def caption(thing: Thing) -> str:
    """The usual caption of a thing."""
    return captions(thing)[0]


def captions(thing: Thing) -> tuple[str, ...]:
    """All spellings of a caption, the usual one first; every thing has the same number."""
    return _CAPTIONS[thing.modality](WORDS[thing.digit], str(thing.digit), thing.direction)


def _of_image(word: str, figure: str, _: str) -> tuple[str, ...]:
    return (
        f"a handwritten {word}",
        f"a handwritten {figure}",
        a(word),
        a(figure),
        f"the digit {word}",
        f"the digit {figure}",
        f"the number {word}",
        f"the number {figure}",
        f"a picture of the digit {word}",
        f"a scan of {a(word)}",
    )


def _of_tone(word: str, figure: str, _: str) -> tuple[str, ...]:
    return (
        f"the tone of key {word}",
        f"the tone of key {figure}",
        f"the tone of the key {word}",
        f"the tone of the key {figure}",
        f"the tone of the digit {word}",
        f"the tone of {word}",
        f"the sound of key {word}",
        f"the sound of key {figure}",
        f"key {word} on a telephone",
        f"a tone for the number {word}",
    )


def _of_video(word: str, figure: str, direction: str) -> tuple[str, ...]:
    return (
        f"a handwritten {word} moving {direction}",
        f"a handwritten {figure} moving {direction}",
        f"{a(word)} moving {direction}",
        f"{a(figure)} moving {direction}",
        f"the digit {word} moving {direction}",
        f"the digit {figure} moving {direction}",
        f"the number {word} moving {direction}",
        f"{a(word)} that moves {direction}",
        f"a video of {a(word)} moving {direction}",
        f"a handwritten {word} that moves {direction}",
    )


_CAPTIONS = {"image": _of_image, "audio": _of_tone, "video": _of_video}
