"""The configs of decoders in one file, which has none: sizes are those of its tensors, and what tensors do not show is
as in the published models.

Contents are those of the config files of diffusers' layout.
"""

import re
from collections.abc import Mapping
from typing import Any

from nextgpt_jax.weights.matching import ConversionError
from nextgpt_jax.weights.tables.single_file_audioldm import CLAP, VOCODER
from nextgpt_jax.weights.tables.single_file_stable_diffusion import CLIP, OPEN_CLIP, UNET, VAE
from nextgpt_jax.weights.torch_checkpoint import Checkpoint

_HEAD_WIDTH = 64  # of the text encoders, and of the UNet of Stable Diffusion 2
_HEADS = 8  # of every block in the UNets of Stable Diffusion 1 and, in diffusers, of AudioLDM
_OPEN_CLIP_LAYERS = 23  # the last of its 24 layers is not used; some files do not have it
_AUDIOLDM_VOCODER = {
    "model_type": "hifigan",
    "sampling_rate": 16000,
    "upsample_rates": [5, 4, 2, 2, 2],
    "upsample_kernel_sizes": [16, 16, 8, 4, 4],
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "leaky_relu_slope": 0.1,
    "normalize_before": False,
}
_SCHEDULER = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "set_alpha_to_one": False,
              "steps_offset": 1, "clip_sample": False, "trained_betas": None}  # fmt: skip


class Sizes:
    """Sizes of a checkpoint's tensors. All methods that take a key raise ConversionError if it is missing, or if there
    is no such axis."""

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint

    def __call__(self, key: str, axis: int = 0) -> int:
        """The length of a tensor's axis."""
        shape = self.shape(key)
        if axis >= len(shape) or not shape[axis]:
            raise ConversionError(f"{key} has shape {list(shape)}")
        return shape[axis]

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        if key not in self._checkpoint.tensors:
            raise ConversionError(f"{key} is missing")
        return self._checkpoint.tensors[key].shape

    def has(self, key: str) -> bool:
        """Whether there is such a tensor."""
        return key in self._checkpoint.tensors

    def count(self, pattern: str) -> int:
        """The number of values that the group of a regular expression, for the beginning of a key, has."""
        compiled = re.compile(pattern)
        return len({found[1] for key in self._checkpoint.tensors if (found := compiled.match(key))})


def projects_linearly(sizes: Sizes) -> bool:
    """Whether the UNet's transformers begin with a linear map, as in Stable Diffusion 2, not with a convolution."""
    return len(sizes.shape(f"{UNET}middle_block.1.proj_in.weight")) == 2


def context_width(sizes: Sizes) -> int:
    """The width of what the UNet attends to."""
    return sizes(f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1)


def unet(sizes: Sizes) -> dict[str, Any]:
    """unet/config.json."""

    def block(number: int) -> str:
        return f"{UNET}input_blocks.{number}."

    count = sizes.count(re.escape(UNET) + r"input_blocks\.(\d+)\.")
    ends = [n for n in range(count) if sizes.has(f"{block(n)}0.op.weight")]  # of all levels but the last
    layers = (ends[0] if ends else count - 1) - 1
    if layers < 1:
        raise ConversionError(f"{block(1)}0.op.weight is unexpected")
    firsts = [block(1), *(block(n + 1) for n in ends)]
    widths = [sizes(f"{first}0.in_layers.2.weight") for first in firsts]
    attends = [sizes.has(f"{first}1.norm.weight") for first in firsts]
    linear = projects_linearly(sizes)
    config = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": sizes(f"{block(0)}0.weight", 1),
        "out_channels": sizes(f"{UNET}out.2.weight"),
        "block_out_channels": widths,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "layers_per_block": layers,
        "attention_head_dim": [max(width // _HEAD_WIDTH, 1) for width in widths] if linear else _HEADS,
        "use_linear_projection": linear,
    }
    if not sizes.has(f"{UNET}film_emb.weight"):
        return config | {"cross_attention_dim": context_width(sizes)}
    time_width = sizes(f"{block(1)}0.emb_layers.1.weight", 1)
    return config | {
        "cross_attention_dim": widths,
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": sizes(f"{UNET}film_emb.weight", 1),
        "class_embeddings_concat": time_width == 2 * sizes(f"{UNET}film_emb.weight"),
    }


def vae(sizes: Sizes, scaling_factor: float) -> dict[str, Any]:
    """vae/config.json."""
    levels = max(sizes.count(re.escape(VAE) + r"encoder\.down\.(\d+)\."), 1)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": sizes(f"{VAE}encoder.conv_in.weight", 1),
        "out_channels": sizes(f"{VAE}decoder.conv_out.weight"),
        "latent_channels": sizes(f"{VAE}decoder.conv_in.weight", 1),
        "block_out_channels": [sizes(f"{VAE}encoder.down.{i}.block.0.conv1.weight") for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": sizes.count(re.escape(VAE) + r"encoder\.down\.0\.block\.(\d+)\."),
        "scaling_factor": scaling_factor,
    }


def clip_text(sizes: Sizes, second: bool) -> dict[str, Any]:
    """text_encoder/config.json of CLIP or, in Stable Diffusion 2 (`second`), of OpenCLIP."""
    if sizes.has(f"{OPEN_CLIP}token_embedding.weight"):
        embedding, positions = f"{OPEN_CLIP}token_embedding.weight", f"{OPEN_CLIP}positional_embedding"
        hidden = f"{OPEN_CLIP}transformer.resblocks.0.mlp.c_fc.weight"
        layers = min(sizes.count(re.escape(OPEN_CLIP) + r"transformer\.resblocks\.(\d+)\."), _OPEN_CLIP_LAYERS)
    else:
        prefix = f"{CLIP}text_model." if sizes.count(re.escape(CLIP) + r"(text_model)\.") else CLIP
        embedding = f"{prefix}embeddings.token_embedding.weight"
        positions = f"{prefix}embeddings.position_embedding.weight"
        hidden = f"{prefix}encoder.layers.0.mlp.fc1.weight"
        layers = sizes.count(re.escape(prefix) + r"encoder\.layers\.(\d+)\.")
    width = sizes(embedding, 1)
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": sizes(embedding),
        "max_position_embeddings": sizes(positions),
        "hidden_size": width,
        "intermediate_size": sizes(hidden),
        "num_hidden_layers": layers,
        "num_attention_heads": max(width // _HEAD_WIDTH, 1),
        "hidden_act": "gelu" if second else "quick_gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": width,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def clap_text(sizes: Sizes) -> dict[str, Any]:
    """text_encoder/config.json of CLAP."""
    branch = f"{CLAP}model.text_branch."
    width = sizes(f"{branch}embeddings.word_embeddings.weight", 1)
    return {
        "architectures": ["ClapTextModelWithProjection"],
        "model_type": "clap_text_model",
        "vocab_size": sizes(f"{branch}embeddings.word_embeddings.weight"),
        "max_position_embeddings": sizes(f"{branch}embeddings.position_embeddings.weight"),
        "type_vocab_size": sizes(f"{branch}embeddings.token_type_embeddings.weight"),
        "hidden_size": width,
        "intermediate_size": sizes(f"{branch}encoder.layer.0.intermediate.dense.weight"),
        "num_hidden_layers": sizes.count(re.escape(branch) + r"encoder\.layer\.(\d+)\."),
        "num_attention_heads": max(width // _HEAD_WIDTH, 1),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "projection_dim": sizes(f"{CLAP}model.text_projection.2.weight"),
        "pad_token_id": 1,
    }


def vocoder(sizes: Sizes) -> dict[str, Any]:
    """vocoder/config.json."""
    first = next((n for n in ("weight", "weight_v") if sizes.has(f"{VOCODER}conv_pre.{n}")), "weight")
    return {
        "architectures": ["SpeechT5HifiGan"],
        "model_in_dim": sizes(f"{VOCODER}conv_pre.{first}", 1),
        "upsample_initial_channel": sizes(f"{VOCODER}conv_pre.{first}"),
        **_AUDIOLDM_VOCODER,
    }


def stable_diffusion_scheduler(prediction_type: str, second: bool) -> dict[str, Any]:
    """scheduler/scheduler_config.json as published: PNDM, or DDIM for the second version if it predicts velocities."""
    kind = "DDIMScheduler" if second and prediction_type == "v_prediction" else "PNDMScheduler"
    changes = {"beta_start": 0.00085, "beta_end": 0.012, "skip_prk_steps": True, "prediction_type": prediction_type}
    return {"_class_name": kind, **_SCHEDULER, **changes}


def audioldm_scheduler(prediction_type: str) -> dict[str, Any]:
    """scheduler/scheduler_config.json: DDIM on AudioLDM's noise schedule."""
    changes = {"beta_start": 0.0015, "beta_end": 0.0195, "prediction_type": prediction_type}
    return {"_class_name": "DDIMScheduler", **_SCHEDULER, **changes}


def model_index(class_name: str, scheduler: str, parts: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """model_index.json of a pipeline without a safety checker. `parts`: library and class of each."""
    absent = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    return {
        "_class_name": class_name,
        "scheduler": ["diffusers", scheduler],
        **{name: list(kind) for name, kind in parts.items()},
        **(absent if class_name == "StableDiffusionPipeline" else {}),
    }
