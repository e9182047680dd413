"""Measures the keypad model: does it draw the digit it is asked for, name the one it is shown, and else just talk?

    python -m examples.keypad.evaluate [--workdir RUN] [--output DIR]

Nothing measured here was trained on: the prompts are kept apart in language.py, the scans are the last 360, and the
judge (judge.py) has only ever seen real training scans. With --output, the drawn images and a picture of some are
written.
"""

import argparse
import itertools
import pathlib
import re
import sys
import time

import numpy as np
from PIL import Image, ImageDraw

from examples.keypad import judge, language, world

_DIGIT = re.compile(r"\b(" + "|".join((*language.WORDS, *map(str, range(10)))) + r")\b", re.IGNORECASE)


def named_digit(text: str) -> int | None:
    """The digit that a reply names, if it names exactly one."""
    found = {w.lower() for w in _DIGIT.findall(text)}
    digits = {language.WORDS.index(w) if w in language.WORDS else int(w) for w in found}
    return digits.pop() if len(digits) == 1 else None


def main(argv: list[str]) -> int:
    """Runs the three measurements and prints a line for each."""
    from configs.keypad import get_config
    from nextgpt_jax.command import enable_compilation_cache
    from nextgpt_jax.inference.cli import load_engine
    from nextgpt_jax.inference.engine import Request
    from nextgpt_jax.media import write_png
    from nextgpt_jax.prompts import Input, Turn

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="", help="evaluate this training run, not the shipped weights")
    parser.add_argument("--output", default="", help="folder for the drawn images and a picture of some")
    args = parser.parse_args(argv)
    enable_compilation_cache()
    config = get_config()
    engine, start = load_engine(config, args.workdir), time.perf_counter()
    options = dict(
        steps=config.decode.steps,
        guidance=config.decode.guidance,
        temperature=config.decode.temperature,
        max_new_tokens=config.decode.max_new_tokens,
    )

    def answer(conversations, batch=64):
        requests = [Request((Turn(tuple(segments)),), seed=i, **options) for i, segments in enumerate(conversations)]
        return [r for at in range(0, len(requests), batch) for r in engine.answer(requests[at : at + batch])]

    asked = [
        (digit, phrasing.format(digit=language.WORDS[digit]))
        for phrasing in language.HELD_OUT_DRAWING
        for digit in range(10)
    ]
    drawn = answer([(prompt,) for _, prompt in asked])
    blank = np.full((world.SIZE, world.SIZE, 3), 255, np.uint8)
    pictures = np.stack([reply.images[0] if reply.images else blank for reply in drawn])
    seen_as = judge.classify(pictures)
    single = np.array([len(reply.images) == 1 for reply in drawn])
    right = int((single & (seen_as == [digit for digit, _ in asked])).sum())
    print(f"drawing: {right} of {len(asked)} images are the asked digit")

    images, labels = world.scans()
    images, labels = images[world.HELD_OUT], labels[world.HELD_OUT]
    questions = itertools.cycle(language.HELD_OUT_QUESTIONS)
    named = answer([(Input("image", image), next(questions)) for image in images])
    correct = sum(named_digit(reply.text) == label for reply, label in zip(named, labels, strict=True))
    print(f"reading: {correct} of {len(labels)} held-out scans are named correctly")

    talk = answer([(prompt,) for prompt in language.TEXT_ONLY])
    spurious = sum(bool(reply.images) for reply in talk)
    print(f"talking: {spurious} of {len(talk)} text-only prompts got an image")
    judged = np.mean(judge.classify(images) == labels)
    print(f"judge: reads {judged:.1%} of the held-out scans; all in {time.perf_counter() - start:.0f} s")

    if args.output:
        folder = pathlib.Path(args.output)
        for (digit, _), reply, k in zip(asked, drawn, itertools.count(), strict=False):
            for image in reply.images:
                write_png(folder / f"{k:02d}_{digit}.png", image)
        picture(asked, pictures, images, named, talk).save(folder / "keypad.png")
        for prompt, reply in zip(language.TEXT_ONLY, talk, strict=True):
            print(f"  {prompt!r} -> {reply.text!r}")
    return 0


def picture(asked, pictures, scans, named, talk) -> Image.Image:
    """What the model does, in one picture: ten prompts with their images, ten scans with their names."""
    cell, margin = 96, 12
    canvas = Image.new("RGB", (10 * (cell + margin) + margin, 2 * (cell + 62)), "white")
    write = ImageDraw.Draw(canvas)
    write.text((margin, 6), f'asked to draw: "{asked[0][1].replace("zero", "...")}"', "black", font_size=15)
    write.text((margin, cell + 68), f'shown, and asked: "{language.HELD_OUT_QUESTIONS[0]}"', "black", font_size=15)
    for i in range(10):
        left = margin + i * (cell + margin)
        drawn = Image.fromarray(pictures[i]).resize((cell, cell), Image.Resampling.NEAREST)
        shown = Image.fromarray(scans[8 * i]).resize((cell, cell), Image.Resampling.NEAREST)
        canvas.paste(drawn, (left, 28))
        canvas.paste(shown, (left, cell + 90))
        write.text((left, cell + 32), language.WORDS[asked[i][0]], "black", font_size=13)
        write.text((left, 2 * cell + 94), named[8 * i].text[:16], "black", font_size=13)
    return canvas


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
