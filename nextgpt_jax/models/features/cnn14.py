"""Cnn14 of PANNs (Kong et al. 2020), trained on AudioSet: an embedding and the logits of 527 classes of sounds.

Matches Cnn14 as audioldm_eval uses it, with the log-mel front end of torchlibrosa, whose window and filters are in the
published file. Unlike there, sounds of several lengths are computed together: what lies beyond a sound's end stays
zero, as the padding of its convolutions is. Legend: B batch, N samples, T frames, F bands, C channels.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from nextgpt_jax.models.features.norm import BatchNorm, NormedConv
from nextgpt_jax.models.layers import Linear

_EPS = 1e-5
_FLOOR = 1e-10  # of the power of a band
_FACTOR = 32  # by which five poolings shorten time


@dataclasses.dataclass(frozen=True)
class Cnn14Config:
    """The defaults are those of the network for 16 kHz.

    Attributes:
      sample_rate: in Hz.
      n_fft, hop: samples of a frame, and from frame to frame.
      num_mel_bins: bands, at least 32.
      widths: of the blocks; the last one is the embedding's.
      classes: of the logits.
    """

    sample_rate: int = 16_000
    n_fft: int = 512
    hop: int = 160
    num_mel_bins: int = 64
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    classes: int = 527

    @classmethod
    def of_32_khz(cls) -> "Cnn14Config":
        """The network for 32 kHz."""
        return cls(sample_rate=32_000, n_fft=1024, hop=320)

    def frames(self, samples: int) -> int:
        """The frames of a sound."""
        return samples // self.hop + 1


class Block(nnx.Module):
    def __init__(self, din: int, dout: int, rngs: nnx.Rngs):
        self.conv1 = NormedConv(din, dout, (3, 3), padding=1, eps=_EPS, rngs=rngs)
        self.conv2 = NormedConv(dout, dout, (3, 3), padding=1, eps=_EPS, rngs=rngs)

    def __call__(self, x: Float[Array, "b t f c"], inside: Float[Array, "b t 1 1"]) -> Float[Array, "b t f c2"]:
        """`inside` is 1 for the frames that a sound has."""
        return self.conv2(self.conv1(x) * inside) * inside


class Cnn14(nnx.Module):
    def __init__(self, cfg: Cnn14Config, *, rngs: nnx.Rngs):
        self.config = cfg
        bins = cfg.n_fft // 2 + 1
        self.stft_real = Linear(cfg.n_fft, bins, bias=False, rngs=rngs)
        self.stft_imag = Linear(cfg.n_fft, bins, bias=False, rngs=rngs)
        self.mel = nnx.Param(jnp.zeros((bins, cfg.num_mel_bins)))
        self.bn0 = BatchNorm(cfg.num_mel_bins, eps=_EPS)
        self.blocks = nnx.List([Block(a, b, rngs) for a, b in zip((1, *cfg.widths), cfg.widths)])
        self.fc1 = Linear(cfg.widths[-1], cfg.widths[-1], rngs=rngs)
        self.fc_audioset = Linear(cfg.widths[-1], cfg.classes, rngs=rngs)

    def log_mel(self, padded: Float[Array, "b n"]) -> Float[Array, "b t {self.config.num_mel_bins}"]:
        """The spectrograms in decibels, of sounds as `pad` gives them."""
        cfg = self.config
        count = (padded.shape[1] - cfg.n_fft) // cfg.hop + 1
        frames = padded[:, np.arange(count)[:, None] * cfg.hop + np.arange(cfg.n_fft)]  # [B, T, n_fft]
        power = jnp.square(self.stft_real(frames)) + jnp.square(self.stft_imag(frames))
        return 10.0 * jnp.log10(jnp.maximum(power @ self.mel[...], _FLOOR))

    def __call__(
        self, padded: Float[Array, "b n"], frames: Int[Array, " b"]
    ) -> tuple[Float[Array, "b {self.config.widths[-1]}"], Float[Array, "b {self.config.classes}"]]:
        """Embeddings and logits.

        Args:
          padded: sounds as `pad` gives them.
          frames: of each sound.
        """
        x = self.bn0(self.log_mel(padded))[..., None]
        inside = _inside(frames, x.shape[1])
        x = x * inside
        for i, block in enumerate(self.blocks):
            x = block(x, inside)
            if i < len(self.blocks) - 1:
                x, frames = _halved(x), frames // 2
                inside = _inside(frames, x.shape[1])
                x = x * inside  # of an odd number of frames, the last one is in no window
        x = x.mean(2)  # [B, T, C], at least 0
        hidden = jax.nn.relu(self.fc1(x.max(1) + x.sum(1) / frames[:, None]))
        return hidden, self.fc_audioset(hidden)


def pad(sound: Float[np.ndarray, " n"], cfg: Cnn14Config, length: int) -> Float[np.ndarray, " padded"]:
    """A sound mirrored at both ends, as its frames need it, with zeros up to that of a sound of `length` samples.

    Raises:
      ValueError: the sound is longer, or too short for the network's poolings.
    """
    if not _FACTOR <= cfg.frames(len(sound)) or len(sound) > length:
        raise ValueError(f"a sound of {len(sound)} samples: between {(_FACTOR - 1) * cfg.hop} and {length} are needed")
    mirrored = np.pad(sound, cfg.n_fft // 2, mode="reflect")
    return np.pad(mirrored, (0, length - len(sound))).astype(np.float32)


def _inside(frames: Int[Array, " b"], count: int) -> Float[Array, "b t 1 1"]:
    return (jnp.arange(count) < frames[:, None]).astype(jnp.float32)[:, :, None, None]


def _halved(x: Float[Array, "b t f c"]) -> Float[Array, "b t2 f2 c"]:
    """The means of 2 x 2 windows; an odd last row or column is dropped."""
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
