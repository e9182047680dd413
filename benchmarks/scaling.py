"""Plans the paper's system on TPUs and GPUs of many sizes, and writes docs/scaling.md.

Needs libtpu for TPUs and the CUDA plugin for GPUs (pip install '.[tpu]', '.[cuda]'), but neither a TPU nor a GPU.

    python benchmarks/scaling.py [--topologies v5e:4x4 ...] [--programs stage1 ...] [--jobs 2] [--kept FOLDER]

Each plan is `train.py --compile_only` in a process of its own; what is made is kept in FOLDER (.scaling by default), so
that the report can be made one topology at a time. The report has what was made so far; its part for TPUs, or for
GPUs, stays as it is while none of its plans is kept. Samplers, which take long to compile, are made when they are asked
for: --programs image video audio.
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

from nextgpt_jax.aot import gpu
from nextgpt_jax.aot.plan import duration
from nextgpt_jax.chips import chip

ROOT = pathlib.Path(__file__).parents[1]
STAGES = ("stage1", "stage2", "stage3")
SAMPLERS = ("image", "video", "audio")
LANGUAGE = ("prefill", "decode")
INFERENCE = (*LANGUAGE, *SAMPLERS)
INFERENCE_ROWS = 16  # of a device


@dataclasses.dataclass(frozen=True)
class Setting:
    """A machine, and how the system is laid out on it."""

    topology: str
    chips: int  # of a slice
    fsdp: int  # in training
    tensor: int  # in inference
    rows: int = 4  # of a device, in training
    remat: str = "full"
    slices: int = 1
    samplers: bool = False  # their rows have nothing to exchange: one machine is enough

    @property
    def gpus(self) -> bool:
        return self.topology.split(":")[0] in gpu.TARGETS

    @property
    def name(self) -> str:
        return f"{self.slices} x {self.topology}" if self.slices > 1 else self.topology

    @property
    def programs(self) -> tuple[str, ...]:
        return (*STAGES, *(INFERENCE if self.samplers else LANGUAGE))

    def flags(self, program: str) -> list[str]:
        """What train.py is told."""
        training = program in STAGES
        rows = self.rows if training else INFERENCE_ROWS
        return [
            f"--config=configs/nextgpt_7b.py:{program if training else 'infer'}",
            f"--programs={'step' if training else program}",
            f"--topology={self.topology}",
            f"--slices={self.slices}",
            f"--config.mesh.fsdp={self.fsdp}" if training else f"--config.mesh.tensor={self.tensor}",
            f"--config.data.batch_size={rows * self.chips * self.slices}",
            f"--config.train.remat={self.remat}",
        ]


SETTINGS = (
    Setting("v5e:2x2", 4, fsdp=4, tensor=4),
    Setting("v5e:4x4", 16, fsdp=16, tensor=4, samplers=True),
    Setting("v5e:16x16", 256, fsdp=16, tensor=4),
    Setting("v5e:4x4", 16, fsdp=16, tensor=4, slices=2),
    Setting("v5p:2x2x2", 8, fsdp=8, tensor=1, rows=8, remat="dots"),
    Setting("v5p:4x4x4", 64, fsdp=8, tensor=1, rows=8, remat="dots"),
    Setting("v6e:4x4", 16, fsdp=16, tensor=2, remat="dots"),
    Setting("h100:1", 1, fsdp=1, tensor=1, rows=16, remat="dots", samplers=True),
    Setting("h100:8", 8, fsdp=8, tensor=8, rows=16, remat="dots"),
    Setting("h100:2x8", 16, fsdp=8, tensor=8, rows=16, remat="dots"),
)
FEW, MANY = "v5e:4x4", "v5e:16x16"  # the same rows of a device on 16 and on 256 chips

# Pairs a second and V100s of the reference, by stage, and the peak of a V100 in TFLOP/s.
REFERENCE = {"stage1": (22, 3), "stage2": (17, 3), "stage3": (14, 4)}
V100 = 125
TPU_V5E = "TPU v5 lite"  # as JAX calls it

Found = dict[tuple[Setting, str], dict]


def kept_file(setting: Setting, program: str, kept: pathlib.Path) -> pathlib.Path:
    return kept / f"{setting.name.replace(' ', '').replace(':', '_')}.{program}.json"


def kept_plan(setting: Setting, program: str, kept: pathlib.Path) -> dict:
    """The plan of a program that is kept; {} if none is, or one of other flags."""
    file = kept_file(setting, program, kept)
    found = json.loads(file.read_text()) if file.exists() else {}
    return found if found.get("flags") == setting.flags(program) else {}


def make(setting: Setting, program: str, kept: pathlib.Path) -> None:
    """Plans a program and keeps the plan, or why there is none."""
    if kept_plan(setting, program, kept):
        return
    flags = setting.flags(program)
    with tempfile.TemporaryDirectory() as folder:
        report, output = pathlib.Path(folder, "plan.json"), pathlib.Path(folder, "output")
        command = [sys.executable, "train.py", "--compile_only", *flags, f"--report={report}"]
        with output.open("w") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)  # for the time of this process alone
        process.returncode = os.waitstatus_to_exitcode(status)
        said = output.read_text()
        plans = json.loads(report.read_text()) if report.exists() else []
    seconds = usage.ru_utime + usage.ru_stime
    print(f"{setting.name} {program}: {seconds:.0f} s of CPU time, exit {process.returncode}", flush=True)
    if process.returncode not in (0, 1):
        raise SystemExit(said)
    reason = next((line for line in said.splitlines() if "FIT" in line), "")
    found = {"flags": flags, "cpu_seconds": seconds, "date": time.strftime("%Y-%m-%d")}
    found |= plans[0] if plans else {"failed": reason}
    kept_file(setting, program, kept).write_text(json.dumps(found, indent=1) + "\n")


def received(plan: dict, between_slices: bool | None = None) -> float:
    """GB that collectives bring to a device: all, or those within or between slices."""
    chosen = [c["bytes"] for c in plan["collectives"] if between_slices in (None, c["between_slices"])]
    return sum(chosen) / 1e9


def table(head: str, rows: Iterable[Iterable[object]]) -> list[str]:
    """A table as Markdown."""
    names = head.split(", ")
    lines = [names, ["---"] * len(names), *rows]
    return [*(f"| {' | '.join(map(str, line))} |" for line in lines), ""]


def paragraph(text: str, **values: object) -> list[str]:
    return [*textwrap.wrap(text.format(**values), 120, break_long_words=False, break_on_hyphens=False), ""]


HEAD = """`python benchmarks/scaling.py` wrote this with {compiler}, without a {device}: each row is the exact program
compiled for that topology, read as [tpu.md](tpu.md) says; nothing was measured on one. Vicuna-7B, ImageBind huge,
Stable Diffusion 1.5, Zeroscope, AudioLDM-L; frozen weights in bfloat16. {count} plans, made on {dates} in {minutes:.0f}
minutes of CPU time."""
GPUS = """NVIDIA GPUs"""
GPU_LAYOUTS = """`h100:2x8` is two hosts of eight: collectives within a host go over NVLink, at 450 GB/s a GPU, between
hosts over the network, at 400 Gbit/s a GPU. Products are planned as calls of cuBLAS. cuDNN chooses its kernels, and the
memory that they work in, on the device."""
COLUMNS = """Of one device: memory of all kinds; operations in T, needed / executed (what is computed again to save
memory included); GB that collectives bring, within / between slices of TPUs or hosts of GPUs; the time of the busiest
resource at its peak rate. MFU counts needed operations."""
TRAINING = """A row has 512 tokens, with an image to read (stages 1 and 3) and one to draw (2 and 3)."""
SERVING = """Rows are of the whole machine, {rows} a chip for the language model. `prefill` reads 512 tokens, `decode`
adds one; `image`, `video` and `audio` are all 50 steps of a sampler at the paper's sizes, with guidance. Memory is
that of the whole system."""
GROWTH = """The same rows a chip, {few} and {many}: what a chip needs there, as a multiple of what it needs here."""
BESIDE = """The reference's own speed on V100s ({peak} TFLOP/s each), and the rooflines above on {name}. The reference's
rows are shorter than 512 tokens, and a roofline is no measurement: this says how the two compare with their chips, not
with each other."""


def row(setting: Setting, program: str, plan: dict) -> list[str]:
    layout = next(flag for flag in plan["flags"] if "mesh" in flag).removeprefix("--config.mesh.")
    layout += f", {setting.remat}" if program in STAGES else ""
    if "failed" in plan:
        return [program, setting.name, layout, "", plan["failed"], *[""] * 5]
    busiest = max(plan["seconds"], key=plan["seconds"].get)
    rate = plan["rows"] / plan["step_seconds"] / plan["devices"]
    return [
        program, setting.name, layout, f"{plan['rows']}", f"{sum(plan['memory'].values()) / 2**30:.1f} GiB",
        f"{plan['needed_flops'] / 1e12:.2f} / {plan['flops'] / 1e12:.2f}",
        f"{received(plan, False):.2f} / {received(plan, True):.3f}", f"{duration(plan['step_seconds'])}, {busiest}",
        f"{rate:,.0f}" if rate >= 100 else f"{rate:#.3g}", f"{plan['mfu']:.0%}",
    ]  # fmt: skip


def tables(found: Found, level: str) -> list[str]:
    """The tables of training and inference, under headings of a level."""
    columns = "program, topology, layout, rows, memory, operations, collectives, roofline, rows/s a chip, MFU"
    lines = [*paragraph(COLUMNS), f"{level} Training", "", *paragraph(TRAINING)]
    lines += table(columns, (row(*pair, plan) for pair, plan in found.items() if pair[1] in STAGES))
    lines += [f"{level} Batch inference", "", *paragraph(SERVING, rows=INFERENCE_ROWS)]
    return lines + table(columns, (row(*pair, plan) for pair, plan in found.items() if pair[1] in INFERENCE))


def head(found: Found, compiler: str, device: str) -> list[str]:
    """How the plans were made."""
    dates = " and ".join(sorted({plan["date"] for plan in found.values()}))
    minutes = sum(plan["cpu_seconds"] for plan in found.values()) / 60
    return paragraph(HEAD, compiler=compiler, device=device, count=len(found), dates=dates, minutes=minutes)


def report_tpus(found: Found) -> str:
    """The part of docs/scaling.md on TPUs."""
    plans = {(setting.name, program): plan for (setting, program), plan in found.items() if "failed" not in plan}
    lines = ["# Scaling", "", *head(found, "libtpu's compiler", "TPU"), *tables(found, "##")]
    lines += ["## From 16 to 256 chips", "", *paragraph(GROWTH, few=FEW, many=MANY)]
    lines += table(
        "program, memory, executed operations, collectives, roofline",
        ([name, *growth(plans[FEW, name], plans[MANY, name])] for name in (*STAGES, *INFERENCE)
         if (FEW, name) in plans and (MANY, name) in plans),
    )  # fmt: skip
    lines += ["## Beside the reference", "", *paragraph(BESIDE, peak=V100, name=FEW)]
    lines += table(
        "stage, reference, pairs/s a TFLOP/s, here, pairs/s a TFLOP/s",
        (beside(program, plans[FEW, program]) for program in STAGES if (FEW, program) in plans),
    )
    return "\n".join(lines)


def report_gpus(found: Found) -> str:
    """The part of docs/scaling.md on GPUs."""
    lines = [f"## {GPUS}", "", *head(found, "XLA's compiler for GPUs", "GPU"), *paragraph(GPU_LAYOUTS)]
    return "\n".join([*lines, *tables(found, "###")])


def growth(few: dict, many: dict) -> list[str]:
    amounts = [
        (sum(plan["memory"].values()), plan["flops"], received(plan), plan["step_seconds"]) for plan in (few, many)
    ]
    return [f"{b / a:.2f}" if a else "-" for a, b in zip(*amounts)]


def beside(program: str, plan: dict) -> list[str]:
    pairs, cards = REFERENCE[program]
    peak = plan["devices"] * chip(TPU_V5E).flops / 1e12
    rate = plan["rows"] / plan["step_seconds"]
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
    wanted.sort(key=lambda pair: pair[1] not in SAMPLERS)  # the longest first, lest one be left alone at the end
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda pair: make(*pair, args.kept), wanted))
    found = {pair: plan for pair in pairs if (plan := kept_plan(*pair, args.kept))}
    file = ROOT / "docs" / "scaling.md"
    tpus, _, gpus = file.read_text().partition(f"\n## {GPUS}")
    gpus = f"## {GPUS}{gpus}" if gpus else ""
    if of_tpus := {pair: plan for pair, plan in found.items() if not pair[0].gpus}:
        tpus = report_tpus(of_tpus)
    if of_gpus := {pair: plan for pair, plan in found.items() if pair[0].gpus}:
        gpus = report_gpus(of_gpus)
    file.write_text(f"{tpus.rstrip()}\n\n{gpus}".rstrip() + "\n")


if __name__ == "__main__":
    main()
