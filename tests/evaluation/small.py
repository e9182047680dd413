"""A small task and its metrics, for runs of the tiny system."""

import pathlib

import numpy as np
from PIL import Image

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.types import Sample, Task


class Length:
    """Characters of a text: mean, and the share of those with more than the reference has."""

    name, protocol, higher_is_better = "length", "characters of the text", True

    def measure(self, outcomes):
        return np.array([[len(o.text), len(o.text) > len(o.sample.references["text"])] for o in outcomes], np.float64)

    def aggregate(self, numbers):
        return {"Length": numbers[:, 0].mean(), "Longer": 100 * numbers[:, 1].mean()}

    def scores(self, numbers):
        return numbers[:, 0]


class Brightness:
    """Of the first image; without one, 0."""

    name, protocol, higher_is_better = "brightness", "mean of all pixels", False

    def measure(self, outcomes):
        found = [o.media.get("image", []) for o in outcomes]
        return np.array([[np.asarray(Image.open(f[0])).mean() if f else 0.0] for f in found], np.float32)

    def aggregate(self, numbers):
        return {"Brightness": numbers.mean(dtype=np.float64)}

    def scores(self, numbers):
        return None


class NeedsJava(Length):
    name = "java"

    def measure(self, outcomes):
        raise UserError("java is not installed")


def load(data: pathlib.Path) -> list[Sample]:
    """Prompts of several lengths, with and without media in and out; one of them cannot be answered."""
    found = []
    for i in range(7):
        inputs = {"image": [data / "images" / "0.png"]} if i in (0, 3) else {}
        options = {"modality": "image"} if i in (1, 6) else {}
        category = "odd" if i % 2 else "even"
        found.append(Sample(f"s{i}", f"say {i}", inputs, {"text": "x" * i}, options, category))
    found[5] = Sample("s5", "word " * 300, references={"text": ""})
    return found


def metrics(samples, settings):
    return [Length(), Brightness(), NeedsJava()]


TASK = Task(
    name="small",
    title="A small task",
    layout={"images/": "made by tests"},
    load=load,
    metrics=metrics,
    options={"temperature": 0.0, "max_new_tokens": 8, "num_inference_steps": 2, "modality": "text"},
    paper={"Length": 12.5},
    protocol="7 prompts",
)
TASKS = {"small": TASK}
