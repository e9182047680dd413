"""A process that evaluates the small task with an engine that answers at once, or after a while:

python -m tests.evaluation.worker ROOT FOLDER SECONDS [SHARD]
"""

import dataclasses
import pathlib
import sys
import time
import types

import numpy as np

from nextgpt_jax.cli.flags import parse_shard
from nextgpt_jax.config import EvalConfig
from nextgpt_jax.evaluation.choosing import Shard
from nextgpt_jax.evaluation.evaluate import evaluate
from nextgpt_jax.evaluation.run import prepare
from nextgpt_jax.inference.types import MediaOutput, Response
from nextgpt_jax.weights.assemble import model_config
from tests import tiny
from tests.evaluation.small import TASK


def answered(request) -> Response:
    """An answer that follows from the seed."""
    picture = np.random.default_rng(request.seed).integers(0, 255, (64, 64, 3), np.uint8)
    media = [MediaOutput("image", picture)] if request.modality == "image" else []
    return Response("x" * (request.seed % 50), media, 3, (), "stop", 4)


def run(root: pathlib.Path, folder: pathlib.Path, seconds: float, shard: str = "0/1"):
    """Evaluates; each batch takes some seconds."""
    config = dataclasses.replace(tiny.experiment(root, "stage3"), eval=EvalConfig(batch=1))
    model = model_config(config.model)

    def generate(requests):
        time.sleep(seconds)
        return [answered(request) for request in requests]

    engine = types.SimpleNamespace(
        config=model, defaults=config.generation, validate=lambda request: None, generate=generate
    )
    task = dataclasses.replace(TASK, options={**TASK.options, "modality": "image"})
    return evaluate(
        prepare(task, root / "data", config, folder), model, lambda: engine, shard=Shard(*parse_shard(shard))
    )


if __name__ == "__main__":
    run(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:])
