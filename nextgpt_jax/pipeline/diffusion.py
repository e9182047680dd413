"""The diffusion decoders alone: prompts to images, videos and audio."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nextgpt_jax import compiler
from nextgpt_jax.config_files import config_names, load_config
from nextgpt_jax.data.examples import caption_ids
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.types import MediaOutput
from nextgpt_jax.media import Audio, Video
from nextgpt_jax.models.diffusion.audioldm import AudioLDM as AudioLDMModel
from nextgpt_jax.models.diffusion.audioldm import AudioLDMConfig
from nextgpt_jax.models.diffusion.latent_diffusion import LatentDiffusion, LatentDiffusionConfig
from nextgpt_jax.models.diffusion.schedulers import init_state
from nextgpt_jax.models.diffusion.stable_diffusion import StableDiffusion as StableDiffusionModel
from nextgpt_jax.models.diffusion.stable_diffusion import StableDiffusionConfig
from nextgpt_jax.models.diffusion.text_to_video import TextToVideo as TextToVideoModel
from nextgpt_jax.models.diffusion.text_to_video import TextToVideoConfig
from nextgpt_jax.models.rngs import abstract, make_rngs
from nextgpt_jax.pipeline.components import component_folder, fill_component
from nextgpt_jax.pipeline.types import MediaOutputs
from nextgpt_jax.weights.tokenizers import load_tokenizer


class _Pipeline:
    """What the three decoders share."""

    component: ClassVar[str]
    config_class: ClassVar[type[LatentDiffusionConfig]]
    model_class: ClassVar[type[LatentDiffusion]]
    modality: ClassVar[str]
    size: ClassVar[Mapping[str, Any]]  # default size, as the arguments of latent_shape

    def __init__(self, model: Any, tokenizer: Any, size: Mapping[str, Any] | None = None):
        self._model, self._tokenizer, self._size = model, tokenizer, {**self.size, **(size or {})}

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike, *, dtype: str | None = None, revision: str = "") -> Self:
        """Loads a pipeline folder.

        Args:
          name_or_path: a folder in diffusers' layout, or converted; a config whose decoder is meant, such as "keypad";
            or a Hub id.
          dtype: "float32" or "bfloat16"; None: bfloat16 on accelerators, float32 on CPUs.
          revision: of a Hub repository.

        Raises:
          UserError: there is no such folder, or its files do not fit.
        """
        folder = component_folder(name_or_path, cls.component, f"{cls.modality}_decoder", revision)
        config = cls.config_class.from_pretrained(folder)
        model = abstract(lambda: cls.model_class(config, rngs=make_rngs(0)))
        fill_component(model, cls.component, folder, dtype)
        size = {}
        if os.fspath(name_or_path).split(":")[0] in config_names():
            settings = getattr(load_config(os.fspath(name_or_path)).generation, cls.modality)
            size = {name: getattr(settings, name) for name in cls.size}
        return cls(model, load_tokenizer(folder / "tokenizer"), size)

    @property
    def config(self) -> Any:
        """The sizes of the networks."""
        return self._model.config

    def _sample(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str,
        num_inference_steps: int,
        guidance_scale: float,
        sampler: str,
        seed: int,
        num_per_prompt: int,
        size: Mapping[str, Any],
        on_step: Callable[[int, int], None] | None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """float32 [B, ...] in the decoder's range, and the size that was used."""
        if not 1 <= num_inference_steps <= 1000:
            raise UserError(f"num_inference_steps is out of range: {num_inference_steps}")
        if num_per_prompt < 1:
            raise UserError(f"the number of outputs per prompt should be at least 1, got {num_per_prompt}")
        size = self._size | {name: value for name, value in size.items() if value is not None}
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise UserError("give at least one prompt")
        prompts = [text for text in prompts for _ in range(num_per_prompt)]
        shape = self.config.latent_shape(*size.values())
        length, dtype = self.config.caption_length, _dtype(self._model)
        ids = np.stack([caption_ids(self._tokenizer, text, length) for text in [*prompts, negative_prompt]])
        embeds = _encode(self._model, ids)
        table = self.config.scheduler.with_sampler(sampler).sampler_table(num_inference_steps)
        seeds = np.arange(seed, seed + len(prompts), dtype=np.uint32)
        state = _noise(table, seeds, shape=tuple(shape))
        guidance = np.full(len(prompts), guidance_scale, np.float32)
        count = int(table.num_evaluations)
        stride = 1 if on_step else count
        for first in range(0, count, stride):
            state = _denoise(self._model, state, embeds[:-1], embeds[-1:], table, guidance, first, first + stride)
            if on_step:
                jax.block_until_ready(state)
                on_step(first + 1, count)
        return np.asarray(_decode(self._model, state.sample, dtype=dtype)), size

    def _outputs(self, contents: list[Any]) -> MediaOutputs:
        return MediaOutputs([MediaOutput(self.modality, content) for content in contents])


class StableDiffusion(_Pipeline):
    """Stable Diffusion 1.x and 2.x: text to images.

    >>> import nextgpt_jax as ng
    >>> pipeline = ng.StableDiffusion.from_pretrained("keypad")
    >>> pipeline("a handwritten seven", num_inference_steps=10).images[0].size
    (32, 32)
    """

    component, modality, size = "stable_diffusion", "image", {"height": 512, "width": 512}
    config_class, model_class = StableDiffusionConfig, StableDiffusionModel

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        sampler: str = "",
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        seed: int = 0,
        on_step: Callable[[int, int], None] | None = None,
    ) -> MediaOutputs:
        """Images of prompts; `.images` are PIL images.

        Args:
          prompt: one text, or several.
          negative_prompt: what guidance leads away from.
          num_inference_steps: denoising steps.
          guidance_scale: of classifier-free guidance; 1 is without.
          sampler: pndm, ddim, dpm++, unipc, euler, euler_a or ddpm; "" is the one in scheduler_config.json.
          height, width: in pixels; None: the model's default.
          num_images_per_prompt: images with different seeds for each prompt.
          seed: of the first image's noise; the others count up from it.
          on_step: called as on_step(done, all) after each evaluation.

        Raises:
          UserError: a size or an option that the model or the sampler cannot take.
        """
        size = {"height": height, "width": width}
        made, _ = self._sample(
            prompt,
            negative_prompt,
            num_inference_steps,
            guidance_scale,
            sampler,
            seed,
            num_images_per_prompt,
            size,
            on_step,
        )
        return self._outputs(list(np.round(made * 255).astype(np.uint8)))


class TextToVideo(_Pipeline):
    """Zeroscope and ModelScope's text-to-video: text to short videos.

    >>> import nextgpt_jax as ng
    >>> pipeline = ng.TextToVideo.from_pretrained("keypad")
    >>> video = pipeline("a seven moving left", num_inference_steps=4, fps=4.0).videos[0]
    >>> video.frames.shape, video.fps
    ((8, 32, 32, 3), 4.0)
    """

    component, modality = "text_to_video", "video"
    config_class, model_class = TextToVideoConfig, TextToVideoModel
    size = {"frames": 24, "height": 320, "width": 576}

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        num_inference_steps: int = 50,
        guidance_scale: float = 9.0,
        sampler: str = "",
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: float = 8.0,
        num_videos_per_prompt: int = 1,
        seed: int = 0,
        on_step: Callable[[int, int], None] | None = None,
    ) -> MediaOutputs:
        """Videos of prompts; `.videos` are (frames uint8 [T, H, W, 3], fps) pairs. Arguments as StableDiffusion's.

        Raises:
          UserError: a size or an option that the model or the sampler cannot take.
        """
        size = {"frames": num_frames, "height": height, "width": width}
        made, _ = self._sample(
            prompt,
            negative_prompt,
            num_inference_steps,
            guidance_scale,
            sampler,
            seed,
            num_videos_per_prompt,
            size,
            on_step,
        )
        return self._outputs([Video(frames, fps) for frames in np.round(made * 255).astype(np.uint8)])


class AudioLDM(_Pipeline):
    """AudioLDM: text to sound.

    >>> import nextgpt_jax as ng
    >>> pipeline = ng.AudioLDM.from_pretrained("keypad")
    >>> samples, rate = pipeline("the tone of key seven", num_inference_steps=10).audios[0]
    >>> samples.shape, rate
    ((4000,), 8000)
    """

    component, modality, size = "audioldm", "audio", {"seconds": 5.0}
    config_class, model_class = AudioLDMConfig, AudioLDMModel

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        num_inference_steps: int = 50,
        guidance_scale: float = 2.5,
        sampler: str = "",
        seconds: float | None = None,
        num_audios_per_prompt: int = 1,
        seed: int = 0,
        on_step: Callable[[int, int], None] | None = None,
    ) -> MediaOutputs:
        """Sounds of prompts; `.audios` are (samples float32 [n] in [-1, 1], rate in Hz) pairs. Arguments as
        StableDiffusion's.

        Raises:
          UserError: a length or an option that the model or the sampler cannot take.
        """
        made, size = self._sample(
            prompt, negative_prompt, num_inference_steps, guidance_scale, sampler, seed, num_audios_per_prompt,
            {"seconds": seconds}, on_step,
        )  # fmt: skip
        count = self.config.num_samples(size["seconds"])
        return self._outputs([Audio(samples[:count], self.config.sampling_rate) for samples in made])


def _dtype(model: Any) -> jnp.dtype:
    return jax.tree.leaves(nnx.state(model.unet))[0].dtype


@compiler.jit
def _encode(model: LatentDiffusion, ids: jax.Array) -> jax.Array:
    return model.encode_prompt(ids)


@functools.partial(compiler.jit, static_argnames="shape")
def _noise(table, seeds, *, shape):
    keys = jax.vmap(jax.random.key)(seeds)
    return init_state(table, jax.vmap(lambda key: jax.random.normal(key, shape))(keys), keys)


@functools.partial(compiler.jit, donate_argnums=1)
def _denoise(model, state, embeds, negative, table, guidance, first, last):
    return model.denoise(state, embeds, negative, table, guidance, first, last)


@functools.partial(compiler.jit, static_argnames="dtype")
def _decode(model, latents, *, dtype):
    return model.decode(latents, dtype)
