"""Prefill and the decode step: pure functions over a `DecodeState`.

A row whose next token is the first of a signal group is fed the whole group in one step, so groups are always complete,
and the hidden states at their tokens are kept for the output projections. Legend of shapes: see state.py.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nextgpt_jax.generation.sampling import sample_token
from nextgpt_jax.generation.state import AnyArray, DecodeState, SamplingParams, StaticDecodeConfig


@runtime_checkable
class CachedLanguageModel(Protocol):
    """A decoder stack with a key/value cache; see `models.llms.llama.Llama`."""

    def init_cache(self, batch: int, slots: int, dtype: jnp.dtype) -> dict[str, Any]:
        """An empty cache. dtype: of floats, or int8."""

    def __call__(
        self,
        embeddings: Float[Array, "b t d"],
        *,
        positions: Int[Array, "b t"] | None = None,
        cache: dict[str, Any],
        attended: int | None = None,
    ) -> tuple[Float[Array, "b t d"], dict[str, Any]]:
        """Final hidden states, and the cache with the new tokens at slots = positions.

        Without positions, the tokens begin their sequences. Tokens at positions >= S are not written to the cache. Only
        the first `attended` slots are looked at.
        """


@runtime_checkable
class Model(Protocol):
    """The part of a model that decoding uses; see `models.nextgpt.NExTGPTModel`."""

    llm: CachedLanguageModel

    def embed_tokens(self, ids: Int[Array, "*b"]) -> Float[Array, "*b d"]: ...

    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]: ...


def prefill(
    model: Model,
    embeddings: Float[Array, "b p d"],
    lengths: Int[AnyArray, " b"],
    params: SamplingParams,
    config: StaticDecodeConfig,
    slots: int | None = None,
) -> DecodeState:
    """Reads the prompts and chooses the first token of each row.

    Args:
      embeddings: prompts with their media in place, padded on the right.
      lengths: prompt lengths, at least 1.
      slots: S, at least P; a row needs its prompt length + its max_new_tokens. None: P + N.
    """
    batch, prompt, width = embeddings.shape
    slots = prompt + config.max_new_tokens if slots is None else slots
    dtype = jnp.dtype(config.kv_cache or embeddings.dtype)
    hidden, cache = model.llm(embeddings, cache=model.llm.init_cache(batch, slots, dtype))
    zeros = jnp.zeros(batch, jnp.int32)
    state = DecodeState(
        cache=cache,
        params=params,
        prompt_lengths=lengths,
        tokens=jnp.zeros((batch, config.max_new_tokens), jnp.int32),
        num_tokens=zeros,
        next_token=zeros,
        done=_limits(params, config) < 1,
        stopped=jnp.zeros(batch, bool),
        length=zeros,
        num_groups=zeros,
        group_modality=jnp.full((batch, config.max_groups), -1, jnp.int32),
        group_hidden=jnp.zeros((batch, config.max_groups, config.group_width, width), jnp.float32),
    )
    return _advance(model, state, hidden[jnp.arange(batch), lengths - 1], config)


def decode_step(model: Model, state: DecodeState, config: StaticDecodeConfig) -> DecodeState:
    """Feeds each row its next token and chooses the following one. No row may start a group: see `starts_group`."""
    return _feed(model, state, config, 1, groups=False)


def group_step(model: Model, state: DecodeState, config: StaticDecodeConfig) -> DecodeState:
    """As `decode_step`, but rows that start a group are fed all its tokens. Computes W tokens for every row."""
    return _feed(model, state, config, config.group_width, groups=True)


def starts_group(state: DecodeState, config: StaticDecodeConfig) -> Bool[Array, "b m"]:
    """Whether the next token of a row is the first of a group of the modality."""
    return (state.next_token[:, None] == _first_ids(config)) & ~state.done[:, None]


def _first_ids(config: StaticDecodeConfig) -> Int[Array, " m"]:
    return jnp.array([ids[0] for ids in config.signal_groups], jnp.int32)


def _group_sizes(config: StaticDecodeConfig) -> Int[Array, " m"]:
    return jnp.array([len(ids) for ids in config.signal_groups], jnp.int32)


def _limits(params: SamplingParams, config: StaticDecodeConfig) -> Int[Array, " b"]:
    return jnp.minimum(params.max_new_tokens, config.max_new_tokens)


def _feed(model: Model, state: DecodeState, config: StaticDecodeConfig, width: int, *, groups: bool) -> DecodeState:
    """Feeds each row 1 to `width` tokens; without `groups`, no row starts one.

    Arrays are updated by selection: a scatter is a loop over the rows on CPUs.
    """
    starting = starts_group(state, config)  # [B, M]
    in_group = starting.any(1)
    group, count = jnp.zeros_like(state.num_tokens), 1
    if config.signal_groups:
        group = jnp.argmax(starting, 1).astype(jnp.int32)
        count = jnp.where(in_group, _group_sizes(config)[group], 1)
    count = jnp.where(state.done, 0, count)
    offsets = jnp.arange(width)
    ids = state.next_token[:, None] + offsets * in_group[:, None]
    positions = (state.prompt_lengths + state.num_tokens)[:, None] + offsets
    out_of_range = max(state.num_slots, config.max_new_tokens)  # not written to the cache
    positions = jnp.where(offsets < count[:, None], positions, out_of_range)
    embeddings = model.embed_tokens(ids)
    hidden, cache = model.llm(embeddings, positions=positions, cache=state.cache, attended=config.attended)
    place = jnp.arange(state.tokens.shape[1]) - state.num_tokens[:, None]  # among the tokens that are fed
    fed = (place >= 0) & (place < count[:, None])
    new = dataclasses.replace(
        state,
        cache=cache,
        tokens=jnp.where(fed, state.next_token[:, None] + place * in_group[:, None], state.tokens),
        num_tokens=state.num_tokens + count,
    )
    if not groups:
        return _advance(model, new, hidden[:, 0], config)
    padded = jnp.pad(hidden, ((0, 0), (0, config.group_width - width), (0, 0))).astype(state.group_hidden.dtype)
    here = in_group[:, None] & (jnp.arange(config.max_groups) == state.num_groups[:, None])  # [B, G]
    new = dataclasses.replace(
        new,
        num_groups=state.num_groups + in_group,
        group_modality=jnp.where(here, group[:, None], state.group_modality),
        group_hidden=jnp.where(here[:, :, None, None], padded[:, None], state.group_hidden),
    )
    last = jnp.maximum(count - 1, 0)[:, None, None]
    return _advance(model, new, jnp.take_along_axis(hidden, last, 1)[:, 0], config)


def _advance(model: Model, state: DecodeState, hidden: Float[Array, "b d"], config: StaticDecodeConfig) -> DecodeState:
    """Chooses the next tokens from the last hidden states, and marks the rows that are complete."""
    chosen = _choose(model, state, hidden, config)
    return _mark_done(dataclasses.replace(state, next_token=jnp.where(state.done, state.next_token, chosen)), config)


def _choose(model: Model, state: DecodeState, hidden: Float[Array, "b d"], config: StaticDecodeConfig) -> Array:
    """The next token of each row: [B]."""
    params, limits = state.params, _limits(state.params, config)[:, None]
    first, sizes = _first_ids(config), _group_sizes(config)
    logits = model.logits(hidden).astype(jnp.float32)  # [B, V]
    emitted = (state.group_modality[:, :, None] == jnp.arange(len(first))).any(1)  # [B, M]
    missing = params.forced_modalities & ~emitted
    # A group may start only if the other forced groups that are still missing would fit after it.
    reserved_tokens = (missing * sizes).sum(1, keepdims=True) - missing * sizes
    reserved_groups = missing.sum(1, keepdims=True) - missing
    fits = state.num_tokens[:, None] + sizes + reserved_tokens <= limits
    fits &= state.num_groups[:, None] + reserved_groups < config.max_groups
    may_start = params.allowed_modalities & fits
    is_new_token = jnp.arange(logits.shape[-1]) >= config.base_vocab_size
    is_start = jnp.arange(logits.shape[-1]) == first[:, None]  # [M, V]
    excluded = is_new_token & ~(may_start[:, :, None] & is_start).any(1)
    logits = jnp.where(excluded, -jnp.inf, logits)
    keys = jax.vmap(lambda seed, n: jax.random.fold_in(jax.random.key(seed), n))(params.seed, state.num_tokens)
    token = sample_token(logits, keys, params.temperature, params.top_k, params.top_p)
    if not config.signal_groups:
        return token
    # A missing forced group replaces the token when a stop sequence would begin, or when it would no longer fit.
    owed = missing & may_start
    stop_starts = jnp.array(sorted({ids[0] for ids in config.stop_sequences}), jnp.int32)
    stopping = (token[:, None] == stop_starts).any(1, keepdims=True)
    last_chance = state.num_tokens[:, None] + 1 + jnp.sum(owed * sizes, 1, keepdims=True) > limits
    due = owed & (stopping | last_chance)
    return jnp.where(due.any(1), first[jnp.argmax(due, 1)], token)


def _mark_done(state: DecodeState, config: StaticDecodeConfig) -> DecodeState:
    """Marks the rows whose next token completes a stop sequence, and those at their limit."""
    done, length, ended = state.done, state.length, state.stopped
    for *before, last in config.stop_sequences:
        index = state.num_tokens[:, None] - len(before) + jnp.arange(len(before))
        tail = jnp.take_along_axis(state.tokens, jnp.maximum(index, 0), 1)
        preceded = ((tail == jnp.array(before, jnp.int32)) & (index >= 0)).all(1)
        stopped = (state.next_token == last) & preceded & ~done
        length = jnp.where(stopped, state.num_tokens - len(before), length)
        done, ended = done | stopped, ended | stopped
    full = ~done & (state.num_tokens >= _limits(state.params, config))
    length = jnp.where(full, state.num_tokens, length)
    return dataclasses.replace(state, done=done | full, stopped=ended, length=length)
