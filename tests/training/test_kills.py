"""A run that is killed again and again, and that skips samples, makes the same steps as one that is not killed: of the
same examples, with the same losses, bit for bit.

python -m tests.training.test_kills KILLS [keypad]      as often as wanted; on the keypad model, whose training set
                                                        python -m examples.keypad.prepare writes
"""

import collections
import json
import pathlib
import signal
import sys
import tempfile
import time

import numpy as np
import pytest

from tests import tiny
from tests.training.test_processes import job

RECORDS, UNREADABLE = 24, (3, 10, 20)
Steps = dict[int, tuple[float, tuple[int, ...]]]  # loss and examples of each step


def write_root(root: pathlib.Path) -> None:
    """The tiny system, and records of different texts; the images of some cannot be read."""
    tiny.write_hub(root / "hub")
    tiny.write_data(root / "pictures", RECORDS, tiny.PICTURES)
    file, words = root / "pictures" / "instructions.json", ("zero", "one", "two", "three")
    records = json.loads(file.read_text())
    for i, record in enumerate(records):
        record["conversations"][0]["value"] += "".join(f" {words[i // n % 4]}" for n in (1, 4, 16))
    file.write_text(json.dumps(records))
    for i in UNREADABLE:
        (root / "pictures" / "images" / f"{i}.png").write_text("not a picture")


def killed_run(root: pathlib.Path | str, workdir: pathlib.Path, kills: int, steps: int, seed: int) -> Steps:
    """The steps of a run that is killed at random moments of its steps, its saving and its start. Those that were made
    twice have to be the same."""
    rng, found = np.random.default_rng(seed), {}
    for _ in range(kills):
        with job(root, workdir, 1, steps) as (process,):
            if rng.random() < 0.25:  # before it has made a step, or about then
                time.sleep(rng.uniform(0, 12))
                process.send_signal(signal.SIGKILL)
            last, examples = rng.integers(1, 2 * steps // kills), {}
            for made, (step, loss, of) in enumerate(parsed(process.stdout, examples), 1):
                assert found.setdefault(step, (loss, of)) == (loss, of), step
                if made == last:
                    break
            time.sleep(rng.uniform(0, 0.4))  # into the next step, or a save
            process.send_signal(signal.SIGKILL)
        print(f"killed; {len(found)} of {steps} steps made", flush=True)
    for step, content in straight_run(root, workdir, steps).items():
        assert found.setdefault(step, content) == content, step
    return found


def parsed(lines, examples: dict[int, tuple[int, ...]]):
    """The steps, losses and examples that a worker prints."""
    for line in lines:
        kind, *words = line.split() or [""]
        if kind == "examples":
            examples[int(words[0])] = tuple(map(int, words[1:]))
        elif kind == "loss":
            yield int(words[0]), float(words[1]), examples[int(words[0])]


def straight_run(root: pathlib.Path | str, workdir: pathlib.Path, steps: int) -> Steps:
    """The steps of a run, or of what is left of it."""
    with job(root, workdir, 1, steps) as (process,):
        out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return {step: (loss, of) for step, loss, of in parsed(out.splitlines(), {})}


def check_epochs(found: Steps) -> int:
    """Every example that can be read was trained once in every epoch, and only those; returns the epochs."""
    of_epoch = RECORDS // 4
    epochs = [
        collections.Counter(example for step in range(begin, begin + of_epoch) for example in found[step][1])
        for begin in range(1, len(found) - of_epoch + 2, of_epoch)
    ]
    for counts in epochs:
        assert counts == epochs[0] and counts.pop(0) == len(UNREADABLE)
        assert set(counts.values()) == {1} and len(counts) == RECORDS - len(UNREADABLE)
        counts[0] = len(UNREADABLE)
    return len(epochs)


def check(folder: pathlib.Path, root: pathlib.Path | str, kills: int, steps: int, seed: int) -> Steps:
    """Compares a killed run with one that is not; returns the steps."""
    expected = straight_run(root, folder / "straight", steps)
    found = killed_run(root, folder / "killed", kills, steps, seed)
    assert len(expected) == steps and {step: found[step] for step in sorted(found)} == expected
    skipped = [run / "skipped.jsonl" for run in (folder / "killed", folder / "straight")]
    if any(file.exists() for file in skipped):
        assert skipped[0].read_text() == skipped[1].read_text()
    return found


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path):
    write_root(tmp_path / "root")
    assert check_epochs(check(tmp_path, tmp_path / "root", kills=3, steps=18, seed=0)) == 3


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        root = "keypad" if sys.argv[2:] == ["keypad"] else pathlib.Path(folder) / "root"
        kills = int(sys.argv[1])
        steps = 6 * kills
        if root != "keypad":
            write_root(root)
        found = check(pathlib.Path(folder), root, kills, steps, seed=1)
        print(f"{kills} times killed, and the same {steps} losses of the same examples")
        if root != "keypad":
            print(f"{check_epochs(found)} epochs, each with every readable example once")
