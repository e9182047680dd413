"""Conversations of several turns with the keypad model, which continue from its own answers.

python -m examples.keypad.conversations [--workdir RUN] [--output DIR]
"""

import argparse
import contextlib
import itertools
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from configs.keypad import get_config
from examples.keypad import language
from examples.keypad.exhibits import Exhibits, judged
from examples.keypad.language import CONVERSATIONS, Request
from examples.keypad.things import Thing
from nextgpt_jax import media, modalities
from nextgpt_jax.cli.flags import configure_jax, run_command
from nextgpt_jax.cli.infer import load_engine
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference import types as inference
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.prompts import Turn, human_segments


class Answer(NamedTuple):
    """A reply, with the files of its inputs and outputs, and the judge's reading of the outputs."""

    request: Request
    text: str
    shown: list[pathlib.Path]
    made: list[tuple[str, pathlib.Path]]  # with their modalities
    judged: list[Thing | None]

    def right(self) -> bool:
        """True if the outputs are exactly the requested ones, and the text is accepted."""
        return self.request.fulfilled(self.text, self.judged)


class Examination:
    """Sends requests to a model, all at once; conversations continue from the model's own answers."""

    def __init__(self, engine: Engine, folder: pathlib.Path):
        self._engine, self._folder, self._seed = engine, folder, itertools.count()
        self._exhibits = Exhibits(folder / "shown")

    def ask(self, requests: Sequence[Request], histories: Sequence[list[Turn]] | None = None) -> list[Answer]:
        """Answers requests; appends each turn to its history."""
        histories = histories or [[] for _ in requests]
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


def mistakes(title: str, answers: Sequence[Answer]) -> list[str]:
    """A line for each answer that is not right."""
    wrong = [answer for answer in answers if not answer.right()]
    return [
        f"{title}: {a.request.human!r} {[language.caption(t) for t in a.request.seen]} -> {a.text!r}"
        f" {[str(path.name) for _, path in a.made]} judged {a.judged}"
        for a in wrong
    ]


def main(argv: Sequence[str]) -> None:
    """Holds the conversations and prints how many are right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="", help="talk with this training run, not the shipped weights")
    parser.add_argument("--output", default="", help="folder for all media, and what went wrong")
    args = parser.parse_args(argv[1:])
    configure_jax()
    engine = load_engine(get_config(), args.workdir)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(args.output or stack.enter_context(tempfile.TemporaryDirectory()))
        held = conversations(Examination(engine, folder))
        if args.output:
            lines = [line for k, some in enumerate(held) for line in mistakes(f"conversation {k}", some)]
            (folder / "mistakes.txt").write_text("\n".join(lines) + "\n")
    right, (least, *_, most) = sum(all(a.right() for a in turns) for turns in held), sorted(map(len, held))
    print(f"conversations: {right} of {len(held)} of {least} to {most} turns are right from beginning to end")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
