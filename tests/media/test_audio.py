"""Reading, writing and preprocessing audio."""

import pathlib
import struct
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import audio_utils

from nextgpt_jax import media
from nextgpt_jax.errors import UserError
from tests import FIXTURES

FIXTURE = FIXTURES / "kaldi" / "fbank.npz"


def signal(n: int) -> np.ndarray:
    """A rising tone in noise with an offset, at 16 kHz. Fixtures were computed from it."""
    t = np.arange(n) / 16000
    noise = np.random.default_rng(0).normal(0, 0.05, n)
    return (0.4 * np.sin(2 * np.pi * (200 + 1500 * t) * t) + noise + 0.1).astype(np.float32)


def tone(hertz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def write_aac(path: pathlib.Path, samples: np.ndarray, rate: int, *, video: bool = False) -> pathlib.Path:
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        pictures = container.add_stream("libx264", rate=5, width=16, height=16, pix_fmt="yuv420p") if video else None
        stream = container.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = rate
        fifo = av.AudioFifo()
        fifo.write(frame)
        if pictures:
            picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            container.mux(pictures.encode(picture))
            container.mux(pictures.encode())
        at = 0
        while part := fifo.read(1024, partial=True):
            part.pts, part.time_base = at, Fraction(1, rate)
            at += part.samples
            container.mux(stream.encode(part))
        container.mux(stream.encode())
    return path


def fails(path, *words, **options):
    with pytest.raises(UserError) as caught:
        media.read_audio(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("suffix", "subtype", "error"),
    [
        ("wav", "PCM_16", 2**-15),
        ("wav", "PCM_24", 2**-23),
        ("wav", "PCM_U8", 2**-6),
        ("wav", "FLOAT", 0),
        ("wav", "DOUBLE", 0),
        ("flac", "PCM_16", 2**-15),
        ("aiff", "PCM_16", 2**-15),
        ("ogg", "VORBIS", 0.05),
        ("mp3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_formats_and_channels(tmp_path, suffix, subtype, error, capfd):
    left = tone(440, 16000).astype(np.float32)
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([left, left / 2], -1), 16000, subtype=subtype)
    read = media.read_audio(path)
    assert read.dtype == np.float32
    assert read.shape == left.shape
    np.testing.assert_allclose(read, left * 0.75, atol=error + 1e-7)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("video", [False, True])
def test_sound_of_mp4(tmp_path, video):
    path = write_aac(tmp_path / "a.mp4", tone(440, 16000), 16000, video=video)
    read = media.read_audio(path)
    assert 16000 <= len(read) < 16000 + 2 * 1024
    spectrum = np.abs(np.fft.rfft(read[4000:12000]))
    assert abs(spectrum.argmax() * 2 - 440) <= 2
    assert np.abs(read[4000:12000]).max() == pytest.approx(0.5, abs=0.05)
    assert 8000 <= len(media.read_audio(path, sample_rate=8000)) < 8000 + 1024


def test_names_do_not_matter(tmp_path):
    soundfile.write(tmp_path / "a.mp4", tone(440, 8000), 8000, format="WAV")
    assert len(media.read_audio(tmp_path / "a.mp4", sample_rate=8000)) == 8000


@pytest.mark.parametrize(("rate", "target"), [(44100, 16000), (48000, 16000), (8000, 16000), (22050, 16000)])
def test_resampling_keeps_what_fits(rate, target):
    kept = media.resample(tone(1000, rate), rate, target)
    assert len(kept) == target
    inner = slice(target // 10, -target // 10)
    np.testing.assert_allclose(kept[inner], tone(1000, target)[inner], atol=2e-4)
    if rate > target:
        for hertz in (0.505 * target, 0.52 * target, 0.54 * target):  # would alias: -100 dB
            gone = media.resample(tone(hertz, rate), rate, target)
            assert np.abs(gone[inner]).max() < 5e-6
    band = 0.45 * min(rate, target)  # 0.9 of half the lower rate
    np.testing.assert_allclose(
        media.resample(tone(band, rate), rate, target)[inner], tone(band, target)[inner], atol=1e-3
    )


@pytest.mark.parametrize(("suffix", "rate"), [("wav", 44100), ("wav", 384_000), ("mp3", 22050), ("wav", 11025)])
def test_long_files_are_resampled_as_a_whole(tmp_path, suffix, rate):
    """Files are read in blocks, which leave no traces: three blocks of a WAV, many frames of an MP3."""
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, 2_300_000 if suffix == "wav" else 60_000).astype(np.float32)
    soundfile.write(path, noise, rate, subtype="FLOAT" if suffix == "wav" else None)
    found, decoded = media.read_audio(path), media.read_audio(path, sample_rate=rate)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, media.resample(decoded, rate, 16000), atol=1e-6)
    if suffix == "wav":
        np.testing.assert_array_equal(decoded, noise)


def test_memory_does_not_grow_with_the_rate(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(60 * 384_000, np.int16), 384_000)
    media.read_audio(tmp_path / "a.wav")  # what is cached is not counted
    tracemalloc.start()
    assert len(media.read_audio(tmp_path / "a.wav")) == 60 * 16_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20  # a minute is 88 MiB at the file's rate


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3000),
    st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000, 44101]),
    st.sampled_from([8000, 16000, 24000]),
)
def test_resampled_lengths(n, rate, target):
    resampled = media.resample(np.ones(n), rate, target)
    assert resampled.dtype == np.float32
    assert abs(len(resampled) - n * target / rate) <= 0.5
    assert np.abs(resampled).max(initial=0) < 1.5


def test_unreadable_files_give_one_line(tmp_path, monkeypatch, capfd):
    fails(tmp_path / "nothing.wav", "no such audio file")
    fails(tmp_path, "directory")
    fails("/dev/null", "not a regular file")
    (tmp_path / "text.wav").write_text("not audio\nat all")
    fails(tmp_path / "text.wav", "no supported format")
    (tmp_path / "empty.wav").touch()
    fails(tmp_path / "empty.wav", "no supported format")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2,\na.wav\n#EXT-X-ENDLIST\n")
    fails(tmp_path / "list.m3u8", "no supported format")  # would open other files
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    fails(tmp_path / "none.wav", "no samples")
    for value in (np.nan, np.inf, 1e300):
        soundfile.write(tmp_path / "nan.wav", np.array([0, value]), 16000, subtype="DOUBLE")
        fails(tmp_path / "nan.wav", "not finite")
    media.write_mp4(tmp_path / "silent.mp4", np.zeros((2, 16, 16, 3)), 4)
    fails(tmp_path / "silent.mp4", "no sound")

    def locked(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "locked.wav").touch()
    monkeypatch.setattr(pathlib.Path, "open", locked)
    fails(tmp_path / "locked.wav", "Permission denied")
    assert capfd.readouterr() == ("", "")


def test_cut_off_files_give_one_line(tmp_path):
    noise = np.random.default_rng(0).uniform(-1, 1, 16000)
    soundfile.write(tmp_path / "a.flac", noise, 16000)
    write_aac(tmp_path / "a.m4a", noise, 16000)
    for name in ("a.flac", "a.m4a"):
        whole = (tmp_path / name).read_bytes()
        for kept in (0.02, 0.3, 0.7, 0.98):
            (tmp_path / f"part_{name}").write_bytes(whole[: int(len(whole) * kept)])
            fails(tmp_path / f"part_{name}")


def test_length_is_checked(tmp_path):
    path = tmp_path / "a.wav"
    media.write_wav(path, tone(440, 8000, 2.0), 8000)
    assert len(media.read_audio(path, max_seconds=2.0)) == 32000
    fails(path, "too long: 2.0 seconds, the limit is 1.5", max_seconds=1.5)
    fails(write_aac(tmp_path / "a.m4a", tone(440, 8000, 2.0), 8000), "too long", max_seconds=1.5)
    header = bytearray(path.read_bytes())
    header[24:28] = struct.pack("<I", 2**31 - 1)
    path.write_bytes(header)
    fails(path, "rate of 2147483647 Hz")


def test_written_audio_reads_back(tmp_path):
    path = tmp_path / "new" / "a.wav"
    samples = np.array([-1.0, -0.5, 0.0, 0.25, 0.999])
    media.write_wav(path, samples, 16000)
    np.testing.assert_allclose(media.read_audio(path), samples, atol=2**-15)
    media.write_wav(path, np.array([-3.0, 3.0], np.float32), 16000)
    np.testing.assert_array_equal(media.read_audio(path), np.float32([-1, 1 - 2**-15]))
    exact = np.array([-32768, -1, 0, 32767], np.int16)
    media.write_wav(path, exact, 44100)
    assert soundfile.read(path, dtype="int16")[0].tolist() == exact.tolist()
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype) == (44100, 1, "PCM_16")
    assert [p.name for p in path.parent.iterdir()] == ["a.wav"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_bad_arrays_are_refused_and_leave_nothing(tmp_path):
    for samples, rate, reason in [
        (np.zeros((4, 2)), 16000, r"\[4, 2\]"),
        (np.zeros(0), 16000, r"\[0\]"),
        (np.zeros(4), 0, "at 0"),
        (np.zeros(4, np.int64), 16000, "int64"),
        (np.array([0, np.inf]), 16000, "finite"),
    ]:
        with pytest.raises(ValueError, match=reason):
            media.write_wav(tmp_path / "a.wav", samples, rate)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a.wav can't be written"):
        media.write_wav(tmp_path / "file" / "a.wav", np.zeros(4), 16000)


def test_filter_banks_are_kaldis():
    expected = np.load(FIXTURE)
    bands = media.fbank(signal(8000))
    assert bands.dtype == np.float32
    assert bands.shape == (48, 128)
    np.testing.assert_allclose(bands[::6], expected["mel128"], atol=1e-4)
    bands = media.fbank(signal(8000), sample_rate=8000, num_mel_bins=23, frame_length_ms=32, frame_shift_ms=20)
    np.testing.assert_allclose(bands[::6], expected["mel23_8khz"], atol=1e-4)


@pytest.mark.parametrize(("rate", "mel", "length", "shift"), [(16000, 128, 400, 160), (8000, 23, 256, 160)])
def test_filter_banks_are_those_of_transformers(rate, mel, length, shift):
    size = 1 << (length - 1).bit_length()
    filters = audio_utils.mel_filter_bank(
        size // 2 + 1, mel, 20.0, rate / 2, rate, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    window = audio_utils.window_function(length, "hann", periodic=False)
    options = {"power": 2.0, "center": False, "preemphasis": 0.97, "remove_dc_offset": True, "log_mel": "log"}
    waveform = signal(rate)
    expected = audio_utils.spectrogram(
        waveform, window, length, shift, fft_length=size, mel_filters=filters, mel_floor=2.0**-23, **options
    )
    found = media.fbank(
        waveform,
        sample_rate=rate,
        num_mel_bins=mel,
        frame_length_ms=1000 * length / rate,
        frame_shift_ms=1000 * shift / rate,
    )
    np.testing.assert_allclose(found, expected.T, atol=1e-5)


def test_filter_banks_of_short_and_silent_audio():
    assert media.fbank(np.zeros(399)).shape == (0, 128)
    np.testing.assert_allclose(media.fbank(np.zeros(400)), np.full((1, 128), np.log(2.0**-23)))
    assert media.fbank(np.zeros(559)).shape == (1, 128)
    assert media.fbank(np.zeros(560)).shape == (2, 128)


def test_preprocessing_is_imagebinds():
    views = media.preprocess_audio(signal(48001))
    assert views.shape == (3, 128, 204)
    assert views.dtype == np.float32
    np.testing.assert_allclose(views[:, ::9, ::7], np.load(FIXTURE)["clips"], atol=2e-5)


def test_short_audio_fills_every_clip():
    views = media.preprocess_audio(signal(1600), clips=2, num_mel_bins=16, target_length=20)
    np.testing.assert_array_equal(views[0], views[1])
    np.testing.assert_allclose(views[:, :, 8:], 4.268 / 9.138, rtol=1e-6)  # 8 frames, then zeros, normalised
    assert (views[:, :, :8] != views[:, :, 8:9]).all()
    with pytest.raises(UserError, match="24.9375 ms is too short"):
        media.preprocess_audio(signal(399))


@settings(deadline=None, max_examples=30)
@given(st.integers(400, 80000), st.integers(1, 5), st.floats(0.03, 4), st.integers(1, 50), st.integers(1, 250))
def test_views_have_their_shape(n, clips, seconds, bands, length):
    views = media.preprocess_audio(signal(n), clips=clips, seconds=seconds, num_mel_bins=bands, target_length=length)
    assert views.shape == (clips, bands, length)
    assert np.isfinite(views).all()


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize(
    ("dtype", "subtype"),
    [("float32", "FLOAT"), ("float64", "DOUBLE"), ("int16", "PCM_16"), ("int32", "PCM_32"), ("uint8", "PCM_U8")],
)
def test_arrays_are_taken_as_files_are(tmp_path, rate, dtype, subtype):
    samples = np.stack([tone(440, rate), tone(600, rate)], -1)
    if dtype.startswith("int"):
        samples = (samples * np.iinfo(dtype).max).astype(dtype)
    elif dtype == "uint8":
        samples = (samples * 100 + 128).astype(dtype)
    stored = ((samples.astype(np.int16) - 128) << 8).astype(np.int16) if dtype == "uint8" else samples
    for channels in (slice(None), 0):
        soundfile.write(tmp_path / "a.wav", stored[:, channels], rate, subtype=subtype)
        found = media.audio_from_content((samples.astype(dtype)[:, channels], rate))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, media.read_audio(tmp_path / "a.wav"), atol=1e-7)


def test_bad_arrays_give_one_line():
    for content, reason in [
        (tone(440, 8000), "give a pair of samples and their rate"),
        (np.zeros((2, 2)), "give a pair"),
        ("a.wav", "give a pair"),
        ((np.zeros((2, 16000)), 16000), "[n, channels], got [2, 16000]"),
        ((np.zeros((2, 2, 2)), 16000), "[2, 2, 2]"),
        ((np.zeros(0), 16000), "no samples"),
        ((np.zeros(16, bool), 16000), "got bool"),
        ((np.zeros(16, np.int64), 16000), "got int64"),
        ((np.array([0, np.nan]), 16000), "not finite"),
        ((np.array([0, 1e300]), 16000), "not finite"),
        ((np.zeros(16), 10), "rate of 10 Hz"),
        ((np.zeros(16), 16000.5), "rate of 16000.5 Hz"),
        ((np.zeros(32001), 16000), "the audio is too long: 2.0 seconds, the limit is 2"),
    ]:
        with pytest.raises(UserError) as caught:
            media.audio_from_content(content, max_seconds=2)
        assert reason in str(caught.value) and "\n" not in str(caught.value)
