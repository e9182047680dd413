"""Batched decoding: prefill, then one `lax.while_loop` over a preallocated key/value cache.

Rows may have prompts of different lengths (padded on the right), options and seeds; what a row gets does not depend
on its neighbours. When a row picks the first token of a signal group, the whole group is fed in one step of several
tokens, so a group is always complete, and the hidden states at its tokens are kept for the output projections.
Legend: B batch, P padded prompt, N new tokens at most, S = P + N cache slots, V vocabulary, G groups, W longest group.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class StaticDecodeConfig:
    """What is fixed at compile time."""

    stop_sequences: tuple[tuple[int, ...], ...]
    modalities: tuple[str, ...]  # those with an output projection, in the order of `allow` and `force`
    max_new_tokens: int = 128
    max_groups: int = 4  # signal groups a row may emit


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class SamplingParams:
    """What each row asks for: traced, so changing it never recompiles."""

    temperature: Float[Array, " b"]  # 0: greedy
    top_k: Int[Array, " b"]  # 0: off
    top_p: Float[Array, " b"]  # 1: off
    seed: Int[Array, " b"]
    max_new_tokens: Int[Array, " b"]
    allow: Bool[Array, "b m"]  # may the modality be emitted?
    force: Bool[Array, "b m"]  # must it be?


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class DecodeOutput:
    """tokens[:length] is the reply without its stop sequence. Group g < num_groups of a row is of modality kind[g]
    (index into StaticDecodeConfig.modalities) and has its hidden states in hidden[g], padded to the longest group."""

    tokens: Int[Array, "b n"]
    length: Int[Array, " b"]
    kind: Int[Array, "b g"]
    hidden: Float[Array, "b g w d"]
    num_groups: Int[Array, " b"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _State:
    cache: dict  # k, v: [layers, B, S, K, head_dim]
    tokens: Array  # [B, N] fed so far
    fed: Array  # [B] how many of them
    pending: Array  # [B] chosen, not fed yet
    done: Array  # [B]
    length: Array  # [B]
    kind: Array  # [B, G]
    hidden: Array  # [B, G, W, D]
    num_groups: Array  # [B]


def generate(
    model,
    embeddings: Float[Array, "b p d"],
    lengths: Int[Array, " b"],
    options: SamplingParams,
    config: StaticDecodeConfig,
) -> DecodeOutput:
    """Decodes a batch. Pure: jit it with `config` static.

    Args:
      model: a NExTGPTModel, of which config.vocabulary, embed_tokens, llm and logits are used.
      embeddings: prompts with their media in place, padded on the right.
      lengths: prompt lengths, at least 1.
    """
    vocabulary = model.config.vocabulary
    groups = [vocabulary.signal_ids(name) for name in config.modalities]
    widest = max([1, *map(len, groups)])
    batch, prompt, width = embeddings.shape
    limit = jnp.minimum(options.max_new_tokens, config.max_new_tokens)
    slots = prompt + config.max_new_tokens
    rows = jnp.arange(batch)
    first = jnp.array([g[0] for g in groups], jnp.int32).reshape(-1)  # [M]
    sizes = jnp.array([len(g) for g in groups], jnp.int32).reshape(-1)
    stop_starts = jnp.array(sorted({s[0] for s in config.stop_sequences}), jnp.int32)
    # Media marks and the later tokens of groups are never chosen; group starts only as `allow` and room permit.
    reserved = jnp.arange(vocabulary.size) >= vocabulary.base_size
    keys = jax.vmap(jax.random.key)(options.seed)

    def choose(hidden, fed, kind, num_groups):
        """The next token of each row from the hidden state [B, D] of its last one."""
        logits = model.logits(hidden).astype(jnp.float32)  # [B, V]
        emitted = (kind[:, :, None] == jnp.arange(len(groups))).any(1)  # [B, M]
        missing = options.force & ~emitted
        # What is still to come keeps its room, in tokens and in groups, before anything else is begun.
        others = missing.sum(1, keepdims=True) - missing
        reserve = (missing * sizes).sum(1, keepdims=True) - missing * sizes
        room = fed[:, None] + sizes + reserve <= limit[:, None]
        open_groups = options.allow & room & (num_groups[:, None] + others < config.max_groups)
        starts = jnp.where(open_groups, logits[:, first], -jnp.inf)
        logits = jnp.where(reserved, -jnp.inf, logits).at[:, first].set(starts)
        step_keys = jax.vmap(jax.random.fold_in)(keys, fed)
        token = sample_token(logits, step_keys, options.temperature, options.top_k, options.top_p)
        owed = missing & open_groups
        ending = (token[:, None] == stop_starts).any(1)
        last_chance = fed[:, None] + 1 + jnp.sum(owed * sizes, 1, keepdims=True) > limit[:, None]
        due = owed & (ending[:, None] | last_chance)
        return jnp.where(due.any(1), first[jnp.argmax(due, 1)], token) if groups else token

    def finish(state: _State) -> _State:
        """Marks the rows whose pending token completes a stop sequence, or that have no room left."""
        done, length = state.done, state.length
        for sequence in config.stop_sequences:
            before = len(sequence) - 1
            tail = state.fed[:, None] - before + jnp.arange(before)
            same = jnp.take_along_axis(state.tokens, jnp.maximum(tail, 0), 1) == jnp.array(sequence[:-1], jnp.int32)
            hit = (state.pending == sequence[-1]) & (same & (tail >= 0)).all(1) & ~done
            length = jnp.where(hit, state.fed - before, length)
            done = done | hit
        full = ~done & (state.fed >= limit)
        return dataclasses.replace(state, done=done | full, length=jnp.where(full, state.fed, length))

    def starts(state: _State) -> Array:
        """[B, M]: which group a row's pending token begins."""
        return (state.pending[:, None] == first) & ~state.done[:, None]

    def feed(state: _State, block: int) -> _State:
        """Feeds each row its pending token, and with it the rest of a group if block > 1."""
        starting = starts(state)
        group = jnp.argmax(starting, 1) if groups else jnp.zeros(batch, jnp.int32)
        begins = starting.any(1)
        count = jnp.where(state.done, 0, jnp.where(begins, sizes[group], 1) if groups else 1)
        offsets = jnp.arange(block)
        valid = offsets < count[:, None]  # [B, block]
        ids = state.pending[:, None] + offsets * begins[:, None]
        at = jnp.where(valid, state.fed[:, None] + offsets, slots)  # out of range: dropped
        tokens = state.tokens.at[rows[:, None], at].set(ids, mode="drop")
        positions = jnp.where(valid, lengths[:, None] + at, slots)
        hidden, cache = model.llm(model.embed_tokens(ids), positions=positions, cache=state.cache)
        into = jnp.where(begins, state.num_groups, config.max_groups)
        states = jnp.pad(hidden, ((0, 0), (0, widest - block), (0, 0)))
        kept = state.hidden.at[rows, into].set(states.astype(state.hidden.dtype), mode="drop")
        kind = state.kind.at[rows, into].set(group, mode="drop")
        num_groups = state.num_groups + begins
        fed = state.fed + count
        last = hidden[rows, jnp.maximum(count - 1, 0)]
        pending = jnp.where(state.done, state.pending, choose(last, fed, kind, num_groups))
        return finish(
            dataclasses.replace(
                state, cache=cache, tokens=tokens, fed=fed, pending=pending,
                kind=kind, hidden=kept, num_groups=num_groups,
            )
        )  # fmt: skip

    def step(state: _State) -> _State:
        """Feeds tokens one by one, then the groups that begin. Two loops, as XLA copies the cache at a conditional."""
        state = jax.lax.while_loop(lambda s: ~s.done.all() & ~starts(s).any(), lambda s: feed(s, 1), state)
        return jax.lax.while_loop(lambda s: starts(s).any(), lambda s: feed(s, widest), state) if groups else state

    hidden, cache = model.llm(embeddings, cache=model.llm.init_cache(batch, slots, embeddings.dtype))
    zeros = jnp.zeros(batch, jnp.int32)
    kind = jnp.full((batch, config.max_groups), -1, jnp.int32)
    state = _State(
        cache=cache,
        tokens=jnp.zeros((batch, config.max_new_tokens), jnp.int32),
        fed=zeros,
        pending=choose(hidden[rows, lengths - 1], zeros, kind, zeros),
        done=limit < 1,
        length=zeros,
        kind=kind,
        hidden=jnp.zeros((batch, config.max_groups, widest, width), jnp.float32),
        num_groups=zeros,
    )
    state = jax.lax.while_loop(lambda s: ~s.done.all(), step, finish(state))
    return DecodeOutput(state.tokens, state.length, state.kind, state.hidden, state.num_groups)


def sample_token(
    logits: Float[Array, "b v"],
    keys: Array,
    temperature: Float[Array, " b"],
    top_k: Int[Array, " b"],
    top_p: Float[Array, " b"],
) -> Int[Array, " b"]:
    """One token a row: the most likely one at temperature 0, else drawn from the top-k tokens of which the smallest set
    with at least top_p of the probability is kept (transformers' order: temperature, top-k, top-p)."""
    greedy = jnp.argmax(logits, -1).astype(jnp.int32)

    def draw(_):
        scaled = logits / jnp.maximum(temperature, 1e-6)[:, None]
        ordered = jnp.sort(scaled, -1, descending=True)
        rank = jnp.arange(logits.shape[-1])
        k = jnp.where(top_k > 0, top_k, logits.shape[-1])[:, None]
        ordered = jnp.where(rank < k, ordered, -jnp.inf)
        probability = jax.nn.softmax(ordered, -1)
        before = jnp.cumsum(probability, -1) - probability
        inside = (rank < k) & (before < top_p[:, None]) | (rank == 0)
        kept = jnp.where(inside, ordered, jnp.inf).min(-1, keepdims=True)
        drawn = jax.vmap(jax.random.categorical)(keys, jnp.where(scaled >= kept, scaled, -jnp.inf))
        return jnp.where(temperature > 0, drawn.astype(jnp.int32), greedy)

    return jax.lax.cond((temperature > 0).any(), draw, lambda _: greedy, None)


def modality_options(names: tuple[str, ...], wanted: str) -> tuple[list[bool], list[bool]]:
    """(allow, force) over the modalities `names` for "auto" (as the model likes), "text" (none), or a list of some of
    them such as "image,audio" (each at least once, no others).

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
