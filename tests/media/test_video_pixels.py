"""Colors and orientation of video frames: known patches in every color system, all display matrices."""

import io
import struct

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from nextgpt_jax import media
from nextgpt_jax.errors import UserError
from nextgpt_jax.media.video_pixels import turned

COLORS = np.array(
    [(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40), (30, 160, 220), (128, 128, 128)]
)
MATRICES = {"BT.601": (6, 0.299, 0.114), "BT.709": (1, 0.2126, 0.0722), "BT.2020": (9, 0.2627, 0.0593)}


def coded(rgb: np.ndarray, kr: float, kb: float, bits: int, full: bool) -> np.ndarray:
    """Y, Cb, Cr of 8-bit colors [n, 3], by ITU-T H.273."""
    red, green, blue = rgb.T / 255
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = np.stack([(blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)])
    if full:
        luma, chroma = luma * (2**bits - 1), chroma * (2**bits - 1) + 2 ** (bits - 1)
    else:
        luma, chroma = (16 + 219 * luma) * 2 ** (bits - 8), (128 + 224 * chroma) * 2 ** (bits - 8)
    return np.clip(np.rint(np.concatenate([luma[None], chroma])), 0, 2**bits - 1).astype(int)


def write_patches(path, pix_fmt: str, planes: np.ndarray, matrix: int, full: bool, codec: str = "ffv1") -> None:
    """A frame of 16 x 16 patches in a row; `planes` [3, patches]."""
    frame = av.VideoFrame(16 * planes.shape[1], 16, pix_fmt)
    dtype = np.dtype("<u2") if "10" in pix_fmt else np.dtype("u1")
    for plane, values in zip(frame.planes, planes):
        row = np.repeat(values, plane.width // len(values)).astype(dtype).tobytes()
        plane.update(row.ljust(plane.line_size, b"\0") * plane.height)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=1)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        frame.colorspace, frame.color_range = matrix, 2 if full else 1
        file.mux(stream.encode(frame))
        file.mux(stream.encode())


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le", "yuv422p10le"])
@pytest.mark.parametrize("name", MATRICES)
def test_colors_are_those_that_were_coded(tmp_path, name, pix_fmt, full):
    number, kr, kb = MATRICES[name]
    planes = coded(COLORS, kr, kb, 10 if "10" in pix_fmt else 8, full)
    write_patches(tmp_path / "a.mkv", pix_fmt, planes, number, full)
    (frame,) = media.read_video(tmp_path / "a.mkv").frames
    found = frame[8, 8::16].astype(int)
    assert np.abs(found - COLORS).max() <= 3


def test_unspecified_matrices_are_bt601(tmp_path):
    write_patches(tmp_path / "a.mkv", "yuv444p", coded(COLORS, 0.299, 0.114, 8, False), 2, False)
    found = media.read_video(tmp_path / "a.mkv").frames[0, 8, 8::16].astype(int)
    assert np.abs(found - COLORS).max() <= 3


def test_systems_without_a_matrix_are_refused(tmp_path):
    write_patches(tmp_path / "a.mkv", "yuv444p", coded(COLORS, 0.299, 0.114, 8, False), 8, False)  # YCgCo
    for read in (media.read_video, media.read_clips):
        with pytest.raises(UserError, match="a.mkv is not a readable video: its color matrix, number 8"):
            read(tmp_path / "a.mkv")


def shown(pixels: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """What a matrix of entries -1, 0 and 1 shows: the pixel at (x, y) appears at (a x + c y, b x + d y)."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width]
    across, down = a * x + c * y, b * x + d * y
    out = np.zeros((np.ptp(down) + 1, np.ptp(across) + 1, 3), np.uint8)
    out[down - down.min(), across - across.min()] = pixels
    return out


DIRECTIONS = [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1)]
DIRECTIONS += [(0, 1, 1, 0), (0, 1, -1, 0), (0, -1, 1, 0), (0, -1, -1, 0)]


def write_turned(path, matrix: tuple, frames: np.ndarray) -> None:
    """An MP4 with `matrix` (a, b, u, c, d, v, x, y, w, fixed-point numbers) in the header of its track."""
    media.write_mp4(path, frames, 4)
    content = bytearray(path.read_bytes())
    struct.pack_into(">9i", content, content.index(b"tkhd") + 44, *matrix)
    path.write_bytes(content)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_all_orientations_of_files(tmp_path, directions):
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:8, :8], picture[8:, :16] = 255, 120
    a, b, c, d = (65536 * entry for entry in directions)
    path = tmp_path / "a.mp4"
    write_turned(path, (a, b, 0, c, d, 0, 0, 0, 1 << 30), np.stack([picture] * 2))
    expected = shown(picture, *directions).astype(int)
    video = media.read_video(path)
    assert video.frames.shape[1:] == expected.shape
    assert np.abs(video.frames - expected).max() < 12
    np.testing.assert_array_equal(media.read_clips(path), media.sample_clips(video))


def test_matrices_that_show_nothing_are_ignored_and_other_angles_refused(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (1, 16, 32, 3), np.uint8)
    media.write_mp4(tmp_path / "a.mp4", frames, 4)
    write_turned(tmp_path / "b.mp4", (0,) * 9, frames)
    np.testing.assert_array_equal(
        media.read_video(tmp_path / "b.mp4").frames, media.read_video(tmp_path / "a.mp4").frames
    )
    write_turned(tmp_path / "c.mp4", (56756, 32768, 0, -32768, 56756, 0, 0, 0, 1 << 30), frames)
    with pytest.raises(UserError, match="c.mp4 .*turned by 30 degrees"):
        media.read_video(tmp_path / "c.mp4")


@pytest.mark.parametrize("orientation", [1, 4, 6])
def test_frames_with_side_data_that_pyav_does_not_know(tmp_path, orientation):
    """FFmpeg 8.1 hands on the EXIF of Motion JPEG, for which PyAV 18 has no name."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    exif, content = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(content, "JPEG", exif=exif)
    (tmp_path / "a.jpg").write_bytes(content.getvalue())
    (tmp_path / "a.mjpeg").write_bytes(2 * content.getvalue())
    frames = media.read_video(tmp_path / "a.mjpeg").frames.astype(int)
    expected = media.read_image(tmp_path / "a.jpg")
    assert frames.shape == (2, *expected.shape)
    assert np.abs(frames - expected).max() < 8


@given(
    st.sampled_from(DIRECTIONS),
    st.integers(1 << 10, 1 << 22),
    st.integers(1 << 10, 1 << 22),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=5, max_size=5),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_random_display_matrices(directions, wide, high, rest, height, width):
    """Scales, offsets and perspective change nothing."""
    a, b, c, d = directions
    u, v, x, y, w = rest
    matrix = np.array([[a * wide, b * wide, u], [c * high, d * high, v], [x, y, w]])
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    np.testing.assert_array_equal(turned(pixels, matrix), shown(pixels, *directions))
