"""Trains the tiny system on one and on eight devices.

python -m tests.training.meshes                                  all stages on all meshes; the third goes on, after half
                                                                 its steps, from each mesh on each other
python -m tests.training.meshes ROOT WORKDIR STAGE NAME...       prints the losses as JSON

A NAME is one of RUNS, or two, such as fsdp-all: half the steps on the first mesh, and the rest on the second. Called by
name, stages 2 and 3 are trained on images alone, and all of them for 8 steps instead of 20.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence

import jax

from nextgpt_jax import sharding
from nextgpt_jax.config import ExperimentConfig, MeshConfig
from nextgpt_jax.mesh import make_mesh
from nextgpt_jax.training import loop, report
from tests import tiny
from tests.training.recorder import Recorder

sharding.MIN_SHARDED_SIZE = 0  # here everything is small
RUNS = {
    "one": (MeshConfig(data=1), 1),
    "data": (MeshConfig(data=8), 1),
    "fsdp": (MeshConfig(fsdp=8, data=1), 1),
    "all": (MeshConfig(data=2, fsdp=2, tensor=2), 1),
    "accumulated": (MeshConfig(data=2, fsdp=2, tensor=2), 4),
}


def losses(config: ExperimentConfig, workdir: pathlib.Path, last: int, steps: int) -> dict[int, float]:
    """The loss of every step that a run of `steps` steps makes, which is stopped after step `last`."""
    Recorder.losses = {}
    report.MetricsLog = Recorder
    config.data.batch_size, config.model.lora_dropout = 16, 0.1
    options = {"steps": steps, "log_every": 1, "save_every": steps // 2, "max_to_keep": 9}
    config.train = dataclasses.replace(config.train, ema_decay=0.9, **options)
    if last < steps:
        run_to(config, str(workdir), last)
    else:
        loop.train(config, str(workdir))
    return Recorder.losses


def run_to(config, workdir: str, last: int) -> None:
    """Stops as if SIGTERM had come at step `last`."""
    should_stop = loop.StopSignal.should_stop
    loop.StopSignal.should_stop = lambda self, step: step == last
    try:
        loop.train(config, workdir)
    except SystemExit:
        pass
    finally:
        loop.StopSignal.should_stop = should_stop


def run(
    root: pathlib.Path, workdir: pathlib.Path, stage: str, names: Sequence[str], kinds: tuple[str, ...], steps: int
) -> dict[str, dict[int, float]]:
    """The losses of runs, by their names."""
    found = {}
    for name in names:
        *before, last = name.split("-")
        for part, stop in [*((first, steps // 2) for first in before), (last, steps)]:
            config = tiny.experiment(root, stage, kinds)
            config.mesh, config.optim.grad_accum_steps = RUNS[part]
            devices = jax.devices()[:1] if part == "one" else jax.devices()
            loop.make_mesh = functools.partial(make_mesh, devices=devices)
            found[name] = losses(config, workdir / name, stop, steps)
    return found


def run_all(folder: pathlib.Path) -> None:
    tiny.write_hub(folder / "hub")
    tiny.write_data(folder / "data")
    tiny.write_data(folder / "pictures", kinds=tiny.PICTURES)
    moves = [f"{one}-{other}" for one, other in itertools.permutations(RUNS, 2) if "accumulated" not in (one, other)]
    for stage in ("stage1", "stage2", "stage3"):
        found = run(folder, folder / stage, stage, [*RUNS, *(moves if stage == "stage3" else ())], tiny.KINDS, 20)
        expected = found["one"]
        assert len(expected) == 20
        for name, values in found.items():
            assert [*values] == [*expected][10 if "-" in name else 0 :]
            off = max(abs(loss / expected[step] - 1) for step, loss in values.items())
            print(f"{stage} {name}: {len(values)} losses, at most {off:.1e} off", flush=True)
            assert off < 1e-5


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    with tempfile.TemporaryDirectory() as place:
        jax.config.update("jax_compilation_cache_dir", f"{place}/xla")
        if sys.argv[1:]:
            root, workdir, stage, *names = sys.argv[1:]
            kinds = tiny.KINDS if stage == "stage1" else tiny.PICTURES
            print(json.dumps(run(pathlib.Path(root), pathlib.Path(workdir), stage, names, kinds, 8)))
        else:
            run_all(pathlib.Path(place))
