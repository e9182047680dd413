"""From a ModelConfig, which names folders, to a NExTGPTConfig, which has the sizes of all parts.

Reads the parts' config files, and checks that parts and signal tokens fit each other.
"""

import dataclasses
import inspect
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from nextgpt_jax.config import ModelConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.mesh import platform as mesh_platform
from nextgpt_jax.modalities import MODALITIES, RELEASED, SignalTokens, Vocabulary, output_modalities, signal_tokens
from nextgpt_jax.models import quantize, registry
from nextgpt_jax.models.lora import LoRAConfig
from nextgpt_jax.models.nextgpt import NExTGPTConfig, NExTGPTModel, output_projector_for
from nextgpt_jax.models.rngs import abstract, make_rngs
from nextgpt_jax.weights import hub, nextgpt_delta
from nextgpt_jax.weights.components import LAYOUTS, refuse_single_file


def part_folders(config: ModelConfig) -> dict[str, tuple[str, str]]:
    """The parts that a config names: component (see weights/components.py) and folder, by field.

    Raises:
      UserError: no decoder is set.
    """
    decoders = {f"{name}_decoder": ("decoder", folder) for name, folder in decoder_folders(config).items()}
    delta = {"delta": ("delta", config.delta)} if config.delta else {}
    return {"llm": ("llm", config.llm), "encoder": ("encoder", config.encoder)} | decoders | delta


def encoder_folders(config: ModelConfig) -> list[str]:
    """The folders of the encoders."""
    return config.encoder.split(",")


def decoder_folders(config: ModelConfig) -> dict[str, str]:
    """The folders of the decoders that are set, by output modality.

    Raises:
      UserError: none is set.
    """
    folders = {name: getattr(config, f"{name}_decoder", "") for name in output_modalities()}
    if not any(folders.values()):
        raise UserError(f"no decoder: set {' or '.join(f'model.{name}_decoder' for name in folders)}")
    return {name: folder for name, folder in folders.items() if folder}


def resolve_parts(config: ModelConfig) -> ModelConfig:
    """The config with local paths in place of hub ids, whose files are downloaded if the hub's cache lacks them.

    Raises:
      UserError: a part is neither a folder nor in a repository, or the hub cannot be reached.
    """

    def local(field: str, component: str, place: str) -> str:
        path = hub.find(place, component, field=f"model.{field}").path
        refuse_single_file(component, path)
        if not path.is_dir() and component != "delta":
            raise UserError(f"model.{field}: {path} is no folder (wanted: {LAYOUTS[component]})")
        return str(path)

    changes = {}
    for field, (component, places) in part_folders(config).items():
        changes[field] = ",".join(local(field, component, place) for place in places.split(","))
    return with_folders(config, changes)


def folders_by_part(config: ModelConfig) -> dict[str, tuple[str, str]]:
    """As `part_folders`, but each folder by itself: those of further encoders are called encoder.2, encoder.3, ...

    Raises:
      UserError: no decoder is set.
    """
    return {
        f"{field}.{number}" if number > 1 else field: (component, folder)
        for field, (component, folders) in part_folders(config).items()
        for number, folder in enumerate(folders.split(","), 1)
    }


def join_folders(folders: Mapping[str, str | os.PathLike]) -> dict[str, str]:
    """The values of fields of ModelConfig, from the folders of parts named as by `folders_by_part`."""
    joined: dict[str, list[str]] = {}
    for name, folder in folders.items():
        joined.setdefault(name.partition(".")[0], []).append(os.fspath(folder))
    return {field: ",".join(paths) for field, paths in joined.items()}


def with_folders(config: ModelConfig, folders: Mapping[str, str | os.PathLike]) -> ModelConfig:
    """The config with other folders of parts, named as by `folders_by_part`."""
    changes: dict[str, Any] = {**join_folders(folders)}
    return dataclasses.replace(config, **changes)


def model_config(
    config: ModelConfig, *, use_published_defaults: bool = False, signals: tuple[SignalTokens, ...] | None = None
) -> NExTGPTConfig:
    """Reads the config files of the parts.

    Args:
      config: names the parts.
      use_published_defaults: for a folder that does not exist, take the sizes of the published model that it is named
        after. Nothing is downloaded.
      signals: signal tokens of the trained weights that the model is for. None: those of the delta, or without a delta,
        of `config.output_modalities`.

    Raises:
      UserError: a part is missing, not supported, or does not fit the others.
    """
    quantize.check(config.quantize)
    if not use_published_defaults:
        config = resolve_parts(config)
    elif not pathlib.Path(config.delta).exists():
        config = dataclasses.replace(config, delta="")

    def part(field: str, folder: str, read: Callable[[pathlib.Path], Any]) -> Any:
        if use_published_defaults and not pathlib.Path(folder).is_dir():
            return registry.published(field, folder)
        return read(pathlib.Path(folder))

    llm = part("llm", config.llm, registry.read_language_model)
    if signals is None:
        signals = _signals(config)
    if config.delta and (rows := nextgpt_delta.base_vocab_size(pathlib.Path(config.delta))):
        llm = dataclasses.replace(llm, vocab_size=rows)  # the config of Vicuna v0 counts a padding token more
    encoders = [part("encoder", folder, registry.read_encoder) for folder in encoder_folders(config)]
    decoders = {
        name: part(f"{name}_decoder", folder, registry.read_decoder) for name, folder in decoder_folders(config).items()
    }
    vocabulary = Vocabulary(llm.vocab_size, signals)
    _check_decoders(decoders, vocabulary)
    sizes = dict(
        kind=config.output_projector,
        hidden_dim=config.projector_width,
        num_layers=config.projector_layers,
        num_heads=config.projector_heads,
        feedforward_dim=config.projector_feedforward,
    )
    try:
        lora = LoRAConfig(config.lora_rank, config.lora_alpha, config.lora_dropout, tuple(config.lora_targets))
        projectors = [
            (name, output_projector_for(c, len(vocabulary.signal_ids(name)), llm.hidden_size, **sizes))
            for name, c in decoders.items()
        ]
        return NExTGPTConfig(
            llm=llm,
            encoders=tuple(encoders),
            lora=lora,
            input_projector=config.input_projector,
            output_projectors=tuple(projectors),
            signals=signals,
            decoders=tuple(decoders.items()),
            quantize=config.quantize,
        )
    except ValueError as error:
        raise UserError(f"config.model: {error}") from None


def _signals(config: ModelConfig) -> tuple[SignalTokens, ...]:
    requested = signal_tokens(config.output_modalities) if config.output_modalities else RELEASED
    if not config.delta:
        return requested
    found = nextgpt_delta.read_signals(pathlib.Path(config.delta))
    if config.output_modalities and found != requested:
        names = ", ".join(s.modality for s in found)
        raise UserError(
            f"model.output_modalities: the delta {config.delta} has signal tokens for {names}: leave it empty"
        )
    return found


def _check_decoders(decoders: dict[str, Any], vocabulary: Vocabulary) -> None:
    for name, decoder in decoders.items():
        if name not in vocabulary.output_modalities:
            raise UserError(
                f"model.{name}_decoder is set, but the model has no signal tokens for {name} (only for "
                f"{', '.join(vocabulary.output_modalities)})"
            )
        given, wanted = tuple(inspect.signature(decoder.latent_shape).parameters), MODALITIES[name].size
        if given != wanted:
            raise UserError(
                f"model.{name}_decoder: a {registry.kind_of(decoder)} is sized by {', '.join(given)}, and {name} by "
                f"{', '.join(wanted)}: give a decoder of {name}"
            )


def frozen_dtype(name: str) -> jnp.dtype:
    """The dtype of frozen weights and activations: "auto" is bfloat16 on accelerators and float32 on CPU.

    Raises:
      UserError: another name than auto, float32 or bfloat16.
    """
    if name == "auto":
        return jnp.dtype(jnp.float32 if mesh_platform() == "cpu" else jnp.bfloat16)
    if name not in ("float32", "bfloat16"):
        raise UserError(f"model.dtype: {name!r} is not one of auto, float32, bfloat16")
    return jnp.dtype(name)


def abstract_state(cfg: NExTGPTConfig) -> nnx.State:
    """Shapes and dtypes of all parameters of a model.

    Raises:
      UserError: see `abstract_model`.
    """
    return nnx.state(abstract_model(lambda: NExTGPTModel(cfg, rngs=make_rngs(0))))


def abstract_model(make: Callable[[], NExTGPTModel]) -> NExTGPTModel:
    """The model that `make` would return, without values.

    Raises:
      UserError: the config requests something that a part does not have.
    """
    try:
        return abstract(make)
    except ValueError as error:
        raise UserError(f"config.model: {error}") from None
