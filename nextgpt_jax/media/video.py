"""Videos between files and arrays, and the preprocessing of the encoder."""

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import OutputContainer
from jaxtyping import Float, Int, UInt8

from nextgpt_jax.files import atomic_write
from nextgpt_jax.media.content import checked
from nextgpt_jax.media.image import CLIP_MEAN, CLIP_STD, check_aspect, image_from_content, to_uint8
from nextgpt_jax.media.streams import clip_starts
from nextgpt_jax.media.video_decoding import (
    MAX_FRAME_PIXELS,
    MAX_FRAMES,
    check_pixels,
    check_seconds,
    read_frames,
    read_picked,
)

_TOLERANCE = 1e-6  # seconds, for the rounding of sums of floats
_MAX_FPS = 1000


class Video(NamedTuple):
    frames: UInt8[np.ndarray, "t h w 3"] | Float[np.ndarray, "t h w 3"]  # floats in [0, 1]
    fps: float


def read_video(path: str | os.PathLike, *, max_frames: int = MAX_FRAMES, max_pixels: int = MAX_FRAME_PIXELS) -> Video:
    """Reads all frames of a video file as uint8 [T, H, W, 3], upright; its rate is the average one.

    Raises:
      UserError: the file is missing, not a video, damaged, or has more than max_frames, than max_pixels in a frame, or
        than MAX_BYTES of pixels.
    """
    return Video(*read_frames(path, max_frames, max_pixels))


def read_clips(
    path: str | os.PathLike,
    *,
    clips: int = 5,
    frames: int = 2,
    seconds: float = 2.0,
    max_pixels: int = MAX_FRAME_PIXELS,
) -> UInt8[np.ndarray, "{clips} {frames} h w 3"]:
    """Reads the encoder's frames of a video file, upright: as sample_clips, with only these frames in memory.

    Raises:
      UserError: the file is missing, not a video, damaged, longer than MAX_VIDEO_SECONDS, or a frame has more than
        max_pixels.
    """
    pick = functools.partial(_indices, clips=clips, frames=frames, seconds=seconds)
    return read_picked(path, pick, max_pixels)


def clips_from_content(
    content: Any,
    *,
    clips: int = 5,
    frames: int = 2,
    seconds: float = 2.0,
    max_pixels: int = MAX_FRAME_PIXELS,
) -> UInt8[np.ndarray, "{clips} {frames} h w 3"]:
    """As `read_clips`, of (frames, frames per second), such as a Video.

    Frames are an array [T, H, W, 3], uint8 or floats in [0, 1], or a sequence of images of one size, of the kinds that
    image_from_content takes.

    Raises:
      UserError: the content is something else, empty, longer than MAX_VIDEO_SECONDS, or has more than max_pixels in a
        frame.
    """
    return pick_from_content(
        content, functools.partial(_indices, clips=clips, frames=frames, seconds=seconds), max_pixels
    )


def pick_from_content(
    content: Any,
    pick: Callable[[Float[np.ndarray, " t"], float], Int[np.ndarray, "clips frames"]],
    max_pixels: int = MAX_FRAME_PIXELS,
) -> UInt8[np.ndarray, "clips frames h w 3"]:
    """The frames that `pick` chooses by their times in seconds and their rate. Content and errors as
    `clips_from_content`."""
    with checked("video"):
        if not isinstance(content, tuple | list) or len(content) != 2 or np.ndim(content[1]):
            raise ValueError("give a pair of frames and their number per second")
        stills, fps = content
        _check_fps(fps)
        is_array = not isinstance(stills, Sequence)
        if is_array:
            stills = np.asarray(stills)
            _check_frames(stills)
            check_pixels("the video", stills.shape[2], stills.shape[1], max_pixels)
        elif not stills:
            raise ValueError("it has no frames")
        check_seconds("the video", len(stills) / fps)
        wanted = pick(np.arange(len(stills)) / fps, fps)
        if is_array:
            return to_uint8(stills[wanted])
        picked = {i: image_from_content(stills[i], max_pixels=max_pixels) for i in np.unique(wanted).tolist()}
        if len(sizes := {image.shape for image in picked.values()}) > 1:
            raise ValueError(f"its frames differ in size: {', '.join(str(list(size)) for size in sorted(sizes))}")
        return np.stack([np.stack([picked[i] for i in row]) for row in wanted.tolist()])


def sample_clips(
    video: Video, *, clips: int = 5, frames: int = 2, seconds: float = 2.0
) -> UInt8[np.ndarray, "{clips} {frames} h w 3"]:
    """Clips of `seconds`, evenly spaced over a video, and `frames` frames per clip, evenly from its first to its last.

    A video shorter than a clip is repeated as every clip. Matches ConstantClipsPerVideoSampler and
    UniformTemporalSubsample of pytorchvideo, except that a clip in which no frame starts uses the frame shown at its
    start.
    """
    times = np.arange(len(video.frames)) / video.fps
    return to_uint8(video.frames[_indices(times, video.fps, clips=clips, frames=frames, seconds=seconds)])


def _indices(
    times: Float[np.ndarray, " t"], fps: float, *, clips: int, frames: int, seconds: float
) -> Int[np.ndarray, "{clips} {frames}"]:
    """Indices [clips, frames] into frames shown at `times` (ascending, in seconds, the first at 0)."""
    if frames < 1:
        raise ValueError(f"a clip has at least 1 frame, got {frames}")
    rows = []
    for start in map(float, clip_starts(len(times) / fps, seconds, clips)):
        begin, end = np.searchsorted(times, (start - _TOLERANCE, start + seconds - _TOLERANCE)).tolist()
        if begin == end:
            begin, end = end - 1, end
        rows.append([begin + i * (end - begin - 1) // max(frames - 1, 1) for i in range(frames)])
    return np.array(rows)


def preprocess_clips(
    clips: UInt8[np.ndarray, "c f h w 3"],
    size: int,
    crops: int = 3,
    out: Float[np.ndarray, "c*{crops} f {size} {size} 3"] | None = None,
) -> Float[np.ndarray, "c*{crops} f {size} {size} 3"]:
    """Shorter side to `size` (bilinear), `crops` crops along the longer side, CLIP's mean and deviation: float32.

    Three crops are left, center, right (or top, center, bottom), consecutive for each clip; one is the center. As in
    ImageBind: pytorchvideo's ShortSideScale, which interpolates between the four nearest pixels at any scale (no
    antialiasing), and SpatialCrop.

    Args:
      out: an array of the result's shape and dtype to write it into.

    Raises:
      UserError: the frames are more than MAX_ASPECT times as long as wide.
      ValueError: another number of crops.
    """
    if crops not in (1, 3):
        raise ValueError(f"1 or 3 crops, got {crops}")
    height, width = clips.shape[2:4]
    check_aspect(width, height)
    short, long = min(height, width), max(height, width)
    scaled = math.floor(long / short * size)
    center = math.ceil((scaled - size) / 2)
    offsets = (0, center, scaled - size) if crops == 3 else (center,)
    places = np.unique([offset + np.arange(size) for offset in offsets])  # along the longer side
    rows, columns = _neighbours(short, size, np.arange(size)), _neighbours(long, scaled, places)
    if height > width:
        rows, columns = columns, rows
    out = np.empty((len(clips) * crops, clips.shape[1], size, size, 3), np.float32) if out is None else out
    starts = np.searchsorted(places, offsets).tolist()
    for i, frame in enumerate(_interpolated(clips.reshape(-1, height, width, 3), rows, columns)):
        clip, number = divmod(i, clips.shape[1])
        for k, at in enumerate(starts):
            out[clip * crops + k, number] = frame[at : at + size] if height > width else frame[:, at : at + size]
    return out


def _neighbours(source: int, target: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For `places` in `target` pixels: the source pixels on both sides, and the second's weight."""
    at = np.maximum((places + 0.5) * (source / target) - 0.5, 0.0)
    low = np.minimum(at.astype(int), source - 1)
    return low, np.minimum(low + 1, source - 1), (at - low).astype(np.float32)


def _interpolated(frames: UInt8[np.ndarray, "n h w 3"], rows: tuple, columns: tuple) -> Iterator[np.ndarray]:
    """Each frame between its pixels, with CLIP's mean and deviation, in an array that the next one overwrites.

    New arrays of this size would take longer than the arithmetic, and so would indexing by pixels instead of values.
    """
    top, bottom, down = rows
    left, right, across = (np.repeat(values, 3) for values in columns)
    colors = np.tile(np.arange(3), len(columns[0]))
    left, right = 3 * left + colors, 3 * right + colors
    scale, shift = (1 / (255 * CLIP_STD))[colors], (CLIP_MEAN / CLIP_STD)[colors]
    before, after, down = (1 - across) * scale, across * scale, down[:, None]
    upper, lower = np.empty((2, len(top), 3 * frames.shape[2]), np.float32)
    first, second = np.empty((2, len(top), len(left)), np.float32)
    for frame in frames.reshape(len(frames), frames.shape[1], -1):
        upper[:], lower[:] = frame[top], frame[bottom]
        lower -= upper
        lower *= down
        upper += lower
        np.take(upper, left, axis=1, out=first, mode="clip")  # no index is outside; "raise" would copy
        np.take(upper, right, axis=1, out=second, mode="clip")
        first *= before
        second *= after
        first += second
        first -= shift
        yield first.reshape(len(top), -1, 3)


def write_mp4(path: str | os.PathLike, frames: np.ndarray, fps: float) -> None:
    """Writes H.264 (yuv420p, CRF 18) atomically.

    Frames [T, H, W, 3] are uint8, or floats in [0, 1] (values outside are clipped).
    yuv420p halves the resolution of color, so an odd height or width is padded by repeating its last row or column. The
    index is at the start of the file, so that it can be streamed.

    Raises:
      ValueError: another shape or dtype, no frames, values that are not finite, or a rate outside (0, 1000].
      UserError: the file can't be written.
    """
    frames = np.asarray(frames)
    _check_frames(frames)
    _check_fps(fps)
    frames = to_uint8(frames)
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with atomic_write(path) as temporary:
        try:
            with av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container:
                _encode(container, frames, Fraction(fps).limit_denominator(10_000))
        except av.FFmpegError as error:
            raise OSError(error.errno, error.strerror) from error


def _check_frames(frames: np.ndarray) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"a video is [T, H, W, 3], got {list(frames.shape)}")


def _check_fps(fps: float) -> None:
    if not 0 < fps <= _MAX_FPS:
        raise ValueError(f"a video has between 0 and {_MAX_FPS} frames per second, got {fps}")


def _encode(container: OutputContainer, frames: np.ndarray, fps: Fraction) -> None:
    stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    for pixels in frames:
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    container.mux(stream.encode())
