"""A run that is killed again and again makes the losses of one that is not, bit for bit.

python -m tests.training.test_kills KILLS [keypad]      as often as wanted; on the keypad model, whose training set
                                                        python -m examples.keypad.prepare writes
"""

import pathlib
import signal
import sys
import tempfile
import time

import numpy as np
import pytest

from tests import tiny
from tests.training.test_processes import finish, job


def killed_run(root: pathlib.Path | str, workdir: pathlib.Path, kills: int, steps: int, seed: int) -> dict[int, float]:
    """The losses of a run that is killed at random moments of its steps, its saving and its start. The later ones of
    steps that were made twice have to be the same."""
    rng, losses = np.random.default_rng(seed), {}
    for _ in range(kills):
        with job(root, workdir, 1, steps) as (process,):
            if rng.random() < 0.25:  # before it has made a step, or about then
                time.sleep(rng.uniform(0, 12))
                process.send_signal(signal.SIGKILL)
            made, last = 0, rng.integers(1, 2 * steps // kills)
            while made < last and (line := process.stdout.readline()):
                if line.startswith("loss "):
                    _, step, loss = line.split()
                    assert losses.setdefault(int(step), float(loss)) == float(loss), step
                    made += 1
            time.sleep(rng.uniform(0, 0.4))  # into the next step, or a save
            process.send_signal(signal.SIGKILL)
        print(f"killed; {len(losses)} of {steps} steps made", flush=True)
    for step, loss in straight_run(root, workdir, steps).items():
        assert losses.setdefault(step, loss) == loss, step
    return losses


def straight_run(root: pathlib.Path | str, workdir: pathlib.Path, steps: int) -> dict[int, float]:
    """The losses of a run, or of what is left of it."""
    with job(root, workdir, 1, steps) as started:
        ((losses, err),) = finish(started, 900)
    assert started[0].returncode == 0, err
    return losses


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(tiny_root, tmp_path):
    expected = straight_run(tiny_root, tmp_path / "straight", 20)
    found = killed_run(tiny_root, tmp_path / "killed", kills=3, steps=20, seed=0)
    assert len(expected) == 20 and {step: found[step] for step in sorted(found)} == expected


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        root = "keypad" if sys.argv[2:] == ["keypad"] else pathlib.Path(folder)
        if root != "keypad":
            tiny.write_hub(root / "hub")
            tiny.write_data(root / "pictures", kinds=tiny.PICTURES)
        kills = int(sys.argv[1])
        wanted = straight_run(root, pathlib.Path(folder) / "straight", 5 * kills)
        made = killed_run(root, pathlib.Path(folder) / "killed", kills, 5 * kills, seed=1)
        assert {step: made[step] for step in sorted(made)} == wanted
        print(f"{kills} times killed, and the same {len(made)} losses")
