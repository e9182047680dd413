"""Media containers and clip positions, for video and audio."""

import os
from fractions import Fraction
from typing import IO

import av
from av.container import InputContainer

# Demuxers of common formats. None of them opens other files or addresses, as those of playlists do.
_FORMATS = (
    "aac,ac3,aiff,amr,apng,asf,avi,caf,dv,eac3,flac,flv,gif,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mp3,mpeg,mpegts,"
    "mpegvideo,mxf,nut,obu,ogg,rm,wav,wv,yuv4mpegpipe"
)


def open_container(file: IO[bytes]) -> InputContainer:
    """Opens a media container at the start of the file.

    Raises:
      ValueError: it is in no supported format, or cut off.
    """
    try:
        file.seek(0)
        container = av.open(file, options={"format_whitelist": _FORMATS})
    except (av.FFmpegError, OSError):
        raise ValueError("it is damaged, or in no supported format") from None
    if is_mp4(container):
        at = file.tell()
        _check_boxes(file)
        file.seek(at)
    return container


def is_mp4(container: InputContainer) -> bool:
    return "mp4" in container.format.name.split(",")


def _check_boxes(file: IO[bytes]) -> None:
    """Raises ValueError if a box of an MP4 is cut off: FFmpeg opens any file that has an index.

    A file is a sequence of boxes, each of which starts with its length.
    """
    end, at = file.seek(0, os.SEEK_END), 0
    while at + 8 <= end:
        file.seek(at)
        header = file.read(16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:  # the length has 64 bits
            size = int.from_bytes(header[8:], "big")
        if size == 0:  # the last box
            return
        if at + size > end and header[4:8] in (b"mdat", b"moov", b"moof"):
            raise ValueError("it is cut off")
        if size < 8:
            return
        at += size


def clip_starts(duration: float, seconds: float, clips: int) -> list[Fraction]:
    """Start times, in seconds, of `clips` clips of `seconds`, evenly spaced over `duration`; the last one ends with it.

    All start at 0 if the duration is shorter than a clip (pytorchvideo's ConstantClipsPerVideoSampler stops after one
    clip then). Rational numbers, as there.

    Raises:
      ValueError: no clips, or clips without length.
    """
    if clips < 1 or not seconds > 0:
        raise ValueError(f"at least 1 clip of more than 0 seconds, got {clips} of {seconds} s")
    latest = max(Fraction(duration) - Fraction(seconds), Fraction(0))
    return [latest * i / max(clips - 1, 1) for i in range(clips)]
