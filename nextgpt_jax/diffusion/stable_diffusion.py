"""Stable Diffusion 1 and 2: prompt embeddings in, images out. Matches diffusers' StableDiffusionPipeline.

Legend: B images, L prompt tokens, D prompt width, h w latent size, H W image size.
"""

import dataclasses
import pathlib

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from nextgpt_jax import hub
from nextgpt_jax.diffusion.clip_text import CLIPTextConfig, CLIPTextModel
from nextgpt_jax.diffusion.sample import sample
from nextgpt_jax.diffusion.schedulers import SamplerState, SamplingPlan, SchedulerConfig, init_state
from nextgpt_jax.diffusion.unet_2d import UNet2DConditionModel, UNet2DConfig
from nextgpt_jax.diffusion.vae import AutoencoderKL, AutoencoderKLConfig

PARTS = ("text_encoder", "unet", "vae")


@dataclasses.dataclass(frozen=True)
class StableDiffusionConfig:
    """The configs of the parts, which have to fit each other."""

    text_encoder: CLIPTextConfig
    unet: UNet2DConfig
    vae: AutoencoderKLConfig
    scheduler: SchedulerConfig

    def __post_init__(self):
        width, channels = self.text_encoder.hidden_size, self.vae.latent_channels
        if self.unet.cross_attention_dim != width:
            raise ValueError(f"the UNet attends to width {self.unet.cross_attention_dim}, the text encoder has {width}")
        if (self.unet.in_channels, self.unet.out_channels) != (channels, channels):
            raise ValueError(
                f"the UNet has {self.unet.in_channels} channels in and {self.unet.out_channels} out, "
                f"the latents have {channels}"
            )

    @classmethod
    def from_hub(cls, folder: str | pathlib.Path) -> "StableDiffusionConfig":
        """Reads a model folder: text_encoder, unet, vae (config.json each) and scheduler/scheduler_config.json.

        Raises:
          UserError: a file is missing, or a part is of a kind that is not implemented, or the parts don't fit.
        """
        folder = pathlib.Path(folder)
        parts = {
            "text_encoder": CLIPTextConfig.from_hub(hub.read_json(folder / "text_encoder" / "config.json")),
            "unet": UNet2DConfig.from_hub(hub.read_json(folder / "unet" / "config.json")),
            "vae": AutoencoderKLConfig.from_hub(hub.read_json(folder / "vae" / "config.json")),
            "scheduler": SchedulerConfig.from_hub(hub.read_json(folder / "scheduler" / "scheduler_config.json")),
        }
        try:
            return cls(**parts)
        except ValueError as error:
            raise hub.UserError(f"{folder}: {error}") from None

    @classmethod
    def sd15(cls) -> "StableDiffusionConfig":
        """Stable Diffusion 1.5: CLIP-L, 512 pixels, PNDM."""
        scheduler = SchedulerConfig(
            name="pndm",
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
            set_alpha_to_one=False,
        )
        return cls(CLIPTextConfig.clip_l(), UNet2DConfig.sd15(), AutoencoderKLConfig.sd(), scheduler)

    @classmethod
    def sd2(cls) -> "StableDiffusionConfig":
        """Stable Diffusion 2: OpenCLIP-H, 768 pixels, DDIM on velocities."""
        scheduler = SchedulerConfig(
            name="ddim",
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            steps_offset=1,
            set_alpha_to_one=False,
        )
        return cls(CLIPTextConfig.openclip_h(), UNet2DConfig.sd2(), AutoencoderKLConfig.sd(), scheduler)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape [h, w, c] of the latents of an image. Raises UserError unless both sides are multiples of 8."""
        factor = self.vae.downscale
        if height < factor or width < factor or height % factor or width % factor:
            raise hub.UserError(f"height and width must be multiples of {factor}, got {height} x {width}")
        return height // factor, width // factor, self.vae.latent_channels


class StableDiffusion(nnx.Module):
    """The three networks, or those named in `parts` (the others are None)."""

    def __init__(self, config: StableDiffusionConfig, *, parts: tuple[str, ...] = PARTS, rngs: nnx.Rngs):
        if unknown := set(parts) - set(PARTS):
            raise ValueError(f"{sorted(unknown)} are not parts of Stable Diffusion ({', '.join(PARTS)})")
        self.config = config
        self.text_encoder = CLIPTextModel(config.text_encoder, rngs=rngs) if "text_encoder" in parts else None
        self.unet = UNet2DConditionModel(config.unet, rngs=rngs) if "unet" in parts else None
        self.vae = AutoencoderKL(config.vae, rngs=rngs) if "vae" in parts else None

    def encode_prompt(self, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Prompt embeddings of token ids (padded to the encoder's length). Raises ValueError without a text encoder."""
        return self._part("text_encoder")(ids)

    def denoise(
        self,
        state: SamplerState,
        prompt_embeds: Float[Array, "b l d"],
        negative_embeds: Float[Array, "_ l d"] | None,
        plan: SamplingPlan,
        guidance: Float[Array, " b"],
        first: Int[Array, ""] | int = 0,
        last: Int[Array, ""] | int | None = None,
    ) -> SamplerState:
        """Evaluations `first` to `last` of the plan (all by default), on latents as the UNet sees them.

        The UNet computes in the dtype of `prompt_embeds`. `negative_embeds` has B rows or one for all; None turns
        guidance off and halves the work. Raises ValueError without a UNet.
        """
        unet = self._part("unet")

        def model(x, timesteps, context):
            return unet(x.astype(context.dtype), timesteps, context)

        return sample(model, plan, state, prompt_embeds, negative_embeds, guidance, first=first, last=last)

    def decode(self, latents: Float[Array, "b h w c"], dtype: jnp.dtype = jnp.float32) -> Float[Array, "b H W 3"]:
        """Images in 0 .. 1, float32, of denoised latents. Raises ValueError without a VAE."""
        pixels = self._part("vae").decode((latents / self.config.vae.scaling_factor).astype(dtype))
        return jnp.clip(pixels.astype(jnp.float32) / 2 + 0.5, 0.0, 1.0)

    def images(
        self,
        prompt_embeds: Float[Array, "b l d"],
        negative_embeds: Float[Array, "_ l d"] | None,
        noise: Float[Array, "b h w c"],
        plan: SamplingPlan,
        guidance: Float[Array, " b"],
    ) -> Float[Array, "b H W 3"]:
        """Images in 0 .. 1, float32, from standard normal noise of any latent size. Other arguments as of `denoise`."""
        state = self.denoise(init_state(plan, noise), prompt_embeds, negative_embeds, plan, guidance)
        return self.decode(state.sample, prompt_embeds.dtype)

    def _part(self, name: str) -> nnx.Module:
        part = getattr(self, name)
        if part is None:
            raise ValueError(f"this StableDiffusion was built without its {name}")
        return part
