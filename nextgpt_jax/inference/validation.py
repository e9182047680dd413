"""Checks of requests and defaults, before anything is computed."""

import functools
from collections.abc import Sequence

import numpy as np

from nextgpt_jax.config import GenerationDefaults
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.editing import check_edit, edited
from nextgpt_jax.inference.types import Request
from nextgpt_jax.models.diffusion.schedulers import SamplerTable, SchedulerConfig, steps_at
from nextgpt_jax.models.nextgpt import NExTGPTConfig
from nextgpt_jax.templates import TokenizedConversation


def parse_modality(names: Sequence[str], wanted: str) -> tuple[list[bool], list[bool]]:
    """Which of the modalities `names` are (allowed, forced) by `Request.modality`.

    Raises:
      UserError: `wanted` is neither "auto", nor "text", nor a list of some of `names`.
    """
    if wanted in ("auto", "text"):
        return [wanted == "auto"] * len(names), [False] * len(names)
    chosen = [name.strip() for name in wanted.split(",")]
    if len(chosen) > 1 and not {"auto", "text"}.isdisjoint(chosen):
        raise UserError(f"modality {wanted!r}: auto and text cannot be combined with others")
    if unknown := [name for name in chosen if name not in names]:
        raise UserError(f"modality {unknown[0]!r} is not one of auto, text, {', '.join(names)}")
    return [name in chosen for name in names], [name in chosen for name in names]


def num_steps(request: Request, modality: str, defaults: GenerationDefaults) -> int:
    """Denoising steps for media of a modality."""
    requested = request.num_inference_steps
    return getattr(defaults, modality).num_inference_steps if requested is None else requested


def chosen_sampler(request: Request, modality: str, defaults: GenerationDefaults) -> str:
    """Name of the sampler for media of a modality; "": the decoder's own."""
    if (edit := edited(request, modality)) and edit.inversion:
        return "ddim"
    return getattr(defaults, modality).sampler if request.sampler is None else request.sampler


@functools.lru_cache(maxsize=128)
def sampler_table(scheduler: SchedulerConfig, sampler: str, steps: int, edited_steps: int = 0) -> SamplerTable:
    """The coefficients of a sampler; computed once, as every request asks for them.

    Args:
      edited_steps: of media that are edited, the steps that are taken; 0: they are new.

    Raises:
      UserError: there is no such sampler, or too many steps for it, or it cannot begin later.
    """
    return scheduler.with_sampler(sampler).sampler_table(steps, _strength(steps, edited_steps))


@functools.lru_cache(maxsize=128)
def inversion_table(scheduler: SchedulerConfig, steps: int, edited_steps: int) -> SamplerTable:
    """The coefficients of DDIM's inversion; see `sampler_table`."""
    return scheduler.with_sampler("ddim").inversion_table(steps, _strength(steps, edited_steps))


def _strength(steps: int, edited_steps: int) -> float | None:
    """A strength at which so many steps are taken."""
    return min((edited_steps + 0.5) / steps, 1.0) if edited_steps else None


def check_options(request: Request, config: NExTGPTConfig, defaults: GenerationDefaults) -> None:
    """Checks the options of a request.

    Raises:
      UserError: an option is out of range, or needs a modality that the model cannot generate.
    """
    in_range = {
        "num_inference_steps": request.num_inference_steps is None or 1 <= request.num_inference_steps <= 1000,
        "guidance_scale": request.guidance_scale is None or 0 <= request.guidance_scale < 1000,
        "temperature": 0 <= request.temperature < 1000,
        "top_k": 0 <= request.top_k < 2**31,
        "top_p": 0 < request.top_p <= 1,
        "max_new_tokens": 1 <= request.max_new_tokens < 2**31,
        "seed": 0 <= request.seed < 2**31,
    }
    if wrong := [name for name, good in in_range.items() if not good]:
        raise UserError(f"{wrong[0]} is out of range: {getattr(request, wrong[0])}")
    allowed, forced = parse_modality(config.output_modalities, request.modality)
    for name, decoder in config.decoders:
        of, edit = (request, name, defaults), edited(request, name)
        steps = num_steps(*of)
        taken = steps_at(steps, edit.strength) if edit else 0
        sampler_table(decoder.scheduler, chosen_sampler(*of), steps, taken)  # raises for too many steps
        if edit and edit.inversion:
            inversion_table(decoder.scheduler, steps, taken)
    check_edit(request, config, defaults)
    if (edit := request.edit) and not allowed[config.output_modalities.index(edit.modality)]:
        raise UserError(f"modality {request.modality!r} has no {edit.modality}, which should be edited")
    if sum(forced) > defaults.max_media:
        raise UserError(f"an answer has at most generation.max_media={defaults.max_media} media")


def check_conversation(conversation: TokenizedConversation, request: Request, config: NExTGPTConfig) -> None:
    """Checks that the model can read a conversation and that the context holds its answer.

    Raises:
      UserError: the prompt does not fit the context, the encoder does not read an input, or the forced media do not
        fit the tokens that are left.
    """
    context, length = config.llm.max_position_embeddings, len(conversation.ids)
    if length >= context:
        raise UserError(f"the prompt has {length} tokens but the context holds {context}: shorten it")
    for _, medium in conversation.inputs:
        check_readable(medium.modality, config)
        encoder = config.input_encoders[medium.modality]
        found, wanted = np.shape(medium.content), tuple(encoder.input_shape(medium.modality))
        if found != wanted:
            raise UserError(
                f"{medium.modality} input has shape {list(found)}, expected {list(wanted)}: load it with media.load"
            )
    if (edit := request.edit) and edit.modality not in {medium.modality for _, medium in conversation.inputs}:
        raise UserError(f"to edit {edit.modality}, the prompt needs an input of that modality")
    _, forced = parse_modality(config.output_modalities, request.modality)
    signals = [config.vocabulary.signal_ids(n) for n, f in zip(config.output_modalities, forced, strict=True) if f]
    needed, room = sum(map(len, signals)), min(request.max_new_tokens, context - length)
    if room < needed:
        raise UserError(f"an answer with {request.modality} needs {needed} new tokens but has room for {room}")


def check_readable(modality: str, config: NExTGPTConfig) -> None:
    """Raises UserError unless the model's encoder reads the modality."""
    if modality not in config.input_modalities:
        known = ", ".join(config.input_modalities)
        raise UserError(f"this model's encoder does not read {modality} (only {known})")


def check_defaults(defaults: GenerationDefaults, modalities: Sequence[str]) -> None:
    """Checks the settings that requests cannot change.

    Raises:
      UserError: one is out of range.
    """
    for name in modalities:
        settings = getattr(defaults, name)
        if settings.batch < 1:
            raise UserError(f"generation.{name}.batch is {settings.batch}: give at least 1")
        if not 0 < (fps := getattr(settings, "fps", 1)) <= 1000:
            raise UserError(f"generation.{name}.fps is {fps}: give frames per second above 0, at most 1000")
    if defaults.max_media < 0:
        raise UserError(f"generation.max_media is {defaults.max_media}: give 0 or more")
