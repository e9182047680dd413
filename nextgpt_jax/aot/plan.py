"""train.py --compile_only: compiles the exact programs for devices that are not there, and says what they will need.

A plan is made of shapes alone: no weights, no data, no accelerator. TPU topologies need libtpu (the extra `tpu`), GPU
topologies the CUDA plugin (the extra `cuda`); both compilers run on any x86 Linux machine.
"""

import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from nextgpt_jax import chips, compiler, flops
from nextgpt_jax.aot import gpu, hlo
from nextgpt_jax.chips import GIB, Chip
from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.files import atomic_write
from nextgpt_jax.inference.engine import check_defaults, denoise
from nextgpt_jax.modalities import MODALITIES, output_modalities
from nextgpt_jax.models.diffusion.schedulers import init_state
from nextgpt_jax.models.layers import make_rngs
from nextgpt_jax.models.nextgpt import NExTGPTConfig, NExTGPTModel, is_trainable
from nextgpt_jax.sharding import (
    HostBatch,
    batch_sharding,
    cache_sharding,
    data_parallel_mesh,
    make_mesh,
    move_to_data_parallel,
    num_batch_shards,
    num_domains,
    replicated,
    round_up_to_shards,
)
from nextgpt_jax.training.checks import check_config, validate_batch
from nextgpt_jax.training.optimizer import make_optimizer
from nextgpt_jax.training.stages import STAGES
from nextgpt_jax.training.step import jit_step, optimizer_shardings
from nextgpt_jax.weights.load import abstract_model, frozen_dtype, model_config, placed, prepare_llm

INFERENCE = ("prefill", "decode", *output_modalities())
_NEW_TOKENS = 128  # room in the cache behind a prompt


@dataclasses.dataclass(frozen=True)
class Program:
    """A program with abstract arguments that lie on a mesh, and what those are, for the account of memory."""

    name: str
    function: Callable  # jitted
    arguments: tuple
    kinds: tuple[str, ...]  # of the arguments
    rows: int  # of its batch
    mesh: Mesh
    resident: float = 0.0  # bytes of a device that other programs of the same process keep: the rest of the system


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one device needs for a program. Bytes are bytes, times are seconds."""

    program: str
    chip: Chip
    devices: int
    rows: int
    memory: Mapping[str, float]  # by kind
    flops: float  # that the program executes
    needed_flops: float  # without what is computed again to save memory
    bytes: float
    work: hlo.Work
    compile_seconds: float

    @property
    def total(self) -> float:
        """Bytes of the chip's memory at the peak."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.chip.memory

    @property
    def link_bytes(self) -> float:
        """That arrive over the links of a slice."""
        return sum(size for kind, size in self.work.collectives.items() if not kind.between_slices)

    @property
    def network_bytes(self) -> float:
        """That arrive over the network between slices."""
        return sum(size for kind, size in self.work.collectives.items() if kind.between_slices)

    @property
    def seconds(self) -> dict[str, float]:
        """How long each resource of the chip is busy at its peak rate."""
        return {
            "operations": self.flops / self.chip.flops,
            "memory": self.bytes / self.chip.memory_bandwidth,
            "links": self.link_bytes / self.chip.link_bandwidth,
            "network": self.network_bytes / self.chip.network_bandwidth,
        }

    @property
    def step_seconds(self) -> float:
        """The roofline: the busiest resource, while the others work beside it."""
        return max(self.seconds.values())

    @property
    def mfu(self) -> float:
        return self.needed_flops / (self.step_seconds * self.chip.flops)


def prepare() -> None:
    """Lets libtpu and the CUDA plugin compile on a machine without a TPU or GPU. To be called before JAX looks for
    devices."""
    gpu.prepare()
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing is driven, so plans may be made side by side
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # what is read here is what the compiler writes


def topology_devices(topology: str, slices: int = 1) -> Sequence[jax.Device]:
    """The devices of a TPU topology such as v5e:4x4, of `slices` such slices, or of GPUs such as h100:8.

    Raises:
      UserError: there is no such topology, or no compiler for it.
    """
    from jax.experimental import topologies

    if topology.split(":")[0] in gpu.TARGETS:
        if slices != 1:
            raise UserError("--slices is for TPUs: give the hosts of GPUs in the topology, such as h100:2x8")
        return gpu.topology_devices(topology)
    if not re.fullmatch(r"v\d\w*:\d+(x\d+)*", topology):
        raise UserError(
            f"--topology={topology}: give a TPU and its shape, such as v5e:4x4, or GPUs ({', '.join(gpu.TARGETS)}), "
            "such as h100:8"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology={topology}: the compiler for TPUs is missing: pip install 'nextgpt-jax[tpu]'")
    more = {"num_slices": slices} if slices != 1 else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **more).devices
    except Exception as error:  # libtpu's are of several kinds
        reason = first_line(error)
        raise UserError(f"--topology={topology}: there is none such: {reason}") from None


def training_program(config: ExperimentConfig, mesh: Mesh, inputs: Sequence[str], outputs: Sequence[str]) -> Program:
    """The step of the config's stage. Every row has one medium of each of `inputs`, and one group of each of `outputs`.

    Raises:
      UserError: the config does not fit the mesh.
    """
    check_config(config)
    cfg = model_config(config.model, use_published_defaults=True)
    model = _abstract(cfg, mesh, config, ("text_encoder",))
    graphdef, trainable, frozen = nnx.split(model, STAGES[config.train.stage].trainable, ...)
    tx = make_optimizer(config.optim, 1000)
    opt = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        jax.eval_shape(tx.init, trainable),
        optimizer_shardings(tx, trainable, mesh),
    )
    rows, length = validate_batch(mesh, config).size, config.data.max_length
    decoders, encoder = dict(cfg.decoders), cfg.encoder
    batch = {
        "tokens": _rows(mesh, (rows, length), jnp.int32),
        "lengths": _rows(mesh, (rows,), jnp.int32),
        "loss_mask": _rows(mesh, (rows, length), bool),
        "media": {
            name: {
                "input": _rows(mesh, (rows, 1, *encoder.input_shape(name)), jnp.float32),
                "positions": _rows(mesh, (rows, 1), jnp.int32),
            }
            for name in inputs
        },
        "signals": {
            name: {
                "positions": _rows(mesh, (rows, 1, len(cfg.vocabulary.signal_ids(name))), jnp.int32),
                "captions": _rows(mesh, (rows, 1, decoders[name].caption_length), jnp.int32),
                "mask": _rows(mesh, (rows, 1), bool),
            }
            for name in outputs
        },
    }
    step = jit_step(graphdef, tx, config, trainable, opt, mesh)
    number = jax.ShapeDtypeStruct((), jnp.uint32, sharding=replicated(mesh))
    kinds = ("trained weights", "optimizer", "frozen weights", "batch", "batch")
    return Program(config.train.stage, step, (trainable, opt, frozen, batch, number), kinds, rows, mesh)


def inference_program(config: ExperimentConfig, mesh: Mesh, name: str) -> Program:
    """One of INFERENCE: reading a prompt, one token of every row, or all evaluations of a decoder's sampler. The rest
    of the system is in memory too.

    Raises:
      UserError: the config does not fit the mesh.
    """
    cfg, dtype = model_config(config.model, use_published_defaults=True), frozen_dtype(config.model.dtype)
    check_config(config)
    if name in output_modalities():
        if name not in cfg.output_modalities:
            raise UserError(f"--programs={name}: this model has no decoder for it")
        check_defaults(config.generation, [name])
    model = _abstract(cfg, mesh, config, None)
    prepare_llm(model, mesh)
    move_to_data_parallel(model, mesh)

    def used(path, _):
        return (
            path[:3] == ("decoders", name, "unet") if name in output_modalities() else path[0] in ("llm", "signal_head")
        )

    graphdef, state, rest = nnx.split(model, used, ...)
    resident = sum(map(_device_bytes, jax.tree.leaves(rest)))
    if name in output_modalities():
        mesh = data_parallel_mesh(mesh)
        options, decoder = getattr(config.generation, name), dict(cfg.decoders)[name]
        rows = round_up_to_shards(options.batch, mesh)
        plan = decoder.scheduler.sampler_table(options.num_inference_steps)
        span = (0, int(plan.num_evaluations))
        plan = jax.tree.map(lambda x: _whole(mesh, np.shape(x), np.asarray(x).dtype), plan)
        shape = decoder.latent_shape(*(getattr(options, field) for field in MODALITIES[name].size))
        noise = jax.ShapeDtypeStruct((rows, *shape), jnp.float32)
        latents = jax.tree.map(lambda x: _rows(mesh, x.shape, x.dtype, rows), jax.eval_shape(init_state, plan, noise))
        prompts = _rows(mesh, (rows, *decoder.prompt_shape), dtype)
        negative = _whole(mesh, (1, *decoder.prompt_shape), dtype)

        def sample(state, latents, *more):
            return denoise(nnx.merge(graphdef, state, rest).decoders[name], latents, *more, *span)

        arguments = (state, latents, prompts, negative, plan, _rows(mesh, (rows,), jnp.float32))
        kinds = ("weights", "latents", "prompts", "prompts", "plan", "plan")
        return Program(name, compiler.jit(sample, donate_argnums=1), arguments, kinds, rows, mesh, resident)

    rows, prompt, width = HostBatch(mesh, config.data.batch_size).size, config.data.max_length, cfg.llm.hidden_size
    cache = jax.eval_shape(lambda: model.llm.init_cache(rows, prompt + _NEW_TOKENS, dtype))
    cache = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cache_sharding(mesh, x.ndim == 5)), cache
    )
    length = prompt if name == "prefill" else 1

    def feed(state, embeddings, positions, cache):
        model = nnx.merge(graphdef, state, rest)
        at = None if name == "prefill" else positions
        hidden, cache = model.llm(embeddings, positions=at, cache=cache)
        return model.logits(hidden[:, -1]), cache

    arguments = (state, _rows(mesh, (rows, length, width), dtype), _rows(mesh, (rows, length), jnp.int32), cache)
    kinds = ("weights", "activations", "activations", "cache")
    return Program(name, compiler.jit(feed, donate_argnums=3), arguments, kinds, rows, mesh, resident)


def _abstract(
    cfg: NExTGPTConfig, mesh: Mesh, config: ExperimentConfig, decoder_parts: tuple[str, ...] | None
) -> NExTGPTModel:
    """The model without values: trainable parameters in float32, frozen ones in the dtype they are loaded in.

    Raises:
      UserError: the config does not fit the mesh.
    """
    dtype = frozen_dtype(config.model.dtype)
    model = abstract_model(lambda: NExTGPTModel(cfg, decoder_parts=decoder_parts, rngs=make_rngs(0)))
    graphdef, state = nnx.split(model)

    def typed(path, leaf):
        cast = not is_trainable(path) and path[-1] != "kernel_scale" and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.replace(jax.ShapeDtypeStruct(leaf.shape, dtype if cast else leaf.dtype))

    state = nnx.from_flat_state([(path, typed(path, leaf)) for path, leaf in nnx.to_flat_state(state)])
    return nnx.merge(graphdef, placed(cfg, state, mesh))


def _rows(mesh: Mesh, shape: tuple[int, ...], dtype, rows: int | None = None) -> jax.ShapeDtypeStruct:
    """An array with the rows of a batch in front; whole on every device if `rows` is given and is not their number."""
    where = batch_sharding(mesh) if rows is None or shape[:1] == (rows,) else replicated(mesh)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def _whole(mesh: Mesh, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))


def chip_of(mesh: Mesh) -> Chip:
    """The chips of a mesh.

    Raises:
      UserError: their peaks are not known.
    """
    kind = mesh.devices.flat[0].device_kind
    chip = chips.chip(kind)
    if chip is None:
        raise UserError(f"the peaks of {kind} are not known: add it to nextgpt_jax/chips.py")
    return chip


def make(program: Program) -> Plan:
    """Compiles a program and reads what it needs from what the compiler made.

    Raises:
      OutOfMemory: the compiler finds no place for it.
      UserError: the compiler refuses it for another reason.
    """
    mesh, chip = program.mesh, chip_of(program.mesh)
    begin = time.perf_counter()
    with jax.set_mesh(mesh):
        traced = program.function.trace(*program.arguments)
        counted = flops.count(traced.jaxpr)
        try:
            compiled, text = _compile(traced.lower(), mesh.devices.flat[0].platform)
        except jax.errors.JaxRuntimeError as error:
            raise _refusal(program, chip, str(error)) from None
    domains = num_domains(mesh.devices.flat)
    work = hlo.analyse(text, mesh.size // domains if domains > 1 else 0)
    found = compiled.memory_analysis()
    memory = argument_bytes(program)
    # What the program does not use is dropped, and layouts pad: the compiler's own sum counts.
    scale = found.argument_size_in_bytes / max(1, sum(memory.values()))
    memory = {kind: size * scale for kind, size in memory.items()}
    memory["results"] = found.output_size_in_bytes - found.alias_size_in_bytes
    memory["temporaries"] = found.temp_size_in_bytes
    memory["program"] = found.generated_code_size_in_bytes
    memory["other weights"] = program.resident
    kernels = sum(counted) / mesh.size  # hand-written kernels are no products in the compiled text
    return Plan(
        program=program.name,
        chip=chip,
        devices=mesh.size,
        rows=program.rows,
        memory=memory,
        flops=max(work.flops, kernels),
        needed_flops=counted.needed / mesh.size,
        bytes=work.bytes,
        work=work,
        compile_seconds=time.perf_counter() - begin,
    )


def _compile(lowered: jax.stages.Lowered, platform: str) -> tuple[jax.stages.Compiled, str]:
    """The compiled program and its optimised HLO, of TPUs as the compiler itself writes it: JAX's as_text() cannot read
    all of what that makes."""
    if platform != "tpu":
        compiled = lowered.compile(compiler_options=gpu.COMPILER_OPTIONS if platform == "gpu" else None)
        return compiled, compiled.as_text()
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        (file,) = pathlib.Path(folder).glob("*.after_optimizations.txt")
        return compiled, file.read_text()


def _device_bytes(x: jax.ShapeDtypeStruct) -> float:
    return math.prod(x.sharding.shard_shape(x.shape)) * jax.dtypes.itemsize_bits(x.dtype) / 8


class OutOfMemory(Exception):
    """The compiler found no place for a program."""


def _refusal(program: Program, chip: Chip, message: str) -> Exception:
    reason = (message.splitlines() or ["the compiler failed"])[0][:300]
    if "RESOURCE_EXHAUSTED" in reason:
        return OutOfMemory(re.sub(r"^RESOURCE_EXHAUSTED: |\w+: CompileTimeHbmOom: ", "", reason))
    return UserError(f"{program.name} does not compile for {chip.name}: {reason}")


def argument_bytes(program: Program) -> dict[str, float]:
    """What the arguments of a program take of a device's memory, by kind."""
    memory: dict[str, float] = {}
    for kind, argument in zip(program.kinds, program.arguments, strict=True):
        memory[kind] = memory.get(kind, 0) + sum(map(_device_bytes, jax.tree.leaves(argument)))
    return memory


def advice(program: Program, chip: Chip, config: ExperimentConfig, mesh: Mesh) -> str:
    """What would make a program fit that does not."""
    weights = sum(size for kind, size in argument_bytes(program).items() if "weights" in kind or kind == "optimizer")
    weights += program.resident
    ideas = []
    if weights > chip.memory / 3:
        if mesh.shape["data"] > 1 and program.name in STAGES:
            shared = mesh.shape["fsdp"] * mesh.shape["data"]
            ideas.append(f"share the weights among more devices (--config.mesh.fsdp={shared} --config.mesh.data=1)")
        elif mesh.shape["data"] > 1:
            tensor = 2 * mesh.shape["tensor"]
            ideas.append(f"share the weights among more devices (--config.mesh.tensor={tensor})")
        if not config.model.quantize:
            ideas.append("frozen kernels in few bits (--config.model.quantize=nf4)")
    if program.name in STAGES:
        if config.train.remat not in ("full", "offload"):
            ideas.append("compute more again (--config.train.remat=full)")
        micro_batches = config.optim.grad_accum_steps
        local = config.data.batch_size // micro_batches // num_batch_shards(mesh)
        if local > 1:
            ideas.append(f"smaller micro-batches (--config.optim.grad_accum_steps={micro_batches * local})")
    return ", or ".join(ideas) or "a larger topology, or chips with more memory"


def duration(seconds: float) -> str:
    """Seconds as text for people: 10.8 s, 408 ms."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def lines(plan: Plan) -> list[str]:
    """The plan as text for people."""
    chip, seconds = plan.chip, plan.seconds
    memory = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in plan.memory.items() if size >= 0.005 * GIB)
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    found = [
        f"{plan.program}: {plan.rows} rows on {plan.devices} x {chip.name}, compiled in {plan.compile_seconds:.0f} s",
        f"  memory      {plan.total / GIB:.2f} of {chip.memory / GIB:.1f} GiB a device, {verdict} ({memory})",
        f"  operations  {plan.flops / 1e12:.2f} T a device, of which {plan.needed_flops / 1e12:.2f} T are needed",
        f"  bytes       {plan.bytes / 1e9:.2f} GB from and to memory",
    ]
    for kind, size in sorted(plan.work.collectives.items(), key=lambda item: -item[1]):
        apart = "hosts" if "NVIDIA" in chip.name else "slices"
        where = f"between {apart}" if kind.between_slices else f"among {kind.devices}"
        found.append(f"  {kind.kind:<19} {size / 1e9:.3f} GB in {plan.work.count[kind]:.0f}, {where}")
    if plan.work.exposed:
        whole = sum(plan.work.collectives.values())
        found.append(
            f"  exposed     {plan.work.exposed / 1e9:.3f} of {whole / 1e9:.3f} GB, beside which no product runs"
        )
    busiest = max(seconds, key=seconds.get)
    parts = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items() if value)
    found.append(f"  roofline    {duration(plan.step_seconds)}, limited by {busiest} ({parts}); MFU {plan.mfu:.1%}")
    return found


def run(
    config: ExperimentConfig,
    *,
    topology: str,
    slices: int,
    programs: Sequence[str],
    inputs: Sequence[str] | None,
    outputs: Sequence[str] | None,
    report: str = "",
) -> int:
    """Plans programs ("step" or INFERENCE) and prints the plans. Returns the exit status: 1 if one does not fit.

    Raises:
      UserError: something is wrong with what is asked for.
    """
    prepare()
    devices = topology_devices(topology, slices)
    mesh = make_mesh(config.mesh, devices)
    seen, made = default_media(config.train.stage)
    inputs, outputs = seen if inputs is None else inputs, made if outputs is None else outputs
    for name, known in [*((n, MODALITIES) for n in inputs), *((n, output_modalities()) for n in outputs)]:
        if name not in known:
            raise UserError(f"{name!r} is not one of {', '.join(known)}")
    plans, everything_fits = [], True
    for name in programs:
        with jax.set_mesh(mesh):
            if name == "step":
                program = training_program(config, mesh, inputs, outputs)
            elif name in INFERENCE:
                program = inference_program(config, mesh, name)
            else:
                raise UserError(f"--programs: {name!r} is not one of step, {', '.join(INFERENCE)}")
        chip, fits = chip_of(mesh), False
        try:
            plan = make(program)
            plans.append(plan)
            fits = plan.fits
            print("\n".join(lines(plan)), flush=True)
        except OutOfMemory as error:
            print(f"{program.name}: {program.rows} rows on {mesh.size} x {chip.name} DOES NOT FIT: {error}", flush=True)
        if not fits:
            print(f"  to make it fit: {advice(program, chip, config, mesh)}", flush=True)
        everything_fits = everything_fits and fits
    if report:
        with atomic_write(report) as temporary:
            temporary.write_text(json.dumps([as_json(plan) for plan in plans], indent=1) + "\n")
    return 0 if everything_fits else 1


def default_media(stage: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The media of a row that a plan assumes: an image to describe, to draw, or both."""
    return {"stage1": (("image",), ()), "stage2": ((), ("image",))}.get(stage, (("image",), ("image",)))


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as data."""
    collectives = [
        {**dataclasses.asdict(kind), "bytes": size, "count": plan.work.count[kind]}
        for kind, size in plan.work.collectives.items()
    ]
    return {
        "program": plan.program, "chip": plan.chip.name, "devices": plan.devices, "rows": plan.rows,
        "memory": dict(plan.memory), "fits": plan.fits, "flops": plan.flops, "needed_flops": plan.needed_flops,
        "bytes": plan.bytes, "collectives": collectives, "exposed": plan.work.exposed, "seconds": plan.seconds,
        "step_seconds": plan.step_seconds, "mfu": plan.mfu, "compile_seconds": plan.compile_seconds,
    }  # fmt: skip
