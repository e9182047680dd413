"""Requests and inputs of the tiny random system."""

import numpy as np

from nextgpt_jax import media
from nextgpt_jax.inference.types import Request
from nextgpt_jax.models.encoders.imagebind import ImageBindConfig
from nextgpt_jax.prompts import Input, Turn
from tests import tiny

IMAGE = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
CLIPS = np.stack([IMAGE, 255 - IMAGE])[None]  # one clip of two frames
TONE = np.sin(np.arange(8000) / 3).astype(np.float32)


def request(*segments, **options) -> Request:
    """A short and greedy one."""
    defaults = dict(num_inference_steps=3, guidance_scale=2.0, temperature=0.0, max_new_tokens=16)
    return Request((Turn(segments),), **(defaults | options))


def read(modality, content) -> Input:
    """An input of the tiny system."""
    return Input(modality, media.preprocess(modality, content, ImageBindConfig.from_dict(tiny.IMAGEBIND)))
