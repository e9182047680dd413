"""What goes into a pipeline and comes out of it."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from PIL import Image

from nextgpt_jax import media
from nextgpt_jax.inference.types import MediaOutput
from nextgpt_jax.media import Audio, Video
from nextgpt_jax.modalities import MODALITIES

# A file, or its contents: a PIL image or uint8 array [H, W, 3]; (samples, rate); (frames, fps); arrays of sensors.
MediaInput = str | os.PathLike | Image.Image | np.ndarray | tuple


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Options of one answer; None takes the model's default (`model.defaults`).

    Attributes:
      seed: of sampling tokens and media; an answer depends on nothing else that is random.
      temperature: of sampling tokens; 0 takes the most probable one.
      top_k: samples among this many tokens; 0: all.
      top_p: samples among the smallest set of tokens with this probability.
      max_new_tokens: length of the answer at most, signal tokens included.
      num_inference_steps: denoising steps of every generated medium.
      guidance_scale: classifier-free guidance of every generated medium.
      sampler: of every generated medium: pndm, ddim, dpm++, unipc, euler, euler_a or ddpm; "" is the decoder's own.
    """

    seed: int = 0
    temperature: float | None = None
    top_k: int = 0
    top_p: float | None = None
    max_new_tokens: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt with its media.

    Media replace their placeholders (`<image>`, `<video>`, `<audio>`, ...) in the prompt, in order; without
    placeholders they come before it.

    Attributes:
      prompt: text.
      images, videos, audios, depths, thermals, imus: files or their contents (see `MediaInput`).
      media: the same by modality name, for modalities without a field here.
      output_modalities: modalities to generate, such as ["image", "audio"], each at least once; [] for text only; None
        leaves it to the model.
      generation_config: options of the answer.
    """

    prompt: str
    images: Sequence[MediaInput] = ()
    videos: Sequence[MediaInput] = ()
    audios: Sequence[MediaInput] = ()
    depths: Sequence[MediaInput] = ()
    thermals: Sequence[MediaInput] = ()
    imus: Sequence[MediaInput] = ()
    media: Mapping[str, Sequence[MediaInput]] = dataclasses.field(default_factory=dict)
    output_modalities: Sequence[str] | None = None
    generation_config: GenerationConfig = GenerationConfig()

    def by_modality(self) -> dict[str, list[MediaInput]]:
        """All media of the request, by modality name."""
        found: dict[str, list[MediaInput]] = {}
        for name in MODALITIES:
            given = [*getattr(self, f"{name}s", ()), *self.media.get(name, ())]
            if given:
                found[name] = given
        return found | {name: list(items) for name, items in self.media.items() if name not in MODALITIES}


def to_pil(pixels: np.ndarray) -> Image.Image:
    """A PIL image from uint8 [H, W, 3], or from floats in [0, 1]."""
    if pixels.dtype != np.uint8:
        pixels = np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(pixels)


@dataclasses.dataclass
class MediaOutputs:
    """Generated media, in order. `images`, `videos` and `audios` are those of one modality.

    Attributes:
      media: each with its `modality` and `content`: uint8 [H, W, 3], a `Video` or an `Audio`.
    """

    media: list[MediaOutput] = dataclasses.field(default_factory=list)

    def of(self, modality: str) -> list[Any]:
        """The contents of one modality."""
        return [medium.content for medium in self.media if medium.modality == modality]

    @property
    def images(self) -> list[Image.Image]:
        """PIL images."""
        return [to_pil(content) for content in self.of("image")]

    @property
    def videos(self) -> list[Video]:
        """(frames, fps) pairs: uint8 [T, H, W, 3] and frames per second."""
        return self.of("video")

    @property
    def audios(self) -> list[Audio]:
        """(samples, sample_rate) pairs: float32 [n] in [-1, 1] and Hz."""
        return self.of("audio")

    def save(self, folder: str | os.PathLike) -> list[pathlib.Path]:
        """Writes every medium below `folder`, each under the next free name of its modality: image_000.png, ...

        Returns:
          The files, in the order of the media.

        Raises:
          UserError: a file cannot be written.
        """
        return save_media(self.media, pathlib.Path(folder))


@dataclasses.dataclass
class Response(MediaOutputs):
    """An answer.

    Attributes:
      text: what the model says.
      num_tokens: generated tokens, signal tokens included.
    """

    text: str = ""
    num_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class StreamEvent:
    """A part of an answer that has just been finished.

    Attributes:
      text: text that follows that of the events before; the texts of all events make up the answer's.
      medium: a generated medium, with `modality` and `content`; media come after the text, in order.
      response: the complete answer, in the last event.
    """

    text: str = ""
    medium: MediaOutput | None = None
    response: Response | None = None


def save_media(made: Iterable[MediaOutput], folder: pathlib.Path) -> list[pathlib.Path]:
    """As `MediaOutputs.save`."""
    paths = []
    for medium in made:
        number, suffix = 0, MODALITIES[medium.modality].suffix
        while (path := folder / f"{medium.modality}_{number:03d}{suffix}").exists():
            number += 1
        media.write(medium.modality, path, medium.content)
        paths.append(path)
    return paths


class RequestOptions(TypedDict, total=False):
    """The fields of a `Request` as keyword arguments."""

    images: Sequence[MediaInput]
    videos: Sequence[MediaInput]
    audios: Sequence[MediaInput]
    depths: Sequence[MediaInput]
    thermals: Sequence[MediaInput]
    imus: Sequence[MediaInput]
    media: Mapping[str, Sequence[MediaInput]]
    output_modalities: Sequence[str] | None
    generation_config: GenerationConfig
