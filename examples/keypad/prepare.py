"""Writes the training set of the keypad world as files, in the formats of any other data set.

    python -m examples.keypad.prepare [--output examples/keypad/data]

images/*.png       the 1437 training scans, and 720 of them again, varied as people bring them (variations.py)
audios/*.wav       120 recordings of each key's tone, and 60 varied ones
videos/*.mp4       moving training scans, 72 per digit and direction, and 36 varied ones
captions.json      [{"caption", "image_name" | "audio_name" | "video_name"}], for stages 1 and 2
instructions.json  conversations for stage 3; "input_images" lists the files for the <image> placeholders in the human's
                   turns, "image_captions" the captions for those in the assistant's; likewise for other modalities
"""

import argparse
import json
import os
import pathlib
import random
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

from examples.keypad import language, world
from examples.keypad.things import Thing, everything
from examples.keypad.variations import varied
from nextgpt_jax import media
from nextgpt_jax.cli.flags import run_command
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import check_folder
from nextgpt_jax.modalities import MODALITIES

CONVERSATIONS = 16000
TONES = 120  # per key
VIDEOS = 72  # per digit and direction
VARIED = 720, 60, 36  # scans, tones per key, and videos per digit and direction, as people bring them
_FOLDER = pathlib.Path(__file__).parent / "data"

Files = dict[Thing, list[str]]  # the files of each thing, relative to the folder


def write_media(folder: pathlib.Path, seed: int) -> Files:
    """Writes all media. Returns their names by thing."""
    rng = np.random.default_rng(seed)
    images, labels = (a[world.TRAIN] for a in world.scans())
    inks = world.ink()[world.TRAIN]
    files: Files = {thing: [] for modality in language.MARKS for thing in everything(modality)}

    def add(thing: Thing, index: int, content) -> None:
        kind = {"image": "scan", "audio": "tone", "video": "move"}[thing.modality]
        what = f"{index:04d}_{thing.digit}{thing.direction and '_'}{thing.direction}"
        name = f"{thing.modality}s/{kind}_{what}{MODALITIES[thing.modality].suffix}"
        media.write(thing.modality, folder / name, content)
        files[thing].append(name)

    def any_ink(digit: int) -> np.ndarray:
        return inks[rng.choice(np.flatnonzero(labels == digit))]

    for index, digit in enumerate(labels.tolist()):
        add(Thing("image", digit), index, images[index])
    for index, thing in enumerate(everything("audio") * TONES):
        add(thing, index, media.Audio(world.tone(thing.digit, rng), world.RATE))
    for index, thing in enumerate(everything("video") * VIDEOS):
        add(thing, index, media.Video(world.movie(any_ink(thing.digit), thing.direction, rng), world.FPS))
    scans, tones, videos = VARIED
    for index, chosen in enumerate(rng.permutation(len(inks))[:scans], len(inks)):
        add(Thing("image", int(labels[chosen])), index, varied("image", inks[chosen], rng))
    for index, thing in enumerate(everything("audio") * tones, 10 * TONES):
        add(thing, index, varied("audio", thing.digit, rng))
    for index, thing in enumerate(everything("video") * videos, 40 * VIDEOS):
        inked = world.moving(any_ink(thing.digit)[None], [thing.direction], rng)[0]
        add(thing, index, varied("video", inked, rng))
    return files


def caption_records(files: Files, rng: random.Random) -> list[dict[str, str]]:
    """One caption per file: the usual one for most, another spelling for some."""
    records = []
    for thing, names in files.items():
        usual, *others = language.captions(thing)
        for name in names:
            caption = usual if rng.random() < 0.7 else rng.choice(others)
            records.append({"caption": caption, f"{thing.modality}_name": name})
    return records


def instruction_records(files: Files, rng: random.Random, n: int) -> list[dict[str, list]]:
    """n conversations, with a training file for each thing in them."""
    records = []
    for _ in range(n):
        turns = language.conversation(rng)
        speakers = [({"from": "human", "value": t.human}, {"from": "gpt", "value": t.gpt}) for t in turns]
        record: dict[str, list] = {"conversations": [line for turn in speakers for line in turn]}
        for turn in turns:
            for thing in turn.seen:
                record.setdefault(f"input_{thing.modality}s", []).append(rng.choice(files[thing]))
            for thing in turn.made:
                record.setdefault(f"{thing.modality}_captions", []).append(language.caption(thing))
        records.append(record)
    return records


def prepare(output: pathlib.Path, *, conversations: int = CONVERSATIONS, seed: int = 0) -> None:
    """Writes the training set, atomically. An earlier training set is replaced.

    Raises:
      UserError: `output` holds something else.
    """
    if output.exists() and not (output / "instructions.json").is_file() and (output.is_file() or any(output.iterdir())):
        raise UserError(f"--output: {output} holds something else: give a new folder")
    check_folder(output, "--output")
    rng = random.Random(seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".partial-") as scratch:
        folder = pathlib.Path(scratch) / "data"
        folder.mkdir()
        files = write_media(folder, seed)
        (folder / "captions.json").write_text(json.dumps(caption_records(files, rng), indent=1))
        (folder / "instructions.json").write_text(json.dumps(instruction_records(files, rng, conversations), indent=1))
        if output.exists():
            os.replace(output, pathlib.Path(scratch) / "old")
        os.replace(folder, output)


def main(argv: Sequence[str]) -> None:
    """Parses flags and writes the training set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=_FOLDER)
    output = parser.parse_args(argv[1:]).output
    prepare(output)
    print(f"wrote the training set to {output}")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
