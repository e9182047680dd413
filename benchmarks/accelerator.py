"""Times the paper's system on the accelerator at hand, and its PyTorch originals on the same device in the same run.

    python benchmarks/accelerator.py [CASE ...] [--limit 480] [--json accelerator.json]
    python benchmarks/accelerator.py --small         tiny sizes: checks that every case and peer runs; also on a CPU

Cases run in order of importance, each in its own process with a time limit, until --limit seconds are over. Weights are
random and made on the host, which compiles nothing.

device     a copy, and a bfloat16 product: the references of the shares below
language   7B: prefill of 512 tokens, and decoding of 128 greedy ones (without the prefill) for 1, 8 and 32 rows;
           peers: transformers' LlamaForCausalLM with SDPA, eager and compiled (static cache)
train      7B: 20 steps of stages 3, 1 and 2: 16 rows of 512 tokens, one input and one output image, remat dots
image      Stable Diffusion 1.5, 512 pixels, 50 steps with guidance, and the autoencoder; peer: diffusers
audio      AudioLDM-L, 9 seconds; peer: diffusers
video      Zeroscope, 24 frames of 576 x 320; peer: diffusers
attention  kernels of nextgpt_jax.models.attention and plain XLA, for the shapes of the decoders
keypad     infer.py on six requests with an empty and a warm compilation cache, and its answers compared with the CPU's

Peers run if PyTorch is installed, also in bfloat16; "compiled" is torch.compile(mode="reduce-overhead"). The share of
the peak FLOP/s is that of the model FLOPs in the maker's published figure.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch uses the same device

from accelerator_cases import CASES, ROOT
from measuring import HEAD, Result
from peers import have_peers


def versions() -> dict[str, str]:
    """Versions of the packages, and the device."""
    from importlib import metadata

    names = ("jax", "flax", *(("torch", "transformers", "diffusers") if have_peers() else ()))
    found = {name: metadata.version(name) for name in names}
    try:
        command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        found["card"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        found["card"] = f"none: {platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    return found | {"date": time.strftime("%Y-%m-%d")}


def run_case(name: str, small: bool, seconds: float) -> list[Result]:
    """Runs a case in its own process. Rows found before the time limit are kept."""
    with tempfile.TemporaryDirectory() as folder:
        rows, log = pathlib.Path(folder, "rows"), pathlib.Path(folder, "log")
        rows.touch()
        command = [sys.executable, __file__, name, f"--rows={rows}", *["--small"] * small]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        with log.open("w") as file:
            try:
                case = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
                status = case.wait(timeout=seconds)
                ended = "" if not status else f"exit status {status}: {last_lines(log)}"
            except subprocess.TimeoutExpired:
                os.killpg(case.pid, signal.SIGKILL)  # with its child processes
                case.wait()
                ended = f"stopped after {seconds:.0f} s"
        if ended:
            print(f"{name}: {ended}", file=sys.stderr, flush=True)
        results = [Result(**json.loads(line)) for line in rows.read_text().splitlines()]
        return list({(result.case, result.setting): result for result in results}.values())  # the last has all peers


def last_lines(log: pathlib.Path, count: int = 20) -> str:
    return "\n".join(log.read_text().strip().splitlines()[-count:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(CASES)}; all by default")
    parser.add_argument("--limit", type=float, default=480, help="seconds for all cases together")
    parser.add_argument("--json", type=pathlib.Path, help="also write the results to this file")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--rows", type=pathlib.Path, help=argparse.SUPPRESS)  # runs one case in this process
    args = parser.parse_args()
    if unknown := [name for name in args.cases if name not in CASES]:
        parser.error(f"unknown case {unknown[0]!r}: choose from {', '.join(CASES)}")
    if args.rows:
        for result in CASES[args.cases[0]][0](args.small):
            with args.rows.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(result)) + "\n")
        return
    begin, found, about = time.perf_counter(), [], versions()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(f"{HEAD}\n{'|---' * 8}|", flush=True)
    for name in args.cases or CASES:
        left = args.limit - (time.perf_counter() - begin)
        if left < 10:
            print(f"{name}: no time left", file=sys.stderr)
            continue
        results = run_case(name, args.small, min(left, CASES[name][1] * (10 if args.small else 1)))
        print("".join(f"{result.line()}\n" for result in results), end="", flush=True)
        found += results
    print(f"\nall in {time.perf_counter() - begin:.0f} s")
    if args.json:
        results = [dataclasses.asdict(result) for result in found]
        args.json.write_text(json.dumps({"versions": about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
