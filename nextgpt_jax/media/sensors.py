"""Depth maps, thermal images and IMU recordings, and the preprocessing of the encoder.

ImageBind publishes no preprocessing for them. Its paper trains on maps of one channel, depth as disparity (1 / depth,
scaled: near is large), and on IMU recordings of a fixed number of samples. So maps are in 0 .. 1 here, without mean and
deviation, and recordings are resampled to the encoder's number of samples.
"""

import itertools
import os
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float, Real
from PIL import Image

from nextgpt_jax.errors import UserError
from nextgpt_jax.files import reading
from nextgpt_jax.media.content import checked
from nextgpt_jax.media.image import MAX_PIXELS, center_square, check_aspect, gray16, open_image, to_picture, to_rgb

MAX_IMU_SAMPLES = 1_000_000
_MAX_ROW_BYTES = 256  # of a .csv file, on average
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601, as in other image readers


def read_grayscale(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Float[np.ndarray, "h w"]:
    """Reads a map of one channel as float32: 8- or 16-bit gray scaled to 0 .. 1 at full depth, colors by luma.

    Floats, in a .npy file of two dimensions or a TIFF, keep their values. Images are rotated by their EXIF orientation.

    Raises:
      UserError: the file is missing, not an image, damaged, has more than max_pixels, or values that are not finite.
    """
    path = pathlib.Path(path)
    with reading(path, "image"):
        if path.suffix.lower() == ".npy":
            return _map(_load_array(path), str(path), max_pixels)
        with open_image(path, max_pixels) as image:
            return _finite(_to_gray(image))


def grayscale_from_content(content: Any, *, max_pixels: int = MAX_PIXELS) -> Float[np.ndarray, "h w"]:
    """As `read_grayscale`, of a PIL image or an array: floats, uint8 or uint16 [H, W], or uint8 [H, W, 3 or 4].

    Raises:
      UserError: the content is something else, has more than max_pixels, or values that are not finite.
    """
    with checked("image"):
        if not isinstance(content, Image.Image):
            content = np.asarray(content)
            if content.ndim != 3 or content.dtype != np.uint8:
                return _map(_numbers(content), "the image", max_pixels)
        return _finite(_to_gray(to_picture(content, max_pixels)))


def _map(values: Real[np.ndarray, "..."], name: str, max_pixels: int) -> Float[np.ndarray, "h w"]:
    """Floats keep their values, unsigned integers are scaled to 0 .. 1."""
    if values.ndim != 2 or not values.size:
        raise ValueError(f"an array of {list(values.shape)} is no map of one channel")
    if values.size > max_pixels:
        raise UserError(f"{name} is too large: {values.size} pixels, the limit is {max_pixels}")
    if np.issubdtype(values.dtype, np.integer):
        if values.dtype.kind != "u" or values.dtype.itemsize > 2:
            raise ValueError(f"an array of {values.dtype} has no known scale: give uint8, uint16 or floats")
        values = values / np.float32(np.iinfo(values.dtype).max)
    return _finite(values)


def _to_gray(image: Image.Image) -> Float[np.ndarray, "h w"]:
    if image.mode == "F":
        return np.asarray(image)
    if image.mode.startswith("I"):
        return gray16(image) / np.float32(0xFFFF)
    if image.mode == "L":
        return np.asarray(image) / np.float32(255)
    return to_rgb(image) @ _LUMA / np.float32(255)


def preprocess_grayscale(image: Float[np.ndarray, "h w"], size: int) -> Float[np.ndarray, "{size} {size}"]:
    """Shorter side to `size` (bicubic, antialiased) and center crop, float32, clipped to the range of the image.

    Raises:
      UserError: the image is more than MAX_ASPECT times as long as wide.
    """
    check_aspect(*image.shape[::-1])
    crop = center_square(Image.fromarray(np.ascontiguousarray(image, np.float32)), size)
    return np.clip(np.asarray(crop, np.float32), image.min(), image.max())


def read_imu(path: str | os.PathLike, channels: int) -> Float[np.ndarray, "t {channels}"]:
    """Reads a recording of an accelerometer and a gyroscope, one row per sample, one column per axis: .npy or .csv.

    A .csv file may begin with a line of column names. Units are kept.

    Raises:
      UserError: the file is missing, is not `channels` columns of finite numbers, or has over MAX_IMU_SAMPLES rows.
    """
    path = pathlib.Path(path)
    with reading(path, "IMU recording"):
        values = _load_array(path) if path.suffix.lower() == ".npy" else _load_table(path)
        return _recording(values, str(path), channels)


def imu_from_content(content: Any, channels: int) -> Float[np.ndarray, "t {channels}"]:
    """As `read_imu`, of an array [T, channels].

    Raises:
      UserError: the content is something else, has values that are not finite, or more than MAX_IMU_SAMPLES rows.
    """
    with checked("IMU recording"):
        return _recording(_numbers(np.asarray(content)), "the recording", channels)


def _recording(values: Real[np.ndarray, "..."], name: str, channels: int) -> Float[np.ndarray, "t {channels}"]:
    if values.ndim != 2 or values.shape[1] != channels or not len(values):
        raise ValueError(f"it has {list(values.shape)} values, not rows of {channels}")
    if len(values) > MAX_IMU_SAMPLES:
        raise UserError(f"{name} is too long: the limit is {MAX_IMU_SAMPLES} samples")
    return _finite(values)


def _finite(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        values = np.array(values, np.float32)
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    return values


def _numbers(values: np.ndarray) -> np.ndarray:
    if not (np.issubdtype(values.dtype, np.integer) or np.issubdtype(values.dtype, np.floating)):
        raise ValueError(f"an array of {values.dtype} is not one of numbers")
    return values


def _load_array(path: pathlib.Path) -> np.ndarray:
    return _numbers(np.lib.format.open_memmap(path, mode="r"))  # bounded by the file's size, and unpickles nothing


def _load_table(path: pathlib.Path) -> np.ndarray:
    if path.stat().st_size > (limit := _MAX_ROW_BYTES * MAX_IMU_SAMPLES):
        raise UserError(f"{path} is too large: the limit is {limit} bytes")
    with path.open(encoding="utf-8-sig") as file:
        filled = (line for line in file if line.strip())
        lines = list(itertools.islice(filled, MAX_IMU_SAMPLES + 2))  # a header, and one more than allowed
    if lines and not _is_row(lines[0]):
        del lines[0]
    if not lines:
        raise ValueError("it has no rows of numbers")
    return np.loadtxt(lines, delimiter=",", ndmin=2, comments=None, max_rows=MAX_IMU_SAMPLES + 1)


def _is_row(line: str) -> bool:
    try:
        return bool([float(cell) for cell in line.split(",")])
    except ValueError:
        return False


def preprocess_imu(samples: Float[np.ndarray, "t c"], length: int) -> Float[np.ndarray, "c {length}"]:
    """The whole recording, interpolated (linear, its ends kept) to `length` samples: float32."""
    at = np.linspace(0, len(samples) - 1, length)
    return np.stack([np.interp(at, np.arange(len(samples)), channel) for channel in samples.T]).astype(np.float32)
