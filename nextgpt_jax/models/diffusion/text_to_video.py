"""Text to video with a latent diffusion model (ModelScope's, Zeroscope): prompt embeddings in, frames out.

Matches diffusers' TextToVideoSDPipeline. Legend: B videos, F frames, h w latent size, H W frame size.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.diffusion.clip_text import CLIPTextConfig, CLIPTextModel
from nextgpt_jax.models.diffusion.latent_diffusion import (
    LatentDiffusion,
    LatentDiffusionConfig,
    check_latent_channels,
    check_prompt_width,
)
from nextgpt_jax.models.diffusion.schedulers import SchedulerConfig
from nextgpt_jax.models.diffusion.unet_3d import UNet3DConditionModel, UNet3DConfig
from nextgpt_jax.models.diffusion.vae import AutoencoderKL, AutoencoderKLConfig

_FRAMES_PER_BATCH = 4  # at 576 x 320 pixels the autoencoder needs 0.5 GiB per frame, in float32


@dataclasses.dataclass(frozen=True)
class TextToVideoConfig(LatentDiffusionConfig):
    """The configs of the components, which have to fit each other."""

    medium: ClassVar[str] = "video"
    component_classes: ClassVar = {"text_encoder": CLIPTextConfig, "unet": UNet3DConfig, "vae": AutoencoderKLConfig}

    text_encoder: CLIPTextConfig
    unet: UNet3DConfig
    vae: AutoencoderKLConfig
    scheduler: SchedulerConfig

    def __post_init__(self):
        check_prompt_width(self.unet, self.text_encoder)
        check_latent_channels(self.unet, self.vae)

    @classmethod
    def zeroscope(cls) -> "TextToVideoConfig":
        """Zeroscope v2 576w: OpenCLIP-H's penultimate layer, 576 x 320 pixels, DDIM."""
        scheduler = SchedulerConfig.stable_diffusion("ddim")
        return cls(CLIPTextConfig.openclip_h(), UNet3DConfig.zeroscope(), AutoencoderKLConfig.sd(), scheduler)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Shape [F, h, w, c] of the latents of a video of `frames` frames of height x width pixels.

        Raises UserError without frames, or unless both sides are multiples of the autoencoder's factor (8).
        """
        if frames < 1:
            raise UserError(f"a video has at least 1 frame, got {frames}")
        return frames, *self.vae.latent_shape(height, width)


class TextToVideo(LatentDiffusion):
    """Text encoder, UNet over space and time, and an autoencoder of single frames."""

    component_classes: ClassVar = {"text_encoder": CLIPTextModel, "unet": UNet3DConditionModel, "vae": AutoencoderKL}

    def encode(
        self,
        media: Float[Array, "b f H W 3"],
        noise: Float[Array, "b f h w c"] | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> Float[Array, "b f h w c"]:
        """Latents of frames in 0 .. 1, a few at a time (see `LatentDiffusion.encode`).

        Raises ValueError without a VAE.
        """
        vae = self._component("vae")
        inputs = media if noise is None else (media, noise)
        inputs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), inputs)  # [B*F, ...]

        def encode(frame):
            pixels, drawn = (frame, None) if noise is None else (frame[0], frame[1][None])
            return vae.encode_latents(2.0 * pixels[None] - 1.0, drawn, dtype)[0]

        size = min(_FRAMES_PER_BATCH, media.shape[0] * media.shape[1])
        latents = jax.lax.map(encode, inputs, batch_size=size)
        return latents.reshape(*media.shape[:2], *latents.shape[1:])

    def decode(self, latents: Float[Array, "b f h w c"], dtype: DTypeLike = jnp.float32) -> Float[Array, "b f H W 3"]:
        """Frames in 0 .. 1, float32, of denoised latents, a few at a time: peak memory does not grow with their number.

        Raises ValueError without a VAE.
        """
        vae = self._component("vae")
        frames = latents.reshape(-1, *latents.shape[2:])  # [B*F, h, w, c]
        pixels = jax.lax.map(
            lambda z: vae.decode_pixels(z[None], dtype)[0], frames, batch_size=min(_FRAMES_PER_BATCH, len(frames))
        )
        return pixels.reshape(*latents.shape[:2], *pixels.shape[1:])
