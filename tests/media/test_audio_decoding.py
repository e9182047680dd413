"""Audio files that were joined, streamed or cut: read to the end, whatever their headers say."""

import contextlib
import io
import pathlib
import re
import struct
import tempfile
import warnings

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax import media
from nextgpt_jax.errors import UserError
from nextgpt_jax.media.audio_decoding import container_blocks, sound_blocks
from nextgpt_jax.media.ogg import ogg_links

from .test_audio import tone, write_aac

FFMPEG = av.library_versions["libavformat"][0]  # 62: FFmpeg 8


def encoded(samples: np.ndarray, rate: int, kind: str, subtype: str | None = None) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format=kind, subtype=subtype)
    return content.getvalue()


def pitches(samples: np.ndarray, seconds: float, count: int) -> list[float]:
    """The strongest frequency, in Hz, of each of `count` parts of `seconds` at 16 kHz, without their ends."""
    found = []
    for i in range(count):
        part = samples[round(16000 * (i + 0.2) * seconds) : round(16000 * (i + 0.8) * seconds)]
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part))))
        found.append(spectrum.argmax() * 16000 / len(part))
    return found


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("rates", [(48000, 48000), (16000, 24000, 48000)])
def test_chained_ogg_is_read_to_the_end(tmp_path, subtype, rates):
    links = [encoded(tone(400 * (i + 1), rate, 1.0), rate, "OGG", subtype) for i, rate in enumerate(rates)]
    (tmp_path / "a.ogg").write_bytes(b"".join(links))
    found = media.read_audio(tmp_path / "a.ogg")
    assert len(found) == 16000 * len(rates)
    np.testing.assert_allclose(pitches(found, 1.0, len(rates)), [400 * (i + 1) for i in range(len(rates))], atol=4)


def test_links_of_other_codecs_and_channels(tmp_path):
    stereo = np.stack([tone(400, 48000)] * 2, -1)
    links = encoded(stereo, 48000, "OGG", "VORBIS"), encoded(tone(800, 48000), 48000, "OGG", "OPUS")
    (tmp_path / "a.ogg").write_bytes(b"junk".join(links))
    found = media.read_audio(tmp_path / "a.ogg")
    assert len(found) == 32000
    np.testing.assert_allclose(pitches(found, 1.0, 2), [400, 800], atol=4)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 3000), st.booleans()), min_size=1, max_size=4), st.binary(max_size=40))
def test_links_of_random_chains(parts, junk):
    junk = junk.replace(b"Ogg", b"")
    links = [encoded(tone(440, 16000)[:n], 16000, "OGG", "VORBIS" if vorbis else "OPUS") for n, vorbis in parts]
    found = ogg_links(io.BytesIO(b"".join(links)))
    assert [part.read() for part in found] == links
    found = ogg_links(io.BytesIO(junk.join(links)))
    assert [part.read()[: len(link)] for part, link in zip(found, links, strict=True)] == links


NOISE = np.random.default_rng(0).uniform(-0.9, 0.9, 20_000).astype(np.float32)


def flac(samples: int, subtype: str = "PCM_16") -> bytes:
    """NOISE, with another number of samples in its header."""
    content = bytearray(encoded(NOISE, 16000, "FLAC", subtype))
    fields = int.from_bytes(content[18:26], "big")
    content[18:26] = (fields & ~(2**36 - 1) | samples).to_bytes(8, "big")
    return bytes(content)


@pytest.mark.parametrize("samples", [0, 5000, 20_000])  # unknown, as encoders write it to a pipe; too few; right
def test_lengths_in_flac_headers_are_not_believed(tmp_path, samples):
    (tmp_path / "a.flac").write_bytes(flac(samples))
    np.testing.assert_allclose(media.read_audio(tmp_path / "a.flac"), NOISE, atol=2**-15)


@pytest.mark.parametrize("missing", [0, 1, 100, 3000])  # bytes; 0: a sample
def test_flac_that_is_cut_off_is_refused(tmp_path, missing):
    content = flac(20_000 + (not missing))
    (tmp_path / "a.flac").write_bytes(content[: len(content) - missing])
    with pytest.raises(UserError, match="a.flac is not a readable audio file: it is (cut off|damaged)"):
        media.read_audio(tmp_path / "a.flac")


@pytest.mark.parametrize("kind", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("samples", [0, 5000, 20_000])
def test_flac_is_read_by_soundfile(kind, samples):
    content = flac(samples, kind)
    found = np.concatenate([block.samples for block in sound_blocks(io.BytesIO(content))])
    np.testing.assert_array_equal(found, samples_of(content))


def samples_of(content: bytes) -> np.ndarray:
    """By PyAV, [n, channels]."""
    with contextlib.closing(container_blocks(io.BytesIO(content), "a.flac")) as blocks:
        return np.concatenate([block.samples for block in blocks])


@pytest.mark.parametrize("bits", [12, 20, 32])
def test_flac_of_unusual_depth(tmp_path, bits):
    layout, depth = ("s16", 16) if bits == 12 else ("s32", 32)
    values = np.round(NOISE * 2.0 ** (bits - 1)).astype(f"i{depth // 8}") << (depth - bits)
    frame = av.AudioFrame.from_ndarray(values[None], format=layout, layout="mono")
    frame.sample_rate = 16000
    options = {"strict": "experimental", "bits_per_raw_sample": str(bits)}
    with av.open(str(tmp_path / "a.flac"), "w") as file:
        stream = file.add_stream("flac", rate=16000, layout="mono", format=layout, options=options)
        fifo = av.AudioFifo()
        fifo.write(frame)
        while part := fifo.read(4096, partial=True):
            file.mux(stream.encode(part))
        file.mux(stream.encode())
    np.testing.assert_allclose(media.read_audio(tmp_path / "a.flac"), NOISE, atol=2.0 ** -(bits - 1) + 1e-7)


OLD_TAG, TAG = b"TAG" + bytes(125), b"ID3\4\0\0\0\0\x01\x02" + bytes(130)


@pytest.mark.parametrize(("before", "after"), [(b"", b""), (b"", OLD_TAG), (TAG, b""), (b"", TAG), (TAG, OLD_TAG)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_joined_flac_is_read_to_the_end(tmp_path, before, after, count):
    parts = [before + flac(20_000) + after] * count
    (tmp_path / "a.flac").write_bytes(b"".join(parts))
    np.testing.assert_allclose(media.read_audio(tmp_path / "a.flac"), np.tile(NOISE, count), atol=2**-15)


@pytest.mark.parametrize("codec", "u8 s8_planar s16le_planar s24le s32le_planar s64le f32le f64le".split())
def test_samples_of_all_types(tmp_path, codec):
    stereo = np.stack([NOISE, np.roll(NOISE, 7) / 2])
    with av.open(str(tmp_path / "a.nut"), "w") as file:
        stream = file.add_stream(f"pcm_{codec}", rate=16000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(stereo, format="fltp", layout="stereo")
        frame.sample_rate = 16000
        file.mux([*stream.encode(frame), *stream.encode()])
    with open(tmp_path / "a.nut", "rb") as file, contextlib.closing(container_blocks(file, "a.nut")) as blocks:
        found = np.concatenate([block.samples for block in blocks])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.T, stereo, atol=2**-7 if "8" in codec else 2**-15)


def test_flac_in_matroska(tmp_path):
    """It has a FLAC header, which does not begin a FLAC file."""
    (tmp_path / "a.flac").write_bytes(flac(20_000))
    with av.open(str(tmp_path / "a.flac")) as source, av.open(str(tmp_path / "a.mka"), "w") as file:
        stream = file.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = stream
                file.mux(packet)
    np.testing.assert_allclose(media.read_audio(tmp_path / "a.mka"), NOISE, atol=2**-15)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.integers(42, 35_000), st.integers(0, 7)), min_size=1, max_size=3))
def test_damaged_flac_is_read_as_by_pyav(flips):
    content = bytearray(flac(20_000))
    for at, bit in flips:
        content[at % len(content)] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = pathlib.Path(folder, "a.flac")
        path.write_bytes(content)
        try:
            expected = samples_of(bytes(content))[:, 0]
        except ValueError as error:
            with pytest.raises(UserError, match=re.escape(str(error))):
                media.read_audio(path)
        else:
            np.testing.assert_array_equal(media.read_audio(path), expected)


def wav(size: int, riff: int, subtype: str = "PCM_16") -> bytes:
    """NOISE, with other sizes in its header."""
    content = bytearray(encoded(NOISE, 16000, "WAV", subtype))
    struct.pack_into("<I", content, 4, riff)
    struct.pack_into("<I", content, content.index(b"data") + 4, size)
    return bytes(content)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize(("size", "riff"), [(0, 0), (0, 36), (0, 2**32 - 1), (2**32 - 1, 2**32 - 1), (2**31 - 1, 0)])
def test_wav_whose_header_was_written_first(tmp_path, subtype, size, riff):
    (tmp_path / "a.wav").write_bytes(wav(size, riff, subtype))
    np.testing.assert_allclose(media.read_audio(tmp_path / "a.wav"), NOISE, atol=2**-15)


def test_empty_wav_with_tags_has_no_samples(tmp_path):
    content = encoded(NOISE[:0], 16000, "WAV") + b"LIST\x0c\0\0\0INFOISFT\0\0\0\0"
    (tmp_path / "a.wav").write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    with pytest.raises(UserError, match="no samples"):
        media.read_audio(tmp_path / "a.wav")


def test_mp3_in_wav(tmp_path):
    mp3 = encoded(tone(400, 16000, 2.0), 16000, "MP3")
    (tmp_path / "a.mp3").write_bytes(mp3)
    with av.open(str(tmp_path / "a.mp3")) as source, av.open(str(tmp_path / "a.wav"), "w") as file:
        stream = file.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = stream
                file.mux(packet)
    found = media.read_audio(tmp_path / "a.wav")
    assert 32000 <= len(found) < 32000 + 3 * 1152
    np.testing.assert_allclose(pitches(found, 1.0, 2), [400, 400], atol=4)


ID3 = b"ID3\x04\0\0\0\0\x08\0" + b"TIT2\0\0\0\x05\0\0\0song" + bytes(1009)


@pytest.mark.parametrize("rates", [(16000, 16000), (16000, 44100)])
def test_joined_mp3s_with_tags_in_between(tmp_path, rates):
    parts = [encoded(tone(400 * (i + 1), rate, 2.0), rate, "MP3") for i, rate in enumerate(rates)]
    (tmp_path / "a.mp3").write_bytes(b"".join(ID3 + part for part in parts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = media.read_audio(tmp_path / "a.mp3")
    assert abs(len(found) - 64000) < 6000
    np.testing.assert_allclose(pitches(found, len(found) / 32000, 2), [400, 800], atol=4)


def test_skipped_seconds_are_named(tmp_path):
    content = bytearray(encoded(tone(400, 16000, 4.0), 16000, "MP3"))
    starts = [i for i in range(len(content) - 1) if content[i] == 0xFF and content[i + 1] & 0xE0 == 0xE0]
    at = starts[len(starts) // 2]
    content[at + 4 : at + 60] = b"\xff" * 56
    (tmp_path / "a.mp3").write_bytes(content)
    with pytest.warns(RuntimeWarning, match=r"a.mp3: skipped at least 0\.\d\d of [34]\.\d seconds"):
        found = media.read_audio(tmp_path / "a.mp3")
    assert 60000 < len(found) < 67000


def test_files_that_are_mostly_damaged_are_refused(tmp_path):
    path = write_aac(tmp_path / "a.m4a", NOISE, 16000)
    content = bytearray(path.read_bytes())
    at = content.index(b"mdat") + 2000
    content[at:] = b"\xff" * (len(content) - at)
    path.write_bytes(content)
    with pytest.raises(UserError, match="a.m4a is not a readable audio file: it is damaged"):
        media.read_audio(path)


@pytest.mark.parametrize("count", [1, 500, 1024, 5000, 16000, 20_000])
@pytest.mark.parametrize("video", [False, True])
def test_aac_ends_where_its_sound_ends(tmp_path, count, video):
    path = write_aac(tmp_path / "a.mp4", tone(440, 16000, 2.0)[:count], 16000, video=video)
    found = len(media.read_audio(path))
    # FFmpeg 7 knows the end to a millisecond.
    assert found == count or FFMPEG < 62 and count < found <= count + 16
