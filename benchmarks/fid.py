"""FID of a folder of pictures beside pytorch-fid, on this machine's CPUs, and its memory over many features.

    pip install pytorch-fid torchvision
    python benchmarks/fid.py [--images 2000] [--size 256] [--rounds 1] [--memory]

Writes pictures (half PNG, half JPEG) and random weights of the published network to a temporary folder. In each round a
process of its own computes the FID of the pictures and statistics that are saved beforehand, first by pytorch-fid's
function with its command's defaults (batches of 50, a decoding process for each CPU), then by this project; both times
are those of the whole process but for its imports, with this project's compilation. Printed are seconds, pictures per
second, peak memory, the quotient of the times (the median over rounds), and how much the figures differ.

--memory: the peak of memory that aggregating 3,000 and 30,000 features in a file allocates, instead.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
BATCH, PART = 50, 256
WIDTH = 2048


def write_pictures(folder: pathlib.Path, count: int, size: int) -> None:
    """Smooth shapes with a little noise, as photographs compress."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
        smooth = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), np.float32)
        pixels = np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:05}.{'png' if i % 2 else 'jpg'}", quality=92)


def write_weights(folder: pathlib.Path) -> None:
    """inception.pth, random, and statistics.npz of features that are not."""
    import torch

    from nextgpt_jax.evaluation.metrics.gaussians import Gaussian
    from tests.models.features import originals

    torch.save(originals.randomised(originals.Inception()).state_dict(), folder / "inception.pth")
    features = np.abs(np.random.default_rng(1).standard_normal((2 * WIDTH, WIDTH)))
    Gaussian.of([features]).save(folder / "statistics.npz")


def theirs(folder: pathlib.Path) -> float:
    """FID by pytorch-fid."""
    import torch

    from tests.originals import fid_weights, package

    workers = min(8, len(os.sched_getaffinity(0)))
    state = torch.load(folder / "inception.pth")
    package("pytorch_fid.inception")
    score = package("pytorch_fid.fid_score")
    paths = [str(folder / "pictures"), str(folder / "statistics.npz")]
    with fid_weights(state):
        return timed(lambda: score.calculate_fid_given_paths(paths, BATCH, "cpu", WIDTH, workers))


def ours(folder: pathlib.Path) -> float:
    """FID by this project, in parts as an evaluation measures them."""
    from nextgpt_jax.evaluation.metrics.fid import FID
    from nextgpt_jax.evaluation.types import Outcome, Sample

    def figure() -> float:
        metric = FID(folder / "inception.pth", [], references=folder / "statistics.npz")
        files = sorted((folder / "pictures").iterdir())
        outcomes = [Outcome(Sample(file.name, ""), media={"image": [file]}) for file in files]
        parts = [metric.measure(outcomes[start : start + PART]) for start in range(0, len(files), PART)]
        return metric.aggregate(np.concatenate(parts))["FID"]

    return timed(figure)


def timed(figure) -> float:
    start = time.perf_counter()
    found = figure()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"figure": float(found), "seconds": seconds, "peak": peak}))
    return found


def in_process(side: str, folder: pathlib.Path) -> dict[str, float]:
    """The result of a side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def compare(images: int, size: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_pictures(folder / "pictures", images, size)
        write_weights(folder)
        quotients = []
        for _ in range(rounds):
            found = {side: in_process(side, folder) for side in ("theirs", "ours")}
            quotients.append(found["theirs"]["seconds"] / found["ours"]["seconds"])
            for side, row in found.items():
                name = {"theirs": "pytorch-fid", "ours": "this project"}[side]
                rate = images / row["seconds"]
                print(f"{name}: {row['seconds']:.0f} s, {rate:.1f} pictures/s, {row['peak']:.1f} GiB", flush=True)
            difference = found["ours"]["figure"] / found["theirs"]["figure"] - 1
            print(
                f"quotient {quotients[-1]:.2f}, FID {found['ours']['figure']:.4f}, differs by {difference:.1e}",
                flush=True,
            )
        print(f"{images} pictures of {size} pixels: {statistics.median(quotients):.2f} x as fast as pytorch-fid")


def memory() -> None:
    """Prints the allocated peak of moments of features in a file."""
    import tracemalloc

    from nextgpt_jax.evaluation.metrics.gaussians import Gaussian, blocks

    with tempfile.TemporaryDirectory() as name:
        for count in (3_000, 30_000):
            file = np.lib.format.open_memmap(f"{name}/{count}.npy", "w+", np.float32, (count, WIDTH))
            for start in range(0, count, 1000):
                file[start : start + 1000] = np.random.default_rng(start).standard_normal((1000, WIDTH), np.float32)
            tracemalloc.start()
            start = time.perf_counter()
            Gaussian.of(blocks(np.load(f"{name}/{count}.npy", mmap_mode="r"), WIDTH))
            seconds, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1] / 2**20
            tracemalloc.stop()
            print(f"{count:,} features: {seconds:.1f} s, {peak:.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        {"ours": ours, "theirs": theirs}[options.side](options.folder)
    elif options.memory:
        memory()
    else:
        compare(options.images, options.size, options.rounds)


if __name__ == "__main__":
    main()
