"""Jobs of several processes on this machine, and what happens when one is killed, told to stop, or differs.

python -m tests.training.test_processes      two and four processes on the keypad model, one of them killed, whose
                                             training set python -m examples.keypad.prepare writes
"""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import pytest

from nextgpt_jax.training.distributed import is_peer_failure
from tests import QUICK_COMPILER

STEPS = 20  # a checkpoint every fourth
CACHE = tempfile.TemporaryDirectory()  # where there is none: jobs compile the same programs


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def job(root, workdir, processes: int, steps: int = STEPS, rates: tuple[str, ...] = ()):
    """Starts the processes; ends those that are left."""
    port = free_port()
    started = []
    for number in range(processes):
        argv = [sys.executable, "-u", "-m", "tests.training.worker", port, processes, number, root, workdir, steps]
        argv += [rates[number]] if rates else []
        environment = {"XLA_FLAGS": QUICK_COMPILER, "JAX_COMPILATION_CACHE_DIR": CACHE.name, **os.environ}
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
        started.append(subprocess.Popen(list(map(str, argv)), **pipes))
    try:
        yield started
    finally:
        for process in started:
            process.kill()


def finish(processes: list[subprocess.Popen], seconds: float = 240) -> list[tuple[dict[int, float], str]]:
    """The losses and the error output of each process, which may take as long as that."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=seconds)
        words = [line.split() for line in out.splitlines() if line.startswith("loss ")]
        found.append(({int(step): float(loss) for _, step, loss in words}, err))
    return found


def wait_for_step(process: subprocess.Popen, step: int = 0) -> dict[int, float]:
    """Reads what a process prints until it has made this step, or its first one."""
    losses = {}
    for line in process.stdout:
        if line.startswith("loss "):
            _, number, loss = line.split()
            losses[int(number)] = float(loss)
            if int(number) >= step:
                return losses
    raise AssertionError(process.stderr.read())


@pytest.fixture(scope="module")
def expected(tiny_root, tmp_path_factory):
    """The losses of one process."""
    with job(tiny_root, tmp_path_factory.mktemp("alone") / "run", 1) as processes:
        ((losses, err),) = finish(processes)
    assert len(losses) == STEPS, err
    return losses


@pytest.mark.slow
def test_jobs_that_are_killed_and_told_to_stop_go_on(tiny_root, tmp_path, expected):
    """Four processes, one of them killed at a random step, then two, one of them told to stop, then two again."""

    def same(losses, err=""):
        assert losses == pytest.approx({step: expected[step] for step in losses}, rel=1e-5), err

    kill = int(np.random.default_rng().integers(9, 13))  # at 12 while a checkpoint is saved
    with job(tiny_root, tmp_path / "run", 4) as (*others, last):
        same(wait_for_step(last, kill))
        last.send_signal(signal.SIGKILL)
        begin = time.monotonic()
        for process, (_, err) in zip(others, finish(others), strict=True):
            assert process.returncode == 1
            assert "error: another process of this job has exited: restart the job" in err, err
        assert time.monotonic() - begin < 60

    with job(tiny_root, tmp_path / "run", 2) as started:
        losses = wait_for_step(started[1])
        assert 1 < min(losses) <= kill + 1
        same(losses)
        started[1].send_signal(signal.SIGTERM)
        finish(started)
        assert [process.returncode for process in started] == [128 + signal.SIGTERM] * 2

    with job(tiny_root, tmp_path / "run", 2) as started:
        for rest, err in finish(started):
            assert min(rest) > max(losses) and max(rest) == STEPS, err  # they had saved what they made
            same(rest, err)


def test_a_lost_process_is_told_from_a_bug():
    gone = "UNKNOWN: Gloo AllGather failed: [gloo/transport/tcp/pair.cc:538] Read error: Connection reset by peer"
    silent = jax.errors.JaxRuntimeError("UNAVAILABLE: Task 3 heartbeat timeout")
    late = TimeoutError("Timed out while waiting for async_write_complete barrier.")  # what Orbax makes of it
    late.__cause__ = silent
    assert all(map(is_peer_failure, (silent, late, jax.errors.JaxRuntimeError(gone), ValueError(gone))))
    assert not any(map(is_peer_failure, (ValueError("shapes differ"), KeyError("Gloo"), TimeoutError())))


def test_processes_with_different_configs(tiny_root, tmp_path):
    with job(tiny_root, tmp_path / "run", 2, rates=("1e-3", "2e-3")) as started:
        for process, (losses, err) in zip(started, finish(started), strict=True):
            assert process.returncode == 2 and not losses
            assert "error: process 1 of this job has another config or other flags than process 0" in err
    assert not (tmp_path / "run").exists()


def on_the_keypad_model(folder: pathlib.Path) -> None:
    with job("keypad", folder / "one", 1) as processes:
        ((expected, err),) = finish(processes, 900)
    assert len(expected) == STEPS, err
    for count in (2, 4):
        with job("keypad", folder / f"of_{count}", count) as started:
            before = wait_for_step(started[-1], 6)
            started[-1].send_signal(signal.SIGKILL)
            for _, err in finish(started[:-1], 900):
                assert "error: another process of this job has exited: restart the job" in err
        with job("keypad", folder / f"of_{count}", count) as started:
            for losses, err in finish(started, 900):
                assert max(losses) == STEPS, err
                assert before | losses == pytest.approx(expected, rel=1e-5), err
        print(f"{count} processes, one of them killed at step 6: the losses of one process")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        on_the_keypad_model(pathlib.Path(place))
