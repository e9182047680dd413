"""Animated WebP and AVIF as video."""

import numpy as np
import pytest
from PIL import Image

from nextgpt_jax import media
from nextgpt_jax.errors import UserError

CLIPS = {"clips": 3, "frames": 4, "seconds": 0.5}


def save(path, frames: np.ndarray, duration, **options):
    first, *others = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=others, duration=duration, **options)
    return path


def pictures(count: int) -> np.ndarray:
    frames = np.zeros((count, 16, 24, 3), np.uint8) + (8 * np.arange(count, dtype=np.uint8))[:, None, None, None]
    frames[:, :8, :8, 0] = 255
    return frames


@pytest.mark.parametrize(("suffix", "options"), [("webp", {"lossless": True}), ("avif", {"quality": 95})])
def test_animations_are_videos(tmp_path, suffix, options):
    path = save(tmp_path / f"a.{suffix}", pictures(20), 125, **options)
    video = media.read_video(path)
    assert video.fps == pytest.approx(8)
    assert video.frames.shape == (20, 16, 24, 3)
    assert np.abs(video.frames[:, -1, -1].astype(int) - pictures(20)[:, -1, -1]).max() <= 4
    np.testing.assert_array_equal(media.read_clips(path, **CLIPS), media.sample_clips(video, **CLIPS))
    np.testing.assert_array_equal(media.read_image(path), video.frames[0])


def test_durations_vary(tmp_path):
    path = save(tmp_path / "a.webp", pictures(4), [100, 900, 500, 500], lossless=True)
    assert media.read_video(path).fps == pytest.approx(2)
    clips = media.read_clips(path, clips=2, frames=2, seconds=1.0)  # from 0 s: frames 0 and 1; from 1 s: 2 and 3
    assert (clips[:, :, -1, -1, 0] // 8).tolist() == [[0, 1], [2, 3]]
    path = save(tmp_path / "b.webp", pictures(4), 0, lossless=True)
    assert media.read_video(path).fps == pytest.approx(10)  # as browsers show it


def test_transparency_lies_on_white(tmp_path):
    frames = np.zeros((2, 8, 8, 4), np.uint8)
    lower = np.tri(8, dtype=bool)
    frames[0, lower], frames[1, ~lower] = (255, 0, 0, 255), (0, 0, 255, 255)
    video = media.read_video(save(tmp_path / "a.webp", frames, 100, lossless=True))
    assert video.frames[:, 7, 0].tolist() == [[255, 0, 0], [255, 255, 255]]
    assert video.frames[:, 0, 7].tolist() == [[255, 255, 255], [0, 0, 255]]


@pytest.mark.parametrize(("suffix", "count"), [("webp", 3), ("avif", 1)])
@pytest.mark.parametrize("orientation", [2, 6])
def test_animations_are_upright(tmp_path, suffix, count, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix}", pictures(count), 125, exif=exif, quality=95)
    expected = pictures(count)[:, :, ::-1] if orientation == 2 else np.rot90(pictures(count), -1, axes=(1, 2))
    frames = media.read_video(path).frames
    assert frames.shape == expected.shape
    assert np.abs(frames[:, :4, -4:].astype(int) - expected[:, :4, -4:]).max() <= 32
    np.testing.assert_array_equal(media.read_image(path), frames[0])


def test_stills_have_one_frame(tmp_path):
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.webp")
    assert media.read_video(tmp_path / "a.webp").frames.shape == (1, 16, 24, 3)
    assert media.read_clips(tmp_path / "a.webp").shape == (5, 2, 16, 24, 3)


@pytest.mark.parametrize("suffix", ["webp", "avif"])
def test_unreadable_files_give_one_line(tmp_path, suffix):
    frames = np.random.default_rng(0).integers(0, 256, (6, 16, 24, 3), np.uint8)
    whole = save(tmp_path / f"a.{suffix}", frames, 100).read_bytes()
    part = tmp_path / f"part.{suffix}"
    for read in (media.read_video, media.read_clips):
        with pytest.raises(UserError, match="too large: frames of 24 x 16 pixels, the limit is 383"):
            read(tmp_path / f"a.{suffix}", max_pixels=383)
        for kept in (0.3, 0.7):
            part.write_bytes(whole[: int(len(whole) * kept)])
            with pytest.raises(UserError) as caught:
                read(part)
            assert str(part) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="too large: the limits are 5 frames"):
        media.read_video(tmp_path / f"a.{suffix}", max_frames=5)
