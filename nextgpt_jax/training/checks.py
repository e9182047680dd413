"""What can be wrong with a config before anything is loaded: the same for training and for plans."""

from jax.sharding import Mesh

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.models.layers import REMAT_POLICIES
from nextgpt_jax.sharding import HostBatch
from nextgpt_jax.training.stages import STAGES


def check_config(config: ExperimentConfig) -> None:
    """Checks the values that training reads.

    Raises:
      UserError: one is out of range; it is named.
    """
    if config.train.stage not in STAGES:
        raise UserError(f"train.stage: {config.train.stage!r} is not one of {', '.join(STAGES)}")
    for name in ("batch_size", "max_length", "max_media", "threads"):
        if getattr(config.data, name) < 1:
            raise UserError(f"data.{name} should be at least 1")
    if not all(0 < length < config.data.max_length for length in config.data.buckets):
        raise UserError(f"data.buckets {config.data.buckets} should be lengths below data.max_length")
    if config.train.remat not in REMAT_POLICIES:
        raise UserError(f"train.remat: {config.train.remat!r} is not one of {', '.join(REMAT_POLICIES)}")
    if config.optim.accumulate < 1 or config.data.batch_size % config.optim.accumulate:
        raise UserError(
            f"data.batch_size {config.data.batch_size} does not divide into optim.accumulate={config.optim.accumulate}"
        )
    if config.train.steps < 0 or config.optim.lr <= 0 or config.optim.clip <= 0 or not 0 <= config.optim.warmup < 1:
        raise UserError("train.steps should not be negative, optim.lr and clip positive, optim.warmup a share below 1")
    if not 0 <= config.train.seed < 2**31:
        raise UserError(f"train.seed should be at least 0 and below 2**31, got {config.train.seed}")
    if min(config.train.log_every, config.train.save_every, config.train.keep) < 1 or config.train.keep_best < 0:
        raise UserError("train.log_every, save_every and keep should be at least 1, keep_best not negative")


def validate_batch(mesh: Mesh, config: ExperimentConfig) -> HostBatch:
    """The rows of a step on a mesh.

    Raises:
      UserError: they or those of a micro-batch do not divide, or the mesh cannot do what `train.remat` says.
    """
    if config.train.remat == "offload" and mesh.devices.flat[0].platform == "cpu":
        raise UserError("train.remat=offload moves activations to the host's memory, where a CPU has them: take full")
    HostBatch(mesh, config.data.batch_size // config.optim.accumulate)
    return HostBatch(mesh, config.data.batch_size)
