"""Computes in other processes, which import what their work needs and nothing else: no JAX, nor the program's own file.

python -m nextgpt_jax.data.workers    one of them; it ends with its standard input
"""

import concurrent.futures
import contextlib
import gc
import itertools
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

_MOST = 32  # processes
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


def cpu_count() -> int:
    """The processor cores that this process may use, in a container too."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max") as file:
        quota, period = map(int, file.read().split())  # "max": no quota
        count = min(count, max(1, quota // period))
    return count


def compute(
    function: Callable[[Any, Any], Any], shared: Any, tasks: Sequence[Any], processes: int | None = None
) -> Generator[Any, None, None]:
    """function(shared, task) of each task, in order. What a process cannot do, because it cannot be started, is killed
    or raises an error, is done here.

    Args:
      function: of a module, so that it can be pickled, as `shared`, the tasks and the results.
      processes: how many; None: as many as there are cores, at most 32. 1: none but this.
    """
    count = min(cpu_count() if processes is None else processes, len(tasks), _MOST)
    if count < 2:
        yield from (function(shared, task) for task in tasks)
        return
    try:
        start = pickle.dumps((function, shared))
    except Exception:  # objects of any class
        yield from (function(shared, task) for task in tasks)
        return
    workers: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
    started = [_Worker(start) for _ in range(count)]
    for worker in started:
        workers.put(worker)
    lost = itertools.count(1)

    def remote(task: Any) -> Any:
        worker = workers.get()
        if worker is None:
            workers.put(None)
            return _Failed()
        try:
            found = worker(task)
        except Exception:  # the pipe's, or of what came out of it
            if next(lost) == count:
                workers.put(None)  # for all tasks to come
            return _Failed()
        workers.put(worker)
        return found

    pool = concurrent.futures.ThreadPoolExecutor(count)
    try:
        window = [pool.submit(remote, task) for task in tasks[: 2 * count]]
        for number, task in enumerate(tasks):
            found = window.pop(0).result()
            if (following := number + 2 * count) < len(tasks):
                window.append(pool.submit(remote, tasks[following]))
            yield function(shared, task) if isinstance(found, _Failed) else found
    finally:
        for worker in started:
            worker.close()
        pool.shutdown(cancel_futures=True)


def compute_ranges(
    function: Callable[[Any, tuple[int, range]], Any], shared: Any, sizes: Mapping[int, int], step: int, least: int
) -> Iterator[list[Any]]:
    """function(shared, (key, numbers)) of consecutive ranges of numbers, from 0 to the size of each key; lists by key.

    Args:
      step: numbers in a range.
      least: all numbers that are worth other processes.
    """
    tasks = [(key, range(at, min(at + step, size))) for key, size in sizes.items() for at in range(0, size, step)]
    processes = None if sum(sizes.values()) >= least else 1
    with contextlib.closing(compute(function, shared, tasks, processes)) as found:
        for size in sizes.values():
            yield [next(found) for _ in range(0, size, step)]


class _Failed:
    """In place of a result."""


class _Worker:
    """A process that computes one task after another."""

    def __init__(self, start: bytes):
        here = [os.path.abspath(folder) for folder in sys.path]
        environment = os.environ | dict.fromkeys(_ONE_THREAD, "1") | {"PYTHONPATH": os.pathsep.join(here)}
        environment["TOKENIZERS_PARALLELISM"] = "false"
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._start = start
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen([sys.executable, "-m", __name__], env=environment, **pipes)

    def __call__(self, task: Any) -> Any:
        assert self._process and self._process.stdin and self._process.stdout
        self._process.stdin.write(self._start)
        self._start = b""
        pickle.dump(task, self._process.stdin)
        self._process.stdin.flush()
        return pickle.load(self._process.stdout)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):  # something was not written
                    pipe.close()  # type: ignore[union-attr]


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers, tasks = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)  # what libraries print
    gc.disable()  # which looks through millions of records for circles that they do not have
    function, shared = pickle.load(tasks)
    while True:
        try:
            task = pickle.load(tasks)
        except EOFError:
            return
        pickle.dump(function(shared, task), answers)
        answers.flush()


if __name__ == "__main__":
    _serve()
