"""Decoding of video files: which frames are shown when, and only those that are needed in memory."""

import bisect
import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence, Set
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from jaxtyping import Float, Int, UInt8

from nextgpt_jax.errors import UserError
from nextgpt_jax.files import reading
from nextgpt_jax.media.animation import opened_animation
from nextgpt_jax.media.streams import is_mp4, open_container
from nextgpt_jax.media.video_pixels import to_pixels

MAX_FRAMES = 20_000  # that read_frames returns
MAX_BYTES = 2 << 30  # of pixels that read_frames returns
MAX_FRAME_PIXELS = 36_000_000  # 8K
MAX_VIDEO_SECONDS = 6 * 3600
MAX_TIMESTAMPS = 1000 * MAX_VIDEO_SECONDS
_SMALL = 1280 * 720  # pixels of frames for which several threads take more time than they save

_Pick = Callable[[Float[np.ndarray, " t"], float], Int[np.ndarray, "clips frames"]]  # times in seconds, rate -> indices


def read_frames(
    path: str | os.PathLike, max_frames: int, max_pixels: int
) -> tuple[UInt8[np.ndarray, "t h w 3"], float]:
    """All frames, upright, and their average rate. Errors as in read_video."""
    path = pathlib.Path(path)
    with reading(path, "video"), opened_animation(path) as animation:
        if animation is not None:
            check_pixels(str(path), animation.width, animation.height, max_pixels)
            size = animation.count * animation.width * animation.height * 3
            _check_size(path, animation.count, size, max_frames)
            return np.stack([animation.frame(i) for i in range(animation.count)]), animation.times()[1]
    with reading(path, "video"), _opened(path, max_pixels) as (container, stream, _):
        _check_packets(path, container, stream)
    with reading(path, "video"), _opened(path, max_pixels) as (container, stream, shape):
        frames, stamps, size = [], [], 0
        for frame in container.decode(stream):
            pixels = _pixels(path, frame, shape, max_pixels)
            size += pixels.nbytes
            _check_size(path, len(frames) + 1, size, max_frames)
            frames.append(pixels)
            stamps.append(frame.pts)
        if not frames:
            raise ValueError("it has no frames")
        _, fps = _times(stamps, stream)
        return np.stack(frames), fps


def _check_size(path: pathlib.Path, count: int, size: int, max_frames: int) -> None:
    if count > max_frames or size > MAX_BYTES:
        limits = f"{max_frames} frames and {MAX_BYTES >> 20} MiB of pixels"
        raise UserError(f"{path} is too large: the limits are {limits}")


def read_picked(path: str | os.PathLike, pick: _Pick, max_pixels: int) -> UInt8[np.ndarray, "clips frames h w 3"]:
    """The frames that `pick` chooses by their times, upright; no others are held. Errors as in read_clips."""
    path = pathlib.Path(path)
    with reading(path, "video"):
        with opened_animation(path) as animation:
            if animation is not None:
                check_pixels(str(path), animation.width, animation.height, max_pixels)
                times, fps = animation.times()
                check_seconds(str(path), len(times) / fps)
                wanted = pick(times, fps)
                return _gather({i: animation.frame(i) for i in np.unique(wanted).tolist()}, wanted)
        found = _seek_frames(path, pick, max_pixels)
        return _walk_frames(path, pick, max_pixels) if found is None else found


@contextlib.contextmanager
def _opened(path: pathlib.Path, max_pixels: int) -> Iterator[tuple[InputContainer, VideoStream, dict[str, int]]]:
    """The container, its video stream, and the size of its frames, to which frames of other sizes are scaled."""
    with path.open("rb") as file, open_container(file) as container:
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise ValueError("it has no moving pictures")
        stream = streams[0]
        check_pixels(str(path), stream.width or 0, stream.height or 0, max_pixels)
        if stream.width * stream.height > _SMALL:
            stream.thread_type = "AUTO"
        else:
            stream.codec_context.thread_count = 1
        # Later frames may be larger. The decoder rounds their sides up to its blocks, hence the slack.
        stream.codec_context.options = {"max_pixels": str(2 * max_pixels + 65536)}
        shape = {"width": stream.width, "height": stream.height} if stream.width and stream.height else {}
        yield container, stream, shape


def check_pixels(name: str, width: int, height: int, max_pixels: int) -> None:
    """Raises UserError, naming the video, if its frames have more than max_pixels."""
    if width * height > max_pixels:
        raise UserError(f"{name} is too large: frames of {width} x {height} pixels, the limit is {max_pixels}")


def check_seconds(name: str, seconds: float) -> None:
    """Raises UserError, naming the video, if it is longer than MAX_VIDEO_SECONDS."""
    if seconds > MAX_VIDEO_SECONDS:
        raise UserError(f"{name} is too long: {seconds / 3600:.1f} hours, the limit is {MAX_VIDEO_SECONDS / 3600:g}")


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """The packets that contain frames. Raises ValueError at a damaged one."""
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise ValueError("it is cut off or damaged")
        if packet.size and not packet.is_discard:
            yield packet


def _check_packets(path: pathlib.Path, container: InputContainer, stream: VideoStream) -> None:
    """Reads all packets, without decoding them.

    Raises:
      ValueError: one is damaged.
      UserError: the video is too long. The length in its header is not asked.
    """
    first, unit = None, float(stream.time_base)
    for packet in _packets(container, stream):
        if packet.dts is not None:
            first = packet.dts if first is None else first
            check_seconds(str(path), (packet.dts - first) * unit)


def _times(stamps: Sequence[int | None], stream: VideoStream) -> tuple[np.ndarray, float]:
    """Seconds since the first frame, and the average rate, of all frames in display order.

    If the timestamps are a constant rate, rounded, the times are computed from that rate.
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

    None if the container has no display times, or the decoder's times differ from them.
    """
    with _opened(path, max_pixels) as (container, stream, shape):
        if not is_mp4(container) and "matroska" not in container.format.name:
            return None
        stamps, keys = [], []
        for packet in _packets(container, stream):
            stamps.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
            if len(stamps) > MAX_TIMESTAMPS:
                raise UserError(f"{path} is too long: the limit is {MAX_TIMESTAMPS} frames")
        if not stamps or None in stamps or len(set(stamps)) < len(stamps):
            return None
        stamps.sort()
        keys.sort()
        times, fps = _times(stamps, stream)
        check_seconds(str(path), times[-1] + 1 / fps)
        wanted = pick(times, fps)
        found, at, decoded = {}, None, iter(())
        indices = np.unique(wanted).tolist()
        picked = {stamps[index] for index in indices}
        for index in indices:
            stamp, before = stamps[index], bisect.bisect_right(keys, stamps[index])
            if not before:
                return None
            if at is None or keys[before - 1] > at:
                container.seek(keys[before - 1], stream=stream)
                decoded = _decoded(container, stream, picked)
            for frame in decoded:
                at = frame.pts
                if at is None or at >= stamp:
                    break
            if at != stamp:
                return None
            found[index] = _pixels(path, frame, shape, max_pixels)
    return _gather(found, wanted)


def _decoded(container: InputContainer, stream: VideoStream, picked: Set[int]) -> Iterator[av.VideoFrame]:
    """The frames from here on. Of H.264, those that no other frame refers to are left out, but for the picked ones:
    they are a third of usual files, and a decoder may drop them without changing the others (nal_ref_idc is 0)."""
    context = stream.codec_context
    for packet in container.demux(stream):
        if context.name == "h264":
            context.skip_frame = "NONREF" if packet.size and packet.pts not in picked else "DEFAULT"
        yield from packet.decode()


def _walk_frames(path: pathlib.Path, pick: _Pick, max_pixels: int) -> np.ndarray:
    """The picked frames [clips, frames, H, W, 3], in two passes: decode all for their times, then again for pixels."""
    with _opened(path, max_pixels) as (container, stream, _):
        _check_packets(path, container, stream)
    with _opened(path, max_pixels) as (container, stream, _):
        stamps = []
        for frame in container.decode(stream):
            stamps.append(frame.pts)
            if len(stamps) > MAX_TIMESTAMPS:
                raise UserError(f"{path} is too long: the limit is {MAX_TIMESTAMPS} frames")
        if not stamps:
            raise ValueError("it has no frames")
        times, fps = _times(stamps, stream)
        check_seconds(str(path), times[-1] + 1 / fps)
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
    """RGB, uint8 [H, W, 3], upright."""
    check_pixels(str(path), frame.width, frame.height, max_pixels)
    return to_pixels(frame, shape)
