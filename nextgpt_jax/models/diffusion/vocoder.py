"""HiFi-GAN: log-mel spectrograms in, waveforms out.

Matches transformers' SpeechT5HifiGan as AudioLDM uses it, without normalization of the spectrogram (Kong et al. 2020,
generator V1 with its own rates). Signals are channels last. Legend: B batch, T frames or samples, C channels.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nextgpt_jax.models import hf_config, hf_fields
from nextgpt_jax.models.layers import Conv
from nextgpt_jax.models.rngs import draw

_LAST_SLOPE = 0.01  # leaky ReLU before the last convolution; not in the config

_SUPPORTED = {
    **hf_fields.TRANSFORMERS_SUPPORTED,
    "model_type": ("hifigan", "speecht5_hifigan"),
    "normalize_before": (False,),
}
_HARMLESS = {*hf_fields.TRANSFORMERS, "tie_word_embeddings"}


@dataclasses.dataclass(frozen=True)
class SpectrogramConfig:
    """How the spectrograms that a vocoder reads are made of sound: arguments of `media.log_mel`.

    Published vocoder/config.json files have no such settings; the defaults are those of AudioLDM's own code.
    """

    n_fft: int = 1024
    center: bool = True
    fmin: float = 0.0
    fmax: float | None = None
    mel_scale: str = "slaney"
    floor: float = 1e-5
    gain: float = 1.0
    peak: float = 0.5

    def __post_init__(self):
        if self.n_fft < 2:
            raise ValueError(f"n_fft={self.n_fft} should be 2 or more")
        if self.mel_scale not in ("slaney", "htk"):
            raise ValueError(f"mel_scale={self.mel_scale!r} is not supported (only 'slaney', 'htk')")
        if not 0 <= self.fmin < (math.inf if self.fmax is None else self.fmax):
            raise ValueError(f"fmin={self.fmin:g} and fmax={self.fmax} should rise from 0")
        for name in ("floor", "gain", "peak"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r} should be positive")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "SpectrogramConfig":
        """Reads the object `spectrogram` of a vocoder's config.json. Raises UserError."""
        return hf_config.config_from_dict(cls, config, {}, ())


@dataclasses.dataclass(frozen=True)
class VocoderConfig:
    """Fields as in the hub's vocoder/config.json. `model_in_dim` is the number of mel bands, `sampling_rate` in Hz."""

    model_in_dim: int = 80
    sampling_rate: int = 16000
    upsample_initial_channel: int = 512
    upsample_rates: tuple[int, ...] = (4, 4, 4, 4)
    upsample_kernel_sizes: tuple[int, ...] = (8, 8, 8, 8)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    leaky_relu_slope: float = 0.1
    spectrogram: SpectrogramConfig = SpectrogramConfig()

    def __post_init__(self):
        if len(self.upsample_rates) != len(self.upsample_kernel_sizes) or not self.upsample_rates:
            raise ValueError(
                f"{len(self.upsample_rates)} upsample_rates, but {len(self.upsample_kernel_sizes)} kernel sizes"
            )
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes) or not self.resblock_kernel_sizes:
            raise ValueError(
                f"{len(self.resblock_kernel_sizes)} resblock_kernel_sizes, "
                f"but {len(self.resblock_dilation_sizes)} resblock_dilation_sizes"
            )
        for rate, size in zip(self.upsample_rates, self.upsample_kernel_sizes):
            if not 1 <= rate <= size:
                raise ValueError(f"an upsampler of kernel {size} cannot have the rate {rate}")
        if even := [size for size in self.resblock_kernel_sizes if size % 2 == 0]:
            raise ValueError(f"resblock_kernel_sizes have to be odd, got {even[0]}")
        if not self.spectrogram.fmin < self.sampling_rate / 2:
            raise ValueError(f"spectrogram.fmin={self.spectrogram.fmin:g} should be below half the sampling_rate")
        if self.upsample_initial_channel >> len(self.upsample_rates) == 0:
            raise ValueError(
                f"{self.upsample_initial_channel} channels cannot be halved {len(self.upsample_rates)} times"
            )

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.upsample_rates)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after each upsampler."""
        return tuple(self.upsample_initial_channel >> (i + 1) for i in range(len(self.upsample_rates)))

    def num_samples(self, frames: int) -> int:
        """The length of the waveform of `frames` mel frames."""
        for rate, size in zip(self.upsample_rates, self.upsample_kernel_sizes):
            frames = (frames - 1) * rate + size - 2 * _padding(size, rate)
        return frames

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "VocoderConfig":
        """Reads a SpeechT5HifiGan's config.json. Raises UserError for variants that compute something else."""
        if isinstance(config, Mapping):
            config = {"normalize_before": True, **config}  # the class's default
            if "spectrogram" in config:
                config["spectrogram"] = SpectrogramConfig.from_dict(config["spectrogram"])
        return hf_config.config_from_dict(cls, config, _SUPPORTED, _HARMLESS)

    @classmethod
    def audioldm(cls) -> "VocoderConfig":
        """AudioLDM's vocoder: 64 mel bands of 10 ms to 16 kHz."""
        return cls(
            model_in_dim=64,
            upsample_initial_channel=1024,
            upsample_rates=(5, 4, 2, 2, 2),
            upsample_kernel_sizes=(16, 16, 8, 4, 4),
        )


def _padding(kernel_size: int, rate: int) -> int:
    return (kernel_size - rate) // 2


class ConvTranspose1d(nnx.Module):
    """torch's ConvTranspose1d, channels last: (T - 1) * stride + k - 2 * padding samples out. kernel: [k, in, out].

    The output samples of one phase (i mod stride) are a plain convolution with every stride-th tap of the kernel. All
    phases are computed as one convolution with `stride` times the channels, which skips the zeros between the inputs.
    """

    def __init__(self, din: int, dout: int, kernel_size: int, *, stride: int, padding: int, rngs: nnx.Rngs):
        self.stride, self.padding = stride, padding
        self.kernel = nnx.Param(draw(nnx.initializers.lecun_normal(), rngs, (kernel_size, din, dout)))
        self.bias = nnx.Param(jnp.zeros(dout))

    def __call__(self, x: Float[Array, "b t din"]) -> Float[Array, "b t2 dout"]:
        size, din, dout = self.kernel.shape
        taps = -(-size // self.stride)  # per phase
        kernel = jnp.pad(self.kernel[...].astype(x.dtype), ((0, taps * self.stride - size), (0, 0), (0, 0)))
        kernel = kernel.reshape(taps, self.stride, din, dout)[::-1].swapaxes(1, 2).reshape(taps, din, -1)
        y = jax.lax.conv_general_dilated(x, kernel, (1,), ((taps - 1,) * 2,), dimension_numbers=("NWC", "WIO", "NWC"))
        y = y.reshape(x.shape[0], -1, dout)  # [B, (T + taps - 1) * stride, out]
        length = (x.shape[1] - 1) * self.stride + size - 2 * self.padding
        return y[:, self.padding : self.padding + length] + self.bias[...].astype(x.dtype)


class ResidualBlock(nnx.Module):
    """Pairs of convolutions, the first of each pair dilated, with a residual around each pair."""

    def __init__(self, width: int, kernel_size: int, dilations: tuple[int, ...], slope: float, *, rngs: nnx.Rngs):
        def conv(dilation):
            padding = dilation * (kernel_size - 1) // 2
            return Conv(width, width, (kernel_size,), padding=padding, dilation=dilation, rngs=rngs)

        self.slope = slope
        self.convs1 = nnx.List(conv(dilation) for dilation in dilations)
        self.convs2 = nnx.List(conv(1) for _ in dilations)

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        for conv1, conv2 in zip(self.convs1, self.convs2):
            h = conv1(jax.nn.leaky_relu(x, self.slope))
            x = x + conv2(jax.nn.leaky_relu(h, self.slope))
        return x


class HifiGan(nnx.Module):
    """Upsamplers, each followed by residual blocks of several kernel sizes in parallel, whose outputs are averaged."""

    def __init__(self, cfg: VocoderConfig, *, rngs: nnx.Rngs):
        self.config = cfg
        self.conv_pre = Conv(cfg.model_in_dim, cfg.upsample_initial_channel, (7,), padding=3, rngs=rngs)
        widths = (cfg.upsample_initial_channel, *cfg.widths)
        self.upsampler = nnx.List(
            ConvTranspose1d(din, dout, size, stride=rate, padding=_padding(size, rate), rngs=rngs)
            for din, dout, size, rate in zip(widths, widths[1:], cfg.upsample_kernel_sizes, cfg.upsample_rates)
        )
        self.resblocks = nnx.List(
            ResidualBlock(width, size, dilations, cfg.leaky_relu_slope, rngs=rngs)
            for width in cfg.widths
            for size, dilations in zip(cfg.resblock_kernel_sizes, cfg.resblock_dilation_sizes)
        )
        self.conv_post = Conv(widths[-1], 1, (7,), padding=3, rngs=rngs)

    def __call__(self, mel: Float[Array, "b t n_mels"]) -> Float[Array, "b samples"]:
        """Waveforms in -1 .. 1 of `config.num_samples(t)` samples, in the dtype of `mel` (logarithms of mel bands)."""
        n = len(self.config.resblock_kernel_sizes)
        x = self.conv_pre(mel)
        for i, upsampler in enumerate(self.upsampler):
            x = upsampler(jax.nn.leaky_relu(x, self.config.leaky_relu_slope))
            x = sum(block(x) for block in self.resblocks[i * n : (i + 1) * n]) / n
        return jnp.tanh(self.conv_post(jax.nn.leaky_relu(x, _LAST_SLOPE)))[..., 0]
