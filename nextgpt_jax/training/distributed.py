"""Jobs of several processes: initialization, printing on process 0 only, coordinated shutdown."""

import contextlib
import os
import pathlib
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Self

import jax
from absl import flags
from jax.experimental import multihost_utils

from nextgpt_jax.errors import UserError, first_line

_HEARTBEAT_SECONDS = 20  # a process that is silent for longer is assumed dead
_SINGLE = ("", "0", "1")
_PEER_ERRORS = ("Gloo", "Connection", "heartbeat", "coordination", "UNAVAILABLE", "DEADLINE_EXCEEDED")


def define_flags(values: flags.FlagValues) -> None:
    """Flags of a job that is not described by its environment (TPU VM, SLURM, Open MPI)."""
    flags.DEFINE_string("coordinator", "", "multi-process: address:port of process 0", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "multi-process: number of processes", flag_values=values)
    flags.DEFINE_integer("process_id", None, "multi-process: index of this process, from 0", flag_values=values)


def initialize(values: flags.FlagValues) -> None:
    """Joins the job that the flags describe, or else the environment. A single process does nothing.

    Raises:
      UserError: the flags are incomplete, or the other processes cannot be reached.
    """
    given = (values.coordinator or None, values.num_processes, values.process_id)
    if all(value is None for value in given):
        if not _in_a_job():
            return
    elif any(value is None for value in given):
        raise UserError("--coordinator, --num_processes and --process_id belong together: give all three")
    elif not 0 <= values.process_id < values.num_processes:
        raise UserError(f"--process_id={values.process_id} is not one of 0 to {values.num_processes - 1}")
    join(*given)


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins a job; arguments that are None are read from the environment.

    Raises:
      UserError: the other processes cannot be reached.
    """
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"this process cannot join its job: {reason}") from None


def _in_a_job() -> bool:
    """True for one of several SLURM or Open MPI processes, and on a TPU VM, which may be one of several."""
    if any(os.environ.get(name, "") not in _SINGLE for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")):
        return True
    tpu = any(pathlib.Path("/dev").glob("accel*")) or any(pathlib.Path("/dev/vfio").glob("[0-9]*"))
    return tpu and os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")


def print_on_main(line: str) -> None:
    """Prints a line, on process 0 only."""
    if jax.process_index() == 0:
        print(line, flush=True)


@contextlib.contextmanager
def exit_with_peers() -> Iterator[None]:
    """Exits at once on an error if there are several processes, so that none waits for one that has exited."""
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        status = 1
        if isinstance(error, UserError):
            status, line = 2, f"error: {' '.join(str(error).split())}"
        elif is_peer_failure(error):
            line = "error: another process of this job has exited: restart the job to resume from its last checkpoint"
        else:
            line = traceback.format_exc()
        print(line, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(status)  # skip atexit: JAX's shutdown barrier would wait for the lost process


def is_peer_failure(error: BaseException | None) -> bool:
    """True if the error means that another process died."""
    while error is not None:
        # The first run of a program raises a ValueError; Orbax chains the error to a TimeoutError.
        if isinstance(error, (jax.errors.JaxRuntimeError, ValueError)) and any(
            word in str(error) for word in _PEER_ERRORS
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


class StopSignal:
    """Context manager that notes SIGTERM, which schedulers send before they stop a machine, and Ctrl-C.

    A second Ctrl-C interrupts at once. With several processes, SIGTERM is noted only: JAX's own handler informs the
    others.

    Attributes:
      received: the signal; None: none yet.
    """

    def __enter__(self) -> Self:
        self.received: signal.Signals | None = None
        self._alone = jax.process_count() == 1
        main = threading.current_thread() is threading.main_thread()
        self._before = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGTERM, signal.SIGINT)
            if self._alone and main  # other threads cannot set handlers
        }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        self.received = signal.Signals(number)
        if number == signal.SIGINT:
            print("stopping after this step and a checkpoint; again: at once", file=sys.stderr, flush=True)
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def should_stop(self, step: int) -> bool:
        """Whether to stop after this step; the same in every process."""
        if self._alone:
            return self.received is not None
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        self.received = signal.SIGTERM
        return True
