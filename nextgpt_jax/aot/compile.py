"""Compiles the programs of a config for a topology, without its devices, and reports their costs.

Only shapes are needed: no weights, no data, no accelerator. TPU topologies need libtpu (the extra `tpu`), GPU
topologies the CUDA plugin (the extra `cuda`); both compilers run on any x86 Linux machine.
"""

import contextlib
import dataclasses
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from nextgpt_jax import chips, flops
from nextgpt_jax.aot import hlo_cost, topologies
from nextgpt_jax.aot.programs import Program, build_program
from nextgpt_jax.aot.report import CollectiveCost, CostReport, ProgramCost
from nextgpt_jax.chips import Chip
from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.mesh import make_mesh, num_domains
from nextgpt_jax.sharding import num_batch_shards
from nextgpt_jax.training.stages import STAGES


def compile_report(
    config: ExperimentConfig,
    *,
    topology: str,
    num_slices: int = 1,
    programs: Sequence[str] = ("step",),
    input_modalities: Sequence[str] | None = None,
    output_modalities: Sequence[str] | None = None,
) -> CostReport:
    """Compiles programs of a config for a topology and reports their per-device costs. It takes minutes for the 7B.

        report = compile_report(load_config("nextgpt_7b:stage3", {"mesh.fsdp": 16}), topology="v5e:4x4")
        print(report); report.fits; report["stage3"].memory_bytes

    Args:
      topology: a TPU slice such as v5e:4x4, or GPUs such as h100:8 (h100:2x8: two hosts).
      num_slices: TPU slices.
      programs: "step" (of the config's stage), "prefill", "decode" and the output modalities ("image", ...).
      input_modalities: media of each training example, one of each; None: an image in the stages that read media.
      output_modalities: media that each training example asks for; None: an image in the stages that produce them.

    Raises:
      UserError: an argument is wrong, a compiler is not installed, or the config does not fit the mesh.
    """
    costs = compile_programs(config, topology, num_slices, programs, input_modalities, output_modalities)
    return CostReport(topology, num_slices, tuple(costs))


def compile_programs(
    config: ExperimentConfig,
    topology: str,
    num_slices: int = 1,
    programs: Sequence[str] = ("step",),
    input_modalities: Sequence[str] | None = None,
    output_modalities: Sequence[str] | None = None,
) -> Iterator[ProgramCost]:
    """As `compile_report`, program by program."""
    topologies.prepare_compilers()
    mesh = make_mesh(config.mesh, topologies.topology_devices(topology, num_slices))
    for name in programs:
        with jax.set_mesh(mesh):
            program = build_program(config, mesh, name, input_modalities, output_modalities)
        yield compile_program(program, config)


def compile_program(program: Program, config: ExperimentConfig) -> ProgramCost:
    """Compiles a program and reads its costs from the compiler's results.

    Args:
      config: the program's, for suggestions if it does not fit.

    Raises:
      UserError: the compiler fails for another reason than memory, or the chip's peak rates are unknown.
    """
    mesh, chip, begin = program.mesh, _chip(program.mesh), time.perf_counter()
    head = dict(program=program.name, chip=chip, num_devices=mesh.size, batch_size=program.batch_size)
    with jax.set_mesh(mesh):
        traced = program.function.trace(*program.arguments)
        counted = flops.count(traced.jaxpr)
        try:
            compiled, text = _compile(traced.lower(), mesh.devices.flat[0].platform)
        except jax.errors.JaxRuntimeError as error:
            reason = (str(error).splitlines() or ["the compiler failed"])[0][:300]
            if "RESOURCE_EXHAUSTED" not in reason:
                raise UserError(f"{program.name} does not compile for {chip.name}: {reason}") from None
            reason = re.sub(r"^RESOURCE_EXHAUSTED: |\w+: CompileTimeHbmOom: ", "", reason)
            return ProgramCost(**head, rejection=reason, suggestions=suggestions(program, chip, config))
    domains = num_domains(mesh.devices.flat)
    hlo = hlo_cost.analyze(text, mesh.size // domains if domains > 1 else 0)
    found = ProgramCost(
        **head,
        memory=_memory(program, compiled.memory_analysis()),
        hardware_flops=max(hlo.flops, counted.hardware / mesh.size),  # Pallas kernels are opaque in the HLO
        model_flops=counted.model / mesh.size,
        hbm_bytes=hlo.hbm_bytes,
        collectives=tuple(
            CollectiveCost(kind.opcode, kind.group_size, kind.crosses_slices, size, hlo.calls[kind])
            for kind, size in hlo.received.most_common()
        ),
        exposed_bytes=hlo.exposed_bytes,
        compile_seconds=time.perf_counter() - begin,
    )
    return found if found.fits else dataclasses.replace(found, suggestions=suggestions(program, chip, config))


def _memory(program: Program, analysis: Any) -> dict[str, float]:
    """Bytes per device by kind."""
    memory = program.argument_bytes()
    # XLA drops unused arguments and pads layouts: rescale to its own total.
    scale = analysis.argument_size_in_bytes / max(1, sum(memory.values()))
    return {kind: size * scale for kind, size in memory.items()} | {
        "results": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "program": analysis.generated_code_size_in_bytes,
        "other weights": program.resident_bytes,
    }


def _compile(lowered: jax.stages.Lowered, platform: str) -> tuple[jax.stages.Compiled, str]:
    """The compiled program and its optimized HLO. The TPU compiler's is read from its dump, as JAX's as_text() cannot
    print all of it."""
    with _no_compilation_cache():  # an executable from the cache has no dump
        if platform != "tpu":
            compiled = lowered.compile(topologies.GPU_COMPILER_OPTIONS if platform == "gpu" else None)
            return compiled, compiled.as_text()
        with tempfile.TemporaryDirectory() as folder:
            compiled = lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
            (file,) = pathlib.Path(folder).glob("*.after_optimizations.txt")
            return compiled, file.read_text()


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def _chip(mesh: Mesh) -> Chip:
    kind = mesh.devices.flat[0].device_kind
    chip = chips.chip(kind)
    if chip is None:
        raise UserError(f"the peak rates of {kind} are unknown: add it to nextgpt_jax/chips.py")
    return chip


def suggestions(program: Program, chip: Chip, config: ExperimentConfig) -> tuple[str, ...]:
    """What would reduce the memory of a program that does not fit."""
    mesh, training = program.mesh, program.name in STAGES
    weights = sum(size for kind, size in program.argument_bytes().items() if "weights" in kind or kind == "optimizer")
    weights += program.resident_bytes
    ideas = []
    if weights > chip.memory / 3:
        if mesh.shape["data"] > 1 and training:
            fsdp = mesh.shape["fsdp"] * mesh.shape["data"]
            ideas.append(f"shard the weights over more devices (--config.mesh.fsdp={fsdp} --config.mesh.data=1)")
        elif mesh.shape["data"] > 1:
            tensor = 2 * mesh.shape["tensor"]
            ideas.append(f"shard the weights over more devices (--config.mesh.tensor={tensor})")
        if not config.model.quantize:
            ideas.append("quantize the frozen kernels (--config.model.quantize=nf4)")
    if training:
        if config.train.remat not in ("full", "offload"):
            ideas.append("recompute activations (--config.train.remat=full)")
        micro_batches = config.optim.grad_accum_steps
        local = config.data.batch_size // micro_batches // num_batch_shards(mesh)
        if local > 1:
            ideas.append(f"use smaller micro-batches (--config.optim.grad_accum_steps={micro_batches * local})")
    return tuple(ideas) or ("take a larger topology, or chips with more memory",)
