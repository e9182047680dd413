"""PNG files, and others, with metadata that Pillow refuses or warns about."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextgpt_jax import media
from nextgpt_jax.errors import UserError

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*chunks: bytes, last: bool = False, **options) -> bytes:
    """A PNG file of PICTURE with more chunks, before its pixels, or after them."""
    content = io.BytesIO()
    Image.fromarray(PICTURE).save(content, "PNG", **options)
    content = content.getvalue()
    at = content.index(b"IEND" if last else b"IDAT") - 4
    return content[:at] + b"".join(chunks) + content[at:]


TEXT = zlib.compress(bytes(3 << 20))
BROKEN = {
    "exif": chunk(b"eXIf", b"no TIFF header"),
    "short exif": chunk(b"eXIf", b"MM"),
    "cut off exif": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x05\x01\x12"),
    "text": chunk(b"zTXt", b"Comment\0\0" + TEXT),
    "international text": chunk(b"iTXt", b"Comment\0\x01\0\0\0" + TEXT),
    "method": chunk(b"zTXt", b"Comment\0\x07" + TEXT),
    "profile": chunk(b"iCCP", b"profile\0\0" + TEXT),
    "checksum": chunk(b"tEXt", b"Comment\0text")[:-1] + b"?",
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_metadata_are_ignored(tmp_path, kind, last):
    (tmp_path / "a.png").write_bytes(png(BROKEN[kind], last=last))
    np.testing.assert_array_equal(media.read_image(tmp_path / "a.png"), PICTURE)
    assert media.read_grayscale(tmp_path / "a.png").shape == (12, 20)


@pytest.mark.parametrize("kind", ["text", "checksum"])
def test_orientations_beside_broken_metadata_are_kept(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.png").write_bytes(png(BROKEN[kind], exif=exif))
    np.testing.assert_array_equal(media.read_image(tmp_path / "a.png"), np.rot90(PICTURE, -1))
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta><rdf:Description tiff:Orientation="2"/></x:xmpmeta>'
    (tmp_path / "b.png").write_bytes(png(chunk(b"iTXt", xmp), BROKEN[kind]))
    np.testing.assert_array_equal(media.read_image(tmp_path / "b.png"), PICTURE[:, ::-1])


@pytest.mark.parametrize("suffix", ["jpg", "tiff", "webp", "png", "avif"])  # AVIF: in boxes of its own
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_of_all_formats(tmp_path, suffix, orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255
    turns = {1: "none", 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    turns |= {7: "TRANSVERSE", 8: "ROTATE_270"}  # the inverse of what is shown
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose[turns[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"webp": {"lossless": True}, "avif": {"quality": 95}}.get(suffix, {})
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **options)
    found = media.read_image(tmp_path / f"a.{suffix}")
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).max() < 32


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=60), st.sampled_from([b"", b"Exif\0\0", b"MM\0*\0\0\0\x08", b"II*\0\x08\0\0\0"]))
def test_any_exif_data_are_read_or_ignored(tmp_path_factory, data, head):
    path = tmp_path_factory.getbasetemp() / "any.png"
    path.write_bytes(png(chunk(b"eXIf", head + data)))
    assert sorted(media.read_image(path).shape) == [3, 12, 20]


def test_damaged_pixels_are_refused_beside_broken_metadata(tmp_path):
    content = png(BROKEN["text"])
    (tmp_path / "a.png").write_bytes(content[: content.index(b"IDAT") + 200])
    with pytest.raises(UserError, match="a.png is not a readable image"):
        media.read_image(tmp_path / "a.png")


def test_warnings_of_pillow_stay_inside(tmp_path):
    """An animation without frames, and a palette with transparency: Pillow warns, also from several threads at once."""
    (tmp_path / "a.png").write_bytes(png(chunk(b"acTL", bytes(8))))
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("always")
        list(pool.map(media.read_image, [tmp_path / "a.png"] * 40))
        filters = list(warnings.filters)
        Image.open(tmp_path / "a.png").close()
    assert [str(warning.message)[:12] for warning in caught] == ["Invalid APNG"]  # the last line's: filters are back
    assert filters[0][0] == "always"
    assert list(warnings.filters) == before
