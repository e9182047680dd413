"""Samples per second of the training data pipeline, beside a plain loop that does the same preprocessing.

    python benchmarks/data_throughput.py [image audio video] [--workers N] [--batch_size N] [--rounds N] [--length N]
    python benchmarks/data_throughput.py memory [--samples N]

Both read the same files, written to a temporary folder: JPEGs of 512 x 512, WAVs of 10 s (48 kHz, stereo), MP4s of 5 s
(H.264, 640 x 360, 25 frames per second). This project's side is what a run of stage 1 reads: records, tokens and media
of ImageBind's published sizes, in batches. The plain loop (plain_loaders.py) loads and preprocesses the media in a pool
of as many threads, or processes, and stacks them. The sides take turns; medians are printed, with the CPU time of all
threads and processes, and the largest difference between their results. Ratios are this project's speed relative to the
plain loop, and the inverse of the CPU times: on a machine with other work, rates say little.

`memory` prints the resident memory while many small samples (images, sounds and videos) are read.
"""

import argparse
import datetime
import json
import multiprocessing
import multiprocessing.pool
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import av
import jax
import numpy as np
import plain_loaders
import soundfile
import tokenizers
from PIL import Image
from transformers import PreTrainedTokenizerFast

from nextgpt_jax.config import DataConfig
from nextgpt_jax.data.examples import BatchSpec, ExampleBuilder
from nextgpt_jax.data.pipeline import batches
from nextgpt_jax.data.readers import Samples, read_samples
from nextgpt_jax.data.survey import survey
from nextgpt_jax.modalities import Vocabulary
from nextgpt_jax.models.encoders.imagebind import ImageBindConfig
from nextgpt_jax.templates import TEMPLATES

CAPTION = "a quiet street with a red car, {} people and a dog that looks at them"
FILES = {"image": 64, "audio": 16, "video": 8}  # that are written
COUNTS = {"image": 20, "audio": 10, "video": 1}  # batches of a measurement, at a batch size of 16 (video: 8)
SIDES = ("this project", "plain, threads", "plain, processes")


def texture(height: int, width: int, seed: int, noise: float) -> np.ndarray:
    """Something like a photo: detail at all scales, uint8 [height, width, 3]."""
    rng, total = np.random.default_rng(seed), np.zeros((height, width, 3))
    for size in (4, 8, 16, 32, 64, 128, 256):
        small = Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8))
        total += (np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)) - 127.5) * size**-0.7
    return np.clip(127 + 1.5 * total + rng.normal(0, noise, total.shape), 0, 255).astype(np.uint8)


def write_video(path: pathlib.Path, seed: int, seconds: float = 5, height: int = 360, width: int = 640) -> None:
    """A camera that moves over a scene, as libx264 codes it by default."""
    scene = texture(height * 2, width * 2, seed, 2.0)
    rng = np.random.default_rng(seed)
    count = round(25 * seconds)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, width=width, height=height, pix_fmt="yuv420p")
        for i in range(count):
            top, left = height * i // (2 * count), width * i // (2 * count)
            pixels = scene[top : top + height, left : left + width] + rng.normal(0, 1.0, (height, width, 1))
            frame = av.VideoFrame.from_ndarray(np.clip(pixels, 0, 255).astype(np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def write_sound(path: pathlib.Path, seed: int, seconds: float = 10, rate: int = 48_000, channels: int = 2) -> None:
    """A rising tone in noise, 16 bits."""
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.05, (len(t), channels))
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * (200 + 300 * t) * t)[:, None] + noise, rate)


def write_files(folder: pathlib.Path, modality: str) -> list[pathlib.Path]:
    """The media of a case."""
    paths = []
    for i in range(FILES[modality]):
        paths.append(folder / f"{i}.{dict(image='jpg', audio='wav', video='mp4')[modality]}")
        if modality == "image":
            Image.fromarray(texture(512, 512, i, 6.0)).save(paths[-1], quality=90)
        else:
            {"audio": write_sound, "video": write_video}[modality](paths[-1], i)
    return paths


def make_samples(
    path: pathlib.Path, media: list[tuple[str, pathlib.Path]], encoder: ImageBindConfig
) -> tuple[Samples, ExampleBuilder]:
    """What a run of stage 1 makes of a new file of pairs of a medium and a caption."""
    os.environ["NEXTGPT_CACHE"] = str(path.parent)
    number = max(len(media), 4096)
    pairs = [media[i % len(media)] for i in range(number)]
    records = [{"caption": CAPTION.format(i), f"{kind}_name": name.name} for i, (kind, name) in enumerate(pairs)]
    path.write_text(json.dumps(records))
    samples = read_samples("captioning", str(path))
    found, text = survey(samples, 8), tokenizer()
    builder = ExampleBuilder(
        tokenizer=text,
        caption_tokenizers={},
        caption_lengths={},
        vocabulary=Vocabulary(len(text)),
        encoders=dict.fromkeys(("image", "video", "audio"), encoder),
        max_length=512,
        spec=BatchSpec(found.inputs, found.outputs),
        template=TEMPLATES["reference"],
    )
    return found.usable(samples), builder


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, as those of Llama 3 and Qwen2.5 are."""
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator([CAPTION, "0123456789"], vocab_size=400, special_tokens=["<s>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, bos_token="<s>")


def cpu_seconds(processes: list[int]) -> float:
    """CPU time of this process and others, on Linux."""
    return time.process_time() + sum(time.clock_gettime(~pid << 3 | 2) for pid in processes)


class Case:
    """The sides of one comparison: each makes `count` batches."""

    def __init__(self, modality: str, folder: pathlib.Path, options: argparse.Namespace):
        self._paths = write_files(folder, modality)
        self.modality, self.size = modality, options.batch_size or (8 if modality == "video" else 16)
        self.count = COUNTS[modality] * options.length
        media = [(modality, path) for path in self._paths]
        self._samples, self._builder = make_samples(folder / "records.json", media, ImageBindConfig(1024))
        self._config = DataConfig(batch_size=self.size, num_workers=options.workers)
        self._threads = multiprocessing.pool.ThreadPool(options.workers)
        self._processes = multiprocessing.get_context("spawn").Pool(options.workers)
        self._pids = [process.pid for process in self._processes._pool]

    def close(self) -> None:
        """Ends the workers."""
        self._threads.terminate()
        self._processes.terminate()

    def _ours(self) -> Iterator[np.ndarray]:
        made = batches(self._samples, self._builder, self._config, 0, range(self.count), on_problem=fail)
        return (batch["media"][self.modality]["input"] for batch in made)

    def _plain(self, pool: multiprocessing.pool.Pool) -> Iterator[np.ndarray]:
        names = [str(self._paths[i % len(self._paths)]) for i in range(self.count * self.size)]
        found = pool.imap(plain_loaders.LOADERS[self.modality], names)
        return (np.stack([next(found) for _ in range(self.size)]) for _ in range(self.count))

    def run(self, side: str) -> tuple[float, float]:
        """Samples per second and CPU seconds per sample."""
        made = {
            "this project": self._ours,
            "plain, threads": lambda: self._plain(self._threads),
            "plain, processes": lambda: self._plain(self._processes),
        }[side]()
        begin, used = time.perf_counter(), cpu_seconds(self._pids)
        assert sum(len(batch) for batch in made) == (samples := self.count * self.size)
        return samples / (time.perf_counter() - begin), (cpu_seconds(self._pids) - used) / samples

    def difference(self) -> float:
        """The largest between the results of the two for a file, over all files."""
        found = []
        for i, path in enumerate(self._paths):
            ours = self._builder(self._samples[i])["media"][self.modality]["input"]
            plain = plain_loaders.in_our_layout(self.modality, plain_loaders.LOADERS[self.modality](str(path))[None])
            found.append(np.abs(ours - plain).max())
        return float(max(found))


def fail(number: int, problem: object) -> None:
    """No file of a benchmark is unreadable."""
    raise AssertionError(problem)


def compare(modality: str, options: argparse.Namespace) -> str:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        case = Case(modality, pathlib.Path(folder), options)
        try:
            difference = case.difference()
            found: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
            for i in range(-1, options.rounds):
                for side in SIDES if i % 2 else reversed(SIDES):
                    row = case.run(side)
                    if i >= 0:  # the first round warms up
                        found[side].append(row)
        finally:
            case.close()
    rates = {side: statistics.median(rate for rate, _ in rows) for side, rows in found.items()}
    used = {side: statistics.median(seconds for _, seconds in rows) for side, rows in found.items()}
    ratios = {
        side: statistics.median(ours / plain for (ours, _), (plain, _) in zip(found[SIDES[0]], found[side]))
        for side in SIDES[1:]
    }
    cells = [
        modality,
        *(f"{rates[side]:.1f}/s" for side in SIDES),
        *(f"{ratios[side]:.2f} x; CPU {used[side] / used[SIDES[0]]:.2f} x" for side in SIDES[1:]),
        *(f"{1000 * used[side]:.1f} ms" for side in SIDES),
        f"{difference:.1e}",
    ]
    return f"| {' | '.join(cells)} |"


SMALL = ImageBindConfig(
    8,
    modalities=("vision", "audio"),
    image_size=28,
    audio_num_mel_bins=16,
    audio_target_len=20,
    audio_clips=1,
    video_clips=1,
    clip_seconds=0.2,
)


def memory(options: argparse.Namespace) -> None:
    """Prints the resident memory of a long run over small samples."""
    with tempfile.TemporaryDirectory() as name:
        folder, media = pathlib.Path(name), []
        for i in range(100):
            kind = "video" if i % 50 == 0 else "audio" if i % 5 == 0 else "image"
            media.append((kind, folder / f"{i}.{dict(image='jpg', audio='wav', video='mp4')[kind]}"))
            if kind == "image":
                Image.fromarray(texture(40, 40 + i, i, 6.0)).save(media[-1][1])
            elif kind == "audio":
                write_sound(media[-1][1], i, 0.2, 16_000, 1)
            else:
                write_video(media[-1][1], i, 0.2, 32, 48)
        samples, builder = make_samples(folder / "records.json", media, SMALL)
        size = options.batch_size or 16
        config = DataConfig(batch_size=size, num_workers=options.workers)
        total, seen, begin = -(-options.samples // size), 0, time.perf_counter()
        print("| samples | resident memory | samples/s |\n|---|---|---|")
        for i, batch in enumerate(batches(samples, builder, config, 0, range(total), on_problem=fail)):
            before, seen = seen, seen + len(batch["tokens"])
            if i + 1 == total or any(before < mark <= seen for mark in (1_000, 10_000, 50_000, 100_000)):
                rate = seen / (time.perf_counter() - begin)
                print(f"| {seen:,} | {resident():.1f} MiB | {rate:.0f} |", flush=True)


def resident() -> float:
    """MiB of this process, on Linux."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Prints one row per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="image, audio, video or memory; by default the first three")
    parser.add_argument("--workers", type=int, default=2, help="threads; of the plain loop also processes")
    parser.add_argument("--batch_size", type=int, help="examples; 16, of videos 8, by default")
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each side")
    parser.add_argument("--length", type=int, default=1, help="factor on the samples of a measurement")
    parser.add_argument("--samples", type=int, default=100_000, help="of the memory case")
    options = parser.parse_args()
    now, cores = datetime.date.today(), os.cpu_count()
    print(f"{now}, {processor()}, {cores} cores, {options.workers} workers, jax {jax.__version__}, av {av.__version__}")
    cases = options.cases or list(FILES)
    if "memory" in cases:
        memory(options)
    if wanted := [name for name in FILES if name in cases]:
        heads = ["media", *SIDES, *(f"ratio to {side}" for side in SIDES[1:]), *(f"CPU, {side}" for side in SIDES),
                 "difference"]  # fmt: skip
        print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        for name in wanted:
            print(compare(name, options), flush=True)


def processor() -> str:
    """The CPU's name, on Linux."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")


if __name__ == "__main__":
    main()
