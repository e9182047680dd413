"""The table of media: each modality by name, from files and from memory, and a row that a user adds."""

import numpy as np
import pytest
from PIL import Image

from nextgpt_jax import media
from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.models.encoders.imagebind import ImageBindConfig

RNG = np.random.default_rng(0)


ENCODER = ImageBindConfig(
    8, image_size=112, video_clips=2, video_crops=3, audio_clips=2, audio_num_mel_bins=32, audio_target_len=40
)
IMAGE = RNG.integers(0, 256, (20, 30, 3), np.uint8)
FRAMES = RNG.integers(0, 256, (8, 20, 30, 3), np.uint8)
SAMPLES = RNG.integers(-9000, 9000, 16000).astype(np.int16)
MAP = RNG.integers(0, 65536, (20, 30), np.uint16)
MOTION = RNG.normal(size=(50, 6))


def files(folder) -> dict[str, tuple]:
    """A file of each modality, and the same content in memory."""
    media.write("image", folder / "a.png", IMAGE)
    media.write("video", folder / "a.mp4", media.Video(FRAMES, 8.0))
    media.write("audio", folder / "a.wav", media.Audio(SAMPLES, 8000))
    Image.fromarray(MAP).save(folder / "d.png")
    np.save(folder / "i.npy", MOTION)
    return {
        "image": (folder / "a.png", IMAGE),
        "video": (folder / "a.mp4", media.read_video(folder / "a.mp4")),
        "audio": (str(folder / "a.wav"), (SAMPLES, 8000)),
        "depth": (folder / "d.png", MAP),
        "thermal": (folder / "d.png", Image.fromarray(MAP)),
        "imu": (folder / "i.npy", MOTION),
    }


@pytest.mark.parametrize("modality", MODALITIES)
def test_files_and_content_give_the_same_input(tmp_path, modality):
    path, content = files(tmp_path)[modality]
    np.testing.assert_array_equal(media.read(modality, path, ENCODER), media.from_content(modality, content, ENCODER))
    found = media.load(modality, path, ENCODER)
    assert found.dtype == np.float32
    assert found.shape == ENCODER.input_shape(modality)
    np.testing.assert_array_equal(found, media.load(modality, content, ENCODER))
    batch = np.full((3, *found.shape), np.nan, np.float32)
    media.load(modality, path, ENCODER, batch[1])
    np.testing.assert_array_equal(batch[1], found)
    assert np.isnan(batch[::2]).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_images_need_no_array_in_between(tmp_path, mode):
    picture = Image.fromarray(MAP) if mode == "I;16" else Image.fromarray(IMAGE).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    pixels = media.read("image", tmp_path / "a.png", ENCODER)
    found = media.load("image", tmp_path / "a.png", ENCODER)
    np.testing.assert_array_equal(found, media.preprocess("image", pixels, ENCODER))


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
def test_media_that_are_too_small_are_refused(modality, content, reason):
    with pytest.raises(UserError, match=reason):
        media.preprocess(modality, content, ENCODER)


def test_errors_name_the_file(tmp_path):
    media.write("image", tmp_path / "strip.png", np.zeros((1, 65, 3), np.uint8))
    with pytest.raises(UserError, match=f"{tmp_path}/strip.png: an image of 65 x 1 pixels is too narrow"):
        media.load("image", tmp_path / "strip.png", ENCODER)
    with pytest.raises(UserError, match="^an image of 65 x 1 pixels is too narrow"):
        media.load("image", np.zeros((1, 65, 3), np.uint8), ENCODER)


def test_modalities_without_a_row_or_a_writer(tmp_path):
    for call, source in ((media.read, "a"), (media.load, "a"), (media.from_content, MAP), (media.preprocess, MAP)):
        with pytest.raises(UserError, match=r"'smell' .*only image, video, .*add a row to media.FORMATS"):
            call("smell", source, ENCODER)
    with pytest.raises(UserError, match="'smell'"):
        media.write("smell", tmp_path / "a", np.zeros(4))
    with pytest.raises(UserError, match="files of 'imu' cannot be written"):
        media.write("imu", tmp_path / "a", np.zeros(4))


def test_a_row_can_be_added(tmp_path, monkeypatch):
    format = media.MediaFormat(
        read=lambda path, config: np.load(path),
        from_content=lambda content, config: np.asarray(content),
        preprocess=lambda values, config: values[: config.image_size].astype(np.float32),
        write=np.save,
    )
    monkeypatch.setitem(media.FORMATS, "touch", format)
    media.write("touch", tmp_path / "a.npy", np.arange(400))
    expected = np.arange(112, dtype=np.float32)
    np.testing.assert_array_equal(media.load("touch", tmp_path / "a.npy", ENCODER), expected)
    np.testing.assert_array_equal(media.load("touch", list(range(400)), ENCODER), expected)
