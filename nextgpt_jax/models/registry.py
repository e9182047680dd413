"""Model families by the kind that their config files name: the one place where a family is made known.

    language models, encoders    config.json's model_type
    decoders                     model_index.json's _class_name
    projections                  ModelConfig's input_projector and output_projector

docs/design.md says what the classes of a row provide, and how one is added.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models import hf_config
from nextgpt_jax.models.connectors import projectors
from nextgpt_jax.models.connectors.projectors import (
    LinearInputProjector,
    LinearProjector,
    LinearProjectorConfig,
    MLPInputProjector,
    OutputProjectorConfig,
    QFormerProjector,
    QFormerProjectorConfig,
    TransformerProjector,
    TransformerProjectorConfig,
)
from nextgpt_jax.models.diffusion import latent_diffusion
from nextgpt_jax.models.diffusion.audioldm import AudioLDM, AudioLDMConfig
from nextgpt_jax.models.diffusion.latent_diffusion import LatentDiffusionConfig
from nextgpt_jax.models.diffusion.stable_diffusion import StableDiffusion, StableDiffusionConfig
from nextgpt_jax.models.diffusion.text_to_video import TextToVideo, TextToVideoConfig
from nextgpt_jax.models.encoders import imagebind
from nextgpt_jax.models.encoders.imagebind import ImageBind, ImageBindConfig
from nextgpt_jax.models.llms import causal_lm
from nextgpt_jax.models.llms.llama import Llama, LlamaConfig
from nextgpt_jax.models.llms.qwen2 import Qwen2, Qwen2Config
from nextgpt_jax.sharding import Rows


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of model.

    Attributes:
      config: frozen dataclass of the module's sizes; a published model is read by `from_dict` (language models, from
        the content of config.json) or `from_pretrained` (encoders and decoders, from a folder).
      module: the nnx.Module, made of a config (an input projection: of two widths).
      tables: the module of nextgpt_jax/weights/tables that converts its weights. Only named, as weights/ imports this.
      published: configs of released models by name. They stand in for folders that are missing where only shapes count.
      sharding: the rows of its parameters (sharding.py), relative to the module.
      lora_targets: names of the projections that LoRA can adapt.
    """

    config: type | None
    module: type[nnx.Module]
    tables: str
    sharding: Rows
    published: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
    lora_targets: tuple[str, ...] = ()


LANGUAGE_MODELS: dict[str, Family] = {
    "llama": Family(
        LlamaConfig,
        Llama,
        tables="llama",
        sharding=causal_lm.SHARDING,
        published={
            "vicuna-7b-v0": LlamaConfig.vicuna_7b,
            "llama-3.1-8b": LlamaConfig.llama31_8b,
            "llama-3.1-8b-instruct": LlamaConfig.llama31_8b,
            "llama-3.2-1b": LlamaConfig.llama32_1b,
            "llama-3.2-1b-instruct": LlamaConfig.llama32_1b,
        },
        lora_targets=causal_lm.LORA_TARGETS,
    ),
    "qwen2": Family(
        Qwen2Config,
        Qwen2,
        tables="llama",
        sharding=causal_lm.SHARDING,
        published={
            "qwen2.5-0.5b": Qwen2Config.qwen25_05b,
            "qwen2.5-0.5b-instruct": Qwen2Config.qwen25_05b,
            "qwen2.5-7b": Qwen2Config.qwen25_7b,
            "qwen2.5-7b-instruct": Qwen2Config.qwen25_7b,
        },
        lora_targets=causal_lm.LORA_TARGETS,
    ),
}
ENCODERS: dict[str, Family] = {
    "imagebind": Family(
        ImageBindConfig,
        ImageBind,
        tables="imagebind",
        sharding=imagebind.SHARDING,
        published={"imagebind": ImageBindConfig.huge},
    ),
}
DECODERS: dict[str, Family] = {
    "StableDiffusionPipeline": Family(
        StableDiffusionConfig,
        StableDiffusion,
        tables="stable_diffusion",
        sharding=latent_diffusion.SHARDING,
        published={
            "stable-diffusion-v1-5": StableDiffusionConfig.sd15,
            "stable-diffusion-2": StableDiffusionConfig.sd2,
        },
    ),
    "TextToVideoSDPipeline": Family(
        TextToVideoConfig,
        TextToVideo,
        tables="text_to_video",
        sharding=latent_diffusion.SHARDING,
        published={"zeroscope_v2_576w": TextToVideoConfig.zeroscope},
    ),
    "AudioLDMPipeline": Family(
        AudioLDMConfig,
        AudioLDM,
        tables="audioldm",
        sharding=latent_diffusion.SHARDING,
        published={"audioldm-l-full": AudioLDMConfig.large},
    ),
}
INPUT_PROJECTORS: dict[str, Family] = {
    "linear": Family(None, LinearInputProjector, "projectors", projectors.INPUT_SHARDING),
    "mlp": Family(None, MLPInputProjector, "projectors", projectors.INPUT_SHARDING),
}
OUTPUT_PROJECTORS: dict[str, Family] = {
    "linear": Family(LinearProjectorConfig, LinearProjector, "projectors", projectors.OUTPUT_SHARDING),
    "transformer": Family(TransformerProjectorConfig, TransformerProjector, "projectors", projectors.OUTPUT_SHARDING),
    "qformer": Family(QFormerProjectorConfig, QFormerProjector, "projectors", projectors.OUTPUT_SHARDING),
}

# The parts of the paper's system, by field of ModelConfig.
PAPER: dict[str, Callable[[], Any]] = {
    "llm": LlamaConfig.vicuna_7b,
    "encoder": ImageBindConfig.huge,
    "image_decoder": StableDiffusionConfig.sd15,
    "video_decoder": TextToVideoConfig.zeroscope,
    "audio_decoder": AudioLDMConfig.large,
}

_DEFAULT_ENCODER = "imagebind"  # its release has no config.json, and its config.json no model_type


def kind_of(config: Any) -> str:
    """The kind of model that a config belongs to."""
    return _row(config)[0]


def family_of(config: Any) -> Family:
    """The family of the model that a config belongs to."""
    return _row(config)[1]


def _row(config: Any) -> tuple[str, Family]:
    tables = (LANGUAGE_MODELS, ENCODERS, DECODERS, OUTPUT_PROJECTORS)
    return next(row for families in tables for row in families.items() if row[1].config is type(config))


def build(config: Any, *, rngs: nnx.Rngs, **options: Any) -> nnx.Module:
    """The module of a config; `options` are those of its class."""
    return family_of(config).module(config, rngs=rngs, **options)


def published(field: str, folder: str) -> Any:
    """The config of the released model that a missing folder is named after; if there is none, the paper's.

    Raises:
      UserError: there is neither; `field` is that of ModelConfig.
    """
    families = {"llm": LANGUAGE_MODELS, "encoder": ENCODERS}.get(field, DECODERS).values()
    known = {name: make for family in families for name, make in family.published.items()}
    make = known.get(pathlib.Path(folder).name.lower(), PAPER.get(field))
    if make is None:
        raise UserError(f"model.{field}: no such folder: {folder!r}, nor a released model ({', '.join(known)})")
    return make()


def language_model_config(config: Mapping[str, Any], path: pathlib.Path) -> Any:
    """The config of the language model that the content of a config.json, from `path`, describes.

    Raises:
      UserError: its kind is unknown, or a value is not supported.
    """
    return _known(LANGUAGE_MODELS, "language model", config, "model_type", path).config.from_dict(config)


def read_language_model(folder: pathlib.Path) -> Any:
    """The config of the language model in a folder of the hub's layout.

    Raises:
      UserError: there is none, or one of an unknown kind.
    """
    path = folder / "config.json"
    return language_model_config(hf_config.read_config(path), path)


def read_encoder(folder: pathlib.Path) -> Any:
    """The config of the encoder in a folder.

    Raises:
      UserError: there is none, or one of an unknown kind.
    """
    path = folder / "config.json"
    config = {"model_type": _DEFAULT_ENCODER} | (hf_config.read_config(path) if path.exists() else {})
    return _known(ENCODERS, "encoder", config, "model_type", path).config.from_pretrained(folder)


def read_decoder(folder: pathlib.Path) -> LatentDiffusionConfig:
    """The config of the decoder in a folder of diffusers' layout.

    Raises:
      UserError: there is none, or one of an unknown kind.
    """
    return _decoder_family(folder / "model_index.json").config.from_pretrained(folder)


def decoder_parts(path: pathlib.Path | None = None) -> tuple[str, ...]:
    """The folders with networks of the decoder that a model_index.json describes. None: those of all kinds of decoders.

    Raises:
      UserError: the file cannot be read, or its kind of decoder is unknown.
    """
    families = [_decoder_family(path)] if path else DECODERS.values()
    return tuple(dict.fromkeys(name for family in families for name in family.config.component_classes))


def _decoder_family(path: pathlib.Path) -> Family:
    return _known(DECODERS, "decoder", hf_config.read_config(path), "_class_name", path)


def _known(
    families: Mapping[str, Family], what: str, config: Mapping[str, Any], key: str, path: pathlib.Path
) -> Family:
    kind = config.get(key)
    if kind not in families:
        raise UserError(f"{path}: {key}={kind!r} is no supported {what} (only {', '.join(families)})")
    return families[kind]


def output_projector_config(
    kind: str, in_dim: int, out_dim: int, num_input_tokens: int, num_output_tokens: int, **sizes: int
) -> OutputProjectorConfig:
    """The config of an output projection. `sizes` inside that are 0 are as published; those that the kind does not have
    are ignored.

    Raises:
      ValueError: the kind is unknown, or a size does not fit.
    """
    if kind not in OUTPUT_PROJECTORS:
        raise ValueError(f"output projection {kind!r} is not one of {list(OUTPUT_PROJECTORS)}")
    config = OUTPUT_PROJECTORS[kind].config
    fields = {field.name for field in dataclasses.fields(config)}
    return config(
        in_dim, out_dim, num_input_tokens, num_output_tokens,
        **{name: size for name, size in sizes.items() if size and name in fields},
    )  # fmt: skip
