"""What goes into and comes out of the engine."""

import dataclasses
from typing import Any

import numpy as np

from nextgpt_jax.prompts import Segment, Turn


@dataclasses.dataclass(frozen=True)
class Edit:
    """A medium that is the beginning of the generated media of its modality. Made by `editing.load_edit`.

    Attributes:
      modality: of the medium; the prompt has it as an input, too.
      content: what the decoder reads: an image uint8 [H, W, 3], a video uint8 [F, H, W, 3], or a sound float32 [n].
      strength: in (0, 1], the share of the denoising steps that are taken: how much may change.
      inversion: begin from the noise that DDIM, run backwards without a prompt, finds for the medium, not from new
        noise. The sampler is DDIM.
    """

    modality: str
    content: np.ndarray
    strength: float = 0.6
    inversion: bool = False


@dataclasses.dataclass(frozen=True)
class Request:
    """A conversation whose last turn is to be answered.

    Attributes:
      turns: the content of an `Input` is the array that `media.load` returns.
      seed: of sampled tokens and media.
      modality: "auto" (the model decides), "text" (no media), or a list such as "image,audio" (each at least once, no
        others).
      num_inference_steps: denoising steps of all media; None: the default of each modality.
      guidance_scale: classifier-free guidance of all media; None: the default of each modality.
      sampler: one of `schedulers.SAMPLERS` for all media; "" is the decoder's own; None: the default of each modality.
      temperature: of sampled tokens; 0 takes the most likely token.
      top_k: sample from the k most likely tokens; 0 turns it off.
      top_p: sample from the most likely tokens with this total probability; 1 turns it off.
      max_new_tokens: limit of generated tokens, signal tokens included.
      edit: a medium of the prompt that is edited; None: all media are new.
    """

    turns: tuple[Turn[np.ndarray], ...]
    seed: int = 0
    modality: str = "auto"
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    temperature: float = 0.4
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 246
    edit: Edit | None = None


@dataclasses.dataclass(frozen=True)
class MediaOutput:
    """A generated medium: an image as uint8 [H, W, 3], a `media.Video` or a `media.Audio`."""

    modality: str
    content: Any


@dataclasses.dataclass
class Response:
    """The answer to a request.

    Attributes:
      text: all text, without the signal tokens.
      media: in the order in which the text asks for them.
      tokens: number of generated tokens, signal tokens included.
      segments: the assistant's side of the turn, to continue the conversation.
      finish_reason: "stop" or, at the limit of tokens, "length".
      prompt_tokens: tokens of the prompt, its media included.
    """

    text: str
    media: list[MediaOutput]
    tokens: int
    segments: tuple[Segment, ...]
    finish_reason: str
    prompt_tokens: int


@dataclasses.dataclass(frozen=True)
class StreamEvent:
    """A part of an answer that has just been finished; exactly one field is set.

    Attributes:
      text: text that follows the text of the events before; the texts of all events make up `Response.text`.
      media: the next medium of `Response.media`; all media come after the text.
      response: the complete answer, in the last event.
    """

    text: str = ""
    media: MediaOutput | None = None
    response: Response | None = None
