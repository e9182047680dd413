"""Preparing data: its rate against the bare encoder's, and the rate of reading prepared against raw data.

    python benchmarks/prepare.py [--images 2000] [--folder DIR]

The encoder is ImageBind at a middle size, with random weights; images are JPEGs of 512 pixels. All rates are of one
run.
"""

import argparse
import json
import math
import os
import pathlib
import tempfile
import time

import jax
import numpy as np
from PIL import Image

from nextgpt_jax.data.pipeline import batches
from nextgpt_jax.mesh import data_parallel_mesh, make_mesh
from nextgpt_jax.prepare.encoding import BatchEncoder
from nextgpt_jax.prepare.run import Options, Preparer
from nextgpt_jax.training.prepared import prepared_dtype
from nextgpt_jax.training.samples import make_example_builder, read_usable
from nextgpt_jax.weights import assemble
from nextgpt_jax.weights.frozen import load_encoders
from nextgpt_jax.weights.load import load_system
from tests import tiny

BATCH = 32
ENCODER = {
    "modalities": ["vision"], "vision_embed_dim": 384, "vision_num_blocks": 4, "vision_num_heads": 6,
    "out_embed_dim": 1024, "kernel_size": [2, 14, 14], "image_size": 224,
}  # fmt: skip


def write_images(folder: pathlib.Path, count: int) -> None:
    """Smooth random images and their captions."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
        coarse.resize((512, 512), Image.Resampling.BICUBIC).save(folder / "images" / f"{i}.jpg", quality=90)
    rows = [{"image_name": f"{i}.jpg", "caption": f"a {'one two three'.split()[i % 3]}"} for i in range(count)]
    (folder / "captions.json").write_text(json.dumps(rows))


def bare_rate(preparer: Preparer, config, count: int) -> float:
    """Images per second of the encoder alone, on images that are in memory."""
    parts = assemble.resolve_parts(config.model)
    cfg = assemble.model_config(parts)
    mesh = data_parallel_mesh(make_mesh(config.mesh))
    with jax.set_mesh(mesh):
        model = load_encoders(parts, cfg, with_encoders=True, captions=(), mesh=mesh)
        encoder = BatchEncoder(model, mesh, assemble.frozen_dtype(config.model.dtype), "float32", BATCH)
        image = np.random.default_rng(0).normal(size=(224, 224, 3)).astype(np.float32)
        seconds = []
        for number in (BATCH, count):  # the first compiles
            begin = time.perf_counter()
            for i in range(number):
                encoder.add("media", "image", i, image, BATCH)
            encoder.flush({("media", "image"): BATCH})
            seconds.append(time.perf_counter() - begin)
    return count / seconds[1]


def loader_rate(config, builder, samples, wanted: int) -> float:
    """Samples per second of the loader."""
    steps = math.ceil(wanted / config.data.batch_size)
    data = batches(samples, builder, config.data, 0, range(steps + 2))
    next(data)
    begin = time.perf_counter()
    for _ in range(steps):
        next(data)
    return steps * config.data.batch_size / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--folder", default="")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder or None) as name:
        root, count = pathlib.Path(name), arguments.images
        os.environ["NEXTGPT_CACHE"] = str(root / "cache")
        tiny.IMAGEBIND.clear()
        tiny.IMAGEBIND.update(ENCODER)
        tiny.write_hub(root / "hub")
        write_images(root / "pictures", count)
        config = tiny.experiment(root, "stage1", tiny.PICTURES)
        config.data.batch_size, config.data.max_length = 64, 64
        preparer = Preparer(config, root / "prepared", Options(batch_size=BATCH))
        bare = bare_rate(preparer, config, count)
        begin = time.perf_counter()
        preparer.write(range(preparer.count))
        preparer.merge()
        rate = count / (time.perf_counter() - begin)
        again = bare_rate(preparer, config, count // 4)
        mean = (bare + again) / 2
        print(
            f"bare encoder {bare:.1f} images/s, after it {again:.1f}; prepared {rate:.1f} images/s: {rate / mean:.2f} x"
        )

        loaded = load_system(config.model, decoder_parts=())
        samples, spec, _ = read_usable(config, config.data.captions)
        raw = loader_rate(config, make_example_builder(config, loaded, spec), samples, min(count, 1000))
        config.data.captions = str(root / "prepared")
        samples, spec, _ = read_usable(config, config.data.captions)
        builder = make_example_builder(config, loaded, spec, prepared_dtype([samples]))
        ready = loader_rate(config, builder, samples, 40_000)
        print(f"loader: raw {raw:.0f} samples/s, prepared {ready:.0f} samples/s: {ready / raw:.1f} x")
        size = sum(file.stat().st_size for file in (root / "prepared").glob("*.array_record"))
        print(f"disk: {size / count:.0f} bytes per sample")


if __name__ == "__main__":
    main()
