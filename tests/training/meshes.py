"""Trains the tiny system on one and on eight devices, and prints the losses as JSON.

python -m tests.training.meshes ROOT WORKDIR STAGE NAME...     (see RUNS)
"""

import dataclasses
import functools
import json
import os
import pathlib
import sys

os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"

import jax  # noqa: E402

from nextgpt_jax import sharding  # noqa: E402
from nextgpt_jax.config import MeshConfig  # noqa: E402
from nextgpt_jax.training import loop  # noqa: E402
from tests import tiny  # noqa: E402
from tests.training.recorder import Recorder  # noqa: E402

sharding._SMALL = 0  # here everything is small
RUNS = {
    "one": (MeshConfig(data=1), 1),
    "data": (MeshConfig(data=8), 1),
    "fsdp": (MeshConfig(fsdp=8, data=1), 1),
    "all": (MeshConfig(data=2, fsdp=2, tensor=2), 1),
    "accumulated": (MeshConfig(data=2, fsdp=2, tensor=2), 4),
}


def losses(root: pathlib.Path, workdir: pathlib.Path, stage: str, steps: int, **changes) -> dict[int, float]:
    """The loss of every step that a run makes. `changes` are sections of the config."""
    Recorder.losses = {}
    loop.SummaryWriter = Recorder
    config = tiny.experiment(root, stage)
    config.data.batch_size, config.model.lora_dropout = 16, 0.1
    if stage == "stage3":  # on images alone, which compiles faster; the other stages have all modalities
        config.model.video_decoder = config.model.audio_decoder = ""
        config.data.instructions = str(root / "pictures" / "instructions.json")
    config = dataclasses.replace(config, **changes)
    config.train = dataclasses.replace(config.train, steps=20, log_every=1, save_every=5, keep=9)
    if steps < 20:
        run_to(config, str(workdir), steps)
    else:
        loop.train(config, str(workdir))
    return Recorder.losses


def run_to(config, workdir: str, last: int) -> None:
    """Stops as if SIGTERM had come at step `last`."""
    at = loop.StopSignal.at
    loop.StopSignal.at = lambda self, step: step == last
    try:
        loop.train(config, workdir)
    except SystemExit:
        pass
    finally:
        loop.StopSignal.at = at


def moved(root: pathlib.Path, workdir: pathlib.Path, stage: str) -> dict[int, float]:
    """Ten steps on one mesh, and the rest on another."""
    losses(root, workdir, stage, 10, mesh=MeshConfig(fsdp=8, data=1))
    return losses(root, workdir, stage, 20, mesh=MeshConfig(data=2, fsdp=2, tensor=2))


def main(root: str, workdir: str, stage: str, *names: str) -> None:
    assert len(jax.devices()) == 8
    found = {}
    for name in names:
        if name == "moved":
            found[name] = moved(pathlib.Path(root), pathlib.Path(workdir) / name, stage)
            continue
        mesh, accumulate = RUNS[name]
        optim = dataclasses.replace(tiny.experiment(pathlib.Path(root), stage).optim, accumulate=accumulate)
        devices = jax.devices()[:1] if name == "one" else jax.devices()
        loop.make_mesh = functools.partial(sharding.make_mesh, devices=devices)
        where = pathlib.Path(workdir) / name
        found[name] = losses(pathlib.Path(root), where, stage, 20, mesh=mesh, optim=optim)
    print(json.dumps(found))


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", sys.argv[2] + "/xla")
    main(*sys.argv[1:])
