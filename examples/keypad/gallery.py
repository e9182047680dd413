"""A picture of the keypad model's inputs and outputs: images, tones as spectrograms, videos as strips of frames.

python -m examples.keypad.gallery RUN       writes RUN/keypad.png from a run of `nextgpt evaluate keypad`
"""

import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from examples.keypad import tasks
from examples.keypad.language import MODALITIES
from examples.keypad.world import INK, PAPER, RATE
from nextgpt_jax import media
from nextgpt_jax.cli.flags import run_command
from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.answers import Answers
from nextgpt_jax.evaluation.types import Outcome

_CELL, _MARGIN, _TITLE, _LABEL = 88, 10, 26, 22
_COLUMNS = 10


def gallery(answers: dict[tuple[str, str], list[Outcome]]) -> Image.Image:
    """From answers by pairs of modalities: generated media, and what the model says about inputs."""
    rows = [
        _made("asked to draw", answers["text", "image"][:10]),
        _made("asked to play", answers["text", "audio"][:10]),
        _made("asked to move", answers["text", "video"][:4]),
        _said("shown, and asked", [*answers["image", "text"][:4], *answers["audio", "text"][:4]]),
        _said("shown, and asked", answers["video", "text"][:4]),
        *(_turned(title, [answers[p][k] for p, k in pairs]) for title, pairs in _TURNED.items()),
    ]
    canvas = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    return canvas


_TURNED = {  # pairs of modalities, and indices of their answers
    "shown, and asked for something else": ((("image", "audio"), 7), (("audio", "image"), 4), (("video", "image"), 8)),
    "from tones to videos, and back": ((("audio", "video"), 5), (("video", "audio"), 6)),
}


def _made(title: str, answers: Sequence[Outcome]) -> Image.Image:
    """Outputs above their replies; the first request is the title."""
    shown = [(_joined(_views(a.media)), _short(a.text)) for a in answers]
    return _row(f'{title}: "{answers[0].sample.prompt}" and so on', shown)


def _said(title: str, answers: Sequence[Outcome]) -> Image.Image:
    """Inputs above the model's replies."""
    shown = [(_joined(_views(a.sample.inputs)), _short(a.text)) for a in answers]
    questions = {next(iter(a.sample.inputs)): f'"{_asked(a)}"' for a in reversed(answers)}  # the first per modality
    return _row(f"{title}: {' or '.join(reversed(questions.values()))}", shown)


def _turned(title: str, answers: Sequence[Outcome]) -> Image.Image:
    """Inputs, an arrow, and outputs."""
    shown = [(_joined([*_views(a.sample.inputs), _arrow(), *_views(a.media)]), _asked(a)) for a in answers]
    return _row(title, shown)


def _views(files: Mapping[str, Sequence[pathlib.Path]]) -> list[Image.Image]:
    return [view(modality, path) for modality, paths in files.items() for path in paths]


def _asked(answer: Outcome) -> str:
    return answer.sample.prompt.split("\n")[-1]


def _short(text: str) -> str:
    for words in ("Here is ", "This is ", "a handwritten ", "the tone of "):
        text = text.removeprefix(words)
    return text.rstrip(".")


def view(modality: str, path: pathlib.Path) -> Image.Image:
    """A file as an image, one cell high."""
    return _VIEWS[modality](path)


def _image(path: pathlib.Path) -> Image.Image:
    return _scaled(media.read_image(path))


def _spectrogram(path: pathlib.Path, window: int = 256, hop: int = 64) -> Image.Image:
    """Loudness by time (to the right) and pitch (upwards, 500 to 1700 Hz: a key's tone is two lines)."""
    samples = media.read_audio(path, sample_rate=RATE)
    starts = range(0, max(len(samples) - window, 0) + 1, hop)
    frames = np.stack([np.resize(samples[s : s + window], window) for s in starts]) * np.hanning(window)
    power = np.abs(np.fft.rfft(frames, 4 * window)) ** 2
    low, high = (int(hertz * 4 * window / RATE) for hertz in (500, 1700))
    decibels = 10.0 * np.log10(power[:, low:high].T[::-1] / power.max() + 1e-9)
    loudness = np.clip(1.0 + decibels / 40.0, 0.0, 1.0)
    pixels = np.round(PAPER + (INK - PAPER) * loudness[..., None]).astype(np.uint8)
    return Image.fromarray(pixels).resize((_CELL, _CELL), Image.Resampling.BILINEAR)


def _strip(path: pathlib.Path, shown: int = 4) -> Image.Image:
    """Frames of a video in a row, from the first to the last, two and a half cells wide."""
    frames = media.read_video(path).frames
    chosen = np.linspace(0, len(frames) - 1, shown).round().astype(int)
    return _joined([_scaled(frames[i], _CELL * 5 // 8) for i in chosen], gap=2)


_VIEWS: dict[str, Callable[[pathlib.Path], Image.Image]] = {"image": _image, "audio": _spectrogram, "video": _strip}


def _scaled(pixels: np.ndarray, side: int = _CELL) -> Image.Image:
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)


def _arrow() -> Image.Image:
    canvas = Image.new("RGB", (18, _CELL), "white")
    middle = _CELL // 2
    draw = ImageDraw.Draw(canvas)
    draw.line((2, middle, 15, middle), "black", 2)
    draw.polygon(((17, middle), (11, middle - 5), (11, middle + 5)), "black")
    return canvas


def _joined(images: Sequence[Image.Image], gap: int = 4) -> Image.Image:
    """Images in a row, centered."""
    if not images:
        return Image.new("RGB", (_CELL, _CELL), "lightgrey")
    height = max(image.height for image in images)
    canvas = Image.new("RGB", (sum(i.width for i in images) + gap * (len(images) - 1), height), "white")
    left = 0
    for image in images:
        canvas.paste(image, (left, (height - image.height) // 2))
        left += image.width + gap
    return canvas


def _row(title: str, shown: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """A row of pictures with labels below, of the full width."""
    width = _COLUMNS * (_CELL + _MARGIN) + _MARGIN
    height = max(image.height for image, _ in shown)
    canvas = Image.new("RGB", (width, _TITLE + height + _LABEL), "white")
    write = ImageDraw.Draw(canvas)
    write.text((_MARGIN, 5), title, "black", font_size=15)
    spare = (width - _MARGIN - sum(image.width for image, _ in shown)) // len(shown)
    left = _MARGIN
    for image, label in shown:
        canvas.paste(image, (left, _TITLE + (height - image.height) // 2))
        while label and write.textlength(label, font_size=12) > image.width + spare - 4:
            label = label[:-1]
        write.text((left, _TITLE + height + 2), label, "black", font_size=12)
        left += image.width + spare
    return canvas


def main(argv: Sequence[str]) -> None:
    """Writes the picture of a run."""
    if len(argv) != 2:
        raise UserError("give the folder of one run of nextgpt evaluate keypad")
    folder, samples = pathlib.Path(argv[1]), tasks.load(pathlib.Path())
    answers, pairs = Answers(folder), {(s, t): tasks.category(s, t) for s in MODALITIES for t in MODALITIES}
    if not answers.is_answered(range(len(samples))):
        raise UserError(f"{folder} is no finished run of nextgpt evaluate keypad")
    found = {
        pair: [answers.outcome(i, sample) for i, sample in enumerate(samples) if sample.category == name]
        for pair, name in pairs.items()
    }
    gallery(found).save(folder / "keypad.png")
    print(folder / "keypad.png")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
