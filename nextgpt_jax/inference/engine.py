"""Answers batches of requests: encode media, decode text, project signal groups, sample what they ask for.

All shapes are bucketed, and everything a request can choose is traced, so a warm engine compiles nothing for a request
of a known size.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from nextgpt_jax import compiler, media
from nextgpt_jax.config import GenerationConfig
from nextgpt_jax.data.examples import caption_ids
from nextgpt_jax.errors import UserError
from nextgpt_jax.generation.loop import generate
from nextgpt_jax.generation.state import DecodeOutput, SamplingParams, StaticDecodeConfig
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.models.diffusion.blocks import chunk_feed_forward
from nextgpt_jax.models.diffusion.latent_diffusion import LatentDiffusion
from nextgpt_jax.models.diffusion.schedulers import SamplerState, init_state
from nextgpt_jax.models.layers import unstack
from nextgpt_jax.models.nextgpt import NExTGPTConfig
from nextgpt_jax.prompts import (
    Input,
    Output,
    Segment,
    TokenizedConversation,
    Turn,
    stop_sequences,
    tokenize_conversation,
)
from nextgpt_jax.sharding import (
    constrain_batch,
    data_parallel_mesh,
    move_to_data_parallel,
    replicate_params,
    round_up_to_shards,
)
from nextgpt_jax.weights.load import LoadedModel, runs_unstacked

_TOKENS = (32, 48)  # lengths of prompts and answers are rounded up to these times a power of two
_ENCODE_BATCH = 32  # media of a modality that are encoded together


@dataclasses.dataclass(frozen=True)
class Request:
    """A conversation whose last turn is to be answered; the content of inputs is what `media.load` gives.

    `modality` is "auto", "text", or a list such as "image,audio". `steps` and `guidance` hold for all that is sampled;
    None takes each modality's defaults. Other options: see infer.py.
    """

    turns: tuple[Turn, ...]
    seed: int = 0
    modality: str = "auto"
    steps: int | None = None
    guidance: float | None = None
    temperature: float = 0.4
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 246


@dataclasses.dataclass(frozen=True)
class MediaOutput:
    """One produced medium: an image as uint8 [H, W, 3], a `media.Video` or a `media.Audio`."""

    modality: str
    content: Any


@dataclasses.dataclass
class Response:
    """The answer: its text, its media in order, the number of generated tokens, and all of it as the assistant's side
    of the turn, to continue the conversation."""

    text: str
    media: list[MediaOutput]
    tokens: int
    segments: tuple[Segment, ...]


class Engine:
    """A loaded system, ready to answer, on its mesh if it has one: rows of a batch that divides are shared out. Weights
    are shared by all calls; calls hold no state."""

    def __init__(self, system: LoadedModel, defaults: GenerationConfig):
        self.config = system.model.config
        self.modalities = self.config.output_modalities
        self.defaults = defaults
        self._decoders = dict(self.config.decoders)
        self._tokenizer = system.tokenizer
        self._caption_tokenizers = system.caption_tokenizers
        self._model = nnx.merge(*nnx.split(system.model))  # a module of its own: the caller's stays as it is
        self._mesh = system.mesh
        self._places = system.mesh and data_parallel_mesh(
            system.mesh
        )  # where every device has rows: encoders and decoders
        if self._mesh:
            move_to_data_parallel(self._model, self._mesh)
        if runs_unstacked(self._mesh) and not isinstance(self._model.llm.layers, nnx.List):
            self._model.llm.layers = unstack(self._model.llm.layers)
        check_defaults(defaults, self.modalities)
        for name, decoder in self._decoders.items():
            decoder.latent_shape(*self._size(name))  # raises if the size does not fit
        if "video" in self._decoders and defaults.video.feed_forward_chunk:
            chunk_feed_forward(self._model.decoders["video"].unet, defaults.video.feed_forward_chunk)
        self._template = system.template
        stops = stop_sequences(self._tokenizer, self._template)
        self._stops = (*stops, (self._tokenizer.eos_token_id,)) if self._tokenizer.eos_token_id is not None else stops
        self._dtype = self._model.llm.embed_tokens.embedding[...].dtype
        self._negatives: dict[str, jax.Array] = {}

    def encode(self, request: Request) -> TokenizedConversation:
        """The ids of a request, checked against what the engine can do.

        Raises:
          UserError: the prompt does not fit the context, a medium is of a kind that the model does not read, or an
            option is out of range.
        """
        encoded = tokenize_conversation(request.turns, self._tokenizer, self.config.vocabulary, self._template)
        context, length = self.config.llm.max_position_embeddings, len(encoded.ids)
        if length >= context:
            raise UserError(f"the prompt has {length} tokens but the context holds {context}: shorten it")
        forced = check_options(request, self.config, self.defaults)
        for _, medium in encoded.inputs:
            if medium.modality not in self.config.input_modalities:
                known = ", ".join(self.config.input_modalities)
                raise UserError(f"this model's encoder does not read {medium.modality} (only {known})")
            found, wanted = np.shape(medium.content), self.config.encoder.input_shape(medium.modality)
            if found != tuple(wanted):
                raise UserError(
                    f"{medium.modality} of shape {list(found)} is not what media.load gives: {list(wanted)}"
                )
        needed = sum(
            len(self.config.vocabulary.signal_ids(name)) for name, wanted in zip(self.modalities, forced) if wanted
        )
        room = min(request.max_new_tokens, context - length)
        if room < needed:
            raise UserError(f"an answer with {request.modality} needs {needed} new tokens but has room for {room}")
        return encoded

    def _size(self, name: str) -> tuple:
        """The arguments of the decoder's latent_shape."""
        return tuple(getattr(getattr(self.defaults, name), field) for field in MODALITIES[name].size)

    def answer(self, requests: Sequence[Request], on_step: Callable[[int, int], None] | None = None) -> list[Response]:
        """Answers requests together. `on_step(done, all)` is called at each denoising step.

        Raises:
          UserError: a request does not fit (see encode).
        """
        encoded = [self.encode(r) for r in requests]
        generated = jax.device_get(self._generate(requests, encoded))
        return self._replies(requests, generated, on_step)

    def _replies(self, requests, generated, on_step) -> list[Response]:
        replies = []
        groups: dict[tuple[str, int], list[tuple[int, int]]] = {}  # (modality, steps) -> (request, group) of each
        for i, request in enumerate(requests):
            replies.append(self._reply(generated, i))
            for g in range(generated.num_groups[i]):
                name = self.modalities[generated.group_modality[i, g]]
                groups.setdefault((name, _steps(request, name, self.defaults)), []).append((i, g))
        made = {}
        for (name, steps), members in groups.items():
            size = round_up_to_shards(getattr(self.defaults, name).batch, self._places)
            for at in range(0, len(members), size):
                some = members[at : at + size]
                made |= zip(some, self._sample(name, requests, generated, some, steps, on_step), strict=True)
        for i, g in sorted(made):
            replies[i].media.append(made[i, g])
        return replies

    def warm_up(
        self,
        *,
        rows: int = 1,
        prompt_tokens: Sequence[int] = (32, 48, 64),
        media: int = 1,
        max_new_tokens: int | None = None,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> None:
        """Compiles, side by side, the programs that answer up to `rows` requests together, so that none waits for them.

        Compiled programs persist in the compilation cache, if there is one. Samplers run one evaluation each.

        Args:
          rows: requests, media to encode and media to sample that go together (see generation.image.batch and others).
          prompt_tokens: lengths of prompts; each is rounded up as a prompt of that length would be.
          media: media of a prompt at most.
          max_new_tokens: of an answer; None: the default.
          inputs: modalities that are shown; None: all that the model reads.
          outputs: modalities that are asked for; None: all that the model has.
        """
        tasks: list[Callable[[], object]] = [
            functools.partial(self._encode_batch, name, [], rows=rows)
            for name in (self.config.input_modalities if inputs is None else inputs)
        ]
        new = self.defaults.max_new_tokens if max_new_tokens is None else max_new_tokens
        context = self.config.llm.max_position_embeddings
        for length in sorted({_token_bucket(n) for n in prompt_tokens}):
            size = _Sizes(rows, length, _token_bucket(min(new, max(1, context - length))), _power_of_two(max(1, media)))
            tasks.append(functools.partial(self._decode, size))
        for name in self.modalities if outputs is None else outputs:
            steps = getattr(self.defaults, name).num_inference_steps
            tasks.append(functools.partial(self._sample_batch, name, rows, steps, evaluations=1))
        with concurrent.futures.ThreadPoolExecutor(len(tasks) or 1) as pool:
            for task in [pool.submit(task) for task in tasks]:
                task.result()

    def _generate(self, requests: Sequence[Request], encoded: Sequence[TokenizedConversation]) -> DecodeOutput:
        features = self._encode([medium for e in encoded for _, medium in e.inputs])
        context = self.config.llm.max_position_embeddings
        lengths = [len(e.ids) for e in encoded]
        limits = [min(r.max_new_tokens, context - n) for r, n in zip(requests, lengths, strict=True)]
        size = _Sizes(
            len(requests),
            _token_bucket(max(lengths)),
            _token_bucket(max(limits)),
            _power_of_two(max(1, *(len(e.inputs) for e in encoded))),
        )
        return self._decode(size, requests, encoded, limits, features)

    def _decode(self, size: "_Sizes", requests=(), encoded=(), limits=(), features=()) -> DecodeOutput:
        """Decodes the requests, and rows without any that fill the batch."""
        batch = round_up_to_shards(_power_of_two(size.rows), self._mesh)
        ids = np.zeros((batch, size.prompt), np.int32)
        embedded = np.zeros((batch, size.media, self.config.input_dim), np.float32)
        positions = np.full((batch, size.media), size.prompt, np.int32)
        following = iter(features)
        for row, e in enumerate(encoded):
            ids[row, : len(e.ids)] = e.ids
            for k, (position, _) in enumerate(e.inputs):
                embedded[row, k], positions[row, k] = next(following), position

        def per_row(values, dtype, padding):
            return np.array([*values, *[padding] * (batch - len(requests))], dtype)

        pairs = [parse_modality(self.modalities, r.modality) for r in requests]
        none = [False] * len(self.modalities)
        options = SamplingParams(
            temperature=per_row([r.temperature for r in requests], np.float32, 0),
            top_k=per_row([r.top_k for r in requests], np.int32, 0),
            top_p=per_row([r.top_p for r in requests], np.float32, 1),
            seed=per_row([r.seed for r in requests], np.int32, 0),
            max_new_tokens=per_row(limits, np.int32, 0),
            allowed_modalities=per_row([p[0] for p in pairs], bool, none),
            forced_modalities=per_row([p[1] for p in pairs], bool, none),
        )
        lengths = per_row([len(e.ids) for e in encoded], np.int32, 1)
        config = StaticDecodeConfig(
            stop_sequences=self._stops,
            signal_groups=tuple(map(self.config.vocabulary.signal_ids, self.modalities)),
            base_vocab_size=self.config.vocabulary.base_size,
            max_new_tokens=size.new,
            max_groups=self.defaults.max_media,
        )
        with _on(self._mesh):
            return _generate(self._model, ids, lengths, embedded, positions, options, config)

    def _encode(self, inputs: Sequence[Input]) -> list[np.ndarray]:
        """Encoder embeddings, those of each modality computed together, a bounded number at a time."""
        found: dict[int, np.ndarray] = {}
        for name in {m.modality: None for m in inputs}:
            places = [i for i, m in enumerate(inputs) if m.modality == name]
            for at in range(0, len(places), _ENCODE_BATCH):
                some = places[at : at + _ENCODE_BATCH]
                embedded = self._encode_batch(name, [inputs[i].content for i in some], rows=len(some))
                found |= zip(some, embedded, strict=False)
        return [found[i] for i in range(len(inputs))]

    def _encode_batch(self, name: str, contents: Sequence[np.ndarray], *, rows: int) -> np.ndarray:
        """Embeddings of media of a modality, and of zeros that fill the batch."""
        rows = round_up_to_shards(_power_of_two(min(rows, _ENCODE_BATCH)), self._places)
        batch = np.zeros((rows, *self.config.encoder.input_shape(name)), np.float32)
        for row, content in enumerate(contents):
            batch[row] = content
        with _on(self._places):
            return np.asarray(_encode(self._model, jnp.asarray(batch, self._dtype), name=name), np.float32)

    def _reply(self, generated: DecodeOutput, row: int) -> Response:
        """Splits a row's ids into text and outputs; media are added later."""
        vocabulary = self.config.vocabulary
        segments: list[Segment] = []
        text_ids: list[int] = []
        starts = {vocabulary.signal_ids(name)[0]: name for name in self.modalities}
        ids = generated.tokens[row, : generated.length[row]].tolist()
        for token in ids:
            if token < vocabulary.base_size:
                text_ids.append(token)
            elif token in starts:
                segments += self._text(text_ids)
                segments.append(Output(starts[token]))
                text_ids = []
        segments += [text for text in (t.rstrip() for t in self._text(text_ids)) if text]
        text = "".join(s for s in segments if isinstance(s, str)).strip()
        return Response(text, [], len(ids), tuple(segments))

    def _text(self, ids: list[int]) -> list[str]:
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return [text] if text else []

    def _sample(self, name, requests, generated, chosen, steps, on_step) -> list[MediaOutput]:
        """Samples the media of the `chosen` (request, group) pairs together."""
        defaults, count = getattr(self.defaults, name), len(self.config.vocabulary.signal_ids(name))
        hidden = [generated.group_hidden[i, g, :count] for i, g in chosen]
        wanted = [requests[i].guidance for i, _ in chosen]
        guidance = [defaults.guidance_scale if value is None else value for value in wanted]
        seeds, indices = [requests[i].seed for i, _ in chosen], [g for _, g in chosen]
        made = self._sample_batch(name, len(chosen), steps, hidden, guidance, seeds, indices, on_step)
        return [MediaOutput(name, self._content(name, x)) for x in made[: len(chosen)]]

    def _sample_batch(
        self, name, rows, steps, hidden=(), guidance=(), seeds=(), indices=(), on_step=None, evaluations=None
    ) -> np.ndarray:
        """What `_finish` makes of rows of hidden states and options, and of rows that fill the batch. Stops after
        `evaluations` of the sampler."""
        decoder = self._decoders[name]
        batch = round_up_to_shards(min(_power_of_two(rows), getattr(self.defaults, name).batch), self._places)

        def per_row(values, dtype, padding, shape=()):
            array = np.full((batch, *shape), padding, dtype)
            for row, value in enumerate(values):
                array[row] = value
            return array

        width = self.config.llm.hidden_size
        hidden = per_row(hidden, np.float32, 0, (len(self.config.vocabulary.signal_ids(name)), width)).astype(
            self._dtype
        )
        guidance = per_row(guidance, np.float32, 1)
        plan = decoder.scheduler.sampler_table(steps)
        seeds, indices = per_row(seeds, np.uint32, 0), per_row(indices, np.int32, 0)
        with _on(self._places):
            if name not in self._negatives:
                ids = caption_ids(self._caption_tokenizers[name], "", decoder.caption_length)
                self._negatives[name] = _caption(self._model, ids[None], name=name)
            inputs = (hidden, plan, seeds, indices)
            state, prompts = _begin(self._model, *inputs, name=name, size=self._size(name))
            count = evaluations or int(plan.num_evaluations)
            stride = 1 if on_step else count  # one program either way
            for first in range(0, count, stride):
                span = (first, first + stride)
                state = _denoise(self._model, state, prompts, self._negatives[name], plan, guidance, *span, name=name)
                if on_step:
                    jax.block_until_ready(state)
                    on_step(first + 1, count)
            return np.asarray(_finish(self._model, state.sample, name=name, dtype=self._dtype))

    def _content(self, name: str, made: np.ndarray) -> Any:
        if name == "video":
            return media.Video(made, self.defaults.video.fps)
        if name == "audio":
            decoder = self._decoders[name]
            return media.Audio(made[: decoder.num_samples(self.defaults.audio.seconds)], decoder.sampling_rate)
        return made


class _Sizes(NamedTuple):
    """The sizes of a batch that is decoded."""

    rows: int
    prompt: int
    new: int
    media: int


def _on(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    return jax.set_mesh(mesh) if mesh else contextlib.nullcontext()


@functools.partial(compiler.jit, static_argnames="config")
def _generate(model, ids, lengths, embedded, positions, options, config):
    return generate(model, model.embed_prompt(ids, embedded, positions), lengths, options, config)


@functools.partial(compiler.jit, static_argnames="name")
def _encode(model, batch, *, name):
    return constrain_batch(model.encode(name, batch))


@functools.partial(compiler.jit, static_argnames="name")
def _caption(model, ids, *, name):
    return constrain_batch(model.decoders[name].encode_prompt(ids))


@functools.partial(compiler.jit, static_argnames=("name", "size"))
def _begin(model, hidden, plan, seeds, indices, *, name, size):
    """Prompt embeddings from the hidden states at signal tokens, and noise that depends on a row's seed and index."""
    ids = jnp.array(model.config.vocabulary.signal_ids(name))
    prompts = model.prompt_embeddings(name, hidden, jnp.broadcast_to(ids, hidden.shape[:2]))
    shape = model.decoders[name].config.latent_shape(*size)
    noise = jax.vmap(lambda s, i: jax.random.normal(jax.random.fold_in(jax.random.key(s), i), shape))(seeds, indices)
    return _state_on_rows(init_state(plan, noise)), constrain_batch(prompts)


@functools.partial(compiler.jit, static_argnames="name", donate_argnums=1)
def _denoise(model, state, prompts, negative, plan, guidance, first, last, *, name):
    return denoise(model.decoders[name], state, prompts, negative, plan, guidance, first, last)


def denoise(decoder: LatentDiffusion, state: SamplerState, *arguments) -> SamplerState:
    """`decoder.denoise` of rows on the mesh in use. To be compiled: it changes the module that it is given."""
    decoder.unet = replicate_params(decoder.unet)
    return _state_on_rows(decoder.denoise(state, *arguments))


def _state_on_rows(state: SamplerState) -> SamplerState:
    return SamplerState(
        constrain_batch(state.sample), constrain_batch(state.anchor), constrain_batch(state.history, axis=1)
    )


@functools.partial(compiler.jit, static_argnames=("name", "dtype"))
def _finish(model, latents, *, name, dtype):
    """uint8 [B, ..., H, W, 3] of images and videos, float32 [B, samples] of audio."""
    made = model.decoders[name].decode(latents, dtype)
    return constrain_batch(made if name == "audio" else jnp.round(made * 255).astype(jnp.uint8))


def parse_modality(names: tuple[str, ...], wanted: str) -> tuple[list[bool], list[bool]]:
    """Which of the modalities `names` are (allowed, forced) by "auto" (the model decides), "text" (none), or a list of
    some of them such as "image,audio" (each at least once, no others).

    Raises:
      ValueError: `wanted` is something else.
    """
    if wanted in ("auto", "text"):
        return [wanted == "auto"] * len(names), [False] * len(names)
    chosen = [name.strip() for name in wanted.split(",")]
    if len(chosen) > 1 and not {"auto", "text"}.isdisjoint(chosen):
        raise ValueError(f"modality {wanted!r}: auto and text stand alone")
    if unknown := [name for name in chosen if name not in names]:
        raise ValueError(f"modality {unknown[0]!r} is not one of auto, text, {', '.join(names)}")
    return [name in chosen for name in names], [name in chosen for name in names]


def check_options(request: Request, config: NExTGPTConfig, defaults: GenerationConfig) -> list[bool]:
    """Checks the options of a request; gives which of the model's modalities have to come out.

    Raises:
      UserError: an option is out of range, or asks for what the model does not have.
    """
    ranges = {
        "steps": request.steps is None or 1 <= request.steps <= 1000,
        "guidance": request.guidance is None or 0 <= request.guidance < 1000,
        "temperature": 0 <= request.temperature < 1000,
        "top_k": 0 <= request.top_k < 2**31,
        "top_p": 0 < request.top_p <= 1,
        "max_new_tokens": 1 <= request.max_new_tokens < 2**31,
        "seed": 0 <= request.seed < 2**31,
    }
    if wrong := [name for name, good in ranges.items() if not good]:
        raise UserError(f"{wrong[0]} is out of range: {getattr(request, wrong[0])}")
    try:
        _, forced = parse_modality(config.output_modalities, request.modality)
    except ValueError as error:
        raise UserError(str(error)) from None
    for name, decoder in config.decoders:
        decoder.scheduler.sampler_table(_steps(request, name, defaults))  # raises if the sampler cannot take as many
    if sum(forced) > defaults.max_media:
        raise UserError(f"an answer has at most generation.max_media={defaults.max_media} media")
    return forced


def _steps(request: Request, name: str, defaults: GenerationConfig) -> int:
    return getattr(defaults, name).num_inference_steps if request.steps is None else request.steps


def check_defaults(defaults: GenerationConfig, modalities: Sequence[str]) -> None:
    """Checks what only the config can set. Raises UserError."""
    for name in modalities:
        if (batch := getattr(defaults, name).batch) < 1:
            raise UserError(f"generation.{name}.batch is {batch}: give at least 1")
    if "video" in modalities and not 0 < defaults.video.fps <= 1000:
        raise UserError(f"generation.video.fps is {defaults.video.fps}: give frames per second above 0, at most 1000")
    if defaults.max_media < 0:
        raise UserError(f"generation.max_media is {defaults.max_media}: give 0 or more")


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _token_bucket(n: int) -> int:
    """The next of 32, 48, 64, 96, 128, 192, ...: a chat of any length compiles few programs, and pads by a half at
    most."""
    return min(size * _power_of_two(-(-n // size)) for size in _TOKENS)
