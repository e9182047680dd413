"""The pictures of the embedded world: real handwriting, scikit-learn's 1797 scans of digits as small RGB images."""

import functools

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

SIZE = 32
TRAIN = slice(0, 1437)
HELD_OUT = slice(1437, 1797)

_MARGIN = 2
_INK = np.array([28.0, 34.0, 66.0])
_PAPER = np.array([250.0, 247.0, 240.0])


@functools.cache
def scans() -> tuple[UInt8[np.ndarray, "1797 32 32 3"], Int[np.ndarray, "1797"]]:
    """All scans, dark ink on light paper, with their digits. TRAIN and HELD_OUT are slices of both."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return paper(np.stack([_enlarged(image / 16.0) for image in digits.images])), digits.target


def ink() -> Float[np.ndarray, "1797 32 32"]:
    """The scans as amounts of ink between 0 (paper) and 1."""
    images, _ = scans()
    return ((_PAPER[0] - images[..., 0]) / (_PAPER[0] - _INK[0])).astype(np.float32)


def paper(ink: Float[np.ndarray, "*b h w"]) -> UInt8[np.ndarray, "*b h w 3"]:
    """Paints amounts of ink on paper."""
    return np.round(_PAPER + (_INK - _PAPER) * ink[..., None]).astype(np.uint8)


def _enlarged(image: np.ndarray) -> np.ndarray:
    """An 8 x 8 scan as strokes on 32 x 32: bicubic, then the grey borders of the strokes made narrower."""
    inner = SIZE - 2 * _MARGIN
    large = np.asarray(Image.fromarray(image.astype(np.float32)).resize((inner, inner), Image.Resampling.BICUBIC))
    large = np.clip((large - 0.12) / 0.66, 0.0, 1.0)
    return np.pad(large * large * (3.0 - 2.0 * large), _MARGIN)


def augmented(ink: Float[np.ndarray, "b h w"], rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Each image a little turned, scaled, sheared, shifted, and written with more or less ink.

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
