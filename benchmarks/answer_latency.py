"""Latency of an answer of the keypad model with one medium: the whole process, cold and warm, and a warm engine.

    python benchmarks/answer_latency.py

"cold" starts with an empty compilation cache, "warm" with the one that the cold run filled.
"""

import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import jax

from configs.keypad import get_config
from nextgpt_jax.cli.infer import load_engine
from nextgpt_jax.inference.requests import make_request

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROMPTS = {
    "image": "please draw a seven",
    "audio": "play the tone of key seven",
    "video": "show me a seven moving left",
}


def process(cache: str, output: str) -> float:
    """Wall time of one infer.py process, in seconds."""
    options = [f"--prompt={PROMPTS['image']}", f"--output={output}"]
    command = [sys.executable, "infer.py", "--config=configs/keypad.py", *options]
    start = time.perf_counter()
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Prints one row per measurement."""
    print(f"jax {jax.__version__}, {platform.machine()}, {os.cpu_count()} cores")
    print("| from prompt to file | seconds |")
    print("|---|---|")
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as output:
        print(f"| image, process, empty compilation cache | {process(cache, output):.1f} |")
        warm = statistics.median(process(cache, output) for _ in range(3))
        print(f"| image, process, warm compilation cache | {warm:.1f} |")
    engine = load_engine(get_config(), "")
    for name, prompt in PROMPTS.items():
        times = []
        for seed in range(11):
            request = make_request(prompt, {}, {"seed": seed, "modality": name}, engine.config, engine.defaults)
            start = time.perf_counter()
            assert engine.generate([request])[0].media[0].modality == name
            times.append(time.perf_counter() - start)
        print(f"| {name}, warm engine | {statistics.median(times[1:]):.2f} |")


if __name__ == "__main__":
    main()
