"""Files to the encoder's inputs by the name of their modality."""

import numpy as np
import pytest
from PIL import Image

from nextgpt_jax import media
from nextgpt_jax.errors import UserError
from nextgpt_jax.models.encoders.imagebind import ImageBindConfig

CONFIG = ImageBindConfig(
    8, image_size=112, video_clips=2, video_crops=3, audio_clips=2, audio_num_mel_bins=32, audio_target_len=40
)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    names = {"image": "a.png", "video": "a.mp4", "audio": "a.wav", "depth": "d.png", "thermal": "t.npy", "imu": "i.csv"}
    paths = {name: tmp_path / file for name, file in names.items()}
    media.write("image", paths["image"], rng.integers(0, 256, (30, 40, 3), np.uint8))
    media.write("video", paths["video"], media.Video(rng.integers(0, 256, (6, 30, 40, 3), np.uint8), 2.0))
    media.write("audio", paths["audio"], media.Audio(rng.uniform(-1, 1, 8000), 8000))
    Image.fromarray(rng.integers(0, 65536, (30, 40), np.uint16)).save(paths["depth"])
    np.save(paths["thermal"], rng.uniform(0, 1, (30, 40)))
    np.savetxt(paths["imu"], rng.normal(size=(99, 6)), delimiter=",")
    return paths


@pytest.mark.parametrize("modality", ["image", "video", "audio", "depth", "thermal", "imu"])
def test_from_files_to_inputs(files, modality):
    array = media.load(modality, files[modality], CONFIG)
    assert array.dtype == np.float32
    assert array.shape == CONFIG.input_shape(modality)
    assert np.isfinite(array).all()


@pytest.mark.parametrize(
    ("modality", "content", "reason"),
    [
        ("image", np.zeros((1, 65, 3), np.uint8), "narrow"),
        ("video", np.zeros((2, 2, 65, 1, 3), np.uint8), "narrow"),
        ("depth", np.zeros((1, 65), np.float32), "narrow"),
        ("thermal", np.zeros((65, 1), np.float32), "narrow"),
        ("audio", np.zeros(399, np.float32), "short"),
    ],
)
def test_what_shows_too_little_is_refused(modality, content, reason):
    with pytest.raises(UserError, match=reason):
        media.preprocess(modality, content, CONFIG)


def test_the_file_that_shows_too_little_is_named(tmp_path):
    media.write("image", tmp_path / "line.png", np.zeros((1, 65, 3), np.uint8))
    with pytest.raises(UserError, match="line.png: an image of 65 x 1 pixels is too narrow"):
        media.load("image", tmp_path / "line.png", CONFIG)
