"""Damaged metadata of PNG files, which viewers ignore and Pillow refuses."""

import io
import pathlib
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_XMP = b"iTXtXML:com.adobe.xmp\0\0\0"  # not compressed; it may hold the orientation


def without_metadata(path: pathlib.Path) -> io.BytesIO | None:
    """A PNG file with only the chunks that determine its picture: pixels, transparency, and intact orientations.

    None if it is no PNG file, or there is nothing to leave out.
    """
    with path.open("rb") as file:
        if file.read(len(_SIGNATURE)) != _SIGNATURE:
            return None
        kept, left_out = io.BytesIO(_SIGNATURE), False
        kept.seek(0, io.SEEK_END)
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            chunk = kind + file.read(length + 4)  # its name, data and checksum
            if kind[:1].isupper() or kind == b"tRNS" or _is_orientation(chunk):
                kept.write(head[:4] + chunk)
            else:
                left_out = True
    kept.seek(0)
    return kept if left_out else None


def _is_orientation(chunk: bytes) -> bool:
    """Whether a chunk is intact, and of a kind in which orientations are stored."""
    if not chunk.startswith((b"eXIf", _XMP)):
        return False
    return zlib.crc32(chunk[:-4]).to_bytes(4, "big") == chunk[-4:]
