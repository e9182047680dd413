"""The fields of requests. Names are OpenAI's, but for `modality`, `steps`, `guidance`, `sampler`, `top_k`, `edit`,
`strength`, `inversion` and `media_format`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.serving.http.bodies import Body
from nextgpt_jax.serving.http.errors import ApiError

Seed = Annotated[int, Field(ge=0, lt=2**31)]


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("it is empty")
    return value


Text = Annotated[str, AfterValidator(_text)]


class Sampling(Body):
    """Options of generated media."""

    model: str | None = None
    seed: Seed | None = Field(None, description="null: a random one, which the response reports")
    steps: Annotated[int, Field(ge=1, le=1000)] | None = Field(None, description="denoising steps")
    guidance: Annotated[float, Field(ge=0, lt=1000)] | None = Field(None, description="classifier-free guidance")
    sampler: str | None = Field(None, description="of generated media, such as unipc or dpm++")
    user: str | None = Field(None, description="a label, which no answer depends on")

    def options(self) -> dict[str, Any]:
        """The fields of Request."""
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "sampler": self.sampler,
        }


class Editing(Body):
    """How much a medium that is edited may change."""

    strength: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the denoising steps that are taken; 0.6 is the default"
    )
    inversion: bool | None = Field(None, description="begin from the noise that DDIM finds for the input")

    def edit_options(self, modality: str | None) -> dict[str, Any]:
        """The options of `editing.load_edit`."""
        return {"edit": modality, "strength": self.strength, "inversion": self.inversion}


class Url(Body):
    """Where a medium is: a data: URL, a file that this server made, or `upload:NAME` of a form."""

    url: str
    neutral: ClassVar = {"detail": ("auto",)}


class InputAudio(Body):
    """Sound in base64."""

    data: str
    format: str | None = None


URL_PARTS = {f"{name}_url": name for name in MODALITIES}  # types of parts, to modalities


class Part(Body):
    """A text or a medium of a message; the field that is named as `type` holds it."""

    type: Literal["text", "image_url", "video_url", "audio_url", "depth_url", "thermal_url", "imu_url", "input_audio"]
    text: str | None = None
    image_url: Url | None = None
    video_url: Url | None = None
    audio_url: Url | None = None
    depth_url: Url | None = None
    thermal_url: Url | None = None
    imu_url: Url | None = None
    input_audio: InputAudio | None = None


class Message(Body):
    """A message of the user or of the model. `media`: what the model made in that message, as it was returned."""

    role: Literal["user", "assistant"]
    content: str | Annotated[list[Part], Field(max_length=1000)] | None = None
    media: Annotated[list[Part], Field(max_length=1000)] | None = None
    neutral: ClassVar = {"tool_calls": ([],), "annotations": ([],)}


class StreamOptions(Body):
    include_usage: bool | None = None
    neutral: ClassVar = {"include_obfuscation": (False,)}


class Chat(Sampling, Editing):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    temperature: Annotated[float, Field(ge=0, lt=1000)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(None, description="0: no limit")
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    modality: str | None = Field(
        None, description="auto (the model decides), text (no media), or a list such as image,audio"
    )
    edit: str | None = Field(None, description="modality of the last message's first such medium, which is edited")
    media_format: Literal["base64", "url"] | None = Field(
        None, description="generated media as data: URLs (the default), or as files of this server"
    )
    neutral: ClassVar = {
        "frequency_penalty": (0, 0.0),
        "presence_penalty": (0, 0.0),
        "logit_bias": ({},),
        "logprobs": (False,),
        "top_logprobs": (0,),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "store": (False,),
        "metadata": ({},),
        "service_tier": ("auto", "default"),
        "modalities": (["text"],),
    }

    def options(self) -> dict[str, Any]:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ApiError("max_tokens and max_completion_tokens differ: give one of them", param="max_tokens")
        chosen = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "modality": self.modality,
            "max_new_tokens": next(iter(limits), None),
        }
        return super().options() | chosen | self.edit_options(self.edit)

    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


_IMAGES_NEUTRAL = {
    "quality": ("auto",),
    "background": ("auto", "opaque"),
    "partial_images": (0,),
    "stream": (False,),
}


class Images(Sampling):
    """POST /v1/images/generations."""

    prompt: Text
    n: Annotated[int, Field(ge=1)] | None = None
    size: str | None = Field(None, description="auto, or the size that the model is configured for, such as 512x512")
    response_format: Literal["b64_json", "url"] | None = Field(None, description="b64_json is the default")
    output_format: Literal["png", "jpeg", "webp"] | None = None
    neutral: ClassVar = _IMAGES_NEUTRAL


class ImageEdits(Images, Editing):
    """POST /v1/images/edits: a form with the image that is edited."""

    neutral: ClassVar = {**_IMAGES_NEUTRAL, "input_fidelity": ("low",)}

    def options(self) -> dict[str, Any]:
        return super().options() | self.edit_options("image")


class Sounds(Sampling):
    """POST /v1/audio/generations."""

    prompt: Text
    n: Annotated[int, Field(ge=1)] | None = None
    response_format: Literal["b64_json", "url"] | None = Field(None, description="b64_json is the default")


class Speech(Sampling):
    """POST /v1/audio/speech: what OpenAI's client calls for sound. It makes the sound that `input` describes."""

    input: Text
    voice: Literal["auto"] | None = Field(None, description="the model makes sound, and has no voices")
    response_format: Literal["wav", "flac", "mp3", "pcm"] | None = Field(None, description="wav is the default")
    neutral: ClassVar = {"speed": (1, 1.0), "stream_format": ("audio",), "instructions": ("",)}


class Reference(Body):
    """An image or a video that a prompt speaks of: where it is."""

    image_url: str | None = None
    video_url: str | None = None


class Videos(Sampling):
    """POST /v1/videos; as a form, with an image or a video as `input_reference`, too."""

    prompt: Text
    seconds: str | None = Field(None, description="only the length that the model is configured for")
    size: str | None = Field(None, description="only the size that the model is configured for, such as 576x320")
    input_reference: Reference | None = None


class Embeddings(Body):
    """POST /v1/embeddings. Media are given as the parts of a message are."""

    input: Text | Part | Annotated[list[Text | Part], Field(min_length=1, max_length=2048)]
    model: str
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, description="only the width that the model has")
    user: str | None = Field(None, description="a label, which no answer depends on")
