"""Jobs of several processes: how they find each other, speak with one voice, and stop together."""

import contextlib
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Self

import jax
from absl import flags
from jax.experimental import multihost_utils

from nextgpt_jax.errors import UserError, first_line

_HEARTBEAT_SECONDS = 20  # a process that was silent for so long is taken for dead
_SINGLE = ("", "0", "1")
_LOST = ("Gloo", "Connection", "heartbeat", "coordination", "UNAVAILABLE", "DEADLINE_EXCEEDED")


def define_flags(values: flags.FlagValues) -> None:
    """The flags of a job that neither a TPU VM nor SLURM nor Open MPI describes."""
    flags.DEFINE_string("coordinator", "", "address:port of process 0, the same in every process", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "how many processes the job has", flag_values=values)
    flags.DEFINE_integer("process_id", None, "the number of this one, from 0", flag_values=values)


def initialize(values: flags.FlagValues) -> None:
    """Joins the job: the one that flags describe, or else the one that the environment does. Alone, it does nothing.

    Raises:
      UserError: the flags are not complete, or the others cannot be reached.
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
    """Joins a job; what is None comes from the environment.

    Raises:
      UserError: the others cannot be reached.
    """
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"this process cannot join its job: {reason}") from None


def _in_a_job() -> bool:
    """Is this one of several processes of SLURM or Open MPI, or on a TPU VM, which may be one of several?"""
    if any(os.environ.get(name, "") not in _SINGLE for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")):
        return True
    tpu = any(pathlib.Path("/dev").glob("accel*")) or any(pathlib.Path("/dev/vfio").glob("[0-9]*"))
    return tpu and os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")


def print_on_main(line: str) -> None:
    """Prints a line once a job."""
    if jax.process_index() == 0:
        print(line, flush=True)


@contextlib.contextmanager
def exit_with_peers() -> Iterator[None]:
    """Ends this process at once when something fails in one of several, so that none waits for those that are gone."""
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        status = 1
        if isinstance(error, UserError):
            status, line = 2, f"error: {' '.join(str(error).split())}"
        elif is_peer_failure(error):
            line = (
                "error: another process of this job is gone: start the job again, it goes on from its last checkpoint"
            )
        else:
            line = traceback.format_exc()
        print(line, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(status)  # no goodbye to the others, which would be waited for


def is_peer_failure(error: BaseException | None) -> bool:
    """Is that what JAX, or Orbax in its words, raises when another process of the job is gone?"""
    while error is not None:
        # a program's first run reports it as a ValueError, and Orbax hides it behind a TimeoutError
        if isinstance(error, (jax.errors.JaxRuntimeError, ValueError)) and any(word in str(error) for word in _LOST):
            return True
        error = error.__cause__ or error.__context__
    return False


class StopSignal:
    """Notices SIGTERM, with which schedulers announce that machines go away. Use as a context manager."""

    def __enter__(self) -> Self:
        self._received = False
        self._alone = jax.process_count() == 1
        if self._alone:  # among several, JAX's own handler tells the others
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._before)

    def _receive(self, *_) -> None:
        self._received = True

    def at(self, step: int) -> bool:
        """Should the job stop after this step? The answer is the same in every process."""
        return self._received if self._alone else multihost_utils.reached_preemption_sync_point(step)
