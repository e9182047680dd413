"""Stable Diffusion 1 and 2: prompt embeddings in, images out. Matches diffusers' StableDiffusionPipeline.

Legend: B images, h w latent size, H W image size.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nextgpt_jax.models.diffusion.clip_text import CLIPTextConfig, CLIPTextModel
from nextgpt_jax.models.diffusion.latent_diffusion import (
    LatentDiffusion,
    LatentDiffusionConfig,
    check_latent_channels,
    check_prompt_width,
)
from nextgpt_jax.models.diffusion.schedulers import SchedulerConfig
from nextgpt_jax.models.diffusion.unet_2d import UNet2DConditionModel, UNet2DConfig
from nextgpt_jax.models.diffusion.vae import AutoencoderKL, AutoencoderKLConfig


@dataclasses.dataclass(frozen=True)
class StableDiffusionConfig(LatentDiffusionConfig):
    """The configs of the components, which have to fit each other."""

    component_classes: ClassVar = {"text_encoder": CLIPTextConfig, "unet": UNet2DConfig, "vae": AutoencoderKLConfig}

    text_encoder: CLIPTextConfig
    unet: UNet2DConfig
    vae: AutoencoderKLConfig
    scheduler: SchedulerConfig

    def __post_init__(self):
        check_prompt_width(self.unet, self.text_encoder)
        check_latent_channels(self.unet, self.vae)
        if self.unet.class_embed_type:
            raise ValueError("the UNet needs class labels, but Stable Diffusion has none")

    @classmethod
    def sd15(cls) -> "StableDiffusionConfig":
        """Stable Diffusion 1.5: CLIP-L, 512 pixels, PNDM."""
        scheduler = SchedulerConfig.stable_diffusion("pndm")
        return cls(CLIPTextConfig.clip_l(), UNet2DConfig.sd15(), AutoencoderKLConfig.sd(), scheduler)

    @classmethod
    def sd2(cls) -> "StableDiffusionConfig":
        """Stable Diffusion 2: OpenCLIP-H, 768 pixels, DDIM on velocities."""
        scheduler = SchedulerConfig.stable_diffusion("ddim", prediction_type="v_prediction")
        return cls(CLIPTextConfig.openclip_h(), UNet2DConfig.sd2(), AutoencoderKLConfig.sd(), scheduler)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape [h, w, c] of the latents of an image of height x width pixels.

        Raises UserError unless both sides are multiples of the autoencoder's factor (8).
        """
        return self.vae.latent_shape(height, width)


class StableDiffusion(LatentDiffusion):
    """Text encoder, UNet and autoencoder."""

    component_classes: ClassVar = {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}

    def encode(
        self,
        media: Float[Array, "b H W 3"],
        noise: Float[Array, "b h w c"] | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> Float[Array, "b h w c"]:
        """Latents of images in 0 .. 1 (see `LatentDiffusion.encode`). Raises ValueError without a VAE."""
        return self._component("vae").encode_latents(2.0 * media - 1.0, noise, dtype)

    def decode(self, latents: Float[Array, "b h w c"], dtype: DTypeLike = jnp.float32) -> Float[Array, "b H W 3"]:
        """Images in 0 .. 1, float32, of denoised latents. Raises ValueError without a VAE."""
        return self._component("vae").decode_pixels(latents, dtype)
