"""Every published format trains the stage that it serves, alone and in a weighted mixture, raw and prepared."""

import json

import pytest

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.prepare.run import Options, Preparer
from nextgpt_jax.training.loop import train
from tests import tiny
from tests.data.published import write_all_formats

pytestmark = pytest.mark.slow
STAGES = ("stage1", "stage2", "stage3")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, dict[str, str]]:
    """The file of each format, by stage."""
    written = write_all_formats(tmp_path_factory.mktemp("published") / "data")
    return {stage: {name: path for name, (path, of) in written.items() if of == stage} for stage in STAGES}


def with_data(root, stage: str, entries: str) -> ExperimentConfig:
    config = tiny.experiment(root, stage)
    config.data.captions = config.data.instructions = entries
    config.train.steps, config.train.log_every, config.train.save_every = 3, 1, 3
    return config


def losses(workdir) -> list[dict[str, float]]:
    steps = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in step.items() if "loss" in name and "/" not in name} for step in steps]


def check(root, folder, stage: str, paths: list[str], weights: list[float]) -> None:
    """Trains on raw and on prepared files, and compares the losses of all steps."""
    raw, ready = [], []
    for i, (path, weight) in enumerate(zip(paths, weights, strict=True)):
        preparer = Preparer(with_data(root, stage, path), folder / f"data-{i}", Options(records_per_shard=3))
        preparer.write(range(preparer.count))
        assert preparer.merge()
        raw.append(f"{path}:{weight}")
        ready.append(f"{folder / f'data-{i}'}:{weight}")
    train(with_data(root, stage, ",".join(raw)), str(folder / "raw"))
    train(with_data(root, stage, ",".join(ready)), str(folder / "ready"))
    before, after = losses(folder / "raw"), losses(folder / "ready")
    assert len(before) == len(after) == 3
    for expected, found in zip(before, after, strict=True):
        assert expected["loss"] > 0 and found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_each_alone(tiny_root, files, tmp_path, stage):
    for i, path in enumerate(files[stage].values()):
        check(tiny_root, tmp_path / str(i), stage, [path], [1])


@pytest.mark.parametrize("stage", STAGES)
def test_a_weighted_mixture(tiny_root, files, tmp_path, stage):
    paths = list(files[stage].values())
    check(tiny_root, tmp_path, stage, paths, [1 + i % 3 for i in range(len(paths))])
