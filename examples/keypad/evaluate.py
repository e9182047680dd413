"""Evaluates the keypad model: generation, understanding, conversations and plain talk, on held-out requests.

    python -m examples.keypad.evaluate [--workdir RUN] [--output DIR]

No training data is used: prompts come from language/held_out.py, inputs from the last 360 scans and new random tones,
and the judge (judge.py) was fit on real training scans only. All inputs and outputs go through files: PNG, WAV and MP4.
With --output they are kept, with a picture of some of them (keypad.png).
"""

import argparse
import contextlib
import itertools
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from configs.keypad import get_config
from examples.keypad import judge, language, world
from examples.keypad.gallery import gallery
from examples.keypad.language import CONVERSATIONS, MODALITIES, TEXT_ONLY, Request
from examples.keypad.things import Thing, everything
from nextgpt_jax import media, modalities
from nextgpt_jax.cli.flags import configure_jax, run_command
from nextgpt_jax.cli.infer import load_engine
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference import types as inference
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.prompts import Turn, human_segments

_BATCH = 64


class Answer(NamedTuple):
    """A reply, with the files of its inputs and outputs, and the judge's reading of the outputs."""

    request: Request
    text: str
    shown: list[pathlib.Path]
    made: list[tuple[str, pathlib.Path]]  # with their modalities
    judged: list[Thing | None]

    def right(self) -> bool:
        """True if the outputs are exactly the requested ones, and the text is accepted."""
        return sorted(self.judged, key=str) == sorted(self.request.made, key=str) and self.request.accepts(self.text)


def judged(modality: str, path: pathlib.Path) -> Thing | None:
    """The independent judge's reading of a file; None if it recognises nothing."""
    if modality == "audio":
        key = judge.key(media.read_audio(path, sample_rate=world.RATE), world.RATE)
        return None if key is None else Thing("audio", key)
    if modality == "video":
        frames = media.read_video(path).frames
        direction = judge.motion(frames)
        return None if direction is None else Thing("video", judge.moving_digit(frames), direction)
    return Thing("image", int(judge.classify(media.read_image(path)[None])[0]))


class Exhibits:
    """Files of held-out inputs, a different one each time."""

    def __init__(self, folder: pathlib.Path):
        self._folder, self._rng, self._count = folder, np.random.default_rng(2024), itertools.count()
        self._images, labels = (a[world.HELD_OUT] for a in world.scans())
        self._inks = world.ink()[world.HELD_OUT]
        self._next = {digit: itertools.cycle(np.flatnonzero(labels == digit)) for digit in range(10)}

    def show(self, thing: Thing) -> pathlib.Path:
        """Writes a file that shows a thing."""
        path = self._folder / f"{next(self._count):04d}_{'_'.join(map(str, filter(None, thing[1:])))}"
        path = path.with_name(f"{path.name}{modalities.MODALITIES[thing.modality].suffix}")
        if thing.modality == "audio":
            content = media.Audio(world.tone(thing.digit, self._rng), world.RATE)
        elif thing.modality == "video":
            moving = world.movie(self._inks[next(self._next[thing.digit])], thing.direction, self._rng)
            content = media.Video(moving, world.FPS)
        else:
            content = self._images[next(self._next[thing.digit])]
        media.write(thing.modality, path, content)
        return path


class Examination:
    """Sends requests to a model, in batches; conversations continue from the model's own answers."""

    def __init__(self, engine: Engine, folder: pathlib.Path):
        self._engine, self._folder, self._seed = engine, folder, itertools.count()
        self._exhibits = Exhibits(folder / "shown")

    def ask(self, requests: Sequence[Request], histories: Sequence[list[Turn]] | None = None) -> list[Answer]:
        """Answers requests; appends each turn to its history."""
        histories = histories or [[] for _ in requests]
        answers = []
        for at in range(0, len(requests), _BATCH):
            answers += self._ask(requests[at : at + _BATCH], histories[at : at + _BATCH])
        return answers

    def _ask(self, requests: Sequence[Request], histories: Sequence[list[Turn]]) -> list[Answer]:
        shown = [[self._exhibits.show(thing) for thing in request.seen] for request in requests]
        turns = [Turn(self._segments(*both)) for both in zip(requests, shown, strict=True)]
        defaults = self._engine.defaults
        options: dict[str, Any] = {"temperature": defaults.temperature, "max_new_tokens": defaults.max_new_tokens}
        conversations = [(*history, turn) for history, turn in zip(histories, turns, strict=True)]
        seeds = [next(self._seed) for _ in requests]
        asked = [inference.Request(c, seed=s, **options) for c, s in zip(conversations, seeds, strict=True)]
        fitting = [k for k, request in enumerate(asked) if self._fits(request)]
        answers = [Answer(request, "", paths, [], []) for request, paths in zip(requests, shown, strict=True)]
        replies = self._engine.generate([asked[k] for k in fitting]) if fitting else []
        for k, reply in zip(fitting, replies, strict=True):
            histories[k].append(Turn(turns[k].human, reply.segments))
            made = [(m.modality, self._write(f"{seeds[k]:04d}_{i}", m)) for i, m in enumerate(reply.media)]
            answers[k] = Answer(requests[k], reply.text, shown[k], made, [judged(*medium) for medium in made])
        return answers

    def _fits(self, request: inference.Request) -> bool:
        """True if the conversation fits into the context. If not, this and its later turns count as wrong."""
        try:
            self._engine.validate(request)
        except UserError:
            return False
        return True

    def _segments(self, request: Request, shown: list[pathlib.Path]) -> tuple:
        contents: dict[str, list] = {}
        for thing, path in zip(request.seen, shown, strict=True):
            content = media.load(thing.modality, path, self._engine.config.input_encoders[thing.modality])
            contents.setdefault(thing.modality, []).append(content)
        return human_segments(request.human, contents)

    def _write(self, stem: str, medium: inference.MediaOutput) -> pathlib.Path:
        path = self._folder / "made" / f"{stem}{modalities.MODALITIES[medium.modality].suffix}"
        media.write(medium.modality, path, medium.content)
        return path


def cells(examination: Examination) -> dict[tuple[str, str], list[Answer]]:
    """The answers for every pair of modalities; requests for the same modality are asked together."""
    answers = {}
    for target in MODALITIES:
        asked = {source: language.held_out_requests(source, target) for source in MODALITIES}
        replies = iter(examination.ask([request for requests in asked.values() for request in requests]))
        for source, requests in asked.items():
            answers[source, target] = list(itertools.islice(replies, len(requests)))
    return answers


def conversations(examination: Examination) -> list[list[Answer]]:
    """The answers to each turn of the conversations."""
    histories: list[list[Turn]] = [[] for _ in CONVERSATIONS]
    answers: list[list[Answer]] = [[] for _ in CONVERSATIONS]
    for i in range(max(map(len, CONVERSATIONS))):
        rows = [k for k, conversation in enumerate(CONVERSATIONS) if i < len(conversation)]
        replies = examination.ask([CONVERSATIONS[k][i] for k in rows], [histories[k] for k in rows])
        for k, answer in zip(rows, replies, strict=True):
            answers[k].append(answer)
    return answers


def scans(examination: Examination) -> list[Answer]:
    """The answers to a question about each of the held-out scans."""
    labels = sorted(world.scans()[1][world.HELD_OUT].tolist())
    questions = itertools.cycle(language.HELD_OUT_QUESTIONS)
    marked = [(Thing("image", digit), f"{language.MARKS['image']}\n{next(questions)}") for digit in labels]
    return examination.ask([Request(q, (t,), answer=language.WORDS[t.digit]) for t, q in marked])


def ceiling(folder: pathlib.Path) -> str:
    """A line with the share of real held-out media that the judge itself reads correctly."""
    exhibits, counts = Exhibits(folder), []
    for modality, copies in (("image", 20), ("audio", 10), ("video", 5)):
        things = everything(modality) * copies
        right = sum(judged(modality, exhibits.show(thing)) == thing for thing in things)
        counts.append(f"{right / len(things):.1%} of {modality}s")
    return f"judge: reads {', '.join(counts)} that are real and held out"


def table(answers: dict[tuple[str, str], list[Answer]]) -> str:
    """Correct answers of all: a row per input modality, a column per output modality."""
    lines = ["correct / total    " + "".join(f"-> {target:<10}" for target in MODALITIES)]
    for source in MODALITIES:
        found = [answers[source, target] for target in MODALITIES]
        shares = (f"{sum(a.right() for a in some)} of {len(some)}" for some in found)
        lines.append(f"{source:>16}   " + "".join(f"{share:<13}" for share in shares))
    return "\n".join(line.rstrip() for line in lines)


def mistakes(title: str, answers: Sequence[Answer]) -> list[str]:
    """A line for each answer that is not right."""
    wrong = [answer for answer in answers if not answer.right()]
    return [
        f"{title}: {a.request.human!r} {[language.caption(t) for t in a.request.seen]} -> {a.text!r}"
        f" {[str(path.name) for _, path in a.made]} judged {a.judged}"
        for a in wrong
    ]


def main(argv: Sequence[str]) -> None:
    """Runs the measurements and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="", help="evaluate this training run, not the shipped weights")
    parser.add_argument("--output", default="", help="folder for all media, a picture of some, and what went wrong")
    args = parser.parse_args(argv[1:])
    configure_jax()
    engine, start = load_engine(get_config(), args.workdir), time.perf_counter()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(args.output or stack.enter_context(tempfile.TemporaryDirectory()))
        examination = Examination(engine, folder)
        pairs = cells(examination)
        print(table(pairs), flush=True)
        read = scans(examination)
        print(f"reading: {sum(a.right() for a in read)} of {len(read)} held-out scans are named correctly", flush=True)
        talk = examination.ask([Request(prompt) for prompt in TEXT_ONLY])
        print(f"talking: {sum(bool(a.made) for a in talk)} of {len(talk)} text-only prompts got media", flush=True)
        held = conversations(examination)
        right = sum(all(a.right() for a in turns) for turns in held)
        print(
            f"conversations: {right} of {len(held)} of {_lengths()} turns are right from beginning to end", flush=True
        )
        print(f"{ceiling(folder / 'judged')}; all in {time.perf_counter() - start:.0f} s")
        if args.output:
            lines = [line for (s, t), some in pairs.items() for line in mistakes(f"{s} -> {t}", some)]
            lines += [line for k, some in enumerate(held) for line in mistakes(f"conversation {k}", some)]
            lines += [f"talk: {a.request.human!r} -> {a.text!r} {len(a.made)} media" for a in talk]
            (folder / "mistakes.txt").write_text("\n".join(lines) + "\n")
            gallery(pairs).save(folder / "keypad.png")


def _lengths() -> str:
    lengths = [len(conversation) for conversation in CONVERSATIONS]
    return f"{min(lengths)} to {max(lengths)}"


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
