"""HEIC images, built box by box around a frame of HEVC, the line that says what is missing to read them, and AVIF."""

import io
import struct
import sys

import av
import numpy as np
import pytest
from PIL import Image

from nextgpt_jax import media
from nextgpt_jax.errors import UserError

HEIGHT, WIDTH = 64, 96


def box(kind: str, *parts: bytes, version: int | None = None) -> bytes:
    content = b"".join([b"" if version is None else bytes([version, 0, 0, 0]), *parts])
    return struct.pack(">I4s", 8 + len(content), kind.encode()) + content


def hevc(pixels: np.ndarray) -> tuple[bytes, bytes]:
    """The decoder's configuration, as an `hvcC` box holds it, and one coded frame."""
    with av.open(file := io.BytesIO(), "w", format="matroska") as container:  # which stores both as HEIF does
        options = {"x265-params": "log-level=none:info=0:crf=5"}
        stream = container.add_stream("libx265", rate=1, width=WIDTH, height=HEIGHT, pix_fmt="yuv444p", options=options)
        container.mux([*stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")), *stream.encode()])
    file.seek(0)
    with av.open(file) as container:
        stream = container.streams.video[0]
        return bytes(stream.codec_context.extradata), next(bytes(packet) for packet in container.demux(stream))


def picture() -> np.ndarray:
    pixels = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    pixels[:32, :32], pixels[48:] = (250, 250, 250), (140, 140, 140)
    return pixels


@pytest.fixture(scope="module")
def coded():
    return hevc(picture())


def heic(coded: tuple[bytes, bytes], *transforms: bytes, orientation: int | None = None, brand: str = "heic") -> bytes:
    """A HEIC file. `transforms` are `irot` and `imir` boxes, applied in this order; `orientation` goes into EXIF."""
    configuration, frame = coded
    exif = Image.Exif()
    exif[0x0112] = orientation or 1
    items = {1: ("hvc1", frame)} | ({2: ("Exif", struct.pack(">I", 6) + exif.tobytes())} if orientation else {})
    properties = [box("hvcC", configuration), box("ispe", struct.pack(">II", WIDTH, HEIGHT), version=0), *transforms]
    entries = [
        box("infe", struct.pack(">HH4s", number, 0, kind.encode()), b"\0", version=2)
        for number, (kind, _) in items.items()
    ]
    essential = bytes([0x80 | 1, 2, *(0x80 | 3 + i for i in range(len(transforms)))])

    def header(start: int) -> bytes:
        places = b""
        for number, (_, data) in items.items():
            places += struct.pack(">HHHII", number, 0, 1, start, len(data))
            start += len(data)
        return box("ftyp", brand.encode(), bytes(4), b"mif1heic") + box(
            "meta",
            box("hdlr", bytes(4), b"pict", bytes(13), version=0),
            box("pitm", struct.pack(">H", 1), version=0),
            box("iloc", b"\x44\0", struct.pack(">H", len(items)), places, version=0),
            box("iinf", struct.pack(">H", len(items)), *entries, version=0),
            box("iref", box("cdsc", struct.pack(">HHH", 2, 1, 1)), version=0) if orientation else b"",
            box(
                "iprp",
                box("ipco", *properties),
                box("ipma", struct.pack(">IHB", 1, 1, len(properties)), essential, version=0),
            ),
            version=0,
        )

    return header(len(header(0)) + 8) + box("mdat", *(data for _, data in items.values()))


MIRROR, FLIP = box("imir", b"\1"), box("imir", b"\0")  # left and right; top and bottom
TRANSFORMS = {
    "none": ((), lambda pixels: pixels),
    "turned": ((box("irot", b"\1"),), np.rot90),
    "upside down": ((box("irot", b"\2"),), lambda pixels: np.rot90(pixels, 2)),
    "turned back": ((box("irot", b"\3"),), lambda pixels: np.rot90(pixels, 3)),
    "mirrored": ((MIRROR,), lambda pixels: pixels[:, ::-1]),
    "flipped": ((FLIP,), lambda pixels: pixels[::-1]),
    "turned and mirrored": ((box("irot", b"\1"), MIRROR), lambda pixels: np.rot90(pixels)[:, ::-1]),
    "mirrored and turned": ((MIRROR, box("irot", b"\1")), lambda pixels: np.rot90(pixels[:, ::-1])),
}


@pytest.mark.parametrize("orientation", [None, 6])  # in EXIF, which counts for nothing beside boxes
@pytest.mark.parametrize("name", TRANSFORMS)
def test_heic_is_upright(tmp_path, coded, name, orientation):
    pytest.importorskip("pi_heif")
    boxes, turn = TRANSFORMS[name]
    (tmp_path / "a.jpg").write_bytes(heic(coded, *boxes, orientation=orientation))  # as files are renamed
    expected = turn(picture())
    found = media.read_image(tmp_path / "a.jpg")
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() < 12
    assert media.read_grayscale(tmp_path / "a.jpg").shape == expected.shape[:2]


@pytest.mark.parametrize("orientation", [1, 6])
def test_exif_beside_the_boxes_of_avif_turns_nothing(tmp_path, orientation):
    """Their standard: `irot` and `imir` say how to show the picture, EXIF is for information only."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0113] = orientation, 3
    Image.fromarray(picture()).save(tmp_path / "a.avif", exif=exif, quality=95)
    content, entry = (tmp_path / "a.avif").read_bytes(), b"\1\x13\0\3\0\0\0\1\0\3"
    assert content.count(entry) == 1
    (tmp_path / "b.avif").write_bytes(content.replace(entry, b"\1\x12" + entry[2:]))
    found = media.read_image(tmp_path / "b.avif")
    assert found.shape == (picture() if orientation == 1 else np.rot90(picture(), 3)).shape
    np.testing.assert_array_equal(found, media.read_image(tmp_path / "a.avif"))


@pytest.mark.parametrize("kept", [40, 0.5, 0.95])
def test_unreadable_heic_gives_one_line(tmp_path, coded, kept):
    pytest.importorskip("pi_heif")
    content = heic(coded)
    (tmp_path / "a.heic").write_bytes(content)
    with pytest.raises(UserError, match="a.heic is too large: 96 x 64 pixels, the limit is 6143"):
        media.read_image(tmp_path / "a.heic", max_pixels=WIDTH * HEIGHT - 1)
    (tmp_path / "b.heic").write_bytes(content[: int(kept * len(content)) if kept < 1 else kept])
    with pytest.raises(UserError, match="b.heic is not (a readable image|an image)") as caught:
        media.read_image(tmp_path / "b.heic")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("brand", ["heic", "heix", "mif1"])
def test_what_is_missing_is_named(tmp_path, coded, brand, monkeypatch):
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    (tmp_path / "a.png").write_bytes(heic(coded, brand=brand))
    for read in (media.read_image, media.read_grayscale):
        with pytest.raises(UserError, match=r"a.png is a HEIC image: .*: pip install 'nextgpt-jax\[heic\]'"):
            read(tmp_path / "a.png")


def test_heic_is_no_video(tmp_path, coded):
    (tmp_path / "a.mp4").write_bytes(heic(coded))
    for read in (media.read_video, media.read_clips):
        with pytest.raises(UserError, match="a.mp4 is not a readable video: it is a HEIC image"):
            read(tmp_path / "a.mp4")
