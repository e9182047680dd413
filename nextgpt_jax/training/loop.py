"""The training loop: load, restore, step, log, save.

Pure functions over split state: gradients and optimizer state exist for the stage's trainable leaves only.
"""

import math
import pathlib
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from tensorboardX import SummaryWriter
from tqdm import tqdm

from nextgpt_jax.checkpoint import Workdir
from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.data.batches import Encoder, layout
from nextgpt_jax.data.pipeline import batches
from nextgpt_jax.data.samples import Conversation, check_files, read_samples
from nextgpt_jax.errors import UserError
from nextgpt_jax.load import System, load_system
from nextgpt_jax.modalities import OUTPUTS
from nextgpt_jax.training import losses
from nextgpt_jax.training.optimizer import learning_rate, make_optimizer
from nextgpt_jax.training.stages import DELTA, STAGES, part_of


def make_step(graphdef, tx: optax.GradientTransformation, config: ExperimentConfig):
    """The update: (trainable, opt, frozen, batch, key) -> (trainable, opt, metrics). Pure; the caller jits it.

    The batch is cut into `optim.accumulate` micro-batches; their gradients add up to exactly the whole batch's, as sums
    are divided by the whole batch's counts.
    """
    micro_batches = config.optim.accumulate
    stage = STAGES[config.train.stage]
    weights = {name: config.train.alignment_weight * stage.alignment.get(name, 1.0) for name in OUTPUTS}

    def step(trainable, opt, frozen, batch, key):
        denominators = losses.counts(batch)
        split = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)

        def gradient(micro, key):
            def loss(trainable):
                return losses.loss(
                    nnx.merge(graphdef, trainable, frozen),
                    micro,
                    denominators,
                    alignment_weights=weights,
                    dropout_key=key,
                    remat=config.train.remat,
                )

            (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(trainable)
            return grads, metrics

        def add(total, micro_and_key):
            return jax.tree.map(jnp.add, total, gradient(*micro_and_key)), None

        keys = jax.random.split(key, micro_batches)
        shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], split), keys[0])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (grads, metrics), _ = jax.lax.scan(add, zeros, (split, keys))
        updates, opt = tx.update(grads, opt, trainable)
        metrics |= {"grad_norm": optax.tree.norm(grads)}
        return optax.apply_updates(trainable, updates), opt, metrics

    return step


def row_encoder(config: ExperimentConfig, system: System, samples: Sequence[Conversation]) -> Encoder:
    """What turns these conversations into rows for this system."""
    cfg = system.model.config
    return Encoder(
        tokenizer=system.tokenizer,
        caption_tokenizers=system.caption_tokenizers,
        caption_lengths={name: decoder.caption_length for name, decoder in cfg.decoders},
        base_vocab=cfg.llm.vocab_size,
        encoder=cfg.encoder,
        max_length=config.data.max_length,
        layout=layout(samples, config.data.max_media),
        template=system.template,
    )


def train(config: ExperimentConfig, workdir: str, init_from: str = "") -> dict[str, float]:
    """Runs a stage to its end, resuming where an earlier run of the same workdir stopped.

    Args:
      init_from: workdir of a previous stage whose trained parameters this one starts from.

    Returns:
      The metrics of the last logging step.

    Raises:
      UserError: the config, the data, the weights or the workdir do not fit.
    """
    devices = jax.devices()
    unused = f", {len(devices) - 1} more are not used" if len(devices) > 1 else ""
    print(f"running on 1 x {devices[0].device_kind} ({devices[0].platform}){unused}, jax {jax.__version__}")
    _validate(config)
    stage = STAGES[config.train.stage]
    source = config.data.instructions if stage.samples == "instructions" else config.data.captions
    samples = read_samples(stage.samples, source, config.data.media)
    steps = config.train.steps or math.ceil(len(samples) / config.data.batch_size)
    system = load_system(config.model, decoder_parts=("text_encoder",), seed=config.train.seed, verbose=True)
    encoder = row_encoder(config, system, samples)
    check_files(samples)
    encoder(samples[0])  # media that cannot be read show before anything is written

    run = Workdir(workdir, config.train.keep)
    if init_from and (not run.path.is_dir() or run.latest() is None):
        _init_from(system, init_from, config.model.delta)
    graphdef, trainable, frozen = nnx.split(system.model, stage.trainable, ...)
    run.claim(config.train.stage, nnx.state(system.model, DELTA), config.model.delta)
    tx = make_optimizer(config.optim, steps)
    opt = jax.jit(tx.init)(trainable)
    data = batches(samples, encoder, config.data, config.train.seed)
    start = run.latest() or 0
    if start:
        delta, opt, position = run.restore(start, nnx.state(system.model, DELTA), opt)
        nnx.update(system.model, delta)
        graphdef, trainable, frozen = nnx.split(system.model, stage.trainable, ...)
        data.set_state(position)
        print(f"resuming {run.path} at step {start}")
    size = sum(x.size for x in jax.tree.leaves(trainable))
    print(
        f"{config.train.stage} ({stage.description}): {len(samples)} samples, {steps} steps of "
        f"{config.data.batch_size}, {size:,} trainable parameters"
    )

    update = jax.jit(make_step(graphdef, tx, config), donate_argnums=(0, 1))
    rate, seed_key = learning_rate(config.optim, steps), jax.random.key(config.train.seed)
    logged, window, tokens, since = {}, [], 0, time.perf_counter()
    bar = tqdm(total=steps, initial=start, unit="step", disable=None, leave=False)
    with SummaryWriter(str(run.path), purge_step=start + 1) as writer, bar:
        for step in range(start + 1, steps + 1):
            batch = next(data)
            tokens += int(batch.pop("lengths").sum())
            trainable, opt, metrics = update(trainable, opt, frozen, batch, jax.random.fold_in(seed_key, step))
            if window:
                jax.block_until_ready(window[-1])  # one step ahead of the device: more would only hold batches
            window.append(metrics)
            bar.update()
            if step % config.train.log_every == 0 or step == steps:
                means = jax.device_get(window)  # waits for the steps, so it comes before the clock
                elapsed = time.perf_counter() - since
                logged = {name: float(sum(m[name] for m in means) / len(means)) for name in metrics}
                logged |= {"tokens_per_second": tokens / elapsed, "learning_rate": float(rate(step - 1))}
                window, tokens, since = [], 0, time.perf_counter()
                for name, value in logged.items():
                    writer.add_scalar(name, value, step)
                tqdm.write(_line(step, steps, logged))
                _check_finite(step, logged)
            if step % config.train.save_every == 0 or step == steps:
                _check_finite(step, jax.device_get(metrics))  # never over a good checkpoint
                begin = time.perf_counter()
                delta = nnx.state(nnx.merge(graphdef, trainable, frozen), DELTA)
                run.save(step, delta, opt, data.get_state())
                since += time.perf_counter() - begin  # saving is no part of the rate
    print(f"finished {config.train.stage}: {run.path}")
    return logged


def _check_finite(step: int, metrics: dict) -> None:
    if not math.isfinite(metrics["loss"] + metrics["grad_norm"]):
        raise UserError(f"the loss is not finite at step {step}: lower optim.lr or optim.clip")


def _validate(config: ExperimentConfig) -> None:
    if config.train.stage not in STAGES:
        raise UserError(f"train.stage: {config.train.stage!r} is not one of {', '.join(STAGES)}")
    for name in ("batch_size", "max_length", "max_media", "threads"):
        if getattr(config.data, name) < 1:
            raise UserError(f"data.{name} should be at least 1")
    if not all(0 < length < config.data.max_length for length in config.data.buckets):
        raise UserError(f"data.buckets {config.data.buckets} should be lengths below data.max_length")
    if config.optim.accumulate < 1 or config.data.batch_size % config.optim.accumulate:
        raise UserError(
            f"data.batch_size {config.data.batch_size} does not divide into optim.accumulate={config.optim.accumulate}"
        )
    if config.train.steps < 0 or config.optim.lr <= 0 or config.optim.clip <= 0 or not 0 <= config.optim.warmup < 1:
        raise UserError("train.steps should not be negative, optim.lr and clip positive, optim.warmup a share below 1")
    if not 0 <= config.train.seed < 2**31:
        raise UserError(f"train.seed should be at least 0 and below 2**31, got {config.train.seed}")
    if min(config.train.log_every, config.train.save_every, config.train.keep) < 1:
        raise UserError("train.log_every, train.save_every and train.keep should be at least 1")


def _init_from(system: System, workdir: str, base_delta: str) -> None:
    source = Workdir(workdir)
    source.check_base(base_delta)
    delta, step = source.restore_delta(nnx.state(system.model, DELTA))
    nnx.update(system.model, delta)
    counts = {}
    for path, leaf in nnx.to_flat_state(delta):
        counts[part_of(path)] = counts.get(part_of(path), 0) + leaf.size
    taken = ", ".join(f"{name} ({n:,} parameters)" for name, n in counts.items())
    print(f"starting from {pathlib.Path(workdir)} at step {step}: took {taken}")


def _line(step: int, steps: int, m: dict[str, float]) -> str:
    return (
        f"step {step}/{steps}  loss {m['loss']:.4f} (language {m['loss_language']:.4f}, "
        f"alignment {m['loss_alignment']:.4f})  accuracy {m['token_accuracy']:.3f}  "
        f"{m['tokens_per_second']:,.0f} tokens/s  grad norm {m['grad_norm']:.3g}  lr {m['learning_rate']:.2e}"
    )
