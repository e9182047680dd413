"""The training loop: load, restore, step, log, save. Every process of a job runs it; process 0 prints and logs."""

import dataclasses
import hashlib
import json
import math
import signal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.data.pipeline import batches
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import is_remote
from nextgpt_jax.mesh import make_mesh
from nextgpt_jax.training.checks import check_config, validate_batch
from nextgpt_jax.training.distributed import StopSignal, exit_with_peers, print_on_main
from nextgpt_jax.training.evaluating import Evaluation, check_evaluation
from nextgpt_jax.training.optimizer import make_optimizer
from nextgpt_jax.training.prepared import load_for_samples, prepared_dtype
from nextgpt_jax.training.provenance import provenance
from nextgpt_jax.training.report import Report
from nextgpt_jax.training.resuming import check_changes, data_record, record_process, say_changes
from nextgpt_jax.training.samples import check_examples, make_example_builder, read_usable, training_files
from nextgpt_jax.training.sampling import Sampler, check_sampling
from nextgpt_jax.training.skipped import SkipLog
from nextgpt_jax.training.snapshots import Snapshots, check_finite
from nextgpt_jax.training.stages import STAGES
from nextgpt_jax.training.state import RunState, begin, sizes
from nextgpt_jax.training.step import jit_step
from nextgpt_jax.training.validation import Validation
from nextgpt_jax.training.wandb_log import check_wandb
from nextgpt_jax.weights.run_checkpoints import Workdir
from nextgpt_jax.weights.run_steps import LATEST, parse_step


def train(
    config: ExperimentConfig,
    workdir: str,
    init_from: str = "",
    profile: tuple[int, int] | None = None,
    *,
    init_step: str | int = LATEST,
    evaluation: Evaluation | None = None,
) -> dict[str, float]:
    """Runs a stage to its end, resuming from the last checkpoint if the workdir has one.

    Args:
      init_from: workdir of an earlier stage, whose trained parameters this one starts from.
      profile: first and last step of a trace, which is written to WORKDIR/profile.
      init_step: the checkpoint of `init_from`: a step's number, "latest", or "best", that with the lowest loss.
      evaluation: what eval.every asks for: nextgpt_jax.evaluation.during_training.TrainingEvaluation(config).

    Returns:
      The metrics of the last logging step.

    Raises:
      UserError: the config, data, weights, workdir or devices do not match.
      SystemExit: with status 143 after a SIGTERM and a checkpoint, 130 after Ctrl-C and a checkpoint.
    """
    with exit_with_peers():
        check_config(config)
        check_sampling(config)
        check_evaluation(config, evaluation)
        check_wandb(config.train.wandb_project)
        Workdir(workdir)  # raises, if it is a URL that cannot be used
        if profile and is_remote(workdir):
            raise UserError(f"--profile writes to this machine: give a --workdir here, not {workdir}")
        init_step = parse_step(init_step, "init_step")
        _check_same_config(config, workdir, init_from, str(init_step))
        if init_from and Workdir(workdir).latest() is None:
            Workdir(init_from).find_step(init_step)  # raises, before anything is loaded
        mesh = make_mesh(config.mesh)
        log_devices(mesh)
        with jax.set_mesh(mesh), StopSignal() as stop:
            return _train(config, workdir, init_from, init_step, profile, mesh, stop, evaluation)


def log_devices(mesh: Mesh) -> None:
    """Prints the devices, the mesh and JAX's version."""
    device = jax.devices()[0]
    shape = " x ".join(f"{axis}={n}" for axis, n in mesh.shape.items() if n > 1)
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    print_on_main(
        f"running on {mesh.size} x {device.device_kind} ({device.platform}){f': {shape}' if shape else ''}{processes}, "
        f"jax {jax.__version__}"
    )


def _train(
    config,
    workdir: str,
    init_from: str,
    init_step: str | int,
    profile,
    mesh: Mesh,
    stop: StopSignal,
    evaluation: Evaluation | None,
) -> dict[str, float]:
    stage, host_batch = STAGES[config.train.stage], validate_batch(mesh, config)
    samples, spec, problems = read_usable(config, training_files(config))
    held_out = None
    if config.data.validation:
        held_out, other, _ = read_usable(config, config.data.validation)
        spec = spec.union(other)
    mixture = samples.mixture()
    steps = config.train.steps or math.ceil(config.train.epochs * len(samples) / config.data.batch_size)
    files = [[file.records.path for file in some.files] if some else [] for some in (samples, held_out)]
    run = Workdir(workdir, config.train.max_to_keep, config.train.keep_best)
    recorded = data_record(*files)
    changes = check_changes(run, config, recorded)
    main = jax.process_index() == 0
    seed = config.train.seed
    sampling = config.train.sample_every > 0
    every = config.eval.every if evaluation else 0
    with_media = (sampling and config.train.sample_media) or (evaluation and every and evaluation.needs_decoders)
    parts = None if with_media else ("text_encoder",)
    sources = [samples, held_out] if held_out else [samples]
    loaded = load_for_samples(config, sources, mesh, parts, needs_encoders=sampling or every > 0)
    builder = make_example_builder(config, loaded, spec, prepared_dtype(sources))
    check_examples(builder, samples, config.data.max_truncated)
    if held_out:
        check_examples(builder, held_out, config.data.max_truncated)

    sampler = Sampler(config, loaded, run.path, held_out) if sampling else None
    evaluator = evaluation.begin(loaded, run.path / "evaluations") if evaluation and every else None

    tx = make_optimizer(config.optim, steps, config.train.ema_decay)
    state = begin(run, config, loaded, tx, init_from, init_step, mesh)
    say_changes(changes)
    record_process(run, config, recorded, provenance(state.step), changes)
    skipped = SkipLog(run.path / _skipped_file(), samples.counts(), config.data.max_skipped)
    skipped.start(problems if main else [], state.step)
    first, start = state.examples // config.data.batch_size, state.step
    numbers = range(first, first + steps - start)
    data = batches(samples, builder, config.data, seed, numbers, host_batch.indices, skipped.add)
    print_on_main(
        f"{config.train.stage} ({stage.description}): {len(samples)} samples, {steps} steps of "
        f"{config.data.batch_size}, trainable parameters: {sizes(state.trainable)}{_share(state)}"
    )

    if len(mixture.names) > 1:
        print_on_main(mixture.describe(steps * config.data.batch_size))
    update, logged = jit_step(state.graphdef, tx, config, state.trainable, state.opt, mesh), {}
    validation = Validation(held_out, builder, config, host_batch, state.graphdef, mesh) if held_out else None
    report = Report(run.path, config, mesh, start=start, steps=steps, sources=mixture.names, profile=profile)
    with report, run:
        snapshots = Snapshots(run, state, report, validation, sampler, evaluator, config.eval.best)
        if not start:
            snapshots.validate()
        if not start or config.eval.best:  # a wrong name is said before steps are made
            snapshots.evaluate(shown=not start)
        # Steps are dispatched asynchronously, so the next batch is made and copied to the devices while one runs.
        data = report.waiting(map(host_batch.to_global, data))
        for number, step, batch in zip(numbers, range(start + 1, steps + 1), data):
            try:
                left_out = skipped.settle(number, step)
            except UserError:
                if state.step > snapshots.saved and jax.process_count() == 1:  # the others do not know of it
                    snapshots.save()
                raise
            for problem in left_out:
                report.say(f"step {step}: skipped {problem.source}, {problem.record}: {problem.reason}")
            arguments = state.trainable, state.opt, state.frozen, batch, np.uint32(step)
            found = report.call(step, update, arguments, batch)
            state.advance(*found, examples=config.data.batch_size)
            report.end_step(step, state.metrics)
            last = step == steps or stop.should_stop(step)
            if step % config.train.log_every == 0 or last:
                logged = report.log(step)
                check_finite(step, logged)
            if step % config.train.eval_every == 0:
                snapshots.validate()
            if sampling and step % config.train.sample_every == 0:
                snapshots.sample()
            if every and step % every == 0:
                snapshots.evaluate()
            if step % config.train.save_every == 0 or last:
                snapshots.save()
            if last:
                break
    if snapshots.saved < steps:
        received = stop.received or signal.SIGTERM
        print_on_main(
            f"stopped by {received.name} after saving step {state.step}: run the same command again to resume"
        )
        raise SystemExit(128 + received)
    print_on_main(f"finished {config.train.stage}: {run.path}")
    return logged


def _share(state: RunState) -> str:
    trained, rest = (sum(leaf.size for leaf in jax.tree.leaves(part)) for part in (state.trainable, state.frozen))
    return f"; {trained:,} of {trained + rest:,} ({trained / (trained + rest):.2%})"


def _skipped_file() -> str:
    return f"skipped-{jax.process_index()}.jsonl" if jax.process_index() else "skipped.jsonl"


def _check_same_config(config: ExperimentConfig, *arguments: str) -> None:
    """Checks that all processes of a job have the same config and arguments."""
    if jax.process_count() == 1:
        return
    text = json.dumps([dataclasses.asdict(config), arguments], sort_keys=True, default=str)
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    if others := [i for i, other in enumerate(digests) if (other != digests[0]).any()]:
        raise UserError(f"process {others[0]} of this job has another config or other flags than process 0")
