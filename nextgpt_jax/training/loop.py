"""The training loop: load, restore, step, log, save. Every process of a job runs it; process 0 prints and logs."""

import dataclasses
import hashlib
import json
import math
import pathlib
import signal

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.data.pipeline import batches
from nextgpt_jax.errors import UserError
from nextgpt_jax.mesh import make_mesh
from nextgpt_jax.models.nextgpt import is_trainable
from nextgpt_jax.training.checks import check_config, validate_batch
from nextgpt_jax.training.distributed import StopSignal, exit_with_peers, print_on_main
from nextgpt_jax.training.metrics import MetricsLog, describe, describe_validation, window_means
from nextgpt_jax.training.optimizer import learning_rate, make_optimizer
from nextgpt_jax.training.samples import check_examples, make_example_builder, read_usable, training_files
from nextgpt_jax.training.skipped import SkipLog
from nextgpt_jax.training.stages import STAGES, param_group
from nextgpt_jax.training.step import jit_step, optimizer_shardings
from nextgpt_jax.training.throughput import ThroughputMeter
from nextgpt_jax.training.validation import Validation
from nextgpt_jax.weights.load import LoadedModel, load_system
from nextgpt_jax.weights.run_checkpoints import Workdir


def train(
    config: ExperimentConfig, workdir: str, init_from: str = "", profile: tuple[int, int] | None = None
) -> dict[str, float]:
    """Runs a stage to its end, resuming from the last checkpoint if the workdir has one.

    Args:
      init_from: workdir of an earlier stage, whose trained parameters this one starts from.
      profile: first and last step of a trace, which is written to WORKDIR/profile.

    Returns:
      The metrics of the last logging step.

    Raises:
      UserError: the config, data, weights, workdir or devices do not match.
      SystemExit: with status 143 after a SIGTERM and a checkpoint, 130 after Ctrl-C and a checkpoint.
    """
    with exit_with_peers():
        check_config(config)
        _check_same_config(config, workdir, init_from)
        mesh = make_mesh(config.mesh)
        log_devices(mesh)
        with jax.set_mesh(mesh), StopSignal() as stop:
            return _train(config, workdir, init_from, profile, mesh, stop)


def log_devices(mesh: Mesh) -> None:
    """Prints the devices, the mesh and JAX's version."""
    device = jax.devices()[0]
    shape = " x ".join(f"{axis}={n}" for axis, n in mesh.shape.items() if n > 1)
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    print_on_main(
        f"running on {mesh.size} x {device.device_kind} ({device.platform}){f': {shape}' if shape else ''}{processes}, "
        f"jax {jax.__version__}"
    )


def _train(config, workdir: str, init_from: str, profile, mesh: Mesh, stop: StopSignal) -> dict[str, float]:
    stage, host_batch = STAGES[config.train.stage], validate_batch(mesh, config)
    samples, spec, problems = read_usable(config, training_files(config))
    held_out = None
    if config.data.validation:
        held_out, other, _ = read_usable(config, config.data.validation)
        spec = spec.union(other)
    steps = config.train.steps or math.ceil(config.train.epochs * len(samples) / config.data.batch_size)
    loaded = load_system(
        config.model,
        decoder_parts=("text_encoder",),
        seed=config.train.seed,
        mesh=mesh,
        verbose=jax.process_index() == 0,
    )
    builder = make_example_builder(config, loaded, spec)
    check_examples(builder, samples, config.data.max_truncated)
    if held_out:
        check_examples(builder, held_out, config.data.max_truncated)

    run = Workdir(workdir, config.train.max_to_keep, config.train.keep_best)
    if init_from and run.latest() is None:
        _init_from(loaded, init_from, config.model.delta)
    graphdef, trainable, frozen = nnx.split(loaded.model, stage.trainable, ...)
    signals = loaded.model.config.signals
    run.init_or_validate(config.train.stage, nnx.state(loaded.model, is_trainable), config.model.delta, signals)
    tx = make_optimizer(config.optim, steps)
    opt = jax.jit(tx.init, out_shardings=optimizer_shardings(tx, trainable, mesh))(trainable)
    start, examples = run.resume_step(), 0
    if start:
        delta, opt, position = run.restore(start, nnx.state(loaded.model, is_trainable), opt)
        nnx.update(loaded.model, delta)
        graphdef, trainable, frozen = nnx.split(loaded.model, stage.trainable, ...)
        examples = position["examples"]
        print_on_main(f"resuming {run.path} at step {start}")
        for name, before, now in run.changed_settings(config):
            print_on_main(f"changed since then: {name}: {before!r} -> {now!r}{_consequence(name)}")
    if jax.process_index() == 0:
        run.write_config(config)
    first = examples // config.data.batch_size
    name = f"skipped-{jax.process_index()}.jsonl" if jax.process_index() else "skipped.jsonl"
    skipped = SkipLog(run.path / name, samples.counts(), config.data.max_skipped)
    skipped.start(problems if jax.process_index() == 0 else [], start)
    numbers = range(first, first + steps - start)
    data = batches(samples, builder, config.data, config.train.seed, numbers, host_batch.indices, skipped.add)
    print_on_main(
        f"{config.train.stage} ({stage.description}): {len(samples)} samples, {steps} steps of "
        f"{config.data.batch_size}, trainable parameters: {_sizes(trainable)}"
    )

    update = jit_step(graphdef, tx, config, trainable, opt, mesh)
    meter = ThroughputMeter(mesh, config.data.batch_size)
    schedule, logged, window, saved = learning_rate(config.optim, steps), {}, [], start
    main = jax.process_index() == 0
    bar = tqdm(total=steps, initial=start, unit="step", disable=None if main else True, leave=False)
    metrics: dict[str, jax.Array] = {}

    validation = Validation(held_out, builder, config, host_batch, graphdef, mesh) if held_out else None
    validated: dict[int, float] = {}

    def validate(step: int) -> None:
        if validation is None or step in validated:
            return
        jax.block_until_ready(trainable)  # the steps so far count as such
        with meter.paused():
            found = validation(trainable, frozen)
        validated[step] = found["validation_loss"]
        log.write(step, found)
        if main:
            tqdm.write(describe_validation(step, found))

    def save(step: int) -> None:
        last = {name: float(value) for name, value in jax.device_get(metrics).items()}
        _check_finite(step, last)  # never replace a good checkpoint
        validate(step)
        with meter.paused():
            delta = nnx.state(nnx.merge(graphdef, trainable, frozen), is_trainable)
            run.save(step, delta, opt, {"examples": examples}, loss=validated.get(step, last["loss"]))

    with MetricsLog(run.path, start, main) as log, bar, run:
        if not start:
            validate(0)
        # Steps are dispatched asynchronously, so the next batch is made and copied to the devices while one runs.
        for step, batch in zip(range(start + 1, steps + 1), map(host_batch.to_global, data)):
            try:
                problems = skipped.settle(numbers[step - start - 1], step)
            except UserError:
                if step - 1 > saved and jax.process_count() == 1:  # the others do not know of it
                    save(step - 1)
                raise
            for problem in problems:
                tqdm.write(f"step {step}: skipped {problem.source}, {problem.record}: {problem.reason}")
            if profile and step == profile[0]:
                jax.profiler.start_trace(str(run.path / "profile"))
            arguments = trainable, opt, frozen, batch, np.uint32(step)
            meter.count(update, arguments, batch["tokens"].shape)
            trainable, opt, metrics = update(*arguments)
            examples += config.data.batch_size
            if window:
                jax.block_until_ready(window[-1])  # at most one step ahead of the device, to hold few batches
            window.append(metrics)
            bar.update()
            if profile and step == profile[1]:
                jax.block_until_ready(metrics)
                jax.profiler.stop_trace()
                print_on_main(f"profile of steps {profile[0]} to {profile[1]}: {run.path / 'profile'}")
            stopping = stop.should_stop(step)
            if step % config.train.log_every == 0 or step == steps or stopping:
                values = jax.device_get(window)  # waits for the steps: before reading the clock
                logged = window_means(values)
                logged |= meter.rates(tokens=sum(float(m["tokens"]) for m in values))
                logged |= {"learning_rate": float(schedule(step - 1))}
                window = []
                log.write(step, logged)
                if main:
                    tqdm.write(describe(step, steps, logged))
                _check_finite(step, logged)
            if step % config.train.eval_every == 0:
                validate(step)
            if step % config.train.save_every == 0 or step == steps or stopping:
                save(step)
                saved = step
            if stopping:
                break
    if saved < steps:
        received = stop.received or signal.SIGTERM
        print_on_main(f"stopped by {received.name} after saving step {saved}: run the same command again to resume")
        raise SystemExit(128 + received)
    print_on_main(f"finished {config.train.stage}: {run.path}")
    return logged


def _check_same_config(config: ExperimentConfig, *arguments: str) -> None:
    """Checks that all processes of a job have the same config and arguments."""
    if jax.process_count() == 1:
        return
    text = json.dumps([dataclasses.asdict(config), arguments], sort_keys=True, default=str)
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    if others := [i for i, other in enumerate(digests) if (other != digests[0]).any()]:
        raise UserError(f"process {others[0]} of this job has another config or other flags than process 0")


def _check_finite(step: int, metrics: dict) -> None:
    if not math.isfinite(metrics["loss"] + metrics["grad_norm"]):
        raise UserError(f"the loss is not finite at step {step}: lower optim.lr or optim.grad_clip_norm")


def _init_from(loaded: LoadedModel, workdir: str, base_delta: str) -> None:
    """Replaces the trained parameters of a model by those of an earlier run."""
    source = Workdir(workdir)
    source.check_base(base_delta)
    source.check_signals(loaded.model.config.signals)
    delta, step = source.restore_delta(nnx.state(loaded.model, is_trainable))
    nnx.update(loaded.model, delta)
    print_on_main(f"starting from {pathlib.Path(workdir)}, step {step}: loaded {_sizes(delta)}")


def _sizes(state: nnx.State) -> str:
    """The numbers of parameters, by trained part."""
    sizes: dict[str, int] = {}
    for path, leaf in nnx.to_flat_state(state):
        sizes[param_group(path)] = sizes.get(param_group(path), 0) + leaf.size
    return ", ".join(f"{name} ({n:,})" for name, n in sizes.items())


def _consequence(name: str) -> str:
    """What it does to a run that a setting changes on the way."""
    if name.startswith("data.") and name not in ("data.num_workers", "data.max_skipped", "data.max_truncated"):
        return " (this epoch may repeat or miss examples)"
    if name == "train.seed":
        return " (another order of examples and other dropout from here)"
    if name in ("train.steps", "train.epochs", "optim.warmup_ratio", "optim.schedule"):
        return " (the learning rate follows the new schedule from here)"
    return ""
