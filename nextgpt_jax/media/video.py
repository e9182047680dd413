"""Video between files and arrays, and the preprocessing of the encoder."""

import bisect
import contextlib
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8

from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_write, reading
from nextgpt_jax.media.image import CLIP_MEAN, CLIP_STD, check_aspect, to_uint8
from nextgpt_jax.media.streams import clip_starts, is_mp4, open_container

MAX_FRAMES = 20_000  # that read_video holds
MAX_BYTES = 2 << 30  # of pixels that read_video holds
MAX_FRAME_PIXELS = 36_000_000  # 8K
MAX_VIDEO_SECONDS = 6 * 3600
_MAX_VIDEO_FRAMES = 1000 * MAX_VIDEO_SECONDS
_TOLERANCE = 1e-6  # seconds, for the rounding of sums of floats

_Pick = Callable[[np.ndarray, float], np.ndarray]  # times of frames in seconds, rate -> indices [clips, frames]


class Video(NamedTuple):
    frames: UInt8[np.ndarray, "t h w 3"] | Float[np.ndarray, "t h w 3"]  # floats in [0, 1]
    fps: float


def read_video(path: str | os.PathLike, *, max_frames: int = MAX_FRAMES, max_pixels: int = MAX_FRAME_PIXELS) -> Video:
    """Reads all frames of a video file as uint8 [T, H, W, 3], upright; its rate is the average one.

    Raises:
      UserError: the file is missing, no video, damaged, or has more than max_frames, more than max_pixels in a frame,
        or more than MAX_BYTES of pixels.
    """
    path = pathlib.Path(path)
    with reading(path, "video"), _opened(path, max_pixels) as (container, stream, _):
        for _ in _packets(container, stream):
            pass
    with reading(path, "video"), _opened(path, max_pixels) as (container, stream, shape):
        frames, stamps, size = [], [], 0
        for frame in container.decode(stream):
            pixels = _pixels(path, frame, shape, max_pixels)
            size += pixels.nbytes
            if len(frames) == max_frames or size > MAX_BYTES:
                limits = f"{max_frames} frames and {MAX_BYTES >> 20} MiB of pixels"
                raise UserError(f"{path} is too large: the limits are {limits}")
            frames.append(pixels)
            stamps.append(frame.pts)
        if not frames:
            raise ValueError("it has no frames")
        _, fps = _times(stamps, stream)
        return Video(np.stack(frames), fps)


def read_clips(
    path: str | os.PathLike,
    *,
    clips: int = 5,
    frames: int = 2,
    seconds: float = 2.0,
    max_pixels: int = MAX_FRAME_PIXELS,
) -> UInt8[np.ndarray, "{clips} {frames} h w 3"]:
    """Reads the frames of a video file that the encoder is shown, upright: sample_clips, with only them in memory.

    Raises:
      UserError: the file is missing, no video, damaged, longer than MAX_VIDEO_SECONDS, or has more than max_pixels in a
        frame.
    """
    path = pathlib.Path(path)
    pick = functools.partial(_indices, clips=clips, frames=frames, seconds=seconds)
    with reading(path, "video"):
        found = _seek_frames(path, pick, max_pixels)
        return _walk_frames(path, pick, max_pixels) if found is None else found


def sample_clips(
    video: Video, *, clips: int = 5, frames: int = 2, seconds: float = 2.0
) -> UInt8[np.ndarray, "{clips} {frames} h w 3"]:
    """Clips of `seconds` spread evenly over a video, and of each `frames` frames, evenly from its first to its last.

    Of a video that is shorter than a clip each clip is the whole. Matches ConstantClipsPerVideoSampler and
    UniformTemporalSubsample of pytorchvideo, except that a clip in which no frame begins has the one that it begins in.
    """
    times = np.arange(len(video.frames)) / video.fps
    return to_uint8(video.frames[_indices(times, video.fps, clips=clips, frames=frames, seconds=seconds)])


def _indices(times: np.ndarray, fps: float, *, clips: int, frames: int, seconds: float) -> np.ndarray:
    """Which frames, [clips, frames], of those shown at `times` (ascending, in seconds, the first at 0)."""
    if frames < 1:
        raise ValueError(f"a clip has frames, got {frames}")
    rows = []
    for start in map(float, clip_starts(len(times) / fps, seconds, clips)):
        begin, end = np.searchsorted(times, (start - _TOLERANCE, start + seconds - _TOLERANCE)).tolist()
        if begin == end:
            begin, end = end - 1, end
        rows.append([begin + i * (end - begin - 1) // max(frames - 1, 1) for i in range(frames)])
    return np.array(rows)


@contextlib.contextmanager
def _opened(path: pathlib.Path, max_pixels: int) -> Iterator[tuple[InputContainer, VideoStream, dict[str, int]]]:
    """The container, its pictures, and their size, to which those are brought that differ."""
    with path.open("rb") as file, open_container(file) as container:
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise ValueError("it has no moving pictures")
        stream = streams[0]
        _check_pixels(path, stream, max_pixels)
        _check_seconds(path, (container.duration or 0) / av.time_base)
        stream.thread_type = "AUTO"
        # Frames may grow later. The decoder rounds their sides up to its blocks, hence the slack.
        stream.codec_context.options = {"max_pixels": str(2 * max_pixels + 65536)}
        shape = {"width": stream.width, "height": stream.height} if stream.width and stream.height else {}
        yield container, stream, shape


def _check_pixels(path: pathlib.Path, frame: VideoStream | av.VideoFrame, max_pixels: int) -> None:
    width, height = frame.width or 0, frame.height or 0
    if width * height > max_pixels:
        raise UserError(f"{path} is too large: frames of {width} x {height} pixels, the limit is {max_pixels}")


def _check_seconds(path: pathlib.Path, seconds: float) -> None:
    if seconds > MAX_VIDEO_SECONDS:
        raise UserError(f"{path} is too long: {seconds / 3600:.1f} hours, the limit is {MAX_VIDEO_SECONDS / 3600:g}")


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """The packets that give frames; ValueError at one that is not whole."""
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise ValueError("it is cut off or damaged")
        if packet.size and not packet.is_discard:
            yield packet


def _times(stamps: Sequence[int | None], stream: VideoStream) -> tuple[np.ndarray, float]:
    """Seconds since the first frame, and the average rate, of all frames in the order in which they are shown.

    Where the times are those of a constant rate, rounded, they are computed from the rate.
    """
    count, rate = len(stamps), stream.average_rate or Fraction(25)
    even = np.arange(count) / float(rate)
    if None in stamps or count < 2:
        return even, float(rate)
    ticks = np.array(stamps, np.int64) - stamps[0]
    unit = float(stream.time_base)
    if (np.diff(ticks) <= 0).any() or (np.abs(even / unit - ticks) <= 1.01).all():
        return even, float(rate)
    return ticks * unit, (count - 1) / float(ticks[-1] * unit)


def _seek_frames(path: pathlib.Path, pick: _Pick, max_pixels: int) -> np.ndarray | None:
    """The picked frames [clips, frames, H, W, 3], each decoded from the key frame before it.

    None where the container does not tell when its frames are shown, or the decoder tells something else.
    """
    with _opened(path, max_pixels) as (container, stream, shape):
        if not is_mp4(container) and "matroska" not in container.format.name:
            return None
        stamps, keys = [], []
        for packet in _packets(container, stream):
            stamps.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
            if len(stamps) > _MAX_VIDEO_FRAMES:
                raise UserError(f"{path} is too long: the limit is {_MAX_VIDEO_FRAMES} frames")
        if not stamps or None in stamps or len(set(stamps)) < len(stamps):
            return None
        stamps.sort()
        keys.sort()
        times, fps = _times(stamps, stream)
        _check_seconds(path, times[-1])
        wanted = pick(times, fps)
        found, at, decoded = {}, None, iter(())
        for index in np.unique(wanted).tolist():
            stamp, before = stamps[index], bisect.bisect_right(keys, stamps[index])
            if not before:
                return None
            if at is None or keys[before - 1] > at:
                container.seek(keys[before - 1], stream=stream)
                decoded = container.decode(stream)
            for frame in decoded:
                at = frame.pts
                if at is None or at >= stamp:
                    break
            if at != stamp:
                return None
            found[index] = _pixels(path, frame, shape, max_pixels)
    return _gather(found, wanted)


def _walk_frames(path: pathlib.Path, pick: _Pick, max_pixels: int) -> np.ndarray:
    """The picked frames [clips, frames, H, W, 3]: all are decoded, to see when they are shown, and then once more."""
    with _opened(path, max_pixels) as (container, stream, _):
        for _ in _packets(container, stream):
            pass
    with _opened(path, max_pixels) as (container, stream, _):
        stamps = []
        for frame in container.decode(stream):
            stamps.append(frame.pts)
            if len(stamps) > _MAX_VIDEO_FRAMES:
                raise UserError(f"{path} is too long: the limit is {_MAX_VIDEO_FRAMES} frames")
        if not stamps:
            raise ValueError("it has no frames")
        times, fps = _times(stamps, stream)
        _check_seconds(path, times[-1])
        wanted = pick(times, fps)
    with _opened(path, max_pixels) as (container, stream, shape):
        needed, found = set(wanted.ravel().tolist()), {}
        for i, frame in enumerate(container.decode(stream)):
            if i in needed:
                found[i] = _pixels(path, frame, shape, max_pixels)
                if len(found) == len(needed):
                    break
    return _gather(found, wanted)


def _gather(found: dict[int, np.ndarray], wanted: np.ndarray) -> np.ndarray:
    frames = np.stack([found[i] for i in wanted.ravel().tolist()])
    return frames.reshape(*wanted.shape, *frames.shape[1:])


def _pixels(path: pathlib.Path, frame: av.VideoFrame, shape: dict[str, int], max_pixels: int) -> np.ndarray:
    """RGB, uint8 [H, W, 3], turned upright."""
    _check_pixels(path, frame, max_pixels)
    pixels = frame.to_ndarray(format="rgb24", **shape)
    if frame.rotation % 90 == 0:
        pixels = np.rot90(pixels, frame.rotation // 90)
    return np.ascontiguousarray(pixels)


def preprocess_clips(
    clips: UInt8[np.ndarray, "c f h w 3"], size: int, crops: int = 3
) -> Float[np.ndarray, "c*crops f {size} {size} 3"]:
    """Shorter side to `size` (bilinear), `crops` crops along the longer side, CLIP's mean and deviation: float32.

    Three crops are left, centre, right (or top, centre, bottom), those of a clip side by side; one is the centre. As
    ImageBind's: pytorchvideo's ShortSideScale, which interpolates between the four nearest pixels whatever the scale
    (no antialiasing), and SpatialCrop.

    Raises:
      UserError: the frames are more than MAX_ASPECT times as long as wide.
      ValueError: another number of crops.
    """
    if crops not in (1, 3):
        raise ValueError(f"1 or 3 crops, got {crops}")
    check_aspect(clips[0, 0])
    height, width = clips.shape[2:4]
    short, long = min(height, width), max(height, width)
    scaled = math.floor(long / short * size)
    centre = math.ceil((scaled - size) / 2)
    views = []
    for offset in (0, centre, scaled - size) if crops == 3 else (centre,):
        rows, columns = _neighbours(short, size, 0, size), _neighbours(long, scaled, offset, size)
        if height > width:
            rows, columns = columns, rows
        views.append(_interpolate(clips, rows, columns))
    views = np.stack(views, axis=1)  # [C, crops, F, S, S, 3]
    return (views.reshape(-1, *views.shape[2:]) / np.float32(255.0) - CLIP_MEAN) / CLIP_STD


def _neighbours(source: int, target: int, offset: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For `count` of `target` pixels from `offset`: the source pixels on both sides, and the weight of the second."""
    at = np.maximum((np.arange(offset, offset + count) + 0.5) * (source / target) - 0.5, 0.0)
    low = np.minimum(at.astype(int), source - 1)
    return low, np.minimum(low + 1, source - 1), (at - low).astype(np.float32)


def _interpolate(clips: np.ndarray, rows: tuple, columns: tuple) -> np.ndarray:
    top, bottom, down = rows
    left, right, across = columns
    down, across = down[:, None, None], across[:, None]

    def along(row):
        one, other = clips[:, :, row[:, None], left], clips[:, :, row[:, None], right]
        return one + (other.astype(np.float32) - one) * across

    upper = along(top)
    return upper + (along(bottom) - upper) * down


def write_mp4(
    path: str | os.PathLike, frames: UInt8[np.ndarray, "t h w 3"] | Float[np.ndarray, "t h w 3"], fps: float
) -> None:
    """Writes H.264 (yuv420p, CRF 18) that is either whole or not there; floats are in [0, 1], others are clipped.

    H.264 halves the resolution of colour, so an odd height or width grows by one: the last row or column twice. The
    index comes first in the file, so that playing can start before all is there.

    Raises:
      ValueError: another shape or dtype, no frames, values that are not finite, or a rate outside (0, 1000].
      UserError: the file can't be written.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"a video is [T, H, W, 3], got {list(frames.shape)}")
    if not 0 < fps <= 1000:
        raise ValueError(f"a video has between 0 and 1000 frames a second, got {fps}")
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


def _encode(container: OutputContainer, frames: np.ndarray, fps: Fraction) -> None:
    stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    for pixels in frames:
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    container.mux(stream.encode())
