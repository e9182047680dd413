"""Reading, writing and preprocessing images."""

import pathlib
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from nextgpt_jax import media
from nextgpt_jax.errors import UserError

GRADIENT = np.stack(np.broadcast_arrays(np.arange(40)[:, None] * 6, np.arange(60)[None] * 4, 128), -1).astype(np.uint8)


def save(path: pathlib.Path, image: Image.Image, **options) -> pathlib.Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "tga", "pcx", "sgi", "dds", "dib"])
def test_reads_lossless_formats(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(GRADIENT))
    read = media.read_image(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, GRADIENT)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = (255, 0, 0)  # a red mark in the upper left corner
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(media.read_image(path), upright)


def test_transparency_lies_on_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (255, 0, 0, 255)
    rgba[0, 1] = (0, 0, 0, 128)
    read = media.read_image(save(tmp_path / "a.png", Image.fromarray(rgba)))
    assert read[0, 0].tolist() == [255, 0, 0]
    assert abs(int(read[0, 1, 0]) - 127) <= 1
    assert read[1, 1].tolist() == [255, 255, 255]

    grey = np.zeros((2, 2, 2), np.uint8)
    assert (media.read_image(save(tmp_path / "la.png", Image.fromarray(grey, "LA"))) == 255).all()


def test_palettes(tmp_path):
    palette = Image.new("P", (4, 2), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert media.read_image(save(tmp_path / "a.png", palette))[0, 0].tolist() == [40, 50, 60]
    assert (media.read_image(save(tmp_path / "b.png", palette, transparency=1)) == 255).all()


def test_grey_bilevel_and_16_bit(tmp_path):
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3) * 50
    expected = np.repeat(grey[..., None], 3, -1)
    np.testing.assert_array_equal(media.read_image(save(tmp_path / "l.png", Image.fromarray(grey))), expected)
    deep = grey.astype(np.uint16) * 256 + 200
    np.testing.assert_array_equal(media.read_image(save(tmp_path / "i.png", Image.fromarray(deep))), expected)
    np.testing.assert_array_equal(media.read_image(save(tmp_path / "i.tiff", Image.fromarray(deep))), expected)
    bilevel = media.read_image(save(tmp_path / "1.png", Image.fromarray(grey).convert("1", dither=0)))
    assert set(np.unique(bilevel)) == {0, 255}


def test_cmyk(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=100)
    assert np.abs(media.read_image(path).astype(int) - (255, 0, 0)).max() < 8


def test_animations_give_their_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert media.read_image(path)[0, 0].tolist() == [255, 0, 0]


def refused(content, *words, read=media.image_from_content, **options):
    with pytest.raises(UserError) as caught:
        read(content, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def in_every_mode() -> dict[str, Image.Image]:
    """PIL images of every mode that is read."""
    rgb = Image.fromarray(GRADIENT)
    palette = rgb.quantize(16)
    see_through = Image.merge("RGBA", (*rgb.split(), Image.fromarray(GRADIENT[..., 0])))
    exif = rgb.copy()
    exif.getexif()[0x0112] = 6
    deep = Image.fromarray(GRADIENT[..., 0].astype(np.uint16) * 200)
    named = {mode: rgb.convert(mode) for mode in ("L", "1", "CMYK", "YCbCr", "HSV")} | {"LA": see_through.convert("LA")}
    return {**named, "RGB": rgb, "P": palette, "RGBA": see_through, "I;16": deep, "EXIF": exif}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "I;16", "EXIF"])
def test_pictures_are_taken_as_files_are(tmp_path, mode):
    picture = in_every_mode()[mode]
    save(tmp_path / "a.png", picture, exif=picture.getexif())
    expected = media.read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(media.image_from_content(picture), expected)
    with Image.open(tmp_path / "a.png") as lazy:  # not decoded yet
        np.testing.assert_array_equal(media.image_from_content(lazy), expected)
    if mode in ("RGB", "RGBA", "L", "I;16"):
        np.testing.assert_array_equal(media.image_from_content(np.asarray(picture)), expected)


def test_pictures_of_other_modes_and_arrays():
    for mode in ("CMYK", "YCbCr", "HSV"):
        assert media.image_from_content(in_every_mode()[mode]).shape == GRADIENT.shape
    np.testing.assert_array_equal(media.image_from_content(GRADIENT[..., :1]), GRADIENT[..., :1].repeat(3, -1))
    np.testing.assert_array_equal(media.image_from_content(torch.from_numpy(GRADIENT)), GRADIENT)


def test_bad_content_gives_one_line(tmp_path):
    for content in (
        GRADIENT.astype(np.float32),
        GRADIENT.astype(np.int64),
        GRADIENT.astype(np.uint16),
        GRADIENT[..., :2],
        GRADIENT[:0],
        GRADIENT[None],
        "a.png",
        None,
    ):
        refused(content, "not a usable image", "a PIL image or an array, uint8 [H, W]")
    refused(Image.fromarray(np.ones((4, 4), np.float32)), "floating-point")
    refused(Image.fromarray(np.full((4, 4), 70000, np.int32)), "16 bits")
    refused(GRADIENT, "the image is too large: 60 x 40 pixels, the limit is 2399", max_pixels=2399)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = save(tmp_path / "a.png", Image.fromarray(noise)).read_bytes()
    (tmp_path / "part.png").write_bytes(whole[: len(whole) // 2])
    with Image.open(tmp_path / "part.png") as lazy:
        refused(lazy, "not a usable image")


def fails(path, *words, **options):
    with pytest.raises(UserError) as caught:
        media.read_image(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_unreadable_files_give_one_line(tmp_path):
    fails(tmp_path / "nothing.png", "no such image")
    fails(tmp_path, "directory")
    (tmp_path / "text.png").write_text("not an image\nat all")
    fails(tmp_path / "text.png", "not an image")
    (tmp_path / "empty.png").touch()
    fails(tmp_path / "empty.png", "not an image")
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tiff")
    fails(tmp_path / "float.tiff", "floating-point")
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "deep.tiff")
    fails(tmp_path / "deep.tiff", "16 bits")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
@pytest.mark.parametrize("kept", [0.3, 0.7])
def test_truncated_files_give_one_line(tmp_path, suffix, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = save(tmp_path / f"whole.{suffix}", Image.fromarray(noise)).read_bytes()
    part = tmp_path / f"part.{suffix}"
    part.write_bytes(whole[: int(len(whole) * kept)])
    fails(part)


def huge_png(side: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_800, 10_001, 60_000])
def test_size_is_checked_before_decoding(tmp_path, side):
    """The files have no pixels: what is decoded fails in another way."""
    (tmp_path / "a.png").write_bytes(huge_png(side))
    if side**2 > media.MAX_PIXELS:
        fails(tmp_path / "a.png", "too large", "100000000")
    (tmp_path / "b.png").write_bytes(huge_png(11))
    fails(tmp_path / "b.png", "too large: 11 x 11 pixels, the limit is 120", max_pixels=120)
    fails(tmp_path / "b.png", "not a readable image")


def test_written_images_read_back(tmp_path):
    path = tmp_path / "new" / "folder" / "a.png"
    media.write_png(path, GRADIENT)
    np.testing.assert_array_equal(media.read_image(path), GRADIENT)
    media.write_png(path, GRADIENT.astype(np.float32) / 255)  # replaces the file
    np.testing.assert_array_equal(media.read_image(path), GRADIENT)
    media.write_png(path, np.array([[[-1.0, 0.5, 2.0]]]))
    assert media.read_image(path).tolist() == [[[0, 128, 255]]]
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_bad_arrays_are_refused_and_leave_nothing(tmp_path):
    path = tmp_path / "a.png"
    for array, reason in [
        (np.zeros((4, 4)), r"\[H, W, 3\]"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.full((4, 4, 3), np.nan), "finite"),
    ]:
        with pytest.raises(ValueError, match=reason):
            media.write_png(path, array)
    assert not list(tmp_path.iterdir())


def test_failed_writes_keep_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    media.write_png(path, GRADIENT)
    before = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="a.png can't be written: No space left on device"):
        media.write_png(path, GRADIENT[::-1])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't be written"):
        media.write_png(tmp_path / "file" / "a.png", GRADIENT)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "resized", "corner"),
    [
        (300, 400, (298, 224), (37, 0)),
        (401, 300, (224, 299), (0, 38)),  # 37.5 rounds to the even 38
        (300, 402, (300, 224), (38, 0)),
        (225, 299, (297, 224), (36, 0)),  # 297.67 is cut, 36.5 rounds to the even 36
        (100, 50, (224, 448), (0, 112)),
        (224, 224, (224, 224), (0, 0)),
    ],
)
def test_preprocessing_rounds_as_torchvision(height, width, resized, corner):
    image = noise(height, width)
    left, top = corner
    picture = Image.fromarray(image).resize(resized, Image.Resampling.BICUBIC)
    crop = np.asarray(picture, np.float64)[top : top + 224, left : left + 224] / 255
    expected = (crop - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    out = media.preprocess_image(image, 224)
    assert out.dtype == np.float32
    assert out.shape == (224, 224, 3)
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_resizing_is_antialiased_bicubic():
    """The same as torch's own antialiased bicubic filter, up to the rounding of 8-bit pixels."""
    image = noise(96, 64) // 2 + 64  # far from 0 and 255, where PIL clips between its two passes
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(planes, (48, 32), mode="bicubic", antialias=True)
    expected = resized[0, :, 8:40].permute(1, 2, 0).clamp(0, 255).numpy() / 255
    out = media.preprocess_image(image, 32) * media.CLIP_STD + media.CLIP_MEAN
    assert np.abs(out - expected).max() < 1.5 / 255


def test_preprocessing_refuses_strips():
    with pytest.raises(UserError, match="too narrow"):
        media.preprocess_image(np.zeros((1, 65, 3), np.uint8), 8)
    assert media.preprocess_image(np.zeros((1, 64, 3), np.uint8), 8).shape == (8, 8, 3)
