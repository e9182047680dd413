"""Reading and preprocessing depth maps, thermal images and IMU recordings."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextgpt_jax import media
from nextgpt_jax.errors import UserError
from nextgpt_jax.media import sensors

RNG = np.random.default_rng(0)
read_imu = functools.partial(media.read_imu, channels=6)
MOTION = RNG.normal(0, 3, (50, 6)).astype(np.float32)


def fails(path, *words, read=media.read_grayscale, **options):
    with pytest.raises(UserError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_keeps_its_depth(tmp_path, suffix, dtype):
    most = np.iinfo(dtype).max
    grey = RNG.integers(0, most, (5, 7), dtype, endpoint=True)
    grey[0, :2] = 0, most
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    read = media.read_grayscale(tmp_path / f"a.{suffix}")
    assert read.dtype == np.float32
    assert read[0, :2].tolist() == [0.0, 1.0]
    np.testing.assert_array_equal(np.rint(read.astype(np.float64) * most), grey)


def test_colours_give_their_luma(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    np.testing.assert_allclose(media.read_grayscale(tmp_path / "a.png"), [[0.299, 0.587, 0.114, 1.0]], rtol=1e-6)
    Image.fromarray(np.array([[[9, 0], [0, 255]]], np.uint8), "LA").save(tmp_path / "b.png")
    np.testing.assert_allclose(media.read_grayscale(tmp_path / "b.png"), [[1.0, 0.0]])  # transparency lies on white


def test_maps_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(np.ascontiguousarray(np.rot90(grey))).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(media.read_grayscale(tmp_path / "a.png") * 255, grey, rtol=1e-6)


def test_floats_are_taken_as_they_are(tmp_path):
    disparity = RNG.uniform(0, 40, (4, 6))
    for dtype in (np.float16, np.float32, np.float64):
        np.save(tmp_path / "a.npy", disparity.astype(dtype))
        read = media.read_grayscale(tmp_path / "a.npy")
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, disparity.astype(dtype).astype(np.float32))
    Image.fromarray(disparity.astype(np.float32)).save(tmp_path / "a.tiff")
    np.testing.assert_array_equal(media.read_grayscale(tmp_path / "a.tiff"), disparity.astype(np.float32))
    np.save(tmp_path / "b.npy", np.array([[0, 65535]], np.uint16))
    assert media.read_grayscale(tmp_path / "b.npy").tolist() == [[0.0, 1.0]]


def test_unreadable_maps_give_one_line(tmp_path):
    fails(tmp_path / "nothing.png", "no such image")
    fails(tmp_path, "directory")
    (tmp_path / "text.png").write_text("not an image\nat all")
    fails(tmp_path / "text.png", "not an image")
    Image.fromarray(np.zeros((8, 9), np.uint16)).save(tmp_path / "a.png")
    fails(tmp_path / "a.png", "too large: 9 x 8 pixels, the limit is 71", max_pixels=71)
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "deep.tiff")
    fails(tmp_path / "deep.tiff", "16 bits")
    for name, array, reason in [
        ("flat", np.zeros(5), "no map of one channel"),
        ("rgb", np.zeros((4, 4, 3)), "no map of one channel"),
        ("none", np.zeros((0, 4)), "no map of one channel"),
        ("words", np.array([["a"]]), "not one of numbers"),
        ("complex", np.zeros((2, 2), complex), "not one of numbers"),
        ("nan", np.array([[np.nan]]), "not finite"),
        ("huge", np.array([[1e300]]), "not finite"),
        ("large", np.zeros((4, 4)), "too large: 16 pixels, the limit is 15"),
    ]:
        np.save(tmp_path / f"{name}.npy", array)
        fails(tmp_path / f"{name}.npy", reason, max_pixels=15)
    np.save(tmp_path / "objects.npy", np.array([[{}]]), allow_pickle=True)
    fails(tmp_path / "objects.npy")
    whole = (tmp_path / "large.npy").read_bytes()
    for kept in (0, 5, 100, len(whole) - 1):
        (tmp_path / "part.npy").write_bytes(whole[:kept])
        fails(tmp_path / "part.npy", "not a readable image")
    bomb = whole.replace(b"(4, 4), }" + b" " * 10, b"(99999, 99999), }  ")
    assert bomb != whole
    (tmp_path / "bomb.npy").write_bytes(bomb)
    fails(tmp_path / "bomb.npy", "not a readable image")


@pytest.mark.parametrize(("height", "width"), [(40, 60), (61, 40), (32, 32), (7, 9)])
def test_maps_are_resized_as_images(height, width):
    pixels = RNG.integers(64, 192, (height, width), np.uint8)
    image = media.preprocess_image(pixels[..., None].repeat(3, -1), 16) * media.CLIP_STD + media.CLIP_MEAN
    grey = media.preprocess_grayscale(pixels / np.float32(255), 16)
    assert grey.dtype == np.float32
    assert grey.shape == (16, 16)
    expected = np.clip(image[..., 0], pixels.min() / 255, pixels.max() / 255)  # a filter overshoots
    np.testing.assert_allclose(grey, expected, atol=1.5 / 255)


def test_maps_keep_their_range():
    step = np.zeros((64, 64), np.float32)
    step[:, 32:] = 30.0
    grey = media.preprocess_grayscale(step, 48)
    assert (grey.min(), grey.max()) == (0.0, 30.0)
    with pytest.raises(UserError, match="too narrow"):
        media.preprocess_grayscale(np.zeros((65, 1), np.float32), 8)


def test_recordings(tmp_path):
    np.save(tmp_path / "a.npy", MOTION.astype(np.float64))
    np.testing.assert_array_equal(read_imu(tmp_path / "a.npy"), MOTION)
    rows = "".join(",".join(map(repr, row)) + "\n" for row in MOTION.tolist())
    for head in ("", "ax,ay,az,gx,gy,gz\n", "\ufeff", "\n\n"):
        (tmp_path / "a.csv").write_text(head + rows, encoding="utf-8")
        read = read_imu(tmp_path / "a.csv")
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, MOTION)


def test_unreadable_recordings_give_one_line(tmp_path, monkeypatch, recwarn):
    path = tmp_path / "a.csv"
    fails(path, "no such IMU recording", read=read_imu)
    fails(tmp_path, "directory", read=read_imu)
    for text, reason in [
        ("", "no rows"),
        ("ax,ay,az,gx,gy,gz\n", "no rows"),
        ("1,2,3\n", "[1, 3]"),
        ("1,2,3,4,5,6\n1,2,3\n", "columns"),
        ("1,2,3,4,5,6\n1,2,3,4,5,x\n", "'x"),
        ("1,2,3,4,5,nan\n", "not finite"),
    ]:
        path.write_text(text)
        fails(path, reason, read=read_imu)
    path.write_bytes(bytes(range(256)))
    fails(path, "utf-8", read=read_imu)
    np.save(tmp_path / "a.npy", np.zeros((6, 50)))
    fails(tmp_path / "a.npy", "[6, 50]", read=read_imu)
    monkeypatch.setattr(sensors, "MAX_IMU_SAMPLES", 2)
    path.write_text("1,2,3,4,5,6\n" * 3)
    fails(path, "too long", read=read_imu)
    path.write_text(f"{'1' * 600},2,3,4,5,6\n")
    fails(path, "too large: the limit is 512 bytes", read=read_imu)
    assert not recwarn.list


def test_arrays_and_pictures_are_taken_as_files_are(tmp_path):
    for array in (
        RNG.integers(0, 255, (5, 7), np.uint8),
        RNG.integers(0, 65535, (5, 7), np.uint16),
        RNG.uniform(0, 40, (5, 7)),
        RNG.uniform(0, 40, (5, 7)).astype(np.float16),
    ):
        np.save(tmp_path / "a.npy", array)
        found = media.grayscale_from_content(array)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, media.read_grayscale(tmp_path / "a.npy"))
    for pixels in (
        RNG.integers(0, 255, (5, 7), np.uint8),
        RNG.integers(0, 65535, (5, 7), np.uint16),
        RNG.integers(0, 255, (5, 7, 3), np.uint8),
        RNG.integers(0, 255, (5, 7, 4), np.uint8),
    ):
        Image.fromarray(pixels).save(tmp_path / "a.png")
        expected = media.read_grayscale(tmp_path / "a.png")
        for content in (pixels, Image.fromarray(pixels)):
            np.testing.assert_array_equal(media.grayscale_from_content(content), expected)
    np.save(tmp_path / "b.npy", MOTION)
    for content in (MOTION, MOTION.astype(np.float64), MOTION.tolist()):
        np.testing.assert_array_equal(media.imu_from_content(content, 6), media.read_imu(tmp_path / "b.npy", 6))


def test_bad_content_gives_one_line(monkeypatch):
    monkeypatch.setattr(sensors, "MAX_IMU_SAMPLES", 60)
    for take, content, reason in [
        (media.grayscale_from_content, np.zeros(5), "no map of one channel"),
        (media.grayscale_from_content, np.zeros((4, 4, 3)), "no map of one channel"),
        (media.grayscale_from_content, np.zeros((4, 4), np.int32), "no known scale"),
        (media.grayscale_from_content, np.array([["a"]]), "not one of numbers"),
        (media.grayscale_from_content, np.array([[np.nan]]), "not finite"),
        (media.grayscale_from_content, "a.png", "not one of numbers"),
        (functools.partial(media.grayscale_from_content, max_pixels=15), np.zeros((4, 4)), "the image is too large"),
        (functools.partial(media.imu_from_content, channels=6), np.zeros((6, 50)), "[6, 50] values, not rows of 6"),
        (functools.partial(media.imu_from_content, channels=6), np.full((2, 6), np.inf), "not finite"),
        (functools.partial(media.imu_from_content, channels=6), np.zeros((61, 6)), "the recording is too long"),
    ]:
        with pytest.raises(UserError) as caught:
            take(content)
        assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_recordings_are_stretched():
    ramp = np.arange(5, dtype=np.float32)[:, None] * np.arange(1, 7, dtype=np.float32)
    out = media.preprocess_imu(ramp, 9)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, np.arange(0, 4.5, 0.5) * np.arange(1, 7)[:, None])
    np.testing.assert_array_equal(media.preprocess_imu(MOTION, 50), MOTION.T)


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 3000))
def test_stretched_recordings_stay_in_range(count, length):
    samples = np.random.default_rng(count).normal(size=(count, 6)).astype(np.float32)
    out = media.preprocess_imu(samples, length)
    assert out.shape == (6, length)
    assert (out.min(1) >= samples.min(0)).all()
    assert (out.max(1) <= samples.max(0)).all()
    np.testing.assert_array_equal(out[:, 0], samples[0])
    if length > 1:
        np.testing.assert_array_equal(out[:, -1], samples[-1])
