"""CPU time of the media readers, one file per format, beside that of another checkout.

    python benchmarks/media_readers.py [--baseline CHECKOUT] [--folder FOLDER] [--rounds N] [--only NAME ...]

The files are written to a temporary folder: 30 s of music (44.1 kHz, stereo) and of speech (16 kHz, mono, the encoder's
rate), a picture of two megapixels, 10 s of video, 2 s of animation. --folder reads the files of a folder instead. With
--baseline, one process for each checkout reads each file in turn, in alternating order; the ratio is this checkout's
shortest time over the baseline's. Times are those of all threads, which depend less than wall time on what else the
machine does, and count from the path to the array that `preprocess` takes.
"""

import argparse
import functools
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable

import av
import numpy as np
import soundfile
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
RATE = 44_100
SLICE = 0.1  # seconds of one measurement, at least
MODALITIES = {
    "audio": ("wav", "flac", "mp3", "m4a", "aac", "ogg", "opus"),
    "image": ("jpg", "jpeg", "png", "webp", "avif"),
    "video": ("mp4", "webm", "mkv", "mov", "gif"),
}


def sound() -> np.ndarray:
    """30 s of stereo at 44.1 kHz: a rising tone in noise, float32 [n, 2]."""
    t = np.arange(30 * RATE) / RATE
    noise = np.random.default_rng(0).normal(0, 0.02, (len(t), 2))
    return (0.4 * np.sin(2 * np.pi * (200 + 60 * t) * t)[:, None] + noise).astype(np.float32)


def picture(width: int, height: int, time: float = 0.0) -> np.ndarray:
    """A moving pattern with a little noise, uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width] / height
    waves = [np.sin(9 * x + 3 * time), np.sin(7 * y - 2 * time), np.sin(5 * (x + y) + time)]
    noise = np.random.default_rng(round(1000 * time)).normal(0, 3, (height, width, 3))
    return np.clip(127 + 120 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


def write_video(path: pathlib.Path, codec: str, **options: str) -> None:
    """10 s of 640 x 360 at 25 frames per second."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options=options, width=640, height=360, pix_fmt="yuv420p")
        for i in range(250):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture(640, 360, i / 25), format="rgb24")))
        file.mux(stream.encode())


def write_sound(folder: pathlib.Path, name: str, samples: np.ndarray, rate: int) -> None:
    """One file per format, of samples [n, channels]."""
    soundfile.write(folder / f"{name}.wav", samples, rate)
    soundfile.write(folder / f"{name}.flac", samples, rate)
    soundfile.write(folder / f"{name}.mp3", samples, rate)
    soundfile.write(folder / f"{name}.opus", samples, rate if rate == 16_000 else 48_000, "OPUS", format="OGG")
    with soundfile.SoundFile(folder / f"{name}.ogg", "w", rate, samples.shape[1], "VORBIS", format="OGG") as file:
        for start in range(0, len(samples), rate):  # long blocks overflow the stack of libsndfile's encoder
            file.write(samples[start : start + rate])
    for suffix in ("m4a", "aac"):
        write_aac(folder / f"{name}.{suffix}", samples, rate)


def write_aac(path: pathlib.Path, samples: np.ndarray, rate: int) -> None:
    """AAC at 128 kbit/s in the container of the path's suffix."""
    layout = "stereo" if samples.shape[1] == 2 else "mono"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=rate, layout=layout)
        for start in range(0, len(samples), 1024):
            block = np.ascontiguousarray(samples[start : start + 1024].T)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def write_files(folder: pathlib.Path) -> None:
    """One file per format."""
    samples, still = sound(), Image.fromarray(picture(1920, 1080))
    write_sound(folder, "music", samples, RATE)
    write_sound(folder, "speech", samples[: 30 * 16_000, :1], 16_000)
    still.save(folder / "picture.jpg", quality=90)
    still.save(folder / "picture.png")
    still.save(folder / "picture.webp", quality=90)
    still.save(folder / "picture.avif", quality=80, speed=10)
    write_video(folder / "h264.mp4", "libx264", preset="veryfast")
    write_video(folder / "vp9.webm", "libvpx-vp9", deadline="realtime", **{"cpu-used": "8"})
    frames = [Image.fromarray(picture(320, 240, i / 15)) for i in range(30)]
    for name in ("animation.gif", "animation.webp"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], duration=66)


def modality(path: pathlib.Path) -> str | None:
    """That of a file: by its suffix, and whether it is an animation."""
    found = next((name for name, kinds in MODALITIES.items() if path.suffix[1:].lower() in kinds), None)
    if found == "image":
        with Image.open(path) as image:
            return "video" if getattr(image, "is_animated", False) else "image"
    return found


def work() -> None:
    """A process of a checkout: reads paths from its input, answers with seconds, or null for what it can't read."""
    from nextgpt_jax import media

    warnings.simplefilter("ignore")
    readers: dict[str | None, Callable] = {
        "audio": media.read_audio, "image": media.read_image, "video": media.read_clips
    }  # fmt: skip
    for line in sys.stdin:
        path = pathlib.Path(json.loads(line))
        try:
            print(json.dumps(seconds(functools.partial(readers[modality(path)], path))), flush=True)
        except Exception:
            print("null", flush=True)


def seconds(call: Callable) -> float:
    """CPU time: the mean of as many calls as fill SLICE."""
    count, start = 0, time.process_time()
    while (passed := time.process_time() - start) < SLICE:
        call()
        count += 1
    return passed / count


class Reader:
    """A process that reads files with a checkout."""

    def __init__(self, checkout: pathlib.Path):
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--work"],
            env=os.environ | {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, path: pathlib.Path) -> float | None:
        """Of one reading; None if the checkout can't read it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(str(path)), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(readers: list[Reader], path: pathlib.Path, rounds: int) -> list[float | None]:
    """The shortest time of each reader."""
    best: list[float | None] = [reader.seconds(path) for reader in readers]  # which also warms up
    for i in range(rounds):
        for k in range(len(readers)) if i % 2 else reversed(range(len(readers))):
            if best[k] is not None and (found := readers[k].seconds(path)) is not None:
                best[k] = min(best[k], found)
    return best


def main() -> None:
    """Prints one row per file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=pathlib.Path, help="a checkout to compare with")
    parser.add_argument("--folder", type=pathlib.Path, help="read these files")
    parser.add_argument("--rounds", type=int, default=15, help="measurements per file and checkout")
    parser.add_argument("--only", nargs="*", default=[], help="names of files")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work()
    checkouts = [ROOT] + ([options.baseline.resolve()] if options.baseline else [])
    readers = [Reader(checkout) for checkout in checkouts]
    print(f"av {av.__version__}, soundfile {soundfile.__version__}, {platform.machine()}, {os.cpu_count()} cores\n")
    print("| file | MB | this checkout | baseline | ratio |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        if options.folder is None:
            write_files(pathlib.Path(temporary))
        paths = (options.folder or pathlib.Path(temporary)).rglob("*")
        for path in sorted(paths, key=lambda path: (modality(path) or "", path)):
            if modality(path) and (not options.only or path.name in options.only):
                found = [*measure(readers, path, options.rounds), None][:2]
                times = ["-" if x is None else f"{1000 * x:.1f} ms" for x in found]
                ratio = "-" if None in found else f"{found[0] / found[1]:.2f} x"
                print(f"| {path.name} | {path.stat().st_size / 1e6:.2f} | {' | '.join(times)} | {ratio} |", flush=True)
    for reader in readers:
        reader.close()


if __name__ == "__main__":
    main()
