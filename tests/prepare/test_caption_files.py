"""Caption embeddings that the reference's code computed."""

import pathlib

import numpy as np
import pytest

from nextgpt_jax.data.readers import read_samples
from nextgpt_jax.errors import UserError
from nextgpt_jax.prepare.caption_files import caption_files, read_embedding
from nextgpt_jax.prepare.run import Options, Preparer
from nextgpt_jax.prompts import Output
from tests import tiny


def write(root, folder, given=""):
    config = tiny.experiment(root, "stage2", tiny.PICTURES)
    config.data.max_skipped = 0.2
    preparer = Preparer(config, folder, Options(records_per_shard=7, batch_size=4, caption_embeddings=str(given)))
    preparer.write(range(preparer.count))
    assert preparer.merge()
    return read_samples("generation", str(folder))


def shards(folder):
    return [path.read_bytes() for path in sorted(folder.glob("*.array_record"))]


def test_they_take_the_place_of_computed_ones(tiny_root, tmp_path):
    samples = write(tiny_root, tmp_path / "computed")
    found = [sample[-1].assistant[-1].embedding for sample in samples]
    (tmp_path / "npy").mkdir()
    for i in range(0, 12, 2):  # the others are computed
        np.save(tmp_path / "npy" / f"{i}.png.npy", found[i][None].astype(np.float64))
    write(tiny_root, tmp_path / "given", tmp_path / "npy")
    assert shards(tmp_path / "given") == shards(tmp_path / "computed")
    (tmp_path / "npy" / "4.png.npy").write_bytes(b"not an array")
    samples = write(tiny_root, tmp_path / "damaged", tmp_path / "npy")
    assert len(samples) == 11
    np.save(tmp_path / "npy" / "0.png.npy", found[0] * 1.5)
    with pytest.raises(UserError, match=r"0\.png\.npy is 0\.5 \(relative\) off what model\.image_decoder computes"):
        write(tiny_root, tmp_path / "other", tmp_path / "npy")


@pytest.mark.parametrize(
    "record, names",
    [
        ({"image_name": "images/7.jpg", "caption": "seven"}, ["7.jpg.npy"]),
        ({"mm_name": "7.mp4"}, ["7.mp4.npy"]),
        ({"image_caption_embeddings": "../x.npy"}, ["x.npy"]),
        ({"image_caption_embeddings": ["a.npy", "b.npy"], "image_name": "7.jpg"}, ["a.npy", "b.npy"]),
        ({"image_captions": ["seven"]}, [""]),
    ],
)
def test_their_names(record, names):
    outputs = [Output("image", "seven")] * len(names)
    folder = pathlib.Path("folder")
    assert caption_files(record, outputs, folder) == [folder / name for name in names]


@pytest.mark.parametrize(
    "values, message",
    [
        (np.zeros((3, 4), np.float32), r"is float32 \[3, 4\], and the text encoder gives \[2, 4\]"),
        (np.zeros((2, 4), np.int64), "is int64"),
        (np.full((2, 4), np.nan), "not finite"),
    ],
)
def test_files_that_do_not_fit(tmp_path, values, message):
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(UserError, match=message):
        read_embedding(tmp_path / "x.npy", (2, 4))
