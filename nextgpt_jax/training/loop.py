"""The training loop: load, restore, step, log, save. Every process of a job runs it; process 0 speaks for all."""

import contextlib
import dataclasses
import hashlib
import json
import math
import pathlib
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tensorboardX import SummaryWriter
from tqdm import tqdm

from nextgpt_jax import chips, flops
from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.data.examples import ExampleBuilder, layout
from nextgpt_jax.data.pipeline import batches
from nextgpt_jax.data.readers import Conversation, check_files, read_samples
from nextgpt_jax.errors import UserError
from nextgpt_jax.sharding import HostBatch, make_mesh
from nextgpt_jax.training.checks import check_config, validate_batch
from nextgpt_jax.training.distributed import StopSignal, exit_with_peers, print_on_main
from nextgpt_jax.training.optimizer import learning_rate, make_optimizer
from nextgpt_jax.training.stages import DELTA, STAGES, param_group
from nextgpt_jax.training.step import jit_step, optimizer_shardings
from nextgpt_jax.weights.load import LoadedModel, load_system
from nextgpt_jax.weights.run_checkpoints import Workdir


def row_encoder(config: ExperimentConfig, system: LoadedModel, samples: Sequence[Conversation]) -> ExampleBuilder:
    """What turns these conversations into rows for this system."""
    cfg = system.model.config
    return ExampleBuilder(
        tokenizer=system.tokenizer,
        caption_tokenizers=system.caption_tokenizers,
        caption_lengths={name: decoder.caption_length for name, decoder in cfg.decoders},
        vocabulary=cfg.vocabulary,
        encoder=cfg.encoder,
        max_length=config.data.max_length,
        layout=layout(samples, config.data.max_media),
        template=system.template,
    )


def train(
    config: ExperimentConfig, workdir: str, init_from: str = "", profile: tuple[int, int] | None = None
) -> dict[str, float]:
    """Runs a stage to its end, resuming where an earlier run of the same workdir stopped.

    Args:
      init_from: workdir of a previous stage whose trained parameters this one starts from.
      profile: first and last step of which a trace is written to WORKDIR/profile.

    Returns:
      The metrics of the last logging step.

    Raises:
      UserError: the config, the data, the weights, the workdir or the devices do not fit.
    """
    with exit_with_peers():
        check_config(config)
        _check_same_everywhere(config, workdir, init_from)
        mesh = make_mesh(config.mesh)
        log_devices(mesh)
        with jax.set_mesh(mesh), StopSignal() as stop:
            return _train(config, workdir, init_from, profile, mesh, stop)


def log_devices(mesh: Mesh) -> None:
    device = jax.devices()[0]
    shape = " x ".join(f"{axis}={n}" for axis, n in mesh.shape.items() if n > 1)
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    print_on_main(
        f"running on {mesh.size} x {device.device_kind} ({device.platform}){f': {shape}' if shape else ''}{processes}, "
        f"jax {jax.__version__}"
    )


def _train(config, workdir: str, init_from: str, profile, mesh: Mesh, stop: StopSignal) -> dict[str, float]:
    stage, rows = STAGES[config.train.stage], validate_batch(mesh, config)
    source = config.data.instructions if stage.samples == "instructions" else config.data.captions
    samples = read_samples(stage.samples, source, config.data.media_root)
    steps = config.train.steps or math.ceil(len(samples) / config.data.batch_size)
    system = load_system(
        config.model,
        decoder_parts=("text_encoder",),
        seed=config.train.seed,
        mesh=mesh,
        verbose=jax.process_index() == 0,
    )
    encoder = row_encoder(config, system, samples)
    check_files(samples)
    encoder(samples[0])  # media that cannot be read show before anything is written

    run = Workdir(workdir, config.train.max_to_keep, config.train.keep_best)
    if init_from and (not run.path.is_dir() or run.latest() is None):
        _init_from(system, init_from, config.model.delta)
    graphdef, trainable, frozen = nnx.split(system.model, stage.trainable, ...)
    signals = system.model.config.signals
    run.init_or_validate(config.train.stage, nnx.state(system.model, DELTA), config.model.delta, signals)
    tx = make_optimizer(config.optim, steps)
    opt = jax.jit(tx.init, out_shardings=optimizer_shardings(tx, trainable, mesh))(trainable)
    start, examples = run.latest() or 0, 0
    if start:
        delta, opt, position = run.restore(start, nnx.state(system.model, DELTA), opt)
        nnx.update(system.model, delta)
        graphdef, trainable, frozen = nnx.split(system.model, stage.trainable, ...)
        examples = position["examples"]
        print_on_main(f"resuming {run.path} at step {start}")
    data = batches(
        samples, encoder, config.data, config.train.seed, first=examples // config.data.batch_size, rows=rows.local
    )
    size = sum(x.size for x in jax.tree.leaves(trainable))
    print_on_main(
        f"{config.train.stage} ({stage.description}): {len(samples)} samples, {steps} steps of "
        f"{config.data.batch_size}, {size:,} trainable parameters"
    )

    update = jit_step(graphdef, tx, config, trainable, opt, mesh)
    clock = ThroughputMeter(mesh, config.data.batch_size)
    rate, logged, window, saved = learning_rate(config.optim, steps), {}, [], start
    lead = jax.process_index() == 0
    bar = tqdm(total=steps, initial=start, unit="step", disable=None if lead else True, leave=False)
    writer = SummaryWriter(str(run.path), purge_step=start + 1, write_to_disk=lead)
    with writer, bar, run:
        for step, batch in zip(range(start + 1, steps + 1), prefetch_to_device(data, rows)):
            if profile and step == profile[0]:
                jax.profiler.start_trace(str(run.path / "profile"))
            clock.count(update, (trainable, opt, frozen, batch, np.uint32(step)))
            trainable, opt, metrics = update(trainable, opt, frozen, batch, np.uint32(step))
            examples += config.data.batch_size
            if window:
                jax.block_until_ready(window[-1])  # one step ahead of the device: more would only hold batches
            window.append(metrics)
            bar.update()
            if profile and step == profile[1]:
                jax.block_until_ready(metrics)
                jax.profiler.stop_trace()
                print_on_main(f"profile of steps {profile[0]} to {profile[1]}: {run.path / 'profile'}")
            stopping = stop.at(step)
            if step % config.train.log_every == 0 or step == steps or stopping:
                means = jax.device_get(window)  # waits for the steps, so it comes before the clock
                logged = {name: float(sum(m[name] for m in means) / len(means)) for name in metrics}
                logged |= clock.rates(tokens=sum(float(m["tokens"]) for m in means))
                logged |= {"learning_rate": float(rate(step - 1))}
                window = []
                for name, value in logged.items():
                    writer.add_scalar(name, value, step)
                if lead:
                    tqdm.write(_line(step, steps, logged))
                _check_finite(step, logged)
            if step % config.train.save_every == 0 or step == steps or stopping:
                last = {name: float(value) for name, value in jax.device_get(metrics).items()}
                _check_finite(step, last)  # never over a good checkpoint
                with clock.paused():  # saving is no part of the rate
                    delta = nnx.state(nnx.merge(graphdef, trainable, frozen), DELTA)
                    run.save(step, delta, opt, {"examples": examples}, loss=last["loss"])
                saved = step
            if stopping:
                break
    if saved < steps:
        print_on_main(f"stopped by SIGTERM, step {saved} is saved: the same command goes on from there")
        raise SystemExit(128 + signal.SIGTERM)
    print_on_main(f"finished {config.train.stage}: {run.path}")
    return logged


def prefetch_to_device(data: Iterator[dict], rows: HostBatch) -> Iterator[dict]:
    """Batches on the mesh; the next one is on its way to the devices while a step runs."""
    following = rows.put(next(data))
    while True:
        current, following = following, None
        yield current
        following = rows.put(next(data))


class ThroughputMeter:
    """Counts what steps do, and how long they take."""

    def __init__(self, mesh: Mesh, rows: int):
        self._devices, self._rows = mesh.size, rows
        self._chip = chips.chip(mesh.devices.flat[0].device_kind)
        self._known: dict[Any, float] = {}  # operations by the shapes of a batch
        self._reset()

    def _reset(self) -> None:
        self._steps, self._flops, self._since = 0, 0.0, time.perf_counter()

    def count(self, update, arguments: tuple) -> None:
        """One more step, of a compiled function and its arguments."""
        shape = arguments[3]["tokens"].shape
        if shape not in self._known:
            self._known[shape] = flops.count(update.trace(*arguments).jaxpr, branch=min).model
        self._steps += 1
        self._flops += self._known[shape]

    def rates(self, tokens: float) -> dict[str, float]:
        """What the steps since the last call achieved. What frozen encoders do, which depends on how many media there
        are, is not among the operations."""
        seconds = time.perf_counter() - self._since
        found = {
            "step_seconds": seconds / self._steps,
            "examples_per_second": self._steps * self._rows / seconds,
            "tokens_per_second": tokens / seconds,
            "tokens_per_second_per_device": tokens / seconds / self._devices,
            "model_tflops_per_device": self._flops / seconds / self._devices / 1e12,
        }
        if self._chip:
            found["mfu"] = found["model_tflops_per_device"] * 1e12 / self._chip.flops
        self._reset()
        return found

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._since += time.perf_counter() - begin


def _check_same_everywhere(config: ExperimentConfig, *arguments: str) -> None:
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


def _init_from(system: LoadedModel, workdir: str, base_delta: str) -> None:
    source = Workdir(workdir)
    source.check_base(base_delta)
    source.check_signals(system.model.config.signals)
    delta, step = source.restore_delta(nnx.state(system.model, DELTA))
    nnx.update(system.model, delta)
    counts = {}
    for path, leaf in nnx.to_flat_state(delta):
        counts[param_group(path)] = counts.get(param_group(path), 0) + leaf.size
    taken = ", ".join(f"{name} ({n:,} parameters)" for name, n in counts.items())
    print_on_main(f"starting from {pathlib.Path(workdir)} at step {step}: took {taken}")


def _line(step: int, steps: int, m: dict[str, float]) -> str:
    utilisation = f", MFU {m['mfu']:.1%}" if "mfu" in m else ""
    return (
        f"step {step}/{steps}  loss {m['loss']:.4f} (language {m['loss_language']:.4f}, "
        f"alignment {m['loss_alignment']:.4f})  accuracy {m['token_accuracy']:.3f}  {m['step_seconds']:.3g} s, "
        f"{m['tokens_per_second']:,.0f} tokens/s{utilisation}  grad norm {m['grad_norm']:.3g}  "
        f"lr {m['learning_rate']:.2e}"
    )
