"""Shards written by workers of a Ray cluster, which share the folder."""

import os
from typing import Any

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.prepare.run import Options, Preparer

_SHARDS = 4  # that a worker is given at a time: it reads the media of one while it encodes another


def write_on_ray(
    preparer: Preparer, config: ExperimentConfig, output: str, options: Options, workers: int, gpus: float = 0
) -> None:
    """Writes the shards of a preparer that are not finished by actors, each of which loads the encoders.

    Args:
      output: the folder, at the same path on all machines, like the data files.
      workers: number of actors.
      gpus: that each is given.

    Raises:
      UserError: Ray is not installed, or as `Preparer.write`.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError:
        raise UserError("--ray_workers needs Ray: pip install 'nextgpt-jax[ray]'") from None
    if workers < 1:
        raise UserError("--ray_workers should be at least 1")

    class Worker:
        def __init__(self, config: Any, output: str, options: Any):
            self._arguments, self._preparer = (config, output, options), None

        def write(self, numbers: list[int]) -> str:
            """Gives the message of an error that the user can mend: Ray would wrap it in a traceback."""
            try:
                self._preparer = self._preparer or Preparer(*self._arguments)
                self._preparer.write(numbers, progress=False)
            except UserError as error:
                return str(error)
            return ""

    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False)  # RAY_ADDRESS names a cluster; without it, this machine is one
    try:
        actor = ray.remote(num_gpus=gpus)(Worker)
        pool = ActorPool([actor.remote(config, os.path.abspath(output), options) for _ in range(workers)])
        missing = preparer.missing()
        size = max(1, min(_SHARDS, len(missing) // workers))
        groups = [missing[at : at + size] for at in range(0, len(missing), size)]
        for message in pool.map_unordered(lambda worker, numbers: worker.write.remote(numbers), groups):
            if message:
                raise UserError(message)
    finally:
        if started:
            ray.shutdown()
