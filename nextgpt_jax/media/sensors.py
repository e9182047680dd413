"""Depth maps, thermal images and IMU recordings, and the preprocessing of the encoder.

ImageBind publishes no preprocessing for them. Its paper trains on maps of one channel, depth as disparity (1 / depth,
scaled: what is near is large), and on five seconds of an IMU in 2000 samples. So here: maps in 0 .. 1, without mean
and deviation, and recordings stretched to 2000 samples.
"""

import itertools
import os
import pathlib

import numpy as np
from jaxtyping import Float
from PIL import Image

from nextgpt_jax.errors import UserError
from nextgpt_jax.files import reading
from nextgpt_jax.media.image import MAX_PIXELS, center_square, check_aspect, open_image, to_rgb

IMU_CHANNELS = 6  # accelerometer x y z, gyroscope x y z
IMU_LENGTH = 2000  # samples: 5 seconds at 400 Hz
MAX_IMU_SAMPLES = 1_000_000
_MAX_TABLE_BYTES = 256 * MAX_IMU_SAMPLES
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of Rec. 601, as other image readers take it


def read_grayscale(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Float[np.ndarray, "h w"]:
    """Reads a map of one channel as float32: grey of 8 or 16 bits scaled to 0 .. 1 at its full depth, colours by luma.

    Floats, in a .npy file of two dimensions or a TIFF, are taken as they are. Images are turned upright.

    Raises:
      UserError: the file is missing, no image, damaged, has more than max_pixels, or values that are not finite.
    """
    path = pathlib.Path(path)
    with reading(path, "image"):
        if path.suffix.lower() == ".npy":
            values = _load_array(path)
            if values.ndim != 2 or not values.size:
                raise ValueError(f"an array of {list(values.shape)} is no map of one channel")
            if values.size > max_pixels:
                raise UserError(f"{path} is too large: {values.size} pixels, the limit is {max_pixels}")
            if np.issubdtype(values.dtype, np.integer):
                if values.dtype.kind != "u" or values.dtype.itemsize > 2:
                    raise ValueError(f"an array of {values.dtype} has no known scale: give uint8, uint16 or floats")
                values = values / np.float32(np.iinfo(values.dtype).max)
        else:
            with open_image(path, max_pixels) as image:
                values = _to_grey(image)
        return _finite(values)


def _to_grey(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        return np.asarray(image)
    if image.mode.startswith("I"):  # grey of 16 bits, held in 16 or 32
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise ValueError("pixels of more than 16 bits are not supported")
        return grey / np.float32(0xFFFF)
    if image.mode == "L":
        return np.asarray(image) / np.float32(255)
    return to_rgb(image) @ _LUMA / np.float32(255)


def preprocess_grayscale(image: Float[np.ndarray, "h w"], size: int) -> Float[np.ndarray, "{size} {size}"]:
    """Shorter side to `size` (bicubic, antialiased) and centre crop, float32; no value leaves the range of the image's.

    Raises:
      UserError: the image is more than MAX_ASPECT times as long as wide.
    """
    check_aspect(image)
    crop = center_square(Image.fromarray(np.ascontiguousarray(image, np.float32)), size)
    return np.clip(np.asarray(crop, np.float32), image.min(), image.max())


def read_imu(path: str | os.PathLike) -> Float[np.ndarray, "t 6"]:
    """Reads a recording of an accelerometer and a gyroscope (x, y, z each), one sample a row: .npy, or .csv.

    A .csv may have one line of names above. Units stay as they are.

    Raises:
      UserError: the file is missing, is not six columns of finite numbers, or has more than MAX_IMU_SAMPLES rows.
    """
    path = pathlib.Path(path)
    with reading(path, "IMU recording"):
        values = _load_array(path) if path.suffix.lower() == ".npy" else _load_table(path)
        if values.ndim != 2 or values.shape[1] != IMU_CHANNELS or not len(values):
            raise ValueError(f"it has {list(values.shape)} values, not rows of {IMU_CHANNELS}")
        if len(values) > MAX_IMU_SAMPLES:
            raise UserError(f"{path} is too long: the limit is {MAX_IMU_SAMPLES} samples")
        return _finite(values)


def _finite(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        values = np.array(values, np.float32)
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    return values


def _load_array(path: pathlib.Path) -> np.ndarray:
    values = np.lib.format.open_memmap(path, mode="r")  # maps no more than the file has, and unpickles nothing
    if not (np.issubdtype(values.dtype, np.integer) or np.issubdtype(values.dtype, np.floating)):
        raise ValueError(f"an array of {values.dtype} is not one of numbers")
    return values


def _load_table(path: pathlib.Path) -> np.ndarray:
    if path.stat().st_size > _MAX_TABLE_BYTES:
        raise UserError(f"{path} is too large: the limit is {_MAX_TABLE_BYTES} bytes")
    with path.open(encoding="utf-8-sig") as file:
        filled = (line for line in file if line.strip())
        lines = list(itertools.islice(filled, MAX_IMU_SAMPLES + 2))  # a header, and one too many
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


def preprocess_imu(samples: Float[np.ndarray, "t 6"], length: int = IMU_LENGTH) -> Float[np.ndarray, "6 {length}"]:
    """The whole recording, stretched in time (linear, its ends kept) to `length` samples: float32."""
    at = np.linspace(0, len(samples) - 1, length)
    return np.stack([np.interp(at, np.arange(len(samples)), channel) for channel in samples.T]).astype(np.float32)
