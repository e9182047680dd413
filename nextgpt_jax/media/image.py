"""Images between files and arrays, and the preprocessing of the encoder."""

import contextlib
import os
import pathlib
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8, UInt16
from PIL import ExifTags, Image, UnidentifiedImageError

from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_write, reading
from nextgpt_jax.media.content import checked
from nextgpt_jax.media.heif import is_heic, open_heic
from nextgpt_jax.media.png import without_metadata

MAX_PIXELS = 100_000_000
MAX_ASPECT = 64  # longer side / shorter side that preprocess_image accepts
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

# All Pillow formats except PostScript, which starts Ghostscript, and stub plugins, which have no decoder.
Image.init()
_FORMATS = tuple(sorted(Image.OPEN.keys() - {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}))

_TRANSPOSITIONS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image file as RGB, upright (as its EXIF, or in AVIF and HEIC its boxes say), transparency over white.

    An animation gives its first frame, 16-bit gray its upper 8 bits. The size is checked before pixels are decoded.

    Raises:
      UserError: the file is missing, not an image, damaged, has more than max_pixels, or is HEIC and pi-heif missing.
    """
    with open_image(path, max_pixels) as image:
        return to_rgb(image)


def read_picture(path: str | os.PathLike) -> Image.Image:
    """As `read_image`, as a PIL image of mode RGB: without a copy to an array and back, where one follows."""
    with open_image(path, MAX_PIXELS) as image:
        return _rgb(image)


def image_from_content(content: Any, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w 3"]:
    """As `read_image`, of a PIL image of any mode, or an array: uint8 [H, W], [H, W, 3 or 4] or uint16 [H, W].

    Raises:
      UserError: the content is something else, damaged, or has more than max_pixels.
    """
    with checked("image"), quiet():
        return to_rgb(to_picture(content, max_pixels))


@contextlib.contextmanager
def open_image(path: str | os.PathLike, max_pixels: int) -> Iterator[Image.Image]:
    """An image file, decoded, upright, in the mode in which it is stored. Errors as in read_image."""
    path = pathlib.Path(path)
    with reading(path, "image"):
        try:
            with quiet():
                yield _load(path, max_pixels)
        except UnidentifiedImageError:
            raise UserError(f"{path} is not an image in a supported format") from None
        except Image.DecompressionBombError:
            raise UserError(f"{path} is too large: the limit is {max_pixels} pixels") from None


def _load(path: pathlib.Path, max_pixels: int) -> Image.Image:
    if is_heic(path):
        with open_heic(path) as image:
            return _decoded(image, str(path), max_pixels)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return _decoded(image, str(path), max_pixels)
    except (ValueError, SyntaxError, UnidentifiedImageError):
        if (content := without_metadata(path)) is None:
            raise
        with Image.open(content, formats=("PNG",)) as image:
            return _decoded(image, str(path), max_pixels)


_quiet_lock, _quiet_calls, _quiet_state = threading.Lock(), 0, contextlib.ExitStack()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings of Pillow in the body: they are about metadata, or limits that are checked here.

    Unlike warnings.catch_warnings, threads may overlap in the body: the last one restores the filters.
    """
    global _quiet_calls
    with _quiet_lock:
        if not _quiet_calls:
            _quiet_state.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\b")
        _quiet_calls += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_calls -= 1
            if not _quiet_calls:
                _quiet_state.close()


def to_picture(content: Any, max_pixels: int) -> Image.Image:
    """A PIL image, decoded and upright, from what image_from_content takes.

    Raises:
      ValueError: the content is something else.
      UserError: it has more than max_pixels.
    """
    if isinstance(content, Image.Image):
        return _decoded(content, "the image", max_pixels)
    array = np.asarray(content)
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    gray, colors = array.ndim == 2, array.ndim == 3 and array.shape[-1] in (3, 4)
    if not array.size or not (array.dtype == np.uint8 and (gray or colors) or array.dtype == np.uint16 and gray):
        raise ValueError(
            "an image is a PIL image or an array, uint8 [H, W], [H, W, 3] or [H, W, 4] or uint16 [H, W], "
            f"got {array.dtype} {list(array.shape)}"
        )
    return _decoded(Image.fromarray(np.ascontiguousarray(array)), "the image", max_pixels)


def _decoded(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise UserError(f"{name} is too large: {width} x {height} pixels, the limit is {max_pixels}")
    image.load()
    return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """A decoded image, turned or mirrored by its EXIF orientation. Broken EXIF data are ignored, as viewers do."""
    try:
        method = _TRANSPOSITIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's parser raises many types
        method = None
    return image if method is None else image.transpose(method)


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """A PIL image of any mode, transparent pixels composited over white; of 16-bit gray the upper 8 bits.

    Raises:
      ValueError: its pixels are floats, or have more than 16 bits.
    """
    return np.array(_rgb(image))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels are not supported")
    if image.mode.startswith("I"):
        image = Image.fromarray((gray16(image) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def gray16(image: Image.Image) -> UInt16[np.ndarray, "h w"]:
    """The pixels of a PIL image of 16-bit gray, whose mode has 16 or 32 bits. Raises ValueError for larger values."""
    gray = np.asarray(image)
    if gray.min() < 0 or gray.max() > 0xFFFF:
        raise ValueError("pixels of more than 16 bits are not supported")
    return gray.astype(np.uint16)


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes a PNG atomically. Pixels [H, W, 3] are uint8, or floats in [0, 1] (values outside are clipped).

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


def to_uint8(pixels: Shaped[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
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


def check_aspect(width: int, height: int) -> None:
    """Raises UserError if an image is more than MAX_ASPECT times as long as wide."""
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise UserError(f"an image of {width} x {height} pixels is too narrow: at most {MAX_ASPECT} to 1")


def preprocess_image(
    image: UInt8[np.ndarray, "h w 3"] | Image.Image, size: int, out: Float[np.ndarray, "{size} {size} 3"] | None = None
) -> Float[np.ndarray, "{size} {size} 3"]:
    """Shorter side to `size` (bicubic, antialiased), center crop, CLIP's mean and deviation: float32.

    Rounds as torchvision's Resize and CenterCrop do on PIL images; one of mode RGB may be given.

    Args:
      out: an array of the result's shape and dtype to write it into.

    Raises:
      UserError: the image is more than MAX_ASPECT times as long as wide.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    check_aspect(*picture.size)
    pixels = np.asarray(center_square(picture, size))
    out = np.empty(pixels.shape, np.float32) if out is None else out
    rows = out.reshape(size, 3 * size)  # numpy is slow at a last axis of 3
    np.divide(pixels.reshape(rows.shape), np.float32(255), out=rows)
    rows -= np.tile(CLIP_MEAN, size)
    rows /= np.tile(CLIP_STD, size)
    return out


def center_square(picture: Image.Image, size: int) -> Image.Image:
    """Shorter side to `size` (bicubic, antialiased), center crop."""
    width, height = picture.size
    scaled = int(size * max(height, width) / min(height, width))
    resized = (size, scaled) if width <= height else (scaled, size)
    if resized != picture.size:
        picture = picture.resize(resized, Image.Resampling.BICUBIC)
    left, top = (int(round((side - size) / 2.0)) for side in resized)
    return picture.crop((left, top, left + size, top + size))
