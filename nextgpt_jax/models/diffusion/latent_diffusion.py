"""Base classes of the latent diffusion decoders: prompt embeddings in, media out, for latents of any shape.

A decoder is a config (the configs of its components and its scheduler) and a module of those components. Legend:
B samples, L prompt tokens, D prompt width, *s the axes of a latent (h w of images, F h w of videos, ...), c channels.
"""

import pathlib
from collections.abc import Mapping
from typing import ClassVar, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from nextgpt_jax.errors import UserError
from nextgpt_jax.models import hf_config
from nextgpt_jax.models.diffusion.sample import sample
from nextgpt_jax.models.diffusion.schedulers import SamplerState, SamplerTable, SchedulerConfig, init_state
from nextgpt_jax.sharding import LARGEST_DIM, LARGEST_DIM_PER_LAYER

# Of the components of all decoders; the layers of text encoders are stacked.
SHARDING = (
    (r"text_encoder\.layers\..*", LARGEST_DIM_PER_LAYER),
    (r"(text_encoder|unet|vae|vocoder)\..*", LARGEST_DIM),
)

_Config = TypeVar("_Config", bound="LatentDiffusionConfig")  # typing.Self fails with run-time type checkers


class LatentDiffusionConfig:
    """Base of the decoders' configs: frozen dataclasses with one field per component, and the scheduler.

    Each also has `latent_shape(...)`, the shape of one sample's latents for a size in the medium's own units, which
    raises UserError for a size that is not supported.
    """

    medium: ClassVar[str] = "image"  # what comes out: "image", "video" or "audio"
    component_classes: ClassVar[Mapping[str, type]]  # the config class of each component, by the name of its folder
    scheduler: SchedulerConfig

    @property
    def prompt_shape(self) -> tuple[int, int]:
        """Tokens and width of the prompt embeddings that the UNet was trained with."""
        return self.text_encoder.max_position_embeddings, self.text_encoder.hidden_size

    @property
    def caption_length(self) -> int:
        """The number of ids that the text encoder takes; shorter texts are padded to it."""
        return self.text_encoder.max_position_embeddings

    @classmethod
    def from_pretrained(cls: type[_Config], folder: str | pathlib.Path) -> _Config:
        """Reads a model folder: COMPONENT/config.json of every component, and scheduler/scheduler_config.json.

        Raises:
          UserError: a file is missing, a component is of a kind that is not implemented, or the components don't fit.
        """
        folder = pathlib.Path(folder)
        components = {
            name: kind.from_dict(hf_config.read_config(folder / name / "config.json"))
            for name, kind in cls.component_classes.items()
        }
        scheduler = SchedulerConfig.from_dict(hf_config.read_config(folder / "scheduler" / "scheduler_config.json"))
        try:
            return cls(**components, scheduler=scheduler)
        except ValueError as error:
            raise UserError(f"{folder}: {error}") from None


def check_latent_channels(unet, vae) -> None:
    """Raises ValueError unless the UNet reads and writes the latents of the autoencoder (both are configs)."""
    if (unet.in_channels, unet.out_channels) != (vae.latent_channels, vae.latent_channels):
        raise ValueError(
            f"the UNet has {unet.in_channels} channels in and {unet.out_channels} out, "
            f"the latents have {vae.latent_channels}"
        )


def check_prompt_width(unet, text_encoder) -> None:
    """Raises ValueError unless the UNet attends to the hidden states of the text encoder (both are configs)."""
    if unet.cross_attention_dim != text_encoder.hidden_size:
        raise ValueError(
            f"the UNet attends to width {unet.cross_attention_dim}, the text encoder has {text_encoder.hidden_size}"
        )


class LatentDiffusion(nnx.Module):
    """The networks of `component_classes`, or a selection of them (the others are None)."""

    component_classes: ClassVar[Mapping[str, type[nnx.Module]]]  # built in this order

    def __init__(self, config: LatentDiffusionConfig, *, components: tuple[str, ...] | None = None, rngs: nnx.Rngs):
        """`components` None builds all of them. Raises ValueError for an unknown name."""
        known = self.component_classes
        components = tuple(known) if components is None else components
        if unknown := set(components) - known.keys():
            raise ValueError(f"{sorted(unknown)} are not components of {type(self).__name__} ({', '.join(known)})")
        self.config = config
        for name, kind in known.items():
            setattr(self, name, kind(getattr(config, name), rngs=rngs) if name in components else None)

    def encode_prompt(self, ids: Int[Array, "b t"]) -> Float[Array, "b l d"]:
        """Prompt embeddings of token ids (padded to the encoder's length). Raises ValueError without a text encoder."""
        return self._component("text_encoder")(ids)

    def predict(
        self, x: Float[Array, "b *s c"], timesteps: Float[Array, " b"], prompt_embeds: Float[Array, "b l d"]
    ) -> Float[Array, "b *s c"]:
        """One evaluation of the UNet, in the dtype of `x`. Raises ValueError without a UNet."""
        return self._component("unet")(x, timesteps, prompt_embeds)

    def denoise(
        self,
        state: SamplerState,
        prompt_embeds: Float[Array | np.ndarray, "b l d"],
        negative_prompt_embeds: Float[Array | np.ndarray, "_ l d"] | None,
        table: SamplerTable,
        guidance_scale: Float[Array | np.ndarray, " b"],
        first: Int[Array, ""] | int = 0,
        last: Int[Array, ""] | int | None = None,
    ) -> SamplerState:
        """Evaluations `first` to `last` of the table (all by default), on latents scaled as the UNet takes them.

        The UNet computes in the dtype of `prompt_embeds`. `negative_prompt_embeds` has B rows, or 1 shared by all;
        None turns guidance off and halves the work. Raises ValueError without a UNet.
        """
        self._component("unet")

        def model(x, timesteps, context):
            return self.predict(x.astype(context.dtype), timesteps, context)

        return sample(
            model, table, state, prompt_embeds, negative_prompt_embeds, guidance_scale, first=first, last=last
        )

    def decode(self, latents: Float[Array, "b *s c"], dtype: DTypeLike = jnp.float32) -> Float[Array, "b ..."]:
        """Media, float32, of denoised latents; the networks compute in `dtype`. Implemented by each decoder."""
        raise NotImplementedError

    def encode(
        self,
        media: Float[Array, "b ..."],
        noise: Float[Array, "b *s c"] | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> Float[Array, "b *s c"]:
        """Latents, float32, of media; the networks compute in `dtype`. Implemented by each decoder.

        Drawn with standard normal `noise` from the autoencoder's distribution; None takes its mean.
        """
        raise NotImplementedError

    def generate(
        self,
        prompt_embeds: Float[Array | np.ndarray, "b l d"],
        negative_prompt_embeds: Float[Array | np.ndarray, "_ l d"] | None,
        noise: Float[Array | np.ndarray, "b *s c"],
        table: SamplerTable,
        guidance_scale: Float[Array | np.ndarray, " b"],
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b ..."]:
        """Media as `decode` returns them, from standard normal noise of any latent size. See `denoise`.

        `keys`: one per row, if the sampler is stochastic.
        """
        state = self.denoise(
            init_state(table, noise, keys), prompt_embeds, negative_prompt_embeds, table, guidance_scale
        )
        return self.decode(state.sample, prompt_embeds.dtype)

    def _component(self, name: str) -> nnx.Module:
        component = getattr(self, name)
        if component is None:
            raise ValueError(f"this {type(self).__name__} was built without its {name}")
        return component
