"""Estimates the costs of the paper's system on TPU and GPU topologies of many sizes, and writes docs/scaling.md.

Needs libtpu for TPUs and the CUDA plugin for GPUs (pip install '.[tpu]', '.[cuda]'), but neither a TPU nor a GPU.

    python benchmarks/scaling.py [--topologies v5e:4x4 ...] [--programs stage1 ...] [--jobs 2] [--kept FOLDER]

Each program is compiled by `train.py --compile_only` in a process of its own. Results are kept in FOLDER (.scaling by
default), so that the report can be made one topology at a time: it contains all kept results, and its part on TPUs, or
on GPUs, is left unchanged while none of that part's are kept. Samplers, which take long to compile, are compiled only
on request: --programs image video audio.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable

from nextgpt_jax.aot.report import GPU_INTERCONNECTS, format_seconds
from nextgpt_jax.aot.topologies import GPU_TARGETS
from nextgpt_jax.chips import chip

ROOT = pathlib.Path(__file__).parents[1]
STAGES = ("stage1", "stage2", "stage3")
SAMPLERS = ("image", "video", "audio")
LANGUAGE = ("prefill", "decode")
INFERENCE = (*LANGUAGE, *SAMPLERS)
INFERENCE_BATCH = 16  # per device


@dataclasses.dataclass(frozen=True)
class Setting:
    """A topology, and the sharding of the system on it."""

    topology: str
    chips: int  # per slice
    fsdp: int  # in training
    tensor: int  # in inference
    batch: int = 4  # examples per device, in training
    remat: str = "full"
    slices: int = 1
    samplers: bool = False  # pure data parallelism: one topology is enough

    @property
    def gpus(self) -> bool:
        return self.topology.split(":")[0] in GPU_TARGETS

    @property
    def name(self) -> str:
        return f"{self.slices} x {self.topology}" if self.slices > 1 else self.topology

    @property
    def programs(self) -> tuple[str, ...]:
        return (*STAGES, *(INFERENCE if self.samplers else LANGUAGE))

    def flags(self, program: str) -> list[str]:
        """Flags of train.py."""
        training = program in STAGES
        batch = self.batch if training else INFERENCE_BATCH
        return [
            f"--config=configs/nextgpt_7b.py:{program if training else 'infer'}",
            f"--programs={'step' if training else program}",
            f"--topology={self.topology}",
            f"--num_slices={self.slices}",
            f"--config.mesh.fsdp={self.fsdp}" if training else f"--config.mesh.tensor={self.tensor}",
            f"--config.data.batch_size={batch * self.chips * self.slices}",
            f"--config.train.remat={self.remat}",
        ]


SETTINGS = (
    Setting("v5e:2x2", 4, fsdp=4, tensor=4),
    Setting("v5e:4x4", 16, fsdp=16, tensor=4, samplers=True),
    Setting("v5e:16x16", 256, fsdp=16, tensor=4),
    Setting("v5e:4x4", 16, fsdp=16, tensor=4, slices=2),
    Setting("v5p:2x2x2", 8, fsdp=8, tensor=1, batch=8, remat="dots"),
    Setting("v5p:4x4x4", 64, fsdp=8, tensor=1, batch=8, remat="dots"),
    Setting("v6e:4x4", 16, fsdp=16, tensor=2, remat="dots"),
    Setting("h100:1", 1, fsdp=1, tensor=1, batch=16, remat="dots", samplers=True),
    Setting("h100:8", 8, fsdp=8, tensor=8, batch=16, remat="dots"),
    Setting("h100:2x8", 16, fsdp=8, tensor=8, batch=16, remat="dots"),
)
FEW, MANY = "v5e:4x4", "v5e:16x16"  # the same batch per device on 16 and on 256 chips

# The reference's training pairs per second and number of V100s, by stage, and the peak of a V100 in TFLOP/s.
REFERENCE = {"stage1": (22, 3), "stage2": (17, 3), "stage3": (14, 4)}
V100 = 125
TPU_V5E = "TPU v5 lite"  # JAX's device kind

Found = dict[tuple[Setting, str], dict]


def kept_file(setting: Setting, program: str, kept: pathlib.Path) -> pathlib.Path:
    return kept / f"{setting.name.replace(' ', '').replace(':', '_')}.{program}.json"


def kept_result(setting: Setting, program: str, kept: pathlib.Path) -> dict:
    """The kept result of a program; {} if there is none for these flags."""
    file = kept_file(setting, program, kept)
    found = json.loads(file.read_text()) if file.exists() else {}
    return found if found.get("flags") == setting.flags(program) else {}


def make(setting: Setting, program: str, kept: pathlib.Path) -> None:
    """Compiles a program and keeps its costs."""
    if kept_result(setting, program, kept):
        return
    flags = setting.flags(program)
    with tempfile.TemporaryDirectory() as folder:
        report, output = pathlib.Path(folder, "report.json"), pathlib.Path(folder, "output")
        command = [sys.executable, "train.py", "--compile_only", *flags, f"--report={report}"]
        with output.open("w") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)  # for the CPU time of this process alone
        process.returncode = os.waitstatus_to_exitcode(status)
        said = output.read_text()
        costs = json.loads(report.read_text()) if report.exists() else []
    seconds = usage.ru_utime + usage.ru_stime
    print(f"{setting.name} {program}: {seconds:.0f} s of CPU time, exit {process.returncode}", flush=True)
    if process.returncode not in (0, 1):
        raise SystemExit(said)
    found = {"flags": flags, "cpu_seconds": seconds, "date": time.strftime("%Y-%m-%d")} | costs[0]
    kept_file(setting, program, kept).write_text(json.dumps(found, indent=1) + "\n")


def received(cost: dict, crosses_slices: bool | None = None) -> float:
    """GB that a device receives by collectives: all, or those within or between slices."""
    chosen = [c["received_bytes"] for c in cost["collectives"] if crosses_slices in (None, c["crosses_slices"])]
    return sum(chosen) / 1e9


def table(head: str, rows: Iterable[Iterable[object]]) -> list[str]:
    """A table as Markdown."""
    names = head.split(", ")
    lines = [names, ["---"] * len(names), *rows]
    return [*(f"| {' | '.join(map(str, line))} |" for line in lines), ""]


def paragraph(text: str, **values: object) -> list[str]:
    return [*textwrap.wrap(text.format(**values), 120, break_long_words=False, break_on_hyphens=False), ""]


HEAD = """Written by `python benchmarks/scaling.py` with {compiler}, without a {device}: each row is the exact program
compiled for that topology and read as [tpu.md](tpu.md) says; nothing was measured on a device. Vicuna-7B, ImageBind
huge, Stable Diffusion 1.5, Zeroscope, AudioLDM-L; frozen weights in bfloat16. {count} programs, compiled on {dates} in
{minutes:.0f} minutes of CPU time."""
GPUS = """NVIDIA GPUs"""
GPU_LAYOUTS = """`h100:2x8` is two hosts of eight: collectives within a host use NVLink, at 450 GB/s per GPU, between
hosts the network, at 400 Gbit/s per GPU. Matmuls are compiled as cuBLAS calls. cuDNN chooses its kernels, and their
workspace, on the device."""
COLUMNS = """Per device: memory of all kinds; TFLOPs, model / hardware (with recomputation); GB received by
collectives, within / between slices of TPUs or hosts of GPUs; the roofline, i.e. the time of the busiest resource at
its peak rate; MFU (model FLOPs) at the roofline."""
TRAINING = """An example has 512 tokens, an input image (stages 1 and 3) and an output image (2 and 3)."""
SERVING = """Batches are of the whole topology, {batch} per chip for the language model. `prefill` processes 512 tokens,
`decode` one more; `image`, `video` and `audio` are all 50 steps of a sampler at the paper's sizes, with guidance.
Memory includes the rest of the system."""
GROWTH = """With the same batch per chip: per-device costs on {many} as a multiple of those on {few}."""
REFERENCE_SPEED = """The reference's measured speed on V100s ({peak} TFLOP/s each), and the rooflines above on {name}.
The reference's examples are shorter than 512 tokens, and a roofline is no measurement: the table shows how well each
uses its chips, not which is faster."""


def row(setting: Setting, program: str, cost: dict) -> list[str]:
    layout = next(flag for flag in cost["flags"] if "mesh" in flag).removeprefix("--config.mesh.")
    layout += f", {setting.remat}" if program in STAGES else ""
    if cost["rejection"]:
        return [program, setting.name, layout, f"{cost['batch_size']}", cost["rejection"], *[""] * 5]
    rate = cost["batch_size"] / cost["roofline_seconds"] / cost["num_devices"]
    bound_by = GPU_INTERCONNECTS.get(cost["bound_by"], cost["bound_by"]) if setting.gpus else cost["bound_by"]
    return [
        program, setting.name, layout, f"{cost['batch_size']}", f"{cost['memory_bytes'] / 2**30:.1f} GiB",
        f"{cost['model_flops'] / 1e12:.2f} / {cost['hardware_flops'] / 1e12:.2f}",
        f"{received(cost, False):.2f} / {received(cost, True):.3f}",
        f"{format_seconds(cost['roofline_seconds'])}, {bound_by}",
        f"{rate:,.0f}" if rate >= 100 else f"{rate:#.3g}", f"{cost['mfu']:.0%}",
    ]  # fmt: skip


def tables(found: Found, level: str) -> list[str]:
    """The tables of training and inference, under headings of a level."""
    columns = "program, topology, layout, batch, memory, TFLOPs, collectives, roofline, examples/s per chip, MFU"
    lines = [*paragraph(COLUMNS), f"{level} Training", "", *paragraph(TRAINING)]
    lines += table(columns, (row(*pair, cost) for pair, cost in found.items() if pair[1] in STAGES))
    lines += [f"{level} Batch inference", "", *paragraph(SERVING, batch=INFERENCE_BATCH)]
    return lines + table(columns, (row(*pair, cost) for pair, cost in found.items() if pair[1] in INFERENCE))


def head(found: Found, compiler: str, device: str) -> list[str]:
    """How the results were made."""
    dates = " and ".join(sorted({cost["date"] for cost in found.values()}))
    minutes = sum(cost["cpu_seconds"] for cost in found.values()) / 60
    return paragraph(HEAD, compiler=compiler, device=device, count=len(found), dates=dates, minutes=minutes)


def report_tpus(found: Found) -> str:
    """The part of docs/scaling.md on TPUs."""
    costs = {(setting.name, program): cost for (setting, program), cost in found.items() if not cost["rejection"]}
    lines = ["# Scaling", "", *head(found, "libtpu's compiler", "TPU"), *tables(found, "##")]
    lines += ["## From 16 to 256 chips", "", *paragraph(GROWTH, few=FEW, many=MANY)]
    lines += table(
        "program, memory, hardware FLOPs, collectives, roofline",
        ([name, *growth(costs[FEW, name], costs[MANY, name])] for name in (*STAGES, *INFERENCE)
         if (FEW, name) in costs and (MANY, name) in costs),
    )  # fmt: skip
    lines += ["## Compared with the reference", "", *paragraph(REFERENCE_SPEED, peak=V100, name=FEW)]
    lines += table(
        "stage, reference, pairs/s per peak TFLOP/s, here, pairs/s per peak TFLOP/s",
        (compared(program, costs[FEW, program]) for program in STAGES if (FEW, program) in costs),
    )
    return "\n".join(lines)


def report_gpus(found: Found) -> str:
    """The part of docs/scaling.md on GPUs."""
    lines = [f"## {GPUS}", "", *head(found, "XLA's compiler for GPUs", "GPU"), *paragraph(GPU_LAYOUTS)]
    return "\n".join([*lines, *tables(found, "###")])


def growth(few: dict, many: dict) -> list[str]:
    names = ("memory_bytes", "hardware_flops", "roofline_seconds")
    (memory, flops, seconds), exchanged = (many[name] / few[name] for name in names), received(few)
    return [
        f"{memory:.2f}",
        f"{flops:.2f}",
        f"{received(many) / exchanged:.2f}" if exchanged else "-",
        f"{seconds:.2f}",
    ]


def compared(program: str, cost: dict) -> list[str]:
    pairs, cards = REFERENCE[program]
    peak = cost["num_devices"] * chip(TPU_V5E).flops / 1e12
    rate = cost["batch_size"] / cost["roofline_seconds"]
    return [program, f"{pairs}/s on {cards} V100", f"{pairs / cards / V100:.3f}", f"{rate:.0f}/s", f"{rate / peak:.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", nargs="*", default=[setting.name for setting in SETTINGS])
    parser.add_argument("--programs", nargs="*", default=[*STAGES, *LANGUAGE])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kept", type=pathlib.Path, default=ROOT / ".scaling")
    args = parser.parse_args()
    args.kept.mkdir(exist_ok=True)
    pairs = [(setting, program) for program in (*STAGES, *INFERENCE) for setting in SETTINGS]
    pairs = [(setting, program) for setting, program in pairs if program in setting.programs]
    wanted = [(s, program) for s, program in pairs if s.name in args.topologies and program in args.programs]
    wanted.sort(key=lambda pair: pair[1] not in SAMPLERS)  # longest first
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda pair: make(*pair, args.kept), wanted))
    found = {pair: cost for pair in pairs if (cost := kept_result(*pair, args.kept))}
    file = ROOT / "docs" / "scaling.md"
    tpus, _, gpus = file.read_text().partition(f"\n## {GPUS}")
    gpus = f"## {GPUS}{gpus}" if gpus else ""
    if of_tpus := {pair: cost for pair, cost in found.items() if not pair[0].gpus}:
        tpus = report_tpus(of_tpus)
    if of_gpus := {pair: cost for pair, cost in found.items() if pair[0].gpus}:
        gpus = report_gpus(of_gpus)
    file.write_text(f"{tpus.rstrip()}\n\n{gpus}".rstrip() + "\n")


if __name__ == "__main__":
    main()
