"""Pixels of decoded video frames: from their color space to RGB, upright."""

from fractions import Fraction

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import Type
from jaxtyping import Int, UInt8

# From the number of a matrix between YCbCr and RGB (ITU-T H.273) to that in PyAV. Unspecified (2), reserved (3) and
# wrong ones (0, RGB) are BT.601, as in FFmpeg.
_MATRICES = {0: 5, 1: 1, 2: 5, 3: 5, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
_LIMITED, _FULL = 1, 2
_SIDE_DATA_KINDS = 64  # more than FFmpeg has
_ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}  # starting more takes longer
_TOLERANCE = 0.02  # of the entries of display matrices; 1 degree


def to_pixels(frame: av.VideoFrame, shape: dict[str, int]) -> UInt8[np.ndarray, "h w 3"]:
    """RGB, scaled to the "height" and "width" in `shape`, then turned and mirrored by the frame's display matrix.

    Brightness of HDR (PQ, HLG) is kept as it is coded, wide gamuts are not mapped.

    Raises:
      ValueError: the colors are in a system without a matrix of its own (YCgCo, ICtCp, ...), or the frame is turned by
        another angle than a multiple of 90 degrees.
    """
    format = frame.format
    options = {}
    if not (format.is_rgb or format.has_palette or len(format.components) < 3):
        if (matrix := _MATRICES.get(frame.colorspace)) is None:
            raise ValueError(f"its color matrix, number {frame.colorspace} of ITU-T H.273, is not supported")
        full = frame.color_range == _FULL or format.name.startswith("yuvj")
        options = {
            "src_colorspace": matrix,
            # It means nothing for RGB, but PyAV 14 ignores all four options if it is the same.
            "dst_colorspace": 1 if matrix == 5 else 5,
            "src_color_range": _FULL if full else _LIMITED,
            "dst_color_range": _FULL,
        }
    pixels = frame.to_ndarray(format="rgb24", **options, **shape, **_ONE_THREAD)
    return np.ascontiguousarray(turned(pixels, display_matrix(frame)))


def display_matrix(frame: av.VideoFrame) -> Int[np.ndarray, "3 3"] | None:
    """The matrix from stored to shown positions, a row per stored axis (across, down): fixed-point numbers."""
    try:
        side_data = frame.side_data
    except ValueError:
        side_data = _with_known_side_data(frame).side_data
    data = side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32, 9).reshape(3, 3)


def _with_known_side_data(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame without the kinds of side data that PyAV can't name: it gives none of them then (EXIF in JPEG)."""
    graph = av.filter.Graph()
    last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    for kind in set(range(_SIDE_DATA_KINDS)) - {known.value for known in Type}:
        following = graph.add("sidedata", f"mode=delete:type={kind}")
        last.link_to(following)
        last = following
    last.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    return graph.pull()


def turned(pixels: UInt8[np.ndarray, "h w 3"], matrix: Int[np.ndarray, "3 3"] | None) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The pixels as a display matrix shows them: one of the eight orientations. Its scale and offset are ignored.

    None, and a matrix that shows nothing (all zeros, of careless writers), leave the pixels as they are.

    Raises:
      ValueError: the angle is not a multiple of 90 degrees.
    """
    if matrix is None:
        return pixels
    axes = matrix[:2, :2].astype(float)
    lengths = np.hypot(*axes.T)
    if not lengths.all():
        return pixels
    (right, down), (across, below) = axes / lengths[:, None]
    if max(abs(down), abs(across)) < _TOLERANCE:
        return pixels[:: -1 if below < 0 else 1, :: -1 if right < 0 else 1]
    if max(abs(right), abs(below)) < _TOLERANCE:
        return pixels.transpose(1, 0, 2)[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
    angle = np.degrees(np.arctan2(down, right))
    raise ValueError(f"it is turned by {angle:.0f} degrees: only multiples of 90 are read")
