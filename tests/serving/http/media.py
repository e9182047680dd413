"""Parts of messages, and media in responses."""

import base64
import io

import numpy as np
import soundfile
from PIL import Image

from tests.inference.requests import IMAGE, TONE


def user(*content):
    return {"role": "user", "content": content[0] if len(content) == 1 else list(content)}


def text(words):
    return {"type": "text", "text": words}


def png(pixels=IMAGE):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def wav():
    out = io.BytesIO()
    soundfile.write(out, TONE, 16000, format="WAV", subtype="FLOAT")
    return out.getvalue()


def url(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def part(data, kind="image/png"):
    name = f"{kind.partition('/')[0]}_url"
    return {"type": name, name: {"url": url(data, kind)}}


def content_of(data_url):
    return base64.b64decode(data_url.partition(";base64,")[2])


def pixels_of(data):
    return np.asarray(Image.open(io.BytesIO(data)))
