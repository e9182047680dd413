"""Sampling media with the decoders of a model, from the hidden states at signal tokens."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from nextgpt_jax import media
from nextgpt_jax.config import GenerationDefaults
from nextgpt_jax.data.examples import caption_ids
from nextgpt_jax.generation.state import DecodeOutput
from nextgpt_jax.inference import programs
from nextgpt_jax.inference.batching import pad_rows, round_up_to_power_of_two
from nextgpt_jax.inference.types import MediaOutput, Request
from nextgpt_jax.inference.validation import chosen_sampler, num_steps
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.models.nextgpt import NExTGPTConfig
from nextgpt_jax.sharding import round_up_to_shards

OnStep = Callable[[int, int], None]  # called with (steps done, all steps) after each denoising step


class _Signal(NamedTuple):
    """A signal group of a response: a medium to be sampled."""

    request: int  # index of the request
    group: int  # index of the group in its response
    modality: str
    steps: int
    sampler: str


class MediaSampler:
    """Samples media in batches of at most the configured size, on the mesh if there is one."""

    def __init__(
        self,
        model: programs.FlatModel,
        config: NExTGPTConfig,
        caption_tokenizers: Mapping[str, Any],
        defaults: GenerationDefaults,
        dtype: np.dtype,
        mesh: Mesh | None,
    ):
        """`mesh`: of data_parallel_mesh. Raises UserError if a configured size does not fit its decoder."""
        self._model, self._config = model, config
        self._caption_tokenizers, self._defaults = caption_tokenizers, defaults
        self._dtype, self._mesh = dtype, mesh
        self._decoders = dict(config.decoders)
        self._negative_prompt_embeds: dict[str, jax.Array] = {}
        for name, decoder in self._decoders.items():
            decoder.latent_shape(*self._size(name))

    def sample(
        self, requests: Sequence[Request], output: DecodeOutput, on_step: OnStep | None = None
    ) -> Iterator[tuple[int, int, MediaOutput]]:
        """Yields the media of all responses, as (request, group, medium), batch by batch.

        A batch holds media of one modality with the same sampler and number of steps, of any request.
        """
        names = self._config.output_modalities
        batches: dict[tuple[str, int, str], list[_Signal]] = {}
        for i, request in enumerate(requests):
            for g in range(output.num_groups[i]):
                name = names[output.group_modality[i, g]]
                of = (request, name, self._defaults)
                signal = _Signal(i, g, name, num_steps(*of), chosen_sampler(*of))
                batches.setdefault(signal[2:], []).append(signal)
        for (name, *_), signals in batches.items():
            size = round_up_to_shards(getattr(self._defaults, name).batch, self._mesh)
            for start in range(0, len(signals), size):
                chosen = signals[start : start + size]
                for signal, content in zip(chosen, self._sample(chosen, requests, output, on_step), strict=True):
                    yield signal.request, signal.group, MediaOutput(name, content)

    def warm_up(self, modality: str, rows: int) -> None:
        """Compiles the programs that sample a batch, and runs one denoising step."""
        defaults = getattr(self._defaults, modality)
        self._sample_batch(modality, rows, defaults.num_inference_steps, defaults.sampler, max_evaluations=1)

    def _sample(
        self, signals: Sequence[_Signal], requests: Sequence[Request], output: DecodeOutput, on_step: OnStep | None
    ) -> Iterator[Any]:
        """The contents of media of one modality, number of steps and sampler, sampled together."""
        name = signals[0].modality
        defaults, width = getattr(self._defaults, name), len(self._config.vocabulary.signal_ids(name))
        scales = [requests[s.request].guidance_scale for s in signals]
        arrays = self._sample_batch(
            name,
            len(signals),
            signals[0].steps,
            signals[0].sampler,
            hidden=[output.group_hidden[s.request, s.group, :width] for s in signals],
            guidance_scales=[defaults.guidance_scale if scale is None else scale for scale in scales],
            seeds=[requests[s.request].seed for s in signals],
            indices=[s.group for s in signals],
            on_step=on_step,
        )
        return (self._content(name, array) for array in arrays[: len(signals)])

    def _sample_batch(
        self,
        name: str,
        rows: int,
        steps: int,
        sampler: str,
        *,
        hidden: Iterable[np.ndarray] = (),
        guidance_scales: Iterable[float] = (),
        seeds: Iterable[int] = (),
        indices: Iterable[int] = (),
        on_step: OnStep | None = None,
        max_evaluations: int | None = None,
    ) -> np.ndarray:
        """The arrays of `programs.decode_media` for the given rows, and rows that fill the batch."""
        batch = min(round_up_to_power_of_two(rows), getattr(self._defaults, name).batch)
        batch = round_up_to_shards(batch, self._mesh)
        no_hidden = np.zeros((len(self._config.vocabulary.signal_ids(name)), self._config.llm.hidden_size))
        hidden = pad_rows(hidden, batch, no_hidden, np.float32).astype(self._dtype)
        scales = pad_rows(guidance_scales, batch, 1, np.float32)
        seeds, indices = pad_rows(seeds, batch, 0, np.uint32), pad_rows(indices, batch, 0, np.int32)
        table = self._decoders[name].scheduler.with_sampler(sampler).sampler_table(steps)
        with programs.use_mesh(self._mesh):
            negative = self._negative_prompt(name)
            state, prompt_embeds = programs.start_sampling(
                self._model, hidden, table, seeds, indices, modality=name, size=self._size(name)
            )
            count = max_evaluations or int(table.num_evaluations)
            stride = 1 if on_step else count  # the same program
            for first in range(0, count, stride):
                arguments = (state, prompt_embeds, negative, table, scales, first, first + stride)
                state = programs.denoise_media(self._model, *arguments, modality=name)
                if on_step:
                    jax.block_until_ready(state)
                    on_step(first + 1, count)
            return np.asarray(programs.decode_media(self._model, state.sample, modality=name, dtype=self._dtype))

    def _negative_prompt(self, name: str) -> jax.Array:
        """The prompt embeddings [1, L, D] of the empty text, for classifier-free guidance."""
        if name not in self._negative_prompt_embeds:
            ids = caption_ids(self._caption_tokenizers[name], "", self._decoders[name].caption_length)
            self._negative_prompt_embeds[name] = programs.encode_caption(self._model, ids[None], modality=name)
        return self._negative_prompt_embeds[name]

    def _size(self, name: str) -> tuple:
        """The arguments of the decoder's latent_shape."""
        return tuple(getattr(getattr(self._defaults, name), field) for field in MODALITIES[name].size)

    def _content(self, name: str, array: np.ndarray) -> Any:
        decoder, settings = self._decoders[name], getattr(self._defaults, name)
        if decoder.medium == "video":
            return media.Video(array, settings.fps)
        if decoder.medium == "audio":
            return media.Audio(array[: decoder.num_samples(settings.seconds)], decoder.sampling_rate)
        return array
