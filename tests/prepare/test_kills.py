"""`nextgpt prepare`, killed at random moments again and again, ends with the bytes of a run that is not.

python -m tests.prepare.test_kills KILLS      as often as wanted
"""

import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest

from tests import ROOT
from tests.training.test_kills import RECORDS, write_root


def start(root: pathlib.Path, output: pathlib.Path) -> subprocess.Popen:
    """The command, in shards of two records."""
    config = root / "config.py"
    config.write_text(
        "import pathlib\nfrom tests import tiny\n"
        "def get_config(variant):\n"
        f"    config = tiny.experiment(pathlib.Path({str(root)!r}), variant, tiny.PICTURES)\n"
        f"    config.data.instructions = {str(root / 'pictures' / 'instructions.json')!r}\n"
        f"    config.data.media_root, config.data.max_skipped = {str(root / 'pictures')!r}, 0.2\n"
        "    return config\n"
    )
    flags = [f"--config={config}:stage3", f"--output={output}", "--records_per_shard=2", "--batch_size=2"]
    environment = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(root / "cache")}
    return subprocess.Popen(
        [sys.executable, "-m", "nextgpt_jax", "prepare", *flags],
        cwd=ROOT,
        env=environment | {"HOME": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(root: pathlib.Path, output: pathlib.Path) -> float:
    """Runs it to its end; the seconds that took."""
    begin, process = time.perf_counter(), start(root, output)
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 0, printed
    return time.perf_counter() - begin


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """All files."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def shards(folder: pathlib.Path) -> int:
    """Those that are whole."""
    return len([*folder.glob("*.array_record")])


def killed(root: pathlib.Path, kills: int, seed: int) -> None:
    """Kills runs at random moments of the time that a whole one takes. Each folder's is then run to its end."""
    finish(root, root / "first")  # fills the compilation cache
    seconds, rng = finish(root, root / "whole"), np.random.default_rng(seed)
    expected = contents(root / "whole")
    assert len(expected) > RECORDS // 2 and contents(root / "first") == expected
    output, number = root / "0", 0
    for kill in range(kills):
        process = start(root, output)
        if rng.random() < 0.25:  # while it starts, or about then
            time.sleep(rng.uniform(0.0, 1.0) * seconds)
        else:
            wanted = min(RECORDS // 2, shards(output) + rng.integers(1, 6))
            while shards(output) < wanted and process.poll() is None:
                time.sleep(0.002)
            time.sleep(rng.uniform(0.0, 0.2))  # into the next shard, or the manifest
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"kill {kill + 1}: {shards(output)} of {RECORDS // 2} shards are there", flush=True)
        if rng.random() < 0.3 or process.returncode == 0:  # the next folder; the others are killed more than once
            finish(root, output)
            assert contents(output) == expected
            number += 1
            output = root / f"{number}"
    finish(root, output)
    assert contents(output) == expected


@pytest.mark.slow
def test_killed_at_random_moments_the_same_command_ends_with_the_same_bytes(tmp_path):
    write_root(tmp_path)
    killed(tmp_path, kills=4, seed=0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write_root(pathlib.Path(folder))
        killed(pathlib.Path(folder), int(sys.argv[1]), seed=1)
        print("every folder has the bytes of the run that was not killed")
