"""Checks of a config before anything is loaded, shared by training and cost reports."""

import math

from jax.sharding import Mesh

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.data.sources import parse_sources
from nextgpt_jax.data.survey import MAX_MEDIA
from nextgpt_jax.errors import UserError
from nextgpt_jax.models.stacking import REMAT_POLICIES
from nextgpt_jax.sharding import HostBatch
from nextgpt_jax.training.optimizer import SCHEDULES
from nextgpt_jax.training.stages import STAGES


def check_config(config: ExperimentConfig) -> None:
    """Checks the values that training reads.

    Raises:
      UserError: one is out of range; the message names it.
    """
    data, optim, train = config.data, config.optim, config.train
    if train.stage not in STAGES:
        raise UserError(f"train.stage: {train.stage!r} is not one of {', '.join(STAGES)}")
    for name in ("batch_size", "max_length", "max_media", "num_workers"):
        if getattr(data, name) < 1:
            raise UserError(f"data.{name} should be at least 1")
    if data.max_media > MAX_MEDIA:
        raise UserError(f"data.max_media should be at most {MAX_MEDIA}")
    for name in ("max_skipped", "max_truncated"):
        if not 0 <= getattr(data, name) <= 1:
            raise UserError(f"data.{name} is a share: it should be at least 0 and at most 1")
    for name in ("captions", "instructions", "validation"):
        weights = [source.weight for source in parse_sources(getattr(data, name))]
        if name == "validation" and any(weights):
            raise UserError("data.validation: held-out files have no weights, all their samples are used once")
    if not all(0 < length < data.max_length for length in data.bucket_boundaries):
        raise UserError(f"data.bucket_boundaries {data.bucket_boundaries} should be lengths below data.max_length")
    if train.remat not in REMAT_POLICIES:
        raise UserError(f"train.remat: {train.remat!r} is not one of {', '.join(REMAT_POLICIES)}")
    if optim.grad_accum_steps < 1 or data.batch_size % optim.grad_accum_steps:
        raise UserError(
            f"data.batch_size {data.batch_size} does not divide into optim.grad_accum_steps={optim.grad_accum_steps}"
        )
    if train.steps < 0 or optim.lr <= 0 or optim.grad_clip_norm <= 0 or not 0 <= optim.warmup_ratio < 1:
        raise UserError(
            "train.steps should not be negative, optim.lr and optim.grad_clip_norm should be positive, and "
            "optim.warmup_ratio at least 0 and below 1"
        )
    if optim.schedule not in SCHEDULES:
        raise UserError(f"optim.schedule: {optim.schedule!r} is not one of {', '.join(SCHEDULES)}")
    if not 0 <= train.ema_decay < 1:
        raise UserError("train.ema_decay should be at least 0 and below 1, such as 0.999; 0: no moving average")
    if not 0 < train.epochs < math.inf:
        raise UserError("train.epochs should be positive")
    if not 0 <= train.seed < 2**31:
        raise UserError(f"train.seed should be at least 0 and below 2**31, got {train.seed}")
    if min(train.log_every, train.save_every, train.eval_every, train.max_to_keep) < 1 or train.keep_best < 0:
        raise UserError(
            "train.log_every, save_every, eval_every and max_to_keep should be at least 1, keep_best not negative"
        )


def validate_batch(mesh: Mesh, config: ExperimentConfig) -> HostBatch:
    """The batch of a step, sharded over a mesh.

    Raises:
      UserError: it, or a micro-batch, is not divisible by the mesh, or the mesh does not support `train.remat`.
    """
    if config.train.remat == "offload" and mesh.devices.flat[0].platform == "cpu":
        raise UserError("train.remat=offload moves activations to the host's memory, where a CPU has them: take full")
    HostBatch(mesh, config.data.batch_size // config.optim.grad_accum_steps)
    return HostBatch(mesh, config.data.batch_size)
