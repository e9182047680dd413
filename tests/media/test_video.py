"""Reading, writing and preprocessing videos."""

import pathlib
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextgpt_jax import media
from nextgpt_jax.errors import UserError
from nextgpt_jax.media import video_decoding

CLIPS = {"clips": 3, "frames": 4, "seconds": 0.5}


def shades(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames that tell their number: shade 5 i, a bright mark in the upper left corner."""
    frames = np.zeros((count, height, width, 3), np.uint8) + (5 * np.arange(count, dtype=np.uint8))[:, None, None, None]
    frames[:, : height // 4, : width // 4] = 255
    return frames


def encode(path, frames, fps, codec="libx264", container=None, stamps=None, pix_fmt="yuv420p", **options):
    """A file of any kind; `stamps` are times in units of 1/1000 s, for a rate that varies."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[i], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def numbers(frames: np.ndarray) -> list:
    """Which frames of `shades` they are."""
    return np.rint(frames[..., -1, -1, :].astype(float).mean(-1) / 5).astype(int).tolist()


def fails(path, *words, read=media.read_clips, **options):
    with pytest.raises(UserError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_written_videos_read_back(tmp_path, capfd):
    path = tmp_path / "new" / "a.mp4"
    media.write_mp4(path, shades(12), 8)
    video = media.read_video(path)
    assert video.frames.dtype == np.uint8
    assert video.frames.shape == (12, 32, 48, 3)
    assert video.fps == 8
    assert np.abs(video.frames.astype(int) - shades(12)).max() <= 6
    assert numbers(video.frames) == list(range(12))
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]
    assert path.stat().st_mode & 0o777 == 0o644
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("fps", [0.5, 7.5, 23.976, 30000 / 1001, 60])
def test_rates(tmp_path, fps):
    media.write_mp4(tmp_path / "a.mp4", shades(5), fps)
    assert media.read_video(tmp_path / "a.mp4").fps == pytest.approx(fps, rel=1e-9)


@pytest.mark.parametrize(("height", "width"), [(31, 47), (1, 1), (2, 3), (33, 16)])
def test_odd_sizes_grow_by_one(tmp_path, height, width):
    frames = np.full((3, height, width, 3), 100, np.uint8)
    frames[:, -1] = 200
    media.write_mp4(tmp_path / "a.mp4", frames, 4)
    read = media.read_video(tmp_path / "a.mp4").frames
    assert read.shape == (3, height + height % 2, width + width % 2, 3)
    assert np.abs(read[:, -1 - height % 2 :].astype(int) - 200).max() < 12


def test_files_of_odd_sizes_keep_them(tmp_path):
    path = encode(tmp_path / "a.mkv", shades(3, 31, 47), 5, "ffv1", pix_fmt="bgr0")
    np.testing.assert_array_equal(media.read_video(path).frames, shades(3, 31, 47))
    assert media.read_clips(path).shape == (5, 2, 31, 47, 3)


def test_floats_are_clipped(tmp_path):
    frames = np.zeros((2, 16, 16, 3), np.float32)
    frames[0], frames[1] = 7.0, -1.0
    media.write_mp4(tmp_path / "a.mp4", frames, 4)
    read = media.read_video(tmp_path / "a.mp4").frames
    assert read[0].min() > 250
    assert read[1].max() < 5


def test_bad_arrays_are_refused_and_leave_nothing(tmp_path, monkeypatch):
    good = np.zeros((2, 16, 16, 3))
    for frames, fps, reason in [
        (good[0], 4, r"\[T, H, W, 3\]"),
        (good[..., :2], 4, r"\[T, H, W, 3\]"),
        (good[:0], 4, r"\[0, 16, 16, 3\]"),
        (good.astype(int), 4, "int64"),
        (good * np.nan, 4, "finite"),
        (good, 0, "frames per second"),
        (good, float("nan"), "frames per second"),
    ]:
        with pytest.raises(ValueError, match=reason):
            media.write_mp4(tmp_path / "a.mp4", frames, fps)
    assert not list(tmp_path.iterdir())

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(av, "open", full)
    with pytest.raises(UserError, match="a.mp4 can't be written: No space left on device"):
        media.write_mp4(tmp_path / "a.mp4", good, 4)
    assert not list(tmp_path.iterdir())

    def broken(*_args, **_options):
        raise av.error.ExternalError(542398533, "Generic error in an external library")

    monkeypatch.setattr(av, "open", broken)
    with pytest.raises(UserError, match="a.mp4 can't be written: Generic error"):
        media.write_mp4(tmp_path / "a.mp4", good, 4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("quarter_turns", "matrix"),
    [(0, (1, 0, 0, 1)), (-1, (0, 1, -1, 0)), (2, (-1, 0, 0, -1)), (1, (0, -1, 1, 0))],
)
def test_rotation_is_applied(tmp_path, quarter_turns, matrix):
    media.write_mp4(tmp_path / "a.mp4", shades(6), 4)
    upright = np.rot90(media.read_video(tmp_path / "a.mp4").frames, quarter_turns, axes=(1, 2))
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    at = content.index(b"tkhd") + 44
    a, b, c, d = (x << 16 for x in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "b.mp4").write_bytes(content)
    np.testing.assert_array_equal(media.read_video(tmp_path / "b.mp4").frames, upright)
    np.testing.assert_array_equal(media.read_clips(tmp_path / "b.mp4", clips=1)[0], upright[[0, -1]])


@pytest.mark.parametrize(
    ("name", "fps", "options"),
    [
        ("a.mp4", 24, {"g": "12"}),
        ("a.mp4", 30, {"g": "5", "bf": "3"}),
        ("a.mp4", 24, {"codec": "mpeg4", "g": "4", "qmax": "2"}),
        ("a.mov", 25, {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("a.mkv", 30, {"g": "7"}),  # whose times are rounded to milliseconds
        ("a.webm", 24, {"codec": "libvpx-vp9"}),
        ("a.avi", 24, {}),  # whose times are those of decoding, not of showing
        ("a.avi", 24, {"codec": "mpeg4", "qmax": "2"}),
        ("a.ts", 24, {"container": "mpegts"}),  # which does not begin at 0
        ("a.h264", 25, {"container": "h264"}),  # which has no times
    ],
)
def test_clips_of_files_are_those_of_frames(tmp_path, name, fps, options):
    path = encode(tmp_path / name, shades(48), fps, **options)
    video = media.read_video(path)
    assert len(video.frames) == 48
    assert video.fps == pytest.approx(fps)
    assert numbers(video.frames) == list(range(48))
    for wanted in ({}, CLIPS, {"clips": 7, "frames": 1, "seconds": 0.1}):
        clips = media.read_clips(path, **wanted)
        np.testing.assert_array_equal(clips, media.sample_clips(video, **wanted))
    assert clips.shape == (7, 1, 32, 48, 3)


def test_gif(tmp_path):

    frames = [Image.fromarray(frame) for frame in shades(10)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    assert media.read_video(tmp_path / "a.gif").fps == pytest.approx(10)
    assert media.read_clips(tmp_path / "a.gif", **CLIPS).shape == (3, 4, 32, 48, 3)


def test_only_needed_frames_are_decoded(tmp_path):
    """All other groups of pictures are destroyed: decoding any of them fails."""
    path = encode(tmp_path / "a.mp4", shades(50), 1, g="5", bf="0")  # 50 seconds
    expected = media.read_clips(path, clips=3)
    assert numbers(expected) == [[0, 1], [24, 25], [48, 49]]
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        for i, packet in enumerate(packet for packet in file.demux(video=0) if packet.size):
            if i // 5 not in (0, 4, 5, 9):
                content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(content)
    fails(path, read=media.read_video)
    np.testing.assert_array_equal(media.read_clips(path, clips=3), expected)


@pytest.mark.parametrize(
    "options", [{}, {"b-pyramid": "none"}, {"x264-params": "tff=1"}, {"x264-params": "open-gop=1"}]
)
def test_frames_that_no_other_refers_to_are_left_out(tmp_path, options):
    """They are destroyed, but for those that are picked; the picked ones are as if all were decoded."""
    scene = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    frames = np.stack([np.roll(scene, (i, 2 * i), (0, 1)) for i in range(30)])
    path = encode(tmp_path / "a.mp4", frames, 10, bf="3", b_strategy="0", g="20", **options)
    wanted = {"clips": 3, "frames": 3, "seconds": 0.9}
    video = media.read_video(path)
    expected = media.sample_clips(video, **wanted)
    picked = set((media.sample_clips(media.Video(shades(30), 10), **wanted)[..., -1, -1, 0] // 5).ravel().tolist())
    content, destroyed = bytearray(path.read_bytes()), 0
    with av.open(str(path)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
        shown = sorted(packet.pts for packet in packets)
        for packet in packets:
            at, end = packet.pos, packet.pos + packet.size
            while content[at + 4] & 0x1F not in (1, 5):  # up to the slice
                at += 4 + int.from_bytes(content[at : at + 4], "big")
            if not content[at + 4] & 0x60 and shown.index(packet.pts) not in picked:
                content[at + 5 : end] = bytes(end - at - 5)
                destroyed += 1
    assert destroyed >= 8
    np.testing.assert_array_equal(media.read_clips(path, **wanted), expected)
    path.write_bytes(content)
    np.testing.assert_array_equal(media.read_clips(path, **wanted), expected)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_variable_rates_are_sampled_by_time(tmp_path, name):
    stamps = [0, 100, 200, 300, 1000, 2000, 3000, 3100, 3200, 3300]
    path = encode(tmp_path / name, shades(10), 10, stamps=stamps)
    assert media.read_video(path).fps == pytest.approx(9 / 3.3)
    # 3.67 seconds; the clips begin at 0, 0.79, 1.58, 2.38 and 3.17
    clips = numbers(media.read_clips(path, clips=5, frames=2, seconds=0.5))
    assert clips == [[0, 3], [4, 4], [5, 5], [5, 5], [8, 9]]


def test_one_frame(tmp_path):
    media.write_mp4(tmp_path / "a.mp4", shades(1), 8)
    assert media.read_video(tmp_path / "a.mp4").frames.shape == (1, 32, 48, 3)
    assert media.read_clips(tmp_path / "a.mp4").shape == (5, 2, 32, 48, 3)


def test_unreadable_files_give_one_line(tmp_path, monkeypatch, capfd):
    for read in (media.read_video, media.read_clips):
        fails(tmp_path / "nothing.mp4", "no such video", read=read)
        fails(tmp_path, "directory", read=read)
        (tmp_path / "text.mp4").write_text("not a video\nat all")
        fails(tmp_path / "text.mp4", "no supported format", read=read)
        (tmp_path / "empty.mp4").touch()
        fails(tmp_path / "empty.mp4", "no supported format", read=read)
        (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2,\na.mp4\n#EXT-X-ENDLIST\n")
        fails(tmp_path / "list.mp4", "no supported format", read=read)  # would open other files
        media.write_wav(tmp_path / "sound.mp4", np.zeros(800), 16000)
        fails(tmp_path / "sound.mp4", "no moving pictures", read=read)
        with av.open(str(tmp_path / "none.mp4"), "w") as file:
            stream = file.add_stream("mpeg4", rate=5, width=16, height=16, pix_fmt="yuv420p")
            stream.codec_context.open()
            file.start_encoding()
        fails(tmp_path / "none.mp4", "no moving pictures", read=read)
    monkeypatch.setattr(
        pathlib.Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    fails(tmp_path / "text.mp4", "Permission denied")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.1, 0.3, 0.7, 0.98])
def test_cut_off_files_give_one_line(tmp_path, kept, capfd):
    noise = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    media.write_mp4(tmp_path / "a.mp4", noise, 6)
    encode(tmp_path / "b.mp4", noise, 6)  # its index is at the end
    encode(tmp_path / "a.mkv", noise, 6)
    for name in ("a.mp4", "b.mp4"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / f"part_{name}").write_bytes(whole[: int(len(whole) * kept)])
        fails(tmp_path / f"part_{name}")
        fails(tmp_path / f"part_{name}", read=media.read_video)
    assert capfd.readouterr() == ("", "")


def test_damaged_files_give_one_line(tmp_path, capfd):
    media.write_mp4(tmp_path / "a.mp4", shades(6), 4)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    at = content.index(b"mdat") + 4
    content[at:] = bytes(len(content) - at)
    (tmp_path / "a.mp4").write_bytes(content)
    for read in (media.read_video, media.read_clips):
        fails(tmp_path / "a.mp4", "not a readable video", read=read)
    assert capfd.readouterr() == ("", "")


def test_limits(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    media.write_mp4(path, shades(20), 4)
    assert len(media.read_video(path, max_frames=20).frames) == 20
    fails(path, "too large", "19 frames", read=media.read_video, max_frames=19)
    for read in (media.read_video, media.read_clips):
        fails(path, "too large: frames of 48 x 32 pixels, the limit is 1535", read=read, max_pixels=1535)
    monkeypatch.setattr(video_decoding, "MAX_BYTES", 19 * 1536 * 3)
    fails(path, "too large", read=media.read_video)
    monkeypatch.setattr(video_decoding, "MAX_VIDEO_SECONDS", 4.9)
    fails(path, "too long")
    monkeypatch.setattr(video_decoding, "MAX_VIDEO_SECONDS", 5)
    media.read_clips(path)
    monkeypatch.setattr(video_decoding, "MAX_TIMESTAMPS", 19)
    fails(path, "too long", "19 frames")


def test_frames_that_grow_are_bounded(tmp_path):
    """Two streams of raw H.264, one after the other: the second has larger frames."""
    small = encode(tmp_path / "a.h264", shades(3, 16, 16), 5, container="h264").read_bytes()
    large = encode(tmp_path / "b.h264", shades(3, 64, 64), 5, container="h264").read_bytes()
    (tmp_path / "c.h264").write_bytes(small + large)
    assert media.read_video(tmp_path / "c.h264").frames.shape == (6, 16, 16, 3)
    fails(tmp_path / "c.h264", "64 x 64", read=media.read_video, max_pixels=1000)


def test_clips_are_those_of_pytorchvideo():
    """Ten seconds at 30 frames a second: clips start at 0, 2, 4, 6, 8 seconds, and have their first and last frame."""
    video = media.Video(np.arange(300, dtype=np.uint8)[:, None, None, None].repeat(3, -1), 30.0)
    assert media.sample_clips(video)[:, :, 0, 0, 0].tolist() == [
        [0, 59], [60, 119], [120, 179], [180, 239], [240, 299 - 256],
    ]  # fmt: skip
    short = media.Video(video.frames[:30], 30.0)
    assert media.sample_clips(short, clips=2, frames=4)[:, :, 0, 0, 0].tolist() == [[0, 9, 19, 29]] * 2
    # 236 frames at 30000/1001: a clip has 59.94 frames, so the third starts at frame 88.03, and has those from 89
    ntsc = media.Video(video.frames[:236], 30000 / 1001)
    assert media.sample_clips(ntsc)[2, :, 0, 0, 0].tolist() == [89, 147]


@settings(deadline=None)
@given(
    st.integers(1, 200),
    st.floats(0.1, 120),
    st.integers(1, 8),
    st.integers(1, 8),
    st.floats(0.01, 20),
)
def test_sampled_indices_stay_in_range(count, fps, clips, frames, seconds):
    video = media.Video(np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, -1), fps)
    indices = media.sample_clips(video, clips=clips, frames=frames, seconds=seconds)[..., 0, 0, 0].astype(int)
    assert indices.shape == (clips, frames)
    assert indices.min() >= 0
    assert indices.max() < count
    assert (np.diff(indices, axis=1) >= 0).all()
    assert (np.diff(indices, axis=0) >= 0).all()
    assert indices[0, 0] == 0
    if seconds >= count / fps and frames > 1:
        assert (indices[:, -1] == count - 1).all()


def test_content_is_taken_as_files_are(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (30, 16, 24, 3), np.uint8)
    path = encode(tmp_path / "a.mkv", frames, 10, "ffv1", pix_fmt="bgr0")
    expected = media.read_clips(path, **CLIPS)
    pictures = [Image.fromarray(frame) for frame in frames]
    for content in ((frames, 10), media.Video(frames, 10.0), [frames / 255, 10], (pictures, 10), (list(frames), 10)):
        found = media.clips_from_content(content, **CLIPS)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)


def test_bad_content_gives_one_line():
    frames = np.zeros((20, 16, 24, 3), np.uint8)
    for content, reason in [
        (frames, "give a pair of frames and their number per second"),
        ("a.mp4", "give a pair"),
        ((frames, 0), "frames per second"),
        ((frames, float("nan")), "frames per second"),
        ((frames[0], 4), "[T, H, W, 3], got [16, 24, 3]"),
        ((frames[:0], 4), "[0, 16, 24, 3]"),
        (([], 4), "no frames"),
        ((frames.astype(int), 4), "int64"),
        ((frames * np.nan, 4), "finite"),
        ((["a.png"], 4), "not a usable image"),
        (([frames[0], frames[0, 1:]] * 2, 4), "differ in size: [15, 24, 3], [16, 24, 3]"),
        ((frames, 1e-4), "the video is too long: 55.6 hours, the limit is 6"),
    ]:
        with pytest.raises(UserError) as caught:
            media.clips_from_content(content)
        assert reason in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="the video is too large: frames of 24 x 16 pixels, the limit is 383"):
        media.clips_from_content((frames, 4), max_pixels=383)


def imagebind_views(clips: np.ndarray, size: int) -> np.ndarray:
    """ShortSideScale, normalisation and SpatialCrop as in torch."""
    height, width = clips.shape[2:4]
    if width < height:
        shape = (int(np.floor(height / width * size)), size)
    else:
        shape = (size, int(np.floor(width / height * size)))
    views = []
    for clip in clips:
        x = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255
        x = torch.nn.functional.interpolate(x, shape, mode="bilinear", align_corners=False)
        x = x.permute(0, 2, 3, 1).numpy()
        y, z = (int(np.ceil((side - size) / 2)) for side in shape)
        places = [(0, z), (y, z), (shape[0] - size, z)] if height > width else [(y, 0), (y, z), (y, shape[1] - size)]
        views += [x[:, top : top + size, left : left + size] for top, left in places]
    return (np.stack(views) - media.CLIP_MEAN) / media.CLIP_STD


@pytest.mark.parametrize(("height", "width"), [(36, 64), (65, 36), (24, 24), (100, 333), (16, 17), (9, 7)])
def test_preprocessing_is_imagebinds(height, width):
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, height, width, 3), np.uint8)
    views = media.preprocess_clips(clips, 24)
    assert views.dtype == np.float32
    assert views.shape == (6, 3, 24, 24, 3)
    np.testing.assert_allclose(views, imagebind_views(clips, 24), atol=1e-4)
    np.testing.assert_array_equal(media.preprocess_clips(clips, 24, crops=1), views[1::3])


def test_preprocessing_refuses():
    with pytest.raises(UserError, match="too narrow"):
        media.preprocess_clips(np.zeros((1, 1, 1, 65, 3), np.uint8), 8)
    with pytest.raises(ValueError, match="2"):
        media.preprocess_clips(np.zeros((1, 1, 8, 8, 3), np.uint8), 8, crops=2)
