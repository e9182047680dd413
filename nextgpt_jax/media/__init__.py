"""Media between files and arrays, and the preprocessing of the encoder: numpy in, numpy out."""

from nextgpt_jax.media.image import (
    CLIP_MEAN,
    CLIP_STD,
    MAX_ASPECT,
    MAX_PIXELS,
    check_aspect,
    preprocess_image,
    read_image,
    write_png,
)

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "MAX_ASPECT",
    "MAX_PIXELS",
    "check_aspect",
    "preprocess_image",
    "read_image",
    "write_png",
]
