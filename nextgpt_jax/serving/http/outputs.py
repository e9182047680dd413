"""Generated media as bytes, data: URLs and files."""

import base64
import io
import mimetypes
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from nextgpt_jax import media
from nextgpt_jax.inference.types import MediaOutput
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.serving.http.inputs import FILES
from nextgpt_jax.serving.http.store import FileStore, StoredFile

SOUND_TYPES = {"wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "pcm": "audio/pcm"}


def store(medium: MediaOutput, files: FileStore) -> StoredFile:
    """Writes a medium as its modality's format and keeps the file."""
    path = files.temporary(MODALITIES[medium.modality].suffix)
    media.write(medium.modality, path, medium.content)
    return files.add(path)


def content(medium: MediaOutput, files: FileStore) -> bytes:
    """The bytes of the file that `store` would keep."""
    path = files.temporary(MODALITIES[medium.modality].suffix)
    try:
        media.write(medium.modality, path, medium.content)
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


def media_type(modality: str) -> str:
    """The media type of a modality's files."""
    return mimetypes.guess_type(f"x{MODALITIES[modality].suffix}")[0] or "application/octet-stream"


def url_of(file: StoredFile, base_url: str) -> str:
    return f"{base_url}{FILES}{file.name}"


def part(medium: MediaOutput, files: FileStore, base_url: str, as_url: bool) -> dict[str, Any]:
    """A medium as a part of a message, with a URL of this server or a data: URL."""
    if as_url:
        url = url_of(store(medium, files), base_url)
    else:
        url = f"data:{media_type(medium.modality)};base64,{in_base64(content(medium, files))}"
    kind = f"{medium.modality}_url"
    return {"type": kind, kind: {"url": url}}


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def image_bytes(pixels: np.ndarray, kind: str) -> bytes:
    """An image uint8 [H, W, 3] as png, jpeg or webp."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=kind.upper())
    return out.getvalue()


def sound_bytes(audio: media.Audio, kind: str) -> bytes:
    """Sound as wav, flac, mp3 or pcm (16-bit little-endian, without a header)."""
    if kind == "pcm":
        samples = np.clip(np.asarray(audio.samples, np.float64) * 32768, -32768, 32767)
        return np.round(samples).astype("<i2").tobytes()
    out = io.BytesIO()
    subtype = {"wav": "PCM_16", "flac": "PCM_16"}.get(kind)
    soundfile.write(out, audio.samples, audio.sample_rate, format=kind.upper(), subtype=subtype)
    return out.getvalue()
