"""The Python API: models as users hold them, with files, PIL images and arrays in and out."""

from nextgpt_jax.pipeline.diffusion import AudioLDM, StableDiffusion, TextToVideo
from nextgpt_jax.pipeline.imagebind import ImageBind
from nextgpt_jax.pipeline.nextgpt import Chat, NExTGPT
from nextgpt_jax.pipeline.types import GenerationConfig, MediaOutputs, Request, Response, StreamEvent

__all__ = [
    "AudioLDM",
    "Chat",
    "GenerationConfig",
    "ImageBind",
    "MediaOutputs",
    "NExTGPT",
    "Request",
    "Response",
    "StableDiffusion",
    "StreamEvent",
    "TextToVideo",
]
