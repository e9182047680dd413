"""The spectrograms of vocoders, against torch and transformers with the settings of AudioLDM's own code."""

import numpy as np
import pytest
import torch
from transformers import audio_utils

from nextgpt_jax.media import log_mel
from tests.parity import relative_error

AUDIOLDM = {"sample_rate": 16000, "hop": 160, "num_mel_bins": 64}
WAVE = np.random.default_rng(0).standard_normal(16000) * np.linspace(0, 3, 16000) + 0.2


def audioldm(wave, frames, fmin=0.0, fmax=8000.0):
    """As AudioLDM reads a file: window, hop and bands of its config, float32, by torch's transform."""
    wave = (wave - wave.mean()) / (np.abs(wave - wave.mean()).max() + 1e-8) * 0.5
    wave = np.pad(wave, (0, max(0, frames * 160 - len(wave))))[: frames * 160]
    spectrum = torch.stft(
        torch.from_numpy(wave).float(), 1024, 160, window=torch.hann_window(1024), return_complex=True
    ).abs()
    bands = audio_utils.mel_filter_bank(513, 64, fmin, fmax, 16000, norm="slaney", mel_scale="slaney").T
    mel = torch.from_numpy(bands).float() @ spectrum
    return torch.log(torch.clamp(mel, min=1e-5)).T[:frames]


@pytest.mark.parametrize("frames", [100, 61, 148])  # the whole sound, its beginning, and silence after it
def test_as_audioldm(frames):
    mel = log_mel(WAVE, frames, **AUDIOLDM)
    assert mel.shape == (frames, 64) and mel.dtype == np.float32
    assert relative_error(mel, audioldm(WAVE, frames)) < 1e-4


def test_other_bands():
    mel = log_mel(WAVE, 50, fmin=50.0, fmax=7000.0, **AUDIOLDM)
    assert relative_error(mel, audioldm(WAVE, 50, 50.0, 7000.0)) < 1e-4


def test_triangles_over_mel():
    options = {"n_fft": 512, "center": False, "fmin": 300.0, "fmax": 2000.0, "mel_scale": "htk", "floor": 1e-3}
    mel = log_mel(WAVE, 20, sample_rate=8000, hop=256, num_mel_bins=32, gain=4 / 512, peak=0.7, **options)
    wave = (WAVE - WAVE.mean()) / np.abs(WAVE - WAVE.mean()).max() * 0.7
    filters = audio_utils.mel_filter_bank(
        257, 32, 300.0, 2000.0, 8000, mel_scale="htk", triangularize_in_mel_space=True
    )
    expected = audio_utils.spectrogram(
        np.pad(wave[: 20 * 256], 128, mode="reflect"), audio_utils.window_function(512), 512, 256, power=1.0,
        center=False, mel_filters=filters * 4 / 512, mel_floor=1e-3, log_mel="log",
    ).T  # fmt: skip
    assert relative_error(mel, expected) < 1e-5


@pytest.mark.parametrize("samples", [np.zeros(3), np.ones(1)])
def test_silence_is_the_floor(samples):
    np.testing.assert_allclose(log_mel(samples, 4, **AUDIOLDM), np.log(1e-5), rtol=1e-6)
