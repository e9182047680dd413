"""Decoding of audio files, in blocks, so that memory does not grow with their rate.

Two readers: soundfile reads WAV, FLAC, Ogg, AIFF and similar files, PyAV all others, and what soundfile fails at. PyAV
could read all, but takes longer for WAV and FLAC and returns the padding at the end of Vorbis.
"""

import os
import warnings
from collections.abc import Generator, Iterator
from typing import IO, NamedTuple

import av
import numpy as np
import soundfile
from jaxtyping import Float

from nextgpt_jax.media.flac import UnboundedFlac, flac_links, promised_samples
from nextgpt_jax.media.ogg import ogg_links
from nextgpt_jax.media.streams import is_mp4, open_container

BLOCK = 1 << 20  # samples of all channels that are read at once
MAX_LOST = 0.1  # of a file's seconds, that may be skipped
_DTYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}  # of formats in PyAV


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
    if head[:3] == b"ID3" or head[:2] >= b"\xff\xe0":
        raise SoundError  # libsndfile prints warnings about MP3
    try:
        if head == b"fLaC":
            with UnboundedFlac(file) as sound:
                yield from _whole(sound, promised_samples(file))
            return
        links = ogg_links(file) if head == b"OggS" else []
        file.seek(0)
        # By its name: libsndfile then reads by itself, instead of calling back for every 8 KB.
        for part in links if len(links) > 1 else [file.name]:
            with soundfile.SoundFile(part) as sound:
                yield from _blocks(sound, file)
    except soundfile.SoundFileRuntimeError as error:
        raise SoundError(str(error)) from None


def _blocks(sound: soundfile.SoundFile, file: IO[bytes]) -> Iterator[Block]:
    if sound.subtype == "MPEG_LAYER_III":  # in WAV; the length in its header is often wrong
        raise SoundError
    if not sound.frames and not _is_complete_riff(file):
        raise SoundError  # the header was written before the samples
    yield from _whole(sound, sound.frames)


def _whole(sound: soundfile.SoundFile, promised: int) -> Iterator[Block]:
    seen = 0
    while len(block := sound.read(BLOCK // sound.channels, dtype="float32", always_2d=True)):
        seen += len(block)
        yield Block(sound.samplerate, block)
    if seen < promised:
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
    seconds they were. What a damaged packet held is known from its own header, if at all: there may be more.

    Raises:
      ValueError: the file is damaged, cut off, in no supported format, or has no sound.
    """
    for part in flac_links(file) if _is_flac(file) else [file]:
        yield from _stream_blocks(part, name)


def _is_flac(file: IO[bytes]) -> bool:
    file.seek(0)
    head = file.read(4)
    if head[:3] != b"ID3":
        return head == b"fLaC"
    with open_container(file) as container:
        return container.format.name == "flac"


def _stream_blocks(file: IO[bytes], name: str) -> Iterator[Block]:
    promised = promised_samples(file)
    with open_container(file) as container:
        if not container.streams.audio:
            raise ValueError("it has no sound")
        reader = _PacketReader(container, container.streams.audio[0])
        seen, rate = 0, 1
        for block in reader.trimmed() if is_mp4(container) else reader.blocks():
            seen, rate = seen + len(block.samples), block.rate
            yield block
    lost = max(reader.lost, (promised - seen) / rate if reader.skipped else 0)
    total = lost + reader.seconds
    if lost > MAX_LOST * total:
        raise ValueError(f"it is damaged: {lost:.1f} of {total:.1f} seconds cannot be decoded")
    if seen < promised and not reader.recovered:
        raise ValueError("it is cut off")
    if reader.skipped:
        message = f"{name}: skipped at least {lost:.2f} of {total:.1f} seconds, which cannot be decoded"
        warnings.warn(message, RuntimeWarning, stacklevel=2)


class _PacketReader:
    """The sound of one stream.

    Attributes:
      skipped: packets that could not be decoded.
      recovered: there were some, and the last packet is not one of them.
      lost: their seconds.
      seconds: of what was decoded.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.AudioStream):
        self._container, self._stream = container, stream
        self._start: float | None = None  # seconds, of the first frame
        self._end = 0.0  # seconds, of the last packet
        self.skipped, self.recovered, self.lost, self.seconds = 0, False, 0.0, 0.0

    def blocks(self) -> Iterator[Block]:
        held: list[av.AudioFrame] = []  # of one kind: to convert each by itself takes longer than to decode it
        kind, size = None, 0
        for frame in self._frames():
            found = frame.sample_rate, frame.format.name, frame.layout.nb_channels
            if held and (found != kind or size >= BLOCK):
                yield self._block(held)
                held, size = [], 0
            held.append(frame)
            kind, size = found, size + frame.samples * found[-1]
        if held:
            yield self._block(held)

    def _block(self, frames: list[av.AudioFrame]) -> Block:
        block = Block(frames[0].sample_rate, _floats(frames))
        self.seconds += len(block.samples) / block.rate
        return block

    def _frames(self) -> Iterator[av.AudioFrame]:
        unit = float(self._stream.time_base or 0)
        end = 0  # in units of it, as all times of packets: fractions take longer than decoding
        for packet in self._container.demux(self._stream):
            pts, duration = packet.pts, packet.duration or 0
            if pts is not None and pts + duration > end:
                end = pts + duration
            try:
                frames = packet.decode()
            except av.FFmpegError:
                self.skipped, self.recovered = self.skipped + 1, False
                self.lost += duration * unit
                continue
            if frames:
                self.recovered = self.skipped > 0
                self._start = self._start if self._start is not None else frames[0].time or 0.0
            yield from frames
        self._end = end * unit

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


def _floats(frames: list[av.AudioFrame]) -> Float[np.ndarray, "n channels"]:
    """The samples of frames of one format."""
    name, channels = frames[0].format.name, frames[0].layout.nb_channels
    dtype, planar = np.dtype(_DTYPES[name.removesuffix("p")]), name.endswith("p")
    per_plane = 1 if planar else channels
    planes = zip(*(frame.planes for frame in frames))
    made = np.empty((channels // per_plane, sum(frame.samples for frame in frames) * per_plane), np.float32)
    for row, column in zip(made, planes):
        parts = [np.frombuffer(plane, dtype, frame.samples * per_plane) for plane, frame in zip(column, frames)]
        with np.errstate(over="ignore"):  # samples that are not finite are reported later, once
            np.concatenate(parts, out=row, casting="same_kind")
    if dtype == np.uint8:
        made -= 128
    if dtype.kind in "iu":
        made /= 2.0 ** (8 * dtype.itemsize - 1)
    return made.T if planar else made.reshape(-1, channels)
