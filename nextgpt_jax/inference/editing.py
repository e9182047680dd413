"""Media of a prompt that are edited: at the size of their decoder, checked, and as its autoencoder reads them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nextgpt_jax import media
from nextgpt_jax.config import GenerationDefaults
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.types import Edit, Request
from nextgpt_jax.models.nextgpt import NExTGPTConfig

OPTIONS = ("edit", "strength", "inversion")  # of a request, by their names in flags and JSON


def edited(request: Request, modality: str) -> Edit | None:
    """The medium that the generated media of a modality begin from, if there is one."""
    return request.edit if request.edit and request.edit.modality == modality else None


def load_edit(
    options: Mapping[str, Any],
    sources: Mapping[str, Sequence[Any]],
    config: NExTGPTConfig,
    defaults: GenerationDefaults,
) -> Edit | None:
    """The edit that OPTIONS ask for, of the first medium of its modality; None if they ask for none.

    Args:
      options: "edit" is the modality; those that are missing take the defaults of `Edit`.
      sources: the media of the prompt by modality, paths or contents.

    Raises:
      UserError: there is no such medium or it cannot be read, or "edit" is missing.
    """
    name = options.get("edit")
    if name is None:
        if given := [option for option in OPTIONS if option in options]:
            raise UserError(f"{given[0]} goes with edit: say which modality is edited")
        return None
    _check_name(name, config)
    if not sources.get(name):
        raise UserError(f"edit {name!r} needs the {name} that is edited among the inputs")
    decoder, settings, source = dict(config.decoders)[name], getattr(defaults, name), sources[name][0]
    if decoder.medium == "video":
        size = {"frames": settings.frames, "fps": settings.fps, "height": settings.height, "width": settings.width}
        content = media.original_video(source, **size)
    elif decoder.medium == "audio":
        samples = decoder.num_samples(settings.seconds)
        content = media.original_audio(source, samples=samples, sample_rate=decoder.sampling_rate)
    else:
        content = media.original_image(source, height=settings.height, width=settings.width)
    return Edit(name, content, **{key: value for key, value in options.items() if key in OPTIONS and key != "edit"})


def check_edit(request: Request, config: NExTGPTConfig, defaults: GenerationDefaults) -> None:
    """Checks what is edited, but for its strength.

    Raises:
      UserError: the model cannot generate its modality, it has not the size of its decoder, or inversion is asked of
        another sampler.
    """
    edit = request.edit
    if edit is None:
        return
    _check_name(edit.modality, config)
    blank = _blank(edit.modality, config, defaults)
    found = np.asarray(edit.content)
    if (found.shape, found.dtype) != (blank.shape, blank.dtype):
        raise UserError(
            f"the {edit.modality} to edit is {found.dtype} {list(found.shape)}, expected {blank.dtype} "
            f"{list(blank.shape)}: load it with editing.load_edit"
        )
    if edit.inversion and request.sampler not in (None, "ddim"):
        raise UserError(f"inversion is that of ddim: leave out sampler={request.sampler!r}")


def encoder_inputs(
    edits: Sequence[Edit | None], modality: str, rows: int, config: NExTGPTConfig, defaults: GenerationDefaults
) -> np.ndarray:
    """What the decoder's autoencoder reads: pixels uint8 [rows, ...], or log-mel spectrograms float32 [rows, t, bands].

    Args:
      edits: of a modality; rows without one are blank.
    """
    contents = [edit.content if edit else None for edit in edits] + [None] * (rows - len(edits))
    blank = _blank(modality, config, defaults)
    found = [blank if content is None else content for content in contents]
    decoder = dict(config.decoders)[modality]
    if decoder.medium != "audio":
        return np.stack(found)
    vocoder, frames = decoder.vocoder, decoder.num_frames(getattr(defaults, modality).seconds)
    settings = {"sample_rate": vocoder.sampling_rate, "hop": vocoder.hop, "num_mel_bins": vocoder.model_in_dim}
    settings |= dataclasses.asdict(vocoder.spectrogram)
    return np.stack([media.log_mel(samples, frames, **settings) for samples in found])


def _check_name(modality: str, config: NExTGPTConfig) -> None:
    if modality not in (names := [name for name in config.output_modalities if name in dict(config.decoders)]):
        raise UserError(f"edit {modality!r} is not one of {', '.join(names)}")


def _blank(modality: str, config: NExTGPTConfig, defaults: GenerationDefaults) -> np.ndarray:
    """A medium of the size and dtype of the modality's decoder."""
    decoder, settings = dict(config.decoders)[modality], getattr(defaults, modality)
    if decoder.medium == "audio":
        return np.zeros(decoder.num_samples(settings.seconds), np.float32)
    length = (settings.frames,) if decoder.medium == "video" else ()
    return np.zeros((*length, settings.height, settings.width, 3), np.uint8)
