"""The media of the keypad world: handwritten digits, still and moving, and the tones of a telephone's keys.

The handwriting is real, scikit-learn's 1797 scans of digits as small RGB images; the tones are ITU-T Q.23's.
"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from nextgpt_jax.errors import UserError

SIZE = 32
TRAIN = slice(0, 1437)
HELD_OUT = slice(1437, 1797)

FRAMES, FPS = 8, 4.0  # of a video: two seconds
STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # rows and columns

RATE = 8000  # Hz, of tones
ROWS, COLUMNS = (697.0, 770.0, 852.0, 941.0), (1209.0, 1336.0, 1477.0)  # Hz

_MARGIN = 2
INK = np.array([28.0, 34.0, 66.0])
PAPER = np.array([250.0, 247.0, 240.0])


@functools.cache
def scans() -> tuple[UInt8[np.ndarray, "1797 32 32 3"], Int[np.ndarray, "1797"]]:
    """All scans, dark ink on light paper, with their digits. TRAIN and HELD_OUT are slices of both."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("the scans are part of scikit-learn, which is missing: pip install -e '.[demo]'") from None

    digits = load_digits()
    return paper(np.stack([_enlarged(image / 16.0) for image in digits.images])), digits.target


def ink() -> Float[np.ndarray, "1797 32 32"]:
    """The scans as amounts of ink."""
    return inked(scans()[0])


def inked(images: UInt8[np.ndarray, "*b h w 3"]) -> Float[np.ndarray, "*b h w"]:
    """Amounts of ink from 0 (paper) to 1: the inverse of `paper`, approximate for other colors."""
    return np.clip((PAPER[0] - images[..., 0]) / (PAPER[0] - INK[0]), 0.0, 1.0).astype(np.float32)


def paper(ink: Float[np.ndarray, "*b h w"]) -> UInt8[np.ndarray, "*b h w 3"]:
    """Paints amounts of ink on paper."""
    return np.round(PAPER + (INK - PAPER) * ink[..., None]).astype(np.uint8)


def _enlarged(image: np.ndarray) -> np.ndarray:
    """An 8 x 8 scan as strokes on 32 x 32: bicubic, then narrower gray borders of the strokes."""
    inner = SIZE - 2 * _MARGIN
    large = np.asarray(Image.fromarray(image.astype(np.float32)).resize((inner, inner), Image.Resampling.BICUBIC))
    large = np.clip((large - 0.12) / 0.66, 0.0, 1.0)
    return np.pad(large * large * (3.0 - 2.0 * large), _MARGIN)


def augmented(ink: Float[np.ndarray, "b h w"], rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Each image slightly rotated, scaled, sheared and shifted, with more or less ink.

    At strength 1: up to 12 degrees, 12 %, 0.15 of shear and 2 pixels.
    """
    n, height, width = ink.shape
    uniform = functools.partial(rng.uniform, -strength, strength)
    angle, shear = np.radians(12) * uniform(n), 0.15 * uniform(n)
    scale = 1.0 + 0.12 * uniform((2, n))
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.stack([np.stack([cos, -sin + shear], -1), np.stack([sin, cos], -1)], -2) / scale.T[:, None]
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1) - (height - 1) / 2
    at = np.einsum("nij,hwj->nhwi", matrix, grid) + (height - 1) / 2 + 2.0 * uniform((n, 1, 1, 2))
    warped = _sampled(ink, at)
    return np.clip(warped * (1.0 + 0.2 * uniform((n, 1, 1))), 0.0, 1.0).astype(np.float32)


def bent(ink: Float[np.ndarray, "b h w"], rng: np.random.Generator, pixels: float) -> Float[np.ndarray, "b h w"]:
    """Each image with its points moved smoothly, by a deviation of `pixels` at 5 x 5 points."""
    from scipy.ndimage import zoom

    n, height, width = ink.shape
    moved = zoom(rng.normal(0.0, pixels, (n, 2, 5, 5)), (1, 1, height / 5, width / 5), order=1)
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
    return _sampled(ink, grid + moved.transpose(0, 2, 3, 1)).astype(np.float32)


def movie(ink: Float[np.ndarray, "32 32"], direction: str, rng: np.random.Generator) -> UInt8[np.ndarray, "8 32 32 3"]:
    """A digit that moves steadily across the paper, at FPS frames per second. `direction` is one of STEPS."""
    return paper(moving(ink[None], [direction], rng)[0])


def moving(
    ink: Float[np.ndarray, "b 32 32"], directions: Sequence[str], rng: np.random.Generator, frames: int = FRAMES
) -> Float[np.ndarray, "b f 32 32"]:
    """Digits of 20 to 24 pixels that move by 8 to 12, as amounts of ink; `frames` are evenly spaced."""
    n = len(ink)
    scale = rng.uniform(20.0, 24.0, n) / (SIZE - 2 * _MARGIN)
    step = np.array([STEPS[direction] for direction in directions], np.float64)
    way = step * rng.uniform(8.0, 12.0, (n, 1))  # [B, 2]
    middle = rng.uniform(-2.0, 2.0, (n, 2)) * np.where(step, 0.5, 1.0)
    offset = middle[:, None] + way[:, None] * np.linspace(-0.5, 0.5, frames)[:, None]  # [B, F, 2]
    center = (SIZE - 1) / 2
    looked_at = center - offset / scale[:, None, None]
    shown = zoomed(np.repeat(ink, frames, 0), looked_at.reshape(-1, 2), np.repeat(scale, frames))
    return shown.reshape(n, frames, SIZE, SIZE)


def zoomed(
    ink: Float[np.ndarray, "b h w"], middle: Float[np.ndarray, "b 2"], scale: Float[np.ndarray, " b"]
) -> Float[np.ndarray, "b h w"]:
    """Each image scaled by `scale`, with the point `middle` (row, column) moved to the center."""
    height, width = ink.shape[1:]
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
    grid = grid - np.array([height - 1, width - 1]) / 2
    at = grid / scale[:, None, None, None] + middle[:, None, None]
    return _sampled(ink, at).astype(np.float32)


def frequencies(key: int) -> tuple[float, float]:
    """The two frequencies of a digit's key, in Hz: its row's and its column's."""
    row, column = (3, 1) if key == 0 else divmod(key - 1, 3)
    return ROWS[row], COLUMNS[column]


def tone(key: int, rng: np.random.Generator) -> Float[np.ndarray, " samples"]:
    """A key's tone as on a real telephone line: 0.4 to 1 s between short silences, at RATE.

    Frequencies are up to 1 % off, the levels of both differ by up to 4 dB, the noise is 15 to 40 dB below.
    """
    lead, duration, tail = rng.uniform((0.0, 0.4, 0.0), (0.15, 1.0, 0.15))
    off = 1.0 + rng.uniform(-0.01, 0.01)
    twist = 10 ** (rng.uniform(-2.0, 2.0) / 20)
    wave = dual(key, duration, rng.uniform(0.0, 2 * np.pi, 2), (1 / twist, twist), off)
    wave = np.pad(wave, (int(lead * RATE), int(tail * RATE)))
    noise = 10 ** (-rng.uniform(15.0, 40.0) / 20) * np.sqrt(0.5)
    wave = rng.uniform(0.1, 0.45) * (wave + noise * rng.standard_normal(len(wave)))
    return np.clip(wave, -1.0, 1.0).astype(np.float32)


def clean_tone(key: int, seconds: float) -> Float[np.ndarray, " samples"]:
    """A key's exact tone, without silence, at RATE."""
    return (0.35 * dual(key, seconds, (0.0, 0.0), (1.0, 1.0), 1.0)).astype(np.float32)


def dual(key: int, seconds: float, phases, levels, off: float, rate: int = RATE) -> np.ndarray:
    """Both sines of amplitude `levels`, `off` times their frequencies, with edges of 5 ms."""
    time = np.arange(int(seconds * rate)) / rate
    sines = (a * np.sin(2 * np.pi * f * off * time + p) for a, f, p in zip(levels, frequencies(key), phases))
    edge = np.clip(np.minimum(time, time[::-1]) / 0.005, 0.0, 1.0)
    return sum(sines) * edge


def _sampled(images: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Bilinear samples of images [B, H, W] at row and column coordinates [B, H, W, 2]; blank outside."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    limit = np.array(padded.shape[1:]) - 2
    at = np.clip(at + 1, 0, limit - 1e-3 + 1)
    low = np.minimum(at.astype(np.int64), limit)
    (y, x), (fy, fx) = np.moveaxis(low, -1, 0), np.moveaxis(at - low, -1, 0)
    row = np.arange(len(images))[:, None, None]
    top = padded[row, y, x] * (1 - fx) + padded[row, y, x + 1] * fx
    bottom = padded[row, y + 1, x] * (1 - fx) + padded[row, y + 1, x + 1] * fx
    return top * (1 - fy) + bottom * fy
