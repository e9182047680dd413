"""Images between files and arrays, and the preprocessing of the encoder."""

import contextlib
import os
import pathlib
import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_write, reading

MAX_PIXELS = 100_000_000
MAX_ASPECT = 64  # longer side / shorter side that preprocess_image accepts
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

# Whatever Pillow decodes by itself, but for PostScript, which it starts a program for, and for stubs without a decoder.
Image.init()
_FORMATS = tuple(sorted(Image.OPEN.keys() - {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}))


def read_image(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image file as RGB, turned upright by its EXIF orientation, transparency laid on white.

    An animation gives its first frame, 16-bit grey its upper 8 bits. The size is checked before anything is decoded.

    Raises:
      UserError: the file is missing, no image, damaged, or has more than max_pixels.
    """
    with open_image(path, max_pixels) as image:
        return to_rgb(image)


@contextlib.contextmanager
def open_image(path: str | os.PathLike, max_pixels: int) -> Iterator[Image.Image]:
    """An image file, decoded and upright, in the mode that it is stored in. Errors as read_image's."""
    path = pathlib.Path(path)
    with reading(path, "image"):
        try:
            with _open(path) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise UserError(f"{path} is too large: {width} x {height} pixels, the limit is {max_pixels}")
                image.load()
                yield ImageOps.exif_transpose(image)
        except UnidentifiedImageError:
            raise UserError(f"{path} is not an image in a format that is read here") from None
        except Image.DecompressionBombError:
            raise UserError(f"{path} is too large: the limit is {max_pixels} pixels") from None


def _open(path: pathlib.Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # open_image has its own limit
        return Image.open(path, formats=_FORMATS)


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """A PIL image of any mode, transparency laid on white; of 16-bit grey the upper 8 bits.

    Raises:
      ValueError: its pixels are floats, or have more than 16 bits.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels are not supported")
    if image.mode.startswith("I"):  # grey of 16 bits, held in 16 or 32
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise ValueError("pixels of more than 16 bits are not supported")
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def write_png(path: str | os.PathLike, image: Float[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes a PNG that is either whole or not there; floats are in [0, 1], values outside are clipped.

    Raises:
      ValueError: another shape or dtype, or values that are not finite.
      UserError: the file can't be written.
    """
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"an image is [H, W, 3], got {list(pixels.shape)}")
    pixels = to_uint8(pixels)
    with atomic_write(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG")


def to_uint8(pixels: Float[np.ndarray, "*shape"] | UInt8[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Pixels that are uint8, or floats in [0, 1] (values outside are clipped).

    Raises:
      ValueError: another dtype, or values that are not finite.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if np.issubdtype(pixels.dtype, np.integer) or pixels.dtype == bool:
        raise ValueError(f"pixels are float or uint8, got {pixels.dtype}")
    pixels = pixels.astype(np.float32)
    if not np.isfinite(pixels).all():
        raise ValueError("the pixels have values that are not finite")
    return np.round(np.clip(pixels, 0.0, 1.0) * 255.0).astype(np.uint8)


def check_aspect(image: np.ndarray) -> None:
    """Raises UserError if the image, [H, W] or [H, W, 3], is more than MAX_ASPECT times as long as wide."""
    height, width = image.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise UserError(f"an image of {width} x {height} pixels is too narrow: at most {MAX_ASPECT} to 1")


def preprocess_image(image: UInt8[np.ndarray, "h w 3"], size: int) -> Float[np.ndarray, "{size} {size} 3"]:
    """Shorter side to `size` (bicubic, antialiased), centre crop, CLIP's mean and deviation: float32.

    Rounds as torchvision's Resize and CenterCrop do on PIL images.

    Raises:
      UserError: the image is more than MAX_ASPECT times as long as wide.
    """
    check_aspect(image)
    crop = np.asarray(center_square(Image.fromarray(image), size), np.float32) / 255.0
    return (crop - CLIP_MEAN) / CLIP_STD


def center_square(picture: Image.Image, size: int) -> Image.Image:
    """Shorter side to `size` (bicubic, antialiased), centre crop."""
    width, height = picture.size
    scaled = int(size * max(height, width) / min(height, width))
    resized = (size, scaled) if width <= height else (scaled, size)
    if resized != picture.size:
        picture = picture.resize(resized, Image.Resampling.BICUBIC)
    left, top = (int(round((side - size) / 2.0)) for side in resized)
    return picture.crop((left, top, left + size, top + size))
