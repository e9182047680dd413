"""Converts full-size random checkpoints, and prints peak memory and the speed relative to a copy of the same files.

    python benchmarks/convert_memory.py [COMPONENT ...] [--folder DIR] [--load]

COMPONENT: llama (Vicuna-7B, 13.5 GB), imagebind, stable_diffusion, text_to_video, audioldm; default: all, one after the
other. Each is written below DIR as float16 in the hub's layout, copied, converted, restored (with --load) as float16,
and removed, so DIR needs space for two copies of the weights. Copy and conversion start with an empty page cache and
end when their bytes are on disk.

Printed are the peak resident memory of the converting process, seconds, and the speed relative to the copy; with --load
also the peak of a process that restores the converted parameters, and its excess over their size.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from nextgpt_jax.models import registry
from nextgpt_jax.models.diffusion.audioldm import AudioLDMConfig
from nextgpt_jax.models.diffusion.stable_diffusion import StableDiffusionConfig
from nextgpt_jax.models.diffusion.text_to_video import TextToVideoConfig
from nextgpt_jax.models.encoders.imagebind import ImageBindConfig
from nextgpt_jax.models.llms.llama import LlamaConfig
from nextgpt_jax.weights import components, matching
from nextgpt_jax.weights.safetensors_writer import save_safetensors
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, Tensor

CONFIGS = {
    "llama": LlamaConfig.vicuna_7b(),
    "imagebind": ImageBindConfig.huge(),
    "stable_diffusion": StableDiffusionConfig.sd15(),
    "text_to_video": TextToVideoConfig.zeroscope(),
    "audioldm": AudioLDMConfig.large(),
}
SHARD = 5 * 10**9
TOKENIZER = pathlib.Path(__file__).parent.parent / "examples" / "keypad" / "weights" / "base" / "llm"  # any


def write_random(component: str, folder: pathlib.Path) -> None:
    """Writes a checkpoint of random float16 weights in the hub's layout, tensor by tensor."""
    config = CONFIGS[component]
    folder.mkdir(parents=True)
    if component == "llama":
        sizes = dataclasses.asdict(config)
        sizes["eos_token_id"] = list(sizes.pop("eos_token_ids"))
        _write_json(folder / "config.json", {**sizes, "model_type": "llama"})
        for file in TOKENIZER.glob("tokenizer*"):
            shutil.copy(file, folder)
    elif component == "imagebind":
        _write_json(folder / "config.json", dataclasses.asdict(config))
    else:
        for name in config.component_classes:
            extra = {"normalize_before": False} if name == "vocoder" else {}
            _write_json(folder / name / "config.json", {**dataclasses.asdict(getattr(config, name)), **extra})
        scheduler = {**dataclasses.asdict(config.scheduler), "_class_name": "DDIMScheduler", "clip_sample": False}
        _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        _write_json(folder / "model_index.json", {"_class_name": registry.kind_of(config)})
    rng = np.random.default_rng(0)
    for part in components.COMPONENTS[component](folder):
        tensors = {
            key: Tensor(shape, np.dtype(np.float16), lambda shape=shape: _random(rng, shape))
            for key, shape in matching.torch_shapes(part.state, part.table).items()
        }
        save_safetensors(Checkpoint("random", tensors), folder / part.folder / part.file, shard_bytes=SHARD)


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Finite float16 numbers between 1/16 and 1, straight from random bits, which is fast."""
    bits = np.frombuffer(rng.bytes(2 * math.prod(shape)), np.uint16)
    return ((bits & 0x83FF) | 0x2C00).view(np.float16).reshape(shape)


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def weights(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.rglob("*.safetensors"))


def forget(folder: pathlib.Path) -> None:
    """Drops the files below a folder from the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy_seconds(source: pathlib.Path, target: pathlib.Path) -> float:
    """Seconds that a copy of the weights takes, until it is on disk."""
    forget(source)
    target.mkdir()
    begin = time.perf_counter()
    for i, file in enumerate(weights(source)):
        shutil.copyfile(file, target / f"{i}")
        with (target / f"{i}").open("rb") as copied:
            os.fsync(copied.fileno())
    seconds = time.perf_counter() - begin
    shutil.rmtree(target)
    return seconds


def run(*command: str) -> tuple[float, int]:
    """Runs a command; returns its seconds and peak resident bytes."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - begin, usage.ru_maxrss * 1024


def restore(component: str, folder: str) -> None:
    """Restores all parameters to the device as float16, as a loading process does."""
    import jax

    from nextgpt_jax.weights import orbax_params

    parts = components.COMPONENTS[component](pathlib.Path(folder))
    restored = [orbax_params.restore(pathlib.Path(folder) / p.folder, p.state, dtype=np.float16) for p in parts]
    jax.block_until_ready(restored)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("components", nargs="*", choices=[*CONFIGS, []], default=[])
    parser.add_argument("--folder", default=None, help="folder with enough free space; default: a temporary folder")
    parser.add_argument("--load", action="store_true")
    parser.add_argument("--restore", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.restore:
        restore(*args.restore)
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    columns = ["component", "weights", "peak memory", "copy", "conversion", "speed relative to the copy"]
    columns += ["loading: peak", "excess over its size"] * args.load
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for component in args.components or CONFIGS:
        with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
            source, output = pathlib.Path(scratch) / "source", pathlib.Path(scratch) / "output"
            write_random(component, source)
            size = sum(file.stat().st_size for file in weights(source))
            copied = copy_seconds(source, pathlib.Path(scratch) / "copy")
            forget(source)
            seconds, peak = run("-m", "convert", component, f"--source={source}", f"--output={output}")
            row = [component, f"{size / 1e9:.2f} GB", f"{peak / 2**30:.2f} GiB", f"{copied:.1f} s", f"{seconds:.1f} s"]
            row += [f"{copied / seconds:.2f} x"]
            if args.load:
                shutil.rmtree(source)
                _, peak = run(__file__, "--restore", component, str(output))
                row += [f"{peak / 2**30:.2f} GiB", f"{(peak - size) / 2**30:.2f} GiB"]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
