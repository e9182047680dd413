"""Torch definitions of the feature networks, for machines without pytorch-fid and torchlibrosa.

test_originals.py compares them with the classes of those packages.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from nextgpt_jax.media.mel import mel_filters


class Unit(nn.Module):
    """A convolution, batch normalization and ReLU."""

    def __init__(self, din, dout, size, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(din, dout, size, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(dout, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """An Inception block: `branches` are chains of (name, width, kernel size, stride), each of which reads the result
    of the one before; a tuple of them is a fork; "avg", "max" and "stride" pool."""

    def __init__(self, din, branches, divisor):
        super().__init__()
        self.branches = branches
        for chain in branches:
            width = din
            for step in (step for step in chain if len(step) > 1):
                forks = step if isinstance(step[0], tuple) else (step,)
                for name, dout, size, stride in forks:
                    size = (size, size) if isinstance(size, int) else size
                    padding = (0, 0) if stride == 2 else tuple(n // 2 for n in size)
                    setattr(self, f"branch{name}", Unit(width, dout // divisor, size, stride, padding))
                width = forks[0][1] // divisor

    def forward(self, x):
        parts = []
        for chain in self.branches:
            h = x
            for step in chain:
                if step == ("avg",):
                    h = F.avg_pool2d(h, 3, stride=1, padding=1, count_include_pad=False)
                elif step == ("max",):
                    h = F.max_pool2d(h, 3, stride=1, padding=1)
                elif step == ("stride",):
                    h = F.max_pool2d(h, 3, stride=2)
                elif isinstance(step[0], tuple):
                    h = torch.cat([getattr(self, f"branch{fork[0]}")(h) for fork in step], 1)
                else:
                    h = getattr(self, f"branch{step[0]}")(h)
            parts.append(h)
        return torch.cat(parts, 1)


def _a(pooled):
    return (
        (("1x1", 64, 1, 1),),
        (("5x5_1", 48, 1, 1), ("5x5_2", 64, 5, 1)),
        (("3x3dbl_1", 64, 1, 1), ("3x3dbl_2", 96, 3, 1), ("3x3dbl_3", 96, 3, 1)),
        (("avg",), ("_pool", pooled, 1, 1)),
    )


_B = (
    (("3x3", 384, 3, 2),),
    (("3x3dbl_1", 64, 1, 1), ("3x3dbl_2", 96, 3, 1), ("3x3dbl_3", 96, 3, 2)),
    (("stride",),),
)


def _c(n):
    return (
        (("1x1", 192, 1, 1),),
        (("7x7_1", n, 1, 1), ("7x7_2", n, (1, 7), 1), ("7x7_3", 192, (7, 1), 1)),
        (("7x7dbl_1", n, 1, 1), ("7x7dbl_2", n, (7, 1), 1), ("7x7dbl_3", n, (1, 7), 1), ("7x7dbl_4", n, (7, 1), 1),
         ("7x7dbl_5", 192, (1, 7), 1)),
        (("avg",), ("_pool", 192, 1, 1)),
    )  # fmt: skip


_D = (
    (("3x3_1", 192, 1, 1), ("3x3_2", 320, 3, 2)),
    (("7x7x3_1", 192, 1, 1), ("7x7x3_2", 192, (1, 7), 1), ("7x7x3_3", 192, (7, 1), 1), ("7x7x3_4", 192, 3, 2)),
    (("stride",),),
)


def _e(pool):
    return (
        (("1x1", 320, 1, 1),),
        (("3x3_1", 384, 1, 1), (("3x3_2a", 384, (1, 3), 1), ("3x3_2b", 384, (3, 1), 1))),
        (("3x3dbl_1", 448, 1, 1), ("3x3dbl_2", 384, 3, 1),
         (("3x3dbl_3a", 384, (1, 3), 1), ("3x3dbl_3b", 384, (3, 1), 1))),
        ((pool,), ("_pool", 192, 1, 1)),
    )  # fmt: skip


class Inception(nn.Module):
    """fid_inception_v3 of pytorch-fid 0.3, with widths divided by `divisor`."""

    def __init__(self, divisor=1):
        super().__init__()
        n = divisor
        self.Conv2d_1a_3x3 = Unit(3, 32 // n, 3, 2)
        self.Conv2d_2a_3x3 = Unit(32 // n, 32 // n, 3)
        self.Conv2d_2b_3x3 = Unit(32 // n, 64 // n, 3, 1, 1)
        self.Conv2d_3b_1x1 = Unit(64 // n, 80 // n, 1)
        self.Conv2d_4a_3x3 = Unit(80 // n, 192 // n, 3)
        self.blocks = {
            "5b": (192, _a(32)), "5c": (256, _a(64)), "5d": (288, _a(64)), "6a": (288, _B), "6b": (768, _c(128)),
            "6c": (768, _c(160)), "6d": (768, _c(160)), "6e": (768, _c(192)), "7a": (768, _D), "7b": (1280, _e("avg")),
            "7c": (2048, _e("max")),
        }  # fmt: skip
        for name, (din, branches) in self.blocks.items():
            setattr(self, f"Mixed_{name}", Mixed(din // n, branches, n))
        self.fc = nn.Linear(2048 // n, 1008)

    def forward(self, x):
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        for name in self.blocks:
            x = getattr(self, f"Mixed_{name}")(x)
        return x.mean((2, 3))


class _Block(nn.Module):
    def __init__(self, din, dout):
        super().__init__()
        self.conv1 = nn.Conv2d(din, dout, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(dout, dout, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(dout), nn.BatchNorm2d(dout)

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Cnn14(nn.Module):
    """Cnn14 of audioldm_eval 0.0.3 in evaluation; window and filters are buffers, under the names of torchlibrosa."""

    def __init__(self, sample_rate=16000, n_fft=512, hop=160, fmin=50, fmax=8000, divisor=1):
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        turn = -2j * math.pi * np.arange(n_fft // 2 + 1)[:, None] * np.arange(n_fft) / n_fft
        kernel = np.exp(turn) * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft))
        self.spectrogram_extractor = nn.Module()
        self.spectrogram_extractor.stft = stft = nn.Module()
        for name, part in (("conv_real", kernel.real), ("conv_imag", kernel.imag)):
            conv = nn.Conv1d(1, n_fft // 2 + 1, n_fft, stride=hop, bias=False)
            conv.weight = nn.Parameter(torch.tensor(part[:, None], dtype=torch.float32))
            setattr(stft, name, conv)
        self.logmel_extractor = nn.Module()
        filters = mel_filters(sample_rate, n_fft, 64, fmin, fmax, "slaney")
        self.logmel_extractor.melW = nn.Parameter(torch.tensor(filters, dtype=torch.float32))
        self.bn0 = nn.BatchNorm2d(64)
        widths = [1, *(width // divisor for width in (64, 128, 256, 512, 1024, 2048))]
        for i in range(6):
            setattr(self, f"conv_block{i + 1}", _Block(widths[i], widths[i + 1]))
        self.fc1 = nn.Linear(widths[-1], widths[-1])
        self.fc_audioset = nn.Linear(widths[-1], 527)

    def forward(self, sound):
        x = F.pad(sound[:, None], (self.n_fft // 2,) * 2, mode="reflect")
        stft = self.spectrogram_extractor.stft
        power = (stft.conv_real(x) ** 2 + stft.conv_imag(x) ** 2).mT @ self.logmel_extractor.melW
        x = 10 * torch.log10(power.clamp(min=1e-10))[:, None]  # [B, 1, T, F]
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        for i in range(6):
            x = getattr(self, f"conv_block{i + 1}")(x)
            x = F.avg_pool2d(x, 2) if i < 5 else x
        x = x.mean(3)
        hidden = F.relu(self.fc1(x.max(2).values + x.mean(2)))
        return {"2048": hidden, "logits": self.fc_audioset(hidden)}


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights that keep activations of size 1, and random statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "stft" in name or "melW" in name:
                continue
            if parameter.ndim > 1:
                width = math.sqrt(2 / parameter[0].numel())
                parameter.copy_(width * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return module.eval()
