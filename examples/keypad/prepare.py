"""Writes the training set of the embedded world as files, in the formats of any other data set.

    python -m examples.keypad.prepare [--output examples/keypad/data]

images/*.png       the 1437 training scans
captions.json      [{"caption", "image_name"}], for stages 1 and 2
instructions.json  conversations for stage 3; "input_images" and "image_captions" list, in order, what the <image> marks
                   of the human's and of the assistant's turns stand for
"""

import argparse
import json
import os
import pathlib
import random
import tempfile

from PIL import Image

from examples.keypad import language, world

CONVERSATIONS = 6000
_FOLDER = pathlib.Path(__file__).parent / "data"


def caption_records(labels: list[int], rng: random.Random) -> list[dict]:
    """One caption a training scan: the usual one for most, another spelling for some."""
    records = []
    for index, digit in enumerate(labels):
        usual, *others = language.captions(digit)
        caption = usual if rng.random() < 0.7 else rng.choice(others)
        records.append({"caption": caption, "image_name": scan_name(index, digit)})
    return records


def instruction_records(labels: list[int], rng: random.Random, n: int) -> list[dict]:
    """n conversations; each picture that is shown is a training scan of the digit that is talked about."""
    names = [[scan_name(i, d) for i, d in enumerate(labels) if d == digit] for digit in range(10)]
    records = []
    for _ in range(n):
        turns = language.conversation(rng)
        speakers = [({"from": "human", "value": t.human}, {"from": "gpt", "value": t.gpt}) for t in turns]
        records.append(
            {
                "conversations": [line for turn in speakers for line in turn],
                "input_images": [rng.choice(names[digit]) for t in turns for digit in t.seen],
                "image_captions": [language.caption(digit) for t in turns for digit in t.drawn],
            }
        )
    return records


def scan_name(index: int, digit: int) -> str:
    return f"scan_{index:04d}_{digit}.png"


def prepare(output: pathlib.Path, *, conversations: int = CONVERSATIONS, seed: int = 0) -> None:
    """Writes the training set; a folder that is there is complete."""
    images, labels = world.scans()
    images, labels = images[world.TRAIN], labels[world.TRAIN].tolist()
    rng = random.Random(seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".partial-") as scratch:
        folder = pathlib.Path(scratch) / "data"
        (folder / "images").mkdir(parents=True)
        for index, digit in enumerate(labels):
            Image.fromarray(images[index]).save(folder / "images" / scan_name(index, digit))
        (folder / "captions.json").write_text(json.dumps(caption_records(labels, rng), indent=1))
        (folder / "instructions.json").write_text(json.dumps(instruction_records(labels, rng, conversations), indent=1))
        if output.exists():
            os.replace(output, pathlib.Path(scratch) / "old")
        os.replace(folder, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=_FOLDER)
    output = parser.parse_args().output
    prepare(output)
    print(f"wrote the training set to {output}")


if __name__ == "__main__":
    main()
