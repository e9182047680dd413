"""BLEU, ROUGE-L and CIDEr with tokenization, beside pycocoevalcap in the same run.

    pip install pycocoevalcap
    python benchmarks/caption_metrics.py [--images 5000] [--references 5] [--rounds 3]

Captions are random sentences of a small grammar, of the length of COCO's. In each round pycocoevalcap tokenizes with
its Java program and scores, then this project does the same in parts of 256 images, as an evaluation does, and without
what it remembers of the round before. Printed are seconds, and CPU seconds of all processes, which depend less on what
else the machine does; the quotients of this project's to pycocoevalcap's, medians over rounds; and how much the figures
differ. METEOR and SPICE are the same Java programs on both sides, and are left out.
"""

import argparse
import datetime
import os
import pathlib
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np

from nextgpt_jax.evaluation.metrics import captions, ptb
from nextgpt_jax.evaluation.types import Outcome, Sample

PART = 256
WHO = "man woman boy girl dog cat group of people bus bird horse child player baby surfer couple giraffe".split()
HOW = "red young large small wooden white two old black-and-white blue street tall parked green".split()
DOES = "sits stands rides holds eats looks at walks runs flies plays with jumps over isn't near waits for".split()
WHERE = "table, street field beach bench man's hand park kitchen grass building road room. city's sky water".split()


def caption(draw: random.Random) -> str:
    """About ten words."""
    words = ["A", draw.choice(HOW), draw.choice(WHO), draw.choice(DOES), "a", draw.choice(HOW), draw.choice(WHERE)]
    if draw.random() < 0.7:
        words += ["in", "the", draw.choice(WHERE)]
    if draw.random() < 0.5:
        words += ["and", "the", draw.choice(WHO), draw.choice(DOES)]
    return " ".join(words) + draw.choice([".", " .", ""])


def timed(call: Callable[[], dict[str, float]]) -> tuple[dict[str, float], float, float]:
    """What a function returns, its seconds, and the CPU seconds of this process and its children."""
    before, begin = os.times(), time.perf_counter()
    found = call()
    seconds, after = time.perf_counter() - begin, os.times()
    return found, seconds, sum(after[:4]) - sum(before[:4])


def theirs(outcomes: list[Outcome]) -> dict[str, float]:
    """Figures by pycocoevalcap."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    known = tokenizer.tokenize(
        {item.sample.id: [{"caption": text} for text in item.sample.references["captions"]] for item in outcomes}
    )
    given = tokenizer.tokenize({item.sample.id: [{"caption": item.text}] for item in outcomes})
    bleu, _ = Bleu(4).compute_score(known, given, verbose=0)
    found = {f"BLEU-{size + 1}": value for size, value in enumerate(bleu)}
    found["ROUGE-L"] = Rouge().compute_score(known, given)[0]
    return found | {"CIDEr": Cider().compute_score(known, given)[0]}


def ours(outcomes: list[Outcome]) -> dict[str, float]:
    """Figures by this project."""
    ptb.tokenize.cache_clear()
    captions.ngrams.cache_clear()
    samples, found = [item.sample for item in outcomes], {}
    for metric in (captions.Bleu(samples), captions.RougeL(samples), captions.Cider(samples)):
        parts = [metric.measure(outcomes[begin : begin + PART]) for begin in range(0, len(outcomes), PART)]
        found |= {name: value / 100 for name, value in metric.aggregate(np.concatenate(parts)).items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--references", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    draw = random.Random(0)
    outcomes = []
    for number in range(args.images):
        known = tuple(caption(draw) for _ in range(args.references))
        answer = draw.choice([caption(draw), f"{known[0]} outside", known[-1]])
        outcomes.append(Outcome(Sample(str(number), "", references={"captions": known}), answer))
    print(f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{args.images:,} images with {args.references} references each, {args.rounds} rounds")
    rounds = [(timed(lambda: theirs(outcomes)), timed(lambda: ours(outcomes))) for _ in range(args.rounds)]
    for kind, place in (("seconds", 1), ("CPU seconds", 2)):
        for name, side in (("pycocoevalcap", 0), ("this project", 1)):
            print(f"{kind}, {name}: {', '.join(f'{found[side][place]:.1f}' for found in rounds)}")
        print(f"{kind}, quotient: {statistics.median(mine[place] / other[place] for other, mine in rounds):.2f}")
    other, mine = rounds[0][0][0], rounds[0][1][0]
    print(f"largest difference of figures: {max(abs(mine[name] - other[name]) for name in other):.1e}")


if __name__ == "__main__":
    main()
