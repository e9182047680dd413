"""AudioLDM: an embedding of a text in, a waveform out (Liu et al. 2023). Matches diffusers' AudioLDMPipeline.

The prompt embedding is one token that conditions the UNet as a class embedding. Latents are those of a log-mel
spectrogram: rows are time, columns are bands. Legend: B sounds, h w latent rows and columns, c channels.
"""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.diffusion.clap_text import ClapTextConfig, ClapTextModelWithProjection
from nextgpt_jax.models.diffusion.latent_diffusion import LatentDiffusion, LatentDiffusionConfig, check_latent_channels
from nextgpt_jax.models.diffusion.schedulers import SchedulerConfig
from nextgpt_jax.models.diffusion.unet_2d import UNet2DConditionModel, UNet2DConfig
from nextgpt_jax.models.diffusion.vae import AutoencoderKL, AutoencoderKLConfig
from nextgpt_jax.models.diffusion.vocoder import HifiGan, VocoderConfig

_CAPTION_TOKENS = 77  # enough for a caption; the text encoder allows several hundred


@dataclasses.dataclass(frozen=True)
class AudioLDMConfig(LatentDiffusionConfig):
    """The configs of the components, which have to fit each other."""

    medium: ClassVar[str] = "audio"
    component_classes: ClassVar = {
        "text_encoder": ClapTextConfig,
        "unet": UNet2DConfig,
        "vae": AutoencoderKLConfig,
        "vocoder": VocoderConfig,
    }

    text_encoder: ClapTextConfig
    unet: UNet2DConfig
    vae: AutoencoderKLConfig
    vocoder: VocoderConfig
    scheduler: SchedulerConfig

    def __post_init__(self):
        check_latent_channels(self.unet, self.vae)
        classes = self.unet.projection_class_embeddings_input_dim if self.unet.class_embed_type else None
        if classes != self.text_encoder.projection_dim:
            raise ValueError(
                f"the UNet has class embeddings of width {classes}, the text encoder {self.text_encoder.projection_dim}"
            )
        if self.unet.context_width is not None:
            raise ValueError(f"the UNet attends to a text of width {self.unet.context_width}, but AudioLDM has none")
        if (self.vae.in_channels, self.vae.out_channels) != (1, 1):
            raise ValueError(f"the autoencoder has {self.vae.out_channels} channels, a spectrogram has 1")
        if self.vocoder.model_in_dim % self.vae.downscale:
            raise ValueError(
                f"{self.vocoder.model_in_dim} mel bands do not divide by the autoencoder's factor {self.vae.downscale}"
            )

    @classmethod
    def large(cls) -> "AudioLDMConfig":
        """AudioLDM-L-Full: 64 mel bands, 16 kHz, DDIM.

        The autoencoder's scaling factor differs between releases; `from_pretrained` reads it from the files.
        """
        vae = AutoencoderKLConfig(
            in_channels=1,
            out_channels=1,
            latent_channels=8,
            block_out_channels=(128, 256, 512),
            layers_per_block=2,
            scaling_factor=0.9227914214134216,
        )
        scheduler = SchedulerConfig(
            name="ddim",
            beta_start=0.0015,
            beta_end=0.0195,
            beta_schedule="scaled_linear",
            steps_offset=1,
            set_alpha_to_one=False,
        )
        return cls(ClapTextConfig(), UNet2DConfig.audioldm_l(), vae, VocoderConfig.audioldm(), scheduler)

    @property
    def prompt_shape(self) -> tuple[int, int]:
        """One token, as wide as the text encoder's embedding."""
        return 1, self.text_encoder.projection_dim

    @property
    def caption_length(self) -> int:
        """The number of ids to which captions are padded or cut."""
        return min(_CAPTION_TOKENS, self.text_encoder.max_tokens)

    @property
    def sampling_rate(self) -> int:
        """Samples per second."""
        return self.vocoder.sampling_rate

    def latent_shape(self, seconds: float) -> tuple[int, int, int]:
        """Shape [h, w, c] of the latents of a sound of that length, rounded up to whole latent rows.

        Raises UserError unless `seconds` is finite and at least one row long.
        """
        factor, frame = self.vae.downscale, self.vocoder.hop / self.sampling_rate
        if not (math.isfinite(seconds) and seconds >= factor * frame):
            raise UserError(f"a sound has to be at least {factor * frame:g} seconds long, got {seconds:g}")
        rows = -(-int(seconds / frame) // factor)
        return rows, self.vocoder.model_in_dim // factor, self.vae.latent_channels

    def num_frames(self, seconds: float) -> int:
        """The number of frames in the spectrogram of a sound of that length. Raises UserError as `latent_shape`."""
        return self.latent_shape(seconds)[0] * self.vae.downscale

    def num_samples(self, seconds: float) -> int:
        """The number of samples in `seconds`. Decoded waveforms are longer and should be cut to it.

        Raises UserError as `latent_shape`.
        """
        decoded = self.vocoder.num_samples(self.num_frames(seconds))
        return min(int(seconds * self.sampling_rate), decoded)


class AudioLDM(LatentDiffusion):
    """Text encoder, UNet, autoencoder and vocoder."""

    component_classes: ClassVar = {
        "text_encoder": ClapTextModelWithProjection,
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "vocoder": HifiGan,
    }

    def encode_prompt(self, ids: Int[Array, "b t"]) -> Float[Array, "b 1 d"]:
        """Prompt embeddings of token ids, of length 1. Raises ValueError without a text encoder or for too many ids."""
        embeds = self._component("text_encoder")(ids)
        length = jnp.linalg.norm(embeds.astype(jnp.float32), axis=-1, keepdims=True)
        return (embeds / jnp.maximum(length, 1e-12)).astype(embeds.dtype)[:, None]

    def predict(
        self, x: Float[Array, "b h w c"], timesteps: Float[Array, " b"], prompt_embeds: Float[Array, "b 1 d"]
    ) -> Float[Array, "b h w c"]:
        """One evaluation of the UNet, in the dtype of `x`; embeddings need not be normalized.

        Raises ValueError without a UNet.
        """
        return self._component("unet")(x, timesteps, class_labels=prompt_embeds[:, 0])

    def encode(
        self,
        media: Float[Array, "b frames bands"],
        noise: Float[Array, "b h w c"] | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> Float[Array, "b h w c"]:
        """Latents of log-mel spectrograms of `config.num_frames` frames (see `LatentDiffusion.encode`).

        They are those that the vocoder reads: `config.vocoder.spectrogram` has the settings. Raises ValueError without
        a VAE.
        """
        return self._component("vae").encode_latents(media[..., None], noise, dtype)

    def decode(self, latents: Float[Array, "b h w c"], dtype: DTypeLike = jnp.float32) -> Float[Array, "b samples"]:
        """Waveforms in -1 .. 1, float32, of denoised latents; the networks compute in `dtype`.

        They are as long as the latents, rounded up by the vocoder; cut them to `config.num_samples`.
        Raises ValueError without a VAE or vocoder.
        """
        vae, vocoder = self._component("vae"), self._component("vocoder")
        mel = vae.decode((latents / self.config.vae.scaling_factor).astype(dtype))[..., 0]  # [B, frames, bands]
        return vocoder(mel).astype(jnp.float32)
