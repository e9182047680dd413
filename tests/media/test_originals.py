"""Media at the size of a decoder."""

import numpy as np
import pytest

from nextgpt_jax import media
from nextgpt_jax.errors import UserError
from nextgpt_jax.media import original_audio, original_image, original_video

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def test_an_image_of_the_size_is_itself(tmp_path):
    media.write("image", tmp_path / "a.png", IMAGE)
    for source in (IMAGE, tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(original_image(source, height=20, width=30), IMAGE)


@pytest.mark.parametrize("height,width", [(40, 40), (10, 30), (8, 4)])
def test_other_images_are_covered_around_the_center(height, width):
    columns = np.broadcast_to(np.arange(30, dtype=np.uint8)[:, None] * 8, (20, 30, 3))
    made = original_image(columns, height=height, width=width)
    assert made.shape == (height, width, 3)
    shown = min(30, 20 * width / height)  # columns of the original, of which the outer pixels show the middle
    shown *= 1 - 1 / width
    assert abs(float(made.mean()) - 8 * 14.5) < 8 and abs(int(made[0, -1, 0]) - int(made[0, 0, 0]) - 8 * shown) < 20
    np.testing.assert_array_equal(made[0], made[-1])


def test_a_video_keeps_its_times(tmp_path):
    frames = np.broadcast_to(np.arange(12, dtype=np.uint8)[:, None, None, None] * 20, (12, 16, 16, 3))
    same = original_video((frames, 4.0), frames=8, fps=4.0, height=16, width=16)
    np.testing.assert_array_equal(same, frames[:8])
    slower = original_video((frames, 8.0), frames=4, fps=4.0, height=8, width=8)
    np.testing.assert_array_equal(slower[:, 0, 0, 0], [0, 40, 80, 120])
    longer = original_video((list(frames[:3]), 2.0), frames=8, fps=4.0, height=16, width=8)
    np.testing.assert_array_equal(longer[:, 0, 0, 0], [0, 0, 20, 20, 40, 40, 40, 40])
    media.write("video", tmp_path / "a.mp4", media.Video(frames, 4.0))
    read = original_video(tmp_path / "a.mp4", frames=6, fps=2.0, height=16, width=16)
    assert np.abs(read[:, 0, 0, 0].astype(int) - [0, 40, 80, 120, 160, 200]).max() < 6


def test_a_sound_is_cut_padded_and_resampled(tmp_path):
    tone = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000).astype(np.float32) / 2
    np.testing.assert_array_equal(original_audio((tone, 8000), samples=1000, sample_rate=8000), tone[:1000])
    longer = original_audio((tone, 8000), samples=9000, sample_rate=8000)
    assert longer.dtype == np.float32 and not longer[8000:].any()
    media.write("audio", tmp_path / "a.wav", media.Audio(tone, 8000))
    read = original_audio(tmp_path / "a.wav", samples=16000, sample_rate=16000)
    spectrum = np.abs(np.fft.rfft(read))
    assert read.shape == (16000,) and spectrum.argmax() == 440


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        original_image(tmp_path / "nowhere.png", height=8, width=8)
    with pytest.raises(UserError, match="too narrow"):
        original_image(np.zeros((1, 100, 3), np.uint8), height=8, width=8)
    with pytest.raises(UserError, match="not a usable video"):
        original_video(IMAGE, frames=2, fps=1.0, height=8, width=8)
    with pytest.raises(UserError, match="not a usable audio"):
        original_audio(np.zeros(4), samples=8, sample_rate=8000)
