"""Plans the paper's system on TPUs of many sizes, and writes docs/scaling.md. Needs libtpu, no TPU.

    python benchmarks/scaling.py [--topologies v5e:4x4 ...] [--programs stage1 ...] [--jobs 2] [--kept FOLDER]

Each plan is `train.py --compile_only` in a process of its own; what is made is kept in FOLDER (.scaling by default), so
that the report can be made one topology at a time. The report has what was made so far.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import pathlib
import subprocess
import sys
import textwrap
import time

ROOT = pathlib.Path(__file__).parents[1]
STAGES = ("stage1", "stage2", "stage3")
INFERENCE = ("prefill", "decode", "image", "video", "audio")


_HEAD = """`python benchmarks/scaling.py` wrote this on {date} with libtpu's compiler, without a TPU: each row is
the exact program compiled for that topology, read as [tpu.md](tpu.md) says. Nothing was measured on one. Vicuna-7B,
ImageBind huge, Stable Diffusion 1.5, Zeroscope, AudioLDM-L, frozen weights in bfloat16; rows of 512 tokens with an
image to read (stages 1 and 3) and one to draw (2 and 3). Operations are T a device, needed / executed; collectives
are GB that a device receives, within / between slices."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A machine, and how the system is laid out on it."""

    topology: str
    chips: int
    fsdp: int
    rows: int  # of a device
    remat: str = "full"
    slices: int = 1

    @property
    def name(self) -> str:
        return f"{self.slices} x {self.topology}" if self.slices > 1 else self.topology


SETTINGS = (
    Setting("v5e:2x2", 4, 4, 4),
    Setting("v5e:4x4", 16, 16, 4),
    Setting("v5e:16x16", 256, 16, 4),
    Setting("v5e:4x4", 32, 16, 4, slices=2),
    Setting("v5p:2x2x2", 8, 1, 8, "dots"),
    Setting("v5p:4x4x4", 64, 1, 8, "dots"),
    Setting("v6e:4x4", 16, 1, 4, "dots"),
)
# Pairs a second and V100s of the reference, by stage.
REFERENCE = {"stage1": (22, 3), "stage2": (17, 3), "stage3": (14, 4)}
V100_FLOPS = 125e12


def kept_file(setting: Setting, program: str, kept: pathlib.Path) -> pathlib.Path:
    return kept / f"{setting.name.replace(' ', '').replace(':', '_')}.{program}.json"


def make(setting: Setting, program: str, kept: pathlib.Path) -> dict:
    """The plan of a program, from what is kept or new; {"failed": why} if there is none."""
    file = kept_file(setting, program, kept)
    if not file.exists():
        variant = program if program in STAGES else "infer"
        command = [
            sys.executable, "train.py", f"--config=configs/nextgpt_7b.py:{variant}", "--compile_only",
            f"--topology={setting.topology}", f"--slices={setting.slices}", f"--config.mesh.fsdp={setting.fsdp}",
            f"--config.data.batch_size={setting.rows * setting.chips}", f"--config.train.remat={setting.remat}",
            f"--programs={program if program in INFERENCE else 'step'}", f"--report={file}",
        ]  # fmt: skip
        begin = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        print(f"{setting.name} {program}: {time.perf_counter() - begin:.0f} s, exit {done.returncode}", flush=True)
        if not file.exists() or not json.loads(file.read_text()):
            lines = (done.stdout + done.stderr).splitlines()
            reason = next((line for line in lines if "FIT" in line or line.startswith("error")), "failed")
            file.write_text(json.dumps([{"failed": reason}]))
    return json.loads(file.read_text())[0]


def row(setting: Setting, program: str, plan: dict) -> str:
    if "failed" in plan:
        return f"| {program} | {setting.name} | {plan['failed']} | | | | | | |"
    links = sum(c["bytes"] for c in plan["collectives"] if not c["between_slices"]) / 1e9
    network = sum(c["bytes"] for c in plan["collectives"] if c["between_slices"]) / 1e9
    busiest = max(plan["seconds"], key=plan["seconds"].get)
    memory = sum(plan["memory"].values()) / 2**30
    cells = [
        program, setting.name, f"{plan['rows']}", f"{memory:.1f} GiB",
        f"{plan['needed_flops'] / 1e12:.1f} / {plan['flops'] / 1e12:.1f}", f"{links:.2f} / {network:.2f}",
        f"{plan['step_seconds'] * 1e3:.1f} ms", busiest, f"{plan['mfu']:.0%}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def report(found: dict[tuple[Setting, str], dict]) -> str:
    """The text of docs/scaling.md."""
    lines = [
        "# Scaling",
        "",
        textwrap.fill(_HEAD.format(date=time.strftime("%Y-%m-%d")), 120, break_long_words=False),
        "",
        "| program | topology | rows | memory | operations | collectives | roofline | busiest | MFU |",
        "|---|---|---|---|---|---|---|---|---|",
        *(row(setting, program, plan) for (setting, program), plan in found.items()),
        "",
    ]
    plans = {(setting.name, program): plan for (setting, program), plan in found.items() if "failed" not in plan}
    for program in STAGES:
        few, many = plans.get(("v5e:4x4", program)), plans.get(("v5e:16x16", program))
        if few and many:
            ratio = received(many) / received(few)
            lines += [
                f"From 16 to 256 chips at 4 rows a chip, {program} receives {ratio:.2f} times as many bytes a chip."
            ]
    lines += [
        "",
        "## Beside the reference",
        "",
        "The paper's code reports pairs a second on V100s; here for one peak TFLOP/s (a V100 has 125), beside the",
        "rooflines above. Its rows are shorter than 512 tokens, and a roofline is no measurement.",
        "",
        "| stage | reference | pairs/s for a TFLOP/s | here, v5e:4x4 | pairs/s for a TFLOP/s |",
        "|---|---|---|---|---|",
    ]
    for program, (pairs, cards) in REFERENCE.items():
        if plan := plans.get(("v5e:4x4", program)):
            rate = plan["rows"] / plan["step_seconds"]
            peak = plan["devices"] * 197
            lines.append(
                f"| {program} | {pairs}/s on {cards} V100 | {pairs / cards / V100_FLOPS * 1e12:.3f} | {rate:.0f}/s | "
                f"{rate / peak:.3f} |"
            )
    return "\n".join(lines) + "\n"


def received(plan: dict) -> float:
    return sum(collective["bytes"] for collective in plan["collectives"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", nargs="*", default=[setting.name for setting in SETTINGS])
    parser.add_argument("--programs", nargs="*", default=[*STAGES, *INFERENCE])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kept", type=pathlib.Path, default=ROOT / ".scaling")
    args = parser.parse_args()
    args.kept.mkdir(exist_ok=True)
    wanted = [(s, p) for p in args.programs for s in SETTINGS if s.name in args.topologies]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda pair: make(*pair, args.kept), wanted))
    pairs = [(s, p) for p in (*STAGES, *INFERENCE) for s in SETTINGS]
    found = {pair: make(*pair, args.kept) for pair in pairs if kept_file(*pair, args.kept).exists()}
    (ROOT / "docs" / "scaling.md").write_text(report(found))


if __name__ == "__main__":
    main()
