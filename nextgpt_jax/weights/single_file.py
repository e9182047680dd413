"""Decoders that were published as one file: which kind it is, its parts with their tables, and its config files.

What diffusers reads with `StableDiffusionPipeline.from_single_file`, and AudioLDM's .ckpt. Files of other models are
refused by name. The tables are in tables/single_file_*.py.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.diffusion.clip_text import CLIPTextConfig
from nextgpt_jax.models.diffusion.unet_2d import UNet2DConfig
from nextgpt_jax.models.diffusion.vae import AutoencoderKLConfig
from nextgpt_jax.weights import single_file_configs as configs
from nextgpt_jax.weights.matching import ConversionError
from nextgpt_jax.weights.rules import Table
from nextgpt_jax.weights.single_file_configs import Sizes
from nextgpt_jax.weights.tables import single_file_audioldm as audioldm
from nextgpt_jax.weights.tables import single_file_stable_diffusion as stable_diffusion
from nextgpt_jax.weights.tables.single_file_stable_diffusion import OPEN_CLIP, UNET, VAE
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, open_checkpoint

READ = "Stable Diffusion 1 and 2, and AudioLDM"
PREDICTION_TYPES = ("epsilon", "v_prediction")
_SD_SCALING = 0.18215  # of the autoencoder's latents
_EMA = "model_ema."
_TRAINING = re.compile(  # the noise schedule, statistics and losses of training: no weights
    r"(model_ema|loss|denoiser)\..*|logvar|scale_factor|betas|global_step|lambda_\w+|lvlb_weights"
    r"|(alphas|log_one_minus_alphas|one_minus_alphas|sqrt|posterior|sigmas)\w*"
)
_OTHERS = (  # a key that only such files have, and what they are
    (r"(.*\.)?lora_(up|down|A|B|a|b)\..*|lora_(unet|te\d?)_.*|.*\.(hada|lokr)_w1.*", "a LoRA file"),
    (r"control_model\..*|controlnet_.*|input_hint_block\..*", "a ControlNet"),
    (r"conditioner\.embedders\..*", "Stable Diffusion XL"),
    (r"(model\.diffusion_model\.)?joint_blocks\..*|text_encoders\..*", "Stable Diffusion 3"),
    (r"(model\.diffusion_model\.)?double_blocks\..*", "FLUX or a model like it"),
    (r"cond_stage_models\..*", "AudioLDM 2"),
    (r"model\.diffusion_model\.label_emb\..*", "a Stable Diffusion with class labels (unCLIP or an upscaler)"),
    (r"string_to_param|emb_params|clip_[lg]", "a textual inversion"),
    (r"(down_blocks|up_blocks|encoder\.down_blocks|decoder\.up_blocks)\..*", "one part of a diffusers folder"),
    (r"(text_model\.)?(encoder\.layers?|embeddings)\..*", "a text encoder"),
    (r"(encoder\.down|decoder\.up)\..*", "an autoencoder"),
)
_CHANNELS = {9: "an inpainting model", 8: "an InstructPix2Pix", 7: "an upscaler", 5: "a depth-to-image model"}


@dataclasses.dataclass(frozen=True)
class SingleFile:
    """A decoder in one file. Nothing is read yet, apart from AudioLDM's scaling factor.

    Attributes:
      kind: its name, for messages.
      checkpoint: all tensors.
      parts: the conversion table of each part, and the tensors that it has to account for, by folder.
      config_files: contents of the config files of diffusers' layout, by path.
      ignored: the keys without weights that belong to no part.
      taken: what was taken of the UNet and assumed of its predictions, for messages.
    """

    kind: str
    checkpoint: Checkpoint
    parts: Mapping[str, tuple[Table, Checkpoint]]
    config_files: Mapping[str, Mapping[str, Any]]
    ignored: tuple[str, ...]
    taken: str

    @property
    def pad_token_id(self) -> int | None:
        """The id that the tokenizer has to pad with; None: that of its end token."""
        return {"Stable Diffusion 2": 0, "AudioLDM": 1}.get(self.kind)


def open_single_file(path: str | pathlib.Path, *, prediction_type: str = "", ema: bool = False) -> SingleFile:
    """Opens a file and finds out what it is.

    Args:
      path: a .safetensors or .ckpt file.
      prediction_type: one of PREDICTION_TYPES; "": as published. Stable Diffusion 2 was published with either.
      ema: take the moving average of the UNet's weights.

    Raises:
      UserError: the file cannot be read, is of another model, lacks a part, or `prediction_type` is needed.
    """
    if prediction_type not in ("", *PREDICTION_TYPES):
        raise UserError(f"--prediction_type: {prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}")
    checkpoint = open_checkpoint(path)
    kind = _kind(checkpoint)
    has_ema = any(key.startswith(_EMA + "diffusion_model") for key in checkpoint.tensors)
    if ema:
        checkpoint = _with_ema(checkpoint)
    describe = _audioldm if kind == "AudioLDM" else _stable_diffusion
    try:
        files, found = describe(kind, checkpoint, prediction_type)
    except UserError as error:  # of a config that the sizes do not fit
        raise ConversionError(f"{checkpoint.source}: {error}") from None
    parts, rest = {}, dict(checkpoint.tensors)
    for name, (prefix, table) in found.items():  # a longer prefix comes first
        own = {key: rest.pop(key) for key in list(rest) if key.startswith(prefix)}
        parts[name] = table, checkpoint.with_tensors(own)
    if unknown := [key for key in rest if not _TRAINING.fullmatch(key)]:
        raise ConversionError.of(checkpoint.source, [f"unexpected {key} {list(rest[key].shape)}" for key in unknown])
    taken = f"prediction_type={files['scheduler/scheduler_config.json']['prediction_type']}"
    if has_ema:
        taken += ", the moving average of the UNet" if ema else ", the UNet itself (not its moving average: --ema)"
    return SingleFile(kind, checkpoint, parts, files, tuple(rest), taken)


def _kind(checkpoint: Checkpoint) -> str:
    """Raises UserError for a model that is not read."""
    first = checkpoint.tensors.get(f"{UNET}input_blocks.0.0.weight")
    for pattern, what in _OTHERS:
        found = re.compile(pattern)
        if any(found.fullmatch(key) for key in checkpoint.tensors):
            raise UserError(f"{checkpoint.source} is {what}; of single files, {READ} are read")
    if first is None or len(first.shape) != 4:
        raise UserError(f"{checkpoint.source} is no single-file decoder; of those, {READ} are read")
    if f"{UNET}film_emb.weight" in checkpoint.tensors:
        kind = "AudioLDM"
    elif what := _CHANNELS.get(first.shape[1]):
        raise UserError(
            f"{checkpoint.source} is {what} ({first.shape[1]} channels in); of single files, {READ} are read"
        )
    else:
        try:
            kind = f"Stable Diffusion {2 if configs.projects_linearly(Sizes(checkpoint)) else 1}"
        except ConversionError as error:
            raise ConversionError(f"{checkpoint.source}: {error}") from None
    wanted = {"UNet": UNET, "autoencoder": VAE, "text encoder": "cond_stage_model."}
    wanted |= {"vocoder": audioldm.VOCODER} if kind == "AudioLDM" else {}
    for part, prefix in wanted.items():
        if not any(key.startswith(prefix) for key in checkpoint.tensors):
            raise UserError(f"{checkpoint.source} is {kind} without its {part} (no keys {prefix}...): take a whole one")
    return kind


def _with_ema(checkpoint: Checkpoint) -> Checkpoint:
    """The moving average has the UNet's keys, without their dots."""
    tensors = dict(checkpoint.tensors)
    for key in [key for key in tensors if key.startswith(UNET)]:
        averaged = _EMA + "".join(key.split(".")[1:])
        if averaged not in checkpoint.tensors:
            raise UserError(f"--ema: {checkpoint.source} has no moving average ({averaged} is missing)")
        tensors[key] = checkpoint.tensors[averaged]
    return checkpoint.with_tensors(tensors)


_Found = tuple[dict[str, Any], dict[str, tuple[str, Table]]]  # config files; prefix and table of each part


def _stable_diffusion(kind: str, checkpoint: Checkpoint, prediction_type: str) -> _Found:
    sizes, second = Sizes(checkpoint), kind == "Stable Diffusion 2"
    if configs.context_width(sizes) == (768 if second else 1024):
        raise UserError("the projections are those of another Stable Diffusion than the width of the text's states")
    if second and not prediction_type:
        raise UserError(
            f"this is {kind}, and a file does not say what it predicts: give --prediction_type=v_prediction (models of "
            "768 pixels) or --prediction_type=epsilon (base models of 512 pixels)"
        )
    unet, vae, text = configs.unet(sizes), configs.vae(sizes, _SD_SCALING), configs.clip_text(sizes, second)
    scheduler = configs.stable_diffusion_scheduler(prediction_type or "epsilon", second)
    kinds = {
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    open_clip = sizes.has(f"{OPEN_CLIP}token_embedding.weight")
    text_table = (
        stable_diffusion.open_clip_table(CLIPTextConfig.from_dict(text)) if open_clip else stable_diffusion.clip_table()
    )
    files = {
        "model_index.json": configs.model_index("StableDiffusionPipeline", scheduler["_class_name"], kinds),
        "scheduler/scheduler_config.json": scheduler,
        "text_encoder/config.json": text,
        "unet/config.json": unet,
        "vae/config.json": vae,
    }
    return files, {
        "text_encoder": ("cond_stage_model.", text_table),
        "unet": (UNET, stable_diffusion.unet_table(UNet2DConfig.from_dict(unet))),
        "vae": (VAE, stable_diffusion.vae_table(AutoencoderKLConfig.from_dict(vae))),
    }


def _audioldm(kind: str, checkpoint: Checkpoint, prediction_type: str) -> _Found:
    sizes = Sizes(checkpoint)
    if sizes.shape("scale_factor") not in ((), (1,)):
        raise ConversionError("scale_factor is no single number")
    scaling = float(checkpoint["scale_factor"].reshape(()))
    if not (math.isfinite(scaling) and scaling > 0):
        raise ConversionError(f"scale_factor is {scaling}")
    unet, vae = configs.unet(sizes), configs.vae(sizes, scaling)
    kinds = {
        "text_encoder": ("transformers", "ClapTextModelWithProjection"),
        "tokenizer": ("transformers", "RobertaTokenizer"),
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "vocoder": ("transformers", "SpeechT5HifiGan"),
    }
    files = {
        "model_index.json": configs.model_index("AudioLDMPipeline", "DDIMScheduler", kinds),
        "scheduler/scheduler_config.json": configs.audioldm_scheduler(prediction_type or "epsilon"),
        "text_encoder/config.json": configs.clap_text(sizes),
        "unet/config.json": unet,
        "vae/config.json": vae,
        "vocoder/config.json": configs.vocoder(sizes),
    }
    return files, {
        "text_encoder": ("cond_stage_model.", audioldm.text_encoder_table()),
        "unet": (UNET, stable_diffusion.unet_table(UNet2DConfig.from_dict(unet))),
        "vocoder": (audioldm.VOCODER, audioldm.vocoder_table()),
        "vae": (VAE, stable_diffusion.vae_table(AutoencoderKLConfig.from_dict(vae))),
    }
