"""Checkpoints of runs with files lost, emptied or cut short: the right values of some step, or one line."""

import pathlib
import shutil
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.weights.checkpoint_damage import find_damage
from nextgpt_jax.weights.run_checkpoints import Workdir

STEPS = (2, 4)
ITEMS = ("delta", "opt", "data")


def delta(step: int) -> nnx.State:
    values = jnp.arange(2000.0).reshape(40, 50) * step
    return nnx.State({"input_proj": {"kernel": nnx.Param(values), "bias": nnx.Param(values[0])}})


def opt(step: int) -> dict[str, jax.Array]:
    return {"count": jnp.int32(step), "mu": jnp.full(300, float(step))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
    """A run with two checkpoints."""
    path = tmp_path_factory.mktemp("whole") / "run"
    with Workdir(path) as run:
        run.init_or_validate("stage1", delta(0), "")
        for step in STEPS:
            run.save(step, delta(step), opt(step), {"examples": 8 * step}, losses={"loss": 1.0})
    return path


@pytest.fixture
def run(whole, tmp_path) -> pathlib.Path:
    return shutil.copytree(whole, tmp_path / "run")


def check_restored(workdir: Workdir, step: int) -> None:
    found, state, data = workdir.restore(step, delta(0), opt(0))
    jax.tree.map(np.testing.assert_array_equal, (found, state), (delta(step), opt(step)))
    assert data == {"examples": 8 * step}


def cut(file: pathlib.Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


KINDS: dict[str, Callable[[pathlib.Path], object]] = {
    "lost": pathlib.Path.unlink, "emptied": lambda file: file.write_bytes(b""), "cut": cut,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_any_file(whole, tmp_path, kind, capsys):
    """Restores step 4 if the file does not matter, or else step 2, and says so."""
    used = set()
    for i, file in enumerate(sorted(f for f in (whole / "4").rglob("*") if f.is_file())):
        path = shutil.copytree(whole, tmp_path / str(i))
        KINDS[kind](path / "4" / file.relative_to(whole / "4"))
        run = Workdir(path)
        step = run.resume_step()
        check_restored(run, step)
        note = capsys.readouterr().err
        assert ("step 4: " in note and "step 2 is used" in note) == (step == 2)
        assert not (step == 2 and (path / "4").exists())
        used.add(step)
    assert used == {2, 4}


@pytest.mark.parametrize(
    "name, message",
    [
        ("delta", "step 4: delta/ is missing"),
        ("opt", "step 4: opt/ is missing"),
        ("data", "step 4: data/metadata is missing"),
        ("delta/_METADATA", "step 4: delta/_METADATA is missing"),
        ("opt/manifest.ocdbt", "step 4: opt/ has files that are missing or cut short"),
    ],
)
def test_a_run_goes_on_from_the_newest_whole_checkpoint(run, name, message, capsys):
    lost = run / "4" / name
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    with Workdir(run) as workdir:
        assert workdir.resume_step() == 2
        notes = capsys.readouterr().err.splitlines()
        assert f"{run} is damaged ({message}): step 2 is used" in notes[0] and "is now damaged-4-1" in notes[1]
        check_restored(workdir, 2)
        workdir.save(4, delta(4), opt(4), {"examples": 32}, losses={"loss": 1.0})  # the damaged one is not in its way
    check_restored(Workdir(run), 4)
    assert Workdir(run).resume_step() == 4 and not capsys.readouterr().err


def test_several_damaged_checkpoints(run, capsys):
    for step in STEPS:
        shutil.rmtree(run / str(step) / "opt")
    with pytest.raises(UserError, match=r"has no whole checkpoint \(step 4: opt/ is missing; step 2: opt/ is missing"):
        Workdir(run).resume_step()
    assert Workdir(run).steps() == [4, 2]  # nothing is renamed
    found, step = Workdir(run).restore_delta(delta(0))  # for answering, the trained parameters are enough
    jax.tree.map(np.testing.assert_array_equal, found, delta(4))
    assert step == 4 and not capsys.readouterr().err
    shutil.rmtree(run / "4" / "delta")
    assert Workdir(run).restore_delta(delta(0))[1] == 2
    assert "(step 4: delta/ is missing): step 2 is used" in capsys.readouterr().err
    assert (run / "4").is_dir()  # reading changes nothing
    shutil.rmtree(run / "2" / "delta")
    with pytest.raises(UserError, match="has no whole checkpoint"):
        Workdir(run).restore_delta(delta(0))


def test_damage_in_words(run):
    assert find_damage(run / "4", ITEMS) == ""
    (run / "4" / "_CHECKPOINT_METADATA").write_text("")
    assert find_damage(run / "4", ITEMS) == "_CHECKPOINT_METADATA is damaged"
