"""HEIC and other HEIF images, by pi-heif: Pillow has no reader for them."""

import pathlib

from PIL import Image

from nextgpt_jax.errors import UserError

_STILLS = {b"heic", b"heix", b"heim", b"heis"}
_SEQUENCES = {b"hevc", b"hevx", b"hevm", b"hevs"}  # with a track, as videos have it
_AVIF = {b"avif", b"avis"}
_HEAD = 256  # bytes that hold all brands


def _brands(path: pathlib.Path) -> set[bytes]:
    """What a file of boxes (ISO 14496-12) says that it is compatible with; empty if it does not begin with them."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head[4:8] != b"ftyp":
        return set()
    end = int.from_bytes(head[:4], "big")
    return {head[8:12], *(head[at : at + 4] for at in range(16, min(end, len(head)), 4))}


def is_avif(path: pathlib.Path) -> bool:
    """Whether Pillow reads the file as AVIF."""
    return bool(_brands(path) & _AVIF)


def is_heic(path: pathlib.Path) -> bool:
    """Whether the file is a HEIF image, or a sequence of them, coded as HEVC; its suffix counts for nothing."""
    brands = _brands(path)
    return bool(brands & (_STILLS | _SEQUENCES)) and not brands & _AVIF


def refuse_still(path: pathlib.Path) -> None:
    """Raises ValueError if the file is HEIC without a track: FFmpeg gives one tile of it, or forgets to turn it."""
    if is_heic(path) and not _brands(path) & _SEQUENCES:
        raise ValueError("it is a HEIC image, not a video")


def open_heic(path: pathlib.Path) -> Image.Image:
    """The primary image, not decoded yet.

    Decoding turns and mirrors it as its `irot` and `imir` boxes say. EXIF, which at best repeats them, is left out.

    Raises:
      UserError: pi-heif is not installed.
      SyntaxError: the file is damaged.
    """
    try:
        from pi_heif import HeifImageFile
    except ImportError:
        raise UserError(f"{path} is a HEIC image: reading it needs pi-heif: pip install 'nextgpt-jax[heic]'") from None
    image = HeifImageFile(path)
    for key in ("exif", "xmp"):
        image.info.pop(key, None)
    return image
