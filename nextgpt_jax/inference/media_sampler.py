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
from nextgpt_jax.inference.editing import edited, encoder_inputs
from nextgpt_jax.inference.types import Edit, MediaOutput, Request
from nextgpt_jax.inference.validation import chosen_sampler, inversion_table, num_steps, sampler_table
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.models.diffusion.schedulers import SamplerState, SamplerTable, steps_at
from nextgpt_jax.models.nextgpt import NExTGPTConfig
from nextgpt_jax.sharding import round_up_to_shards

OnStep = Callable[[int, int], None]  # called with (steps done, all steps) after each denoising step


class SignalGroup(NamedTuple):
    """A medium to be sampled: a signal group of a response."""

    request: Request
    index: int  # of the group in its response
    modality: str
    hidden: np.ndarray  # the hidden states at the group's tokens: [W, D], rows beyond its length are ignored


class BatchKey(NamedTuple):
    """What media that are sampled together have in common."""

    modality: str
    steps: int
    sampler: str
    edited: int = 0  # steps that are taken of edited media; 0: they are new
    inversion: bool = False


class _Run(NamedTuple):
    """A part of the evaluations of a batch."""

    table: SamplerTable
    prompt_embeds: jax.Array
    scales: np.ndarray


class MediaBatch:
    """Media that are being sampled together."""

    def __init__(
        self,
        state: SamplerState,
        evaluations: int,
        denoise: Callable[[SamplerState, int, int], SamplerState],
        finish: Callable[[SamplerState], list[Any]],
    ):
        """Made by `MediaSampler.start`."""
        self.evaluations, self.done = evaluations, 0  # of the UNet
        self._state, self._denoise, self._finish = state, denoise, finish

    def advance(self, evaluations: int) -> None:
        """At most so many further evaluations of the UNet. They are computed in the background."""
        last = min(self.done + evaluations, self.evaluations)
        if last > self.done:
            self._state = self._denoise(self._state, self.done, last)
        self.done = last

    def wait(self) -> None:
        """Waits for what is computed in the background."""
        jax.block_until_ready(self._state)

    def finish(self) -> list[Any]:
        """The contents of the media, in the order of their groups, once all evaluations are done."""
        return self._finish(self._state)


class MediaSampler:
    """Samples media in batches of at most the configured size, on the mesh if there is one."""

    def __init__(
        self,
        models: Mapping[str, programs.FlatModel],
        config: NExTGPTConfig,
        caption_tokenizers: Mapping[str, Any],
        defaults: GenerationDefaults,
        dtype: np.dtype,
        mesh: Mesh | None,
    ):
        """
        Args:
          models: by modality, a model with its decoder.
          mesh: of data_parallel_mesh.

        Raises:
          UserError: a configured size does not fit its decoder.
        """
        self._models, self._config = models, config
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
        batches: dict[BatchKey, list[tuple[int, SignalGroup]]] = {}
        for i, request in enumerate(requests):
            for g in range(output.num_groups[i]):
                group = SignalGroup(request, g, names[output.group_modality[i, g]], output.group_hidden[i, g])
                batches.setdefault(self.key(group), []).append((i, group))
        for key, members in batches.items():
            size = self.batch_size(key.modality)
            for start in range(0, len(members), size):
                chosen = members[start : start + size]
                contents = self._run(self.start([group for _, group in chosen]), on_step)
                for (i, group), content in zip(chosen, contents, strict=True):
                    yield i, group.index, MediaOutput(key.modality, content)

    def key(self, group: SignalGroup) -> BatchKey:
        """Groups of the same key can be sampled together."""
        of = (group.request, group.modality, self._defaults)
        key = BatchKey(group.modality, num_steps(*of), chosen_sampler(*of))
        if not (edit := edited(group.request, group.modality)):
            return key
        return key._replace(edited=steps_at(key.steps, edit.strength), inversion=edit.inversion)

    def batch_size(self, modality: str) -> int:
        """The largest number of media of a modality in a batch."""
        return round_up_to_shards(getattr(self._defaults, modality).batch, self._mesh)

    def padded_size(self, modality: str, rows: int) -> int:
        """The size of the batch that holds so many media, at most `batch_size`: few sizes, so few programs."""
        size = min(round_up_to_power_of_two(rows), getattr(self._defaults, modality).batch)
        return round_up_to_shards(size, self._mesh)

    @property
    def mesh(self) -> Mesh | None:
        """On which media are sampled."""
        return self._mesh

    @property
    def concurrent_batches(self) -> int:
        """How many batches are worth sampling at the same time: two on a CPU, which one does not fill; else one."""
        return 2 if jax.default_backend() == "cpu" and self._mesh is None else 1

    def start(self, groups: Sequence[SignalGroup]) -> MediaBatch:
        """Begins to sample the media of groups with the same key, at most `batch_size` of them."""
        key, width = self.key(groups[0]), len(self._config.vocabulary.signal_ids(groups[0].modality))
        default = getattr(self._defaults, key.modality).guidance_scale
        scales = [group.request.guidance_scale for group in groups]
        return self._start(
            key,
            len(groups),
            hidden=[group.hidden[:width] for group in groups],
            guidance_scales=[default if scale is None else scale for scale in scales],
            seeds=[group.request.seed for group in groups],
            indices=[group.index for group in groups],
            edits=[edited(group.request, key.modality) for group in groups],
        )

    def warm_up(self, modality: str, rows: int, *, edits: bool = False) -> None:
        """Compiles the programs that sample a batch, or one of `edits`, and runs one denoising step."""
        defaults = getattr(self._defaults, modality)
        key = BatchKey(modality, defaults.num_inference_steps, defaults.sampler, int(edits))
        batch = self._start(key, rows)
        batch.advance(1)
        batch.finish()

    def _run(self, batch: MediaBatch, on_step: OnStep | None) -> list[Any]:
        if not on_step:
            batch.advance(batch.evaluations)
        else:
            while batch.done < batch.evaluations:
                batch.advance(1)
                batch.wait()
                on_step(batch.done, batch.evaluations)
        return batch.finish()

    def _start(
        self,
        key: BatchKey,
        rows: int,
        *,
        hidden: Iterable[np.ndarray] = (),
        guidance_scales: Iterable[float] = (),
        seeds: Iterable[int] = (),
        indices: Iterable[int] = (),
        edits: Sequence[Edit | None] = (),
    ) -> MediaBatch:
        """A batch of the given rows, and rows that fill it."""
        name = key.modality
        size = self.padded_size(name, rows)
        no_hidden = np.zeros((len(self._config.vocabulary.signal_ids(name)), self._config.llm.hidden_size))
        hidden = pad_rows(hidden, size, no_hidden, np.float32).astype(self._dtype)
        scales = pad_rows(guidance_scales, size, 1, np.float32)
        seeds, indices = pad_rows(seeds, size, 0, np.uint32), pad_rows(indices, size, 0, np.int32)
        first_table, table = self._tables(key)
        inputs: tuple = ()
        if key.edited:
            media_inputs = encoder_inputs(edits, name, size, self._config, self._defaults)
            inputs = media_inputs, np.float32(not key.inversion)
        with programs.use_mesh(self._mesh):
            negative = self._negative_prompt(name)
            state, prompt_embeds = programs.start_sampling(
                self._models[name], hidden, first_table, seeds, indices, *inputs, modality=name, size=self._size(name)
            )
            runs = [_Run(table, prompt_embeds, scales)]
            if key.inversion:  # without a prompt; guidance between equal prompts changes nothing
                runs.insert(0, _Run(first_table, programs.shared_prompt(negative, prompt_embeds), np.ones_like(scales)))

        def denoise(state: SamplerState, first: int, last: int) -> SamplerState:
            for run in runs:
                count = int(run.table.num_evaluations)
                if first < count and last > 0:
                    arguments = (state, run.prompt_embeds, negative, run.table, run.scales, max(first, 0))
                    with programs.use_mesh(self._mesh):
                        state = programs.denoise_media(self._models[name], *arguments, min(last, count), modality=name)
                first, last = first - count, last - count
            return state

        def finish(state: SamplerState) -> list[Any]:
            with programs.use_mesh(self._mesh):
                arrays = programs.decode_media(self._models[name], state.sample, modality=name, dtype=self._dtype)
            return [self._content(name, array) for array in np.asarray(arrays)[:rows]]

        return MediaBatch(state, sum(int(run.table.num_evaluations) for run in runs), denoise, finish)

    def _tables(self, key: BatchKey) -> tuple[SamplerTable, SamplerTable]:
        """The table that media begin with, and the one that they end with: two if they are inverted first."""
        scheduler = self._decoders[key.modality].scheduler
        table = sampler_table(scheduler, key.sampler, key.steps, key.edited)
        return inversion_table(scheduler, key.steps, key.edited) if key.inversion else table, table

    def _negative_prompt(self, name: str) -> jax.Array:
        """The prompt embeddings [1, L, D] of the empty text, for classifier-free guidance."""
        if name not in self._negative_prompt_embeds:
            ids = caption_ids(self._caption_tokenizers[name], "", self._decoders[name].caption_length)
            self._negative_prompt_embeds[name] = programs.encode_caption(self._models[name], ids[None], modality=name)
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
