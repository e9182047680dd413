"""Measures edits of held-out media of the keypad world: "make it a nine" makes a nine of a seven, in the input's place.

    python -m examples.keypad.editing [--workdir RUN] [--cases N] [--digits 7:9] [--modality NAME] [--wordings]

Every digit is edited, into several others, unless --digits names two. The results are read from files by the judge of
judge.py; a video is right if it also moves in the input's direction. At a small strength, the input's digit stays.
"""

import argparse
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from configs.keypad import get_config
from examples.keypad.exhibits import Exhibits, judged
from examples.keypad.language import EDITS
from examples.keypad.talk import WORDS, a
from examples.keypad.things import DIRECTIONS, Thing
from nextgpt_jax import media
from nextgpt_jax.cli.flags import configure_jax, run_command
from nextgpt_jax.cli.infer import load_engine
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.inference.requests import make_request
from nextgpt_jax.modalities import MODALITIES

WORDING = "make it {}"
SMALL = 0.2  # strength that keeps the digit
# Where guidance is strong, the tones' decoder follows its prompt alone, whatever it begins from; below 1, it does less.
SETTINGS: dict[str, dict[str, Any]] = {
    "image": {"strength": 0.8},
    "video": {"strength": 0.8},
    "audio": {"strength": 0.8, "guidance_scale": 0.8, "sampler": "euler"},
}


class Case(NamedTuple):
    """A thing that is shown, and the digit that it should become."""

    seen: Thing
    digit: int

    @property
    def wanted(self) -> Thing:
        """What an edit should make of the thing."""
        return self.seen._replace(digit=self.digit)


class Counts(NamedTuple):
    """Of edits: how many became what was asked for, how many kept their digit (and direction), and how many answers
    name the new digit."""

    cases: int
    changed: int
    kept: int
    named: int


def cases(modality: str, count: int, digits: tuple[int, int] | None = None) -> list[Case]:
    """Cases of all directions in turn, and of all digits, whose new ones are one further, then two, ...; or of
    `digits`, an old and a new one."""
    pairs = [digits or (i % 10, (i + 1 + i // 10 % 9) % 10) for i in range(count)]
    ways = DIRECTIONS if modality == "video" else ("",)
    return [Case(Thing(modality, old, ways[i % len(ways)]), new) for i, (old, new) in enumerate(pairs)]


def measure(
    engine: Engine, chosen: Sequence[Case], exhibits: Exhibits, folder: pathlib.Path, wording: str, **options: Any
) -> Counts:
    """Edits held-out media of the cases, which are of one modality.

    Args:
      folder: for the results.
      wording: of the prompts, with a place for the new digit.
      options: of the requests.
    """
    requests = []
    for seed, case in enumerate(chosen):
        name, path = case.seen.modality, exhibits.show(case.seen)
        given = {"edit": name, "seed": seed} | options
        prompt = wording.format(a(WORDS[case.digit]))
        requests.append(make_request(prompt, {name: [path]}, given, engine.config, engine.defaults))
    replies = engine.generate(requests)
    read = [_read(reply.media, folder / f"{wording}_{i:03d}") for i, reply in enumerate(replies)]
    return Counts(
        len(chosen),
        sum(thing == case.wanted for thing, case in zip(read, chosen, strict=True)),
        sum(thing == case.seen for thing, case in zip(read, chosen, strict=True)),
        sum(WORDS[case.digit] in reply.text for reply, case in zip(replies, chosen, strict=True)),
    )


def _read(made: Sequence[Any], stem: pathlib.Path) -> Thing | None:
    """The judge's reading of the only medium of a reply."""
    if len(made) != 1:
        return None
    path = stem.with_name(stem.name + MODALITIES[made[0].modality].suffix)
    media.write(made[0].modality, path, made[0].content)
    return judged(made[0].modality, path)


def lines(
    engine: Engine, folder: pathlib.Path, chosen: Mapping[str, Sequence[Case]], wordings: Sequence[str]
) -> Iterator[str]:
    """A line for each modality and wording.

    Args:
      folder: for the files.
      chosen: cases by modality.
      wordings: of the prompts; the first one is also measured at a small strength.
    """
    exhibits = Exhibits(folder / "shown")
    for name, of_modality in chosen.items():
        settings, made = SETTINGS[name], folder / "made" / name
        for wording in wordings:
            found = measure(engine, of_modality, exhibits, made, wording, **settings)
            right = f"{found.changed} of {found.cases} become the new digit, {found.kept} stay"
            yield f"{name}, {wording.format('a nine')!r}, {settings}: {right}; {found.named} answers name it"
        found = measure(engine, of_modality, exhibits, made, wordings[0], **settings | {"strength": SMALL})
        yield f"{name} at strength {SMALL}: {found.kept} of {found.cases} keep their digit"


def _two_digits(text: str) -> tuple[int, int]:
    """Of "old:new"."""
    if not (found := re.fullmatch("([0-9]):([0-9])", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD:NEW, such as 7:9")
    return int(found[1]), int(found[2])


def main(argv: Sequence[str]) -> None:
    """Runs the measurements and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="", help="edit with this training run, not the shipped weights")
    parser.add_argument("--cases", type=int, default=40, help="edits of each modality")
    parser.add_argument("--digits", type=_two_digits, metavar="OLD:NEW", help="edit this digit into that one alone")
    parser.add_argument("--modality", choices=SETTINGS, action="append", help="edit these alone")
    parser.add_argument("--wordings", action="store_true", help="measure other wordings, too")
    args = parser.parse_args(argv[1:])
    configure_jax()
    engine = load_engine(get_config(), args.workdir)
    with tempfile.TemporaryDirectory() as folder:
        chosen = {name: cases(name, args.cases, args.digits) for name in args.modality or SETTINGS}
        others = [wording for wording in EDITS if args.wordings and wording != WORDING]
        for line in lines(engine, pathlib.Path(folder), chosen, (WORDING, *others)):
            print(line, flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
