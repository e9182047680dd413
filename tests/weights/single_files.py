"""Decoders in one file at the smallest sizes, random, with the keys of the original code."""

import functools
import json
import math

import numpy as np
from flax import nnx

from nextgpt_jax.models import registry
from nextgpt_jax.models.diffusion.audioldm import AudioLDMConfig
from nextgpt_jax.models.diffusion.clap_text import ClapTextConfig
from nextgpt_jax.models.diffusion.clip_text import CLIPTextConfig
from nextgpt_jax.models.diffusion.latent_diffusion import LatentDiffusionConfig
from nextgpt_jax.models.diffusion.schedulers import SchedulerConfig
from nextgpt_jax.models.diffusion.stable_diffusion import StableDiffusionConfig
from nextgpt_jax.models.diffusion.unet_2d import UNet2DConfig
from nextgpt_jax.models.diffusion.vae import AutoencoderKLConfig
from nextgpt_jax.models.diffusion.vocoder import VocoderConfig
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights.tables.single_file_stable_diffusion import UNET
from tests import FIXTURES

_CLIP = CLIPTextConfig(624, 64, 32, 2, 1, max_position_embeddings=12)
_OPEN_CLIP = CLIPTextConfig(624, 64, 8, 23, 1, max_position_embeddings=12, hidden_act="gelu")
_BLOCKS = dict(
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")
)
_VAE = AutoencoderKLConfig(block_out_channels=(32, 64), layers_per_block=1)
_AUDIO = dict(
    in_channels=8, out_channels=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=(32, 64),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    class_embed_type="simple_projection", projection_class_embeddings_input_dim=12, class_embeddings_concat=True,
)  # fmt: skip
CONFIGS: dict[str, LatentDiffusionConfig] = {
    "Stable Diffusion 1": StableDiffusionConfig(
        _CLIP,
        UNet2DConfig(block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=64, **_BLOCKS),
        _VAE,
        SchedulerConfig.stable_diffusion("pndm"),
    ),
    "Stable Diffusion 2": StableDiffusionConfig(
        _OPEN_CLIP,
        UNet2DConfig(
            block_out_channels=(64, 128), layers_per_block=1, cross_attention_dim=64, attention_head_dim=(1, 2),
            use_linear_projection=True, **_BLOCKS,
        ),
        _VAE,
        SchedulerConfig.stable_diffusion("ddim", prediction_type="v_prediction"),
    ),
    "AudioLDM": AudioLDMConfig(
        ClapTextConfig(624, 64, 32, 1, 1, max_position_embeddings=14, projection_dim=12),
        UNet2DConfig(**_AUDIO),
        AutoencoderKLConfig(1, 1, 8, (32, 64), scaling_factor=0.75),
        VocoderConfig(8, 16000, 32, (5, 4, 2, 2, 2), (16, 16, 8, 4, 4)),
        AudioLDMConfig.large().scheduler,
    ),
}  # fmt: skip


@functools.cache
def abstract_part(config: LatentDiffusionConfig, name: str) -> nnx.State:
    """The shapes of a part's parameters."""
    build = lambda: getattr(registry.build(config, components=(name,), rngs=make_rngs(0)), name)  # noqa: E731
    return nnx.state(nnx.eval_shape(build))


@functools.cache
def tensors(kind: str, ema: bool = False) -> dict[str, np.ndarray]:
    """A random single file, with what else the published ones have: the noise schedule, CLAP's audio tower, and with
    `ema` the moving average of the UNet."""
    rng, name = (
        np.random.default_rng(3),
        {"Stable Diffusion 1": "sd1", "Stable Diffusion 2": "sd2"}.get(kind, "audioldm"),
    )
    content = json.loads((FIXTURES / "tiny" / f"single_file_{name}.json").read_text())["state_dict"]
    wanted = {key: tuple(shape) for key, shape in content.items()}
    if ema:
        averaged = [key for key in wanted if key.startswith(UNET)]
        wanted |= {f"model_ema.{''.join(key.split('.')[1:])}": wanted[key] for key in averaged}
        wanted |= {"model_ema.decay": ()}
    scale = {key: 1 / math.sqrt(math.prod(shape[1:]) or 1) for key, shape in wanted.items()}
    found = {key: np.asarray(rng.normal(0, scale[key], shape), np.float32) for key, shape in wanted.items()}
    return found | ({"scale_factor": np.asarray(0.75, np.float32)} if kind == "AudioLDM" else {})
