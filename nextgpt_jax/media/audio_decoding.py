"""Decoding of audio files, in blocks, so that memory does not grow with their rate.

Two readers: soundfile reads WAV, Ogg, AIFF and similar files, PyAV all others, and what soundfile fails at. PyAV could
read all, but takes 8 times as long for WAV and returns the padding at the end of Vorbis.
"""

import os
import warnings
from collections.abc import Generator, Iterator
from typing import IO, NamedTuple

import av
import numpy as np
import soundfile
from jaxtyping import Float

from nextgpt_jax.media.ogg import ogg_links
from nextgpt_jax.media.streams import is_mp4, open_container

BLOCK = 1 << 20  # samples of all channels that are read at once
MAX_LOST = 0.1  # of a file's seconds, that may be skipped
_STREAMINFO = 26  # bytes of a FLAC file up to the number of its samples


class Block(NamedTuple):
    rate: int  # Hz
    samples: Float[np.ndarray, "n channels"]  # in [-1, 1]


class SoundError(ValueError):
    """soundfile cannot read a file, or not all of it; PyAV may."""


def sound_blocks(file: IO[bytes]) -> Generator[Block, None, None]:
    """By soundfile: the whole file, in an Ogg file all links, one after the other.

    Raises:
      SoundError: the file is left to container_blocks.
      ValueError: the file has no samples.
    """
    head = file.read(4)
    if head[:3] == b"ID3" or head[:2] >= b"\xff\xe0" or head == b"fLaC":
        raise SoundError  # libsndfile prints warnings about MP3, and believes the length in the header of a FLAC file
    links = ogg_links(file) if head == b"OggS" else []
    file.seek(0)
    try:
        for part in links if len(links) > 1 else [file]:
            with soundfile.SoundFile(part) as sound:
                yield from _blocks(sound, file)
    except soundfile.LibsndfileError as error:
        raise SoundError(str(error)) from None


def _blocks(sound: soundfile.SoundFile, file: IO[bytes]) -> Iterator[Block]:
    if sound.subtype == "MPEG_LAYER_III":  # in WAV; the length in its header is often wrong
        raise SoundError
    if not sound.frames and not _is_complete_riff(file):
        raise SoundError  # the header was written before the samples
    seen = 0
    while len(block := sound.read(BLOCK // sound.channels, dtype="float32", always_2d=True)):
        seen += len(block)
        yield Block(sound.samplerate, block)
    if seen < sound.frames:
        raise SoundError


def _is_complete_riff(file: IO[bytes]) -> bool:
    at = file.tell()
    file.seek(0)
    head = file.read(8)
    size = file.seek(0, os.SEEK_END)
    file.seek(at)
    return head[:4] == b"RIFF" and int.from_bytes(head[4:], "little") + 8 == size


def container_blocks(file: IO[bytes], name: str) -> Generator[Block, None, None]:
    """By PyAV, to the end, whatever the header says of the length. `name` is the file's, for warnings.

    Packets that cannot be decoded (tags between joined MP3s, damage) are skipped, with a warning that says how many
    seconds they were.

    Raises:
      ValueError: the file is damaged, cut off, in no supported format, or has no sound.
    """
    file.seek(0)
    head = file.read(_STREAMINFO)
    promised = int.from_bytes(head[18:], "big") & (2**36 - 1) if head[:4] == b"fLaC" else 0  # samples
    with open_container(file) as container:
        if not container.streams.audio:
            raise ValueError("it has no sound")
        reader = _PacketReader(container, container.streams.audio[0])
        seen = 0
        for block in reader.trimmed() if is_mp4(container) else reader.blocks():
            seen += len(block.samples)
            yield block
    lost, total = reader.lost, reader.lost + reader.seconds
    if lost > MAX_LOST * total:
        raise ValueError(f"it is damaged: {lost:.1f} of {total:.1f} seconds cannot be decoded")
    if seen < promised and not lost:
        raise ValueError("it is cut off")
    if reader.skipped:
        message = f"{name}: skipped {lost:.2f} seconds of {total:.1f} that cannot be decoded"
        warnings.warn(message, RuntimeWarning, stacklevel=2)


class _PacketReader:
    """The sound of one stream.

    Attributes:
      skipped: packets that could not be decoded.
      lost: their seconds.
      seconds: of what was decoded.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.AudioStream):
        self._container, self._stream = container, stream
        self._start: float | None = None  # seconds, of the first frame
        self._end = 0.0  # seconds, of the last packet
        self.skipped, self.lost, self.seconds = 0, 0.0, 0.0

    def blocks(self) -> Iterator[Block]:
        for frame in self._frames():
            self.seconds += frame.samples / frame.sample_rate
            yield Block(frame.sample_rate, _floats(frame))

    def _frames(self) -> Iterator[av.AudioFrame]:
        for packet in self._container.demux(self._stream):
            duration = float((packet.duration or 0) * (packet.time_base or 0))
            if packet.pts is not None:
                self._end = max(self._end, float(packet.pts * packet.time_base) + duration)
            try:
                frames = packet.decode()
            except av.FFmpegError:
                self.skipped += 1
                self.lost += duration
                continue
            for frame in frames:
                if self._start is None:
                    self._start = frame.time or 0.0
                yield frame

    def trimmed(self) -> Iterator[Block]:
        """The blocks without the encoder's padding at the end: an MP4 says where in its last frame the sound ends."""
        held: list[Block] = []  # the last two at least
        for block in self.blocks():
            held.append(block)
            if len(held) > 2:
                yield held.pop(0)
        padding = 0
        if held and self._start is not None and not self.skipped:
            ends = [self._end - self._start]
            if self._stream.duration:
                ends.append(float(self._stream.duration * self._stream.time_base))
            padding = round((self.seconds - min(ends)) * held[-1].rate)
        if 0 < padding < sum(len(block.samples) for block in held):  # else the header is wrong
            while padding >= len(held[-1].samples):
                padding -= len(held.pop().samples)
            rate, samples = held.pop()
            held.append(Block(rate, samples[: len(samples) - padding]))
        yield from held


def _floats(frame: av.AudioFrame) -> Float[np.ndarray, "n channels"]:
    samples = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(frame.samples, -1)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / np.float32(128)
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / np.float32(-float(np.iinfo(samples.dtype).min))
    return samples.astype(np.float32)
