"""What a run does with its data files before it loads weights: seconds and memory, at the first start and later.

    python benchmarks/data_start.py [--rows N] [--one_folder] [--lengths N] [--folder FOLDER]

Captions of about 80 characters and names of (empty) image files, as JSON lines, a JSON list and CSV, are written to a
temporary folder: the images in folders of 10,000, or all in one. A new process with an empty cache folder opens a file
and surveys it, then another finds what the first kept. --lengths: tokens of so many samples, with a byte-level
tokenizer of 32,000 ids that is trained on them. --folder: where the files are kept, and found again.

CPU seconds are those of all processes, and depend less than seconds on what else the machine does. Memory is the
largest resident set of the process and of any other that it starts, with the libraries, mapped files included.
"""

import argparse
import csv
import datetime
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARD = 10_000
WORDS = ("a", "dog", "that", "runs", "over", "the", "green", "field", "with", "its", "ball", "near", "old", "houses")


def row(i: int, one_folder: bool) -> dict[str, str]:
    """A caption, and the name of its image."""
    words = " ".join(WORDS[(i // 7**k + k) % len(WORDS)] for k in range(14))
    name = f"{i:09d}.jpg" if one_folder else f"{i // SHARD:05d}/{i:09d}.jpg"
    return {"caption": f"{words}, number {i}", "image_name": name}


def write(folder: pathlib.Path, rows: int, one_folder: bool) -> None:
    """The three files and the images."""
    with (
        (folder / "lines.jsonl").open("w") as lines,
        (folder / "list.json").open("w") as items,
        (folder / "table.csv").open("w", newline="") as table,
    ):
        cells = csv.writer(table)
        cells.writerow(["caption", "image_name"])
        items.write("[")
        for i in range(rows):
            record = row(i, one_folder)
            text = json.dumps(record)
            lines.write(f"{text}\n")
            items.write(f",\n{text}" if i else text)
            cells.writerow(record.values())
            image = folder / record["image_name"]
            if not i % SHARD:
                image.parent.mkdir(exist_ok=True)
            os.close(os.open(image, os.O_CREAT | os.O_WRONLY))
        items.write("]\n")


def start(path: str, tokens: bool) -> None:
    """Opens and surveys a file, or measures the lengths of its samples, and prints what that takes."""
    before = time.perf_counter()
    from nextgpt_jax.data.readers import read_samples
    from nextgpt_jax.data.survey import survey

    samples = read_samples("captioning", path)
    if tokens:
        count = measure_lengths(samples)
    else:
        found = survey(samples, 8, 0.01)
        samples = found.usable(samples)
        count = len(samples)
        assert not found.problems and found.inputs == {"image": 1}
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu, peaks = sum(u.ru_utime + u.ru_stime for u in used), [u.ru_maxrss / 1024 for u in used]
    print(json.dumps([count, time.perf_counter() - before, cpu, *peaks]))


def measure_lengths(samples) -> int:
    """The number of samples whose lengths were found."""
    import tokenizers
    import transformers

    from nextgpt_jax.data.examples import BatchSpec, ExampleBuilder
    from nextgpt_jax.data.lengths import lengths
    from nextgpt_jax.modalities import Vocabulary
    from nextgpt_jax.templates import TEMPLATES

    core = tokenizers.ByteLevelBPETokenizer()
    core.train_from_iterator((samples[i][0].assistant[0] for i in range(2000)), 32_000, show_progress=False)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core._tokenizer)
    builder = ExampleBuilder(
        tokenizer, {}, {}, Vocabulary(32_000), {}, 512, BatchSpec({}, {}), TEMPLATES["per_segment"]
    )
    return len(lengths(samples, builder))


def report(name: str, path: pathlib.Path, cache: pathlib.Path, tokens: bool = False) -> None:
    """Two lines: the first start, and the second."""
    environment = os.environ | {"NEXTGPT_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    for which in ("first", "second"):
        argv = [sys.executable, __file__, "--start", str(path), *["--tokens"] * tokens]
        done = subprocess.run(argv, env=environment, check=True, capture_output=True, text=True)
        count, seconds, cpu, own, other = json.loads(done.stdout.splitlines()[-1])
        print(f"| {name} | {count:,} | {which} | {seconds:.1f} | {cpu:.1f} | {own:.0f} | {other:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--one_folder", action="store_true")
    parser.add_argument("--lengths", type=int, default=300_000)
    parser.add_argument("--folder")
    parser.add_argument("--start", help=argparse.SUPPRESS)
    parser.add_argument("--tokens", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        start(args.start, args.tokens)
        return
    with tempfile.TemporaryDirectory() as place:
        folder, cache = pathlib.Path(args.folder or place), pathlib.Path(place) / "cache"
        if not (folder / "lines.jsonl").exists():
            write(folder, args.rows, args.one_folder)
        sizes = ", ".join(f"{path.name} {path.stat().st_size / 1e6:.0f} MB" for path in sorted(folder.glob("*.*s*")))
        print(f"{datetime.date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        print(f"load before: {os.getloadavg()[0]:.1f}; {sizes}\n")
        print("| file | rows | start | seconds | CPU seconds | MiB | MiB, others |\n|---|---|---|---|---|---|---|")
        for name in ("lines.jsonl", "list.json", "table.csv"):
            report(name, folder / name, cache)
        if args.lengths:
            some = pathlib.Path(place) / "some.jsonl"
            some.write_text("".join(json.dumps(row(i, args.one_folder)) + "\n" for i in range(args.lengths)))
            report("lengths", some, cache, tokens=True)


if __name__ == "__main__":
    main()
