"""Decoding against plain recomputation: the cache, padding, stops, signal groups, chunks, rows that join later."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nextgpt_jax.generation.loop import decode, generate
from nextgpt_jax.generation.state import SamplingParams, StaticDecodeConfig, insert_rows
from nextgpt_jax.generation.step import prefill
from nextgpt_jax.modalities import Vocabulary
from nextgpt_jax.models.llms.llama import LlamaConfig
from nextgpt_jax.models.lora import LoRAConfig
from nextgpt_jax.models.nextgpt import NExTGPTConfig, NExTGPTModel
from nextgpt_jax.models.registry import output_projector_config
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.models.stacking import unstack

VOCAB, WIDTH = 40, 32
VOCABULARY = Vocabulary(VOCAB)
NAMES = ("image", "audio")


@pytest.fixture(scope="module")
def model():
    llm = LlamaConfig(VOCAB, WIDTH, 48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    sizes = dict(hidden_dim=16, num_layers=1, num_heads=2, feedforward_dim=16)
    outputs = (
        ("image", output_projector_config("transformer", WIDTH, 8, 4, 3, **sizes)),
        ("audio", output_projector_config("transformer", WIDTH, 8, 8, 1, **sizes)),
    )
    cfg = NExTGPTConfig(llm, (), LoRAConfig(2, 2.0), "linear", outputs)
    model = NExTGPTModel(cfg, rngs=make_rngs(0))
    grow = functools.partial(jax.tree.map, lambda x: x * 3)  # livelier logits than the initial ones
    nnx.update(model, grow(nnx.state(model, lambda path, _: path[-1] == "kernel" or path[0] == "signal_head")))
    return model


def options(rows, *, allowed=(), forced=(), **given):
    """The same options for each row; modalities by name."""
    defaults = dict(temperature=0.0, top_k=0, top_p=1.0, seed=0, max_new_tokens=64)
    arrays = {k: jnp.full(rows, given.pop(k, v)) for k, v in defaults.items()}
    assert not given

    def mask(names):
        return jnp.tile(jnp.array([name in names for name in NAMES]), (rows, 1))

    return SamplingParams(**arrays, allowed_modalities=mask((*allowed, *forced)), forced_modalities=mask(forced))


def static_config(**given):
    groups = tuple(map(VOCABULARY.signal_ids, NAMES))
    return StaticDecodeConfig(
        **{"stop_sequences": (), "signal_groups": groups, "base_vocab_size": VOCAB, "max_new_tokens": 12} | given
    )


run = jax.jit(generate, static_argnames="config")


def prompts(lengths, seed=0):
    ids = np.random.default_rng(seed).integers(0, VOCAB, (len(lengths), max(lengths)))
    return jnp.asarray(ids), jnp.asarray(lengths)


def respond(model, ids, lengths, opts, **config):
    return jax.device_get(run(model, model.embed_tokens(ids), lengths, opts, static_config(**config)))


@jax.jit
def hidden_states(model, ids):
    """[B, T, D], computed without a cache."""
    return model.llm(model.embed_tokens(ids))[0]


def recompute(model, ids, steps, allowed):
    """Greedy decoding of one row without a cache."""
    row, n = np.zeros((1, 32), np.int32), len(ids)
    row[0, :n] = ids
    for at in range(n, n + steps):
        logits = np.asarray(model.logits(hidden_states(model, row)[0, at - 1]))
        row[0, at] = np.argmax(np.where(allowed, logits, -np.inf))
    return row[0, n : n + steps].tolist()


@pytest.mark.parametrize("unstacked", [False, True])
def test_greedy_rows_of_different_lengths_equal_recomputation(model, unstacked):
    if unstacked:
        model = nnx.clone(model)
        model.llm.layers = unstack(model.llm.layers)
    ids, lengths = prompts([3, 7, 1, 5])
    found = respond(model, ids, lengths, options(4))
    allowed = np.arange(VOCABULARY.size) < VOCAB
    for row, n in enumerate(lengths):
        assert found.tokens[row].tolist() == recompute(model, ids[row, :n].tolist(), 12, allowed)
        assert found.length[row] == 12


def test_padding_and_neighbours_do_not_matter(model):
    ids, lengths = prompts([3, 7])
    together = respond(model, ids, lengths, options(2, temperature=1.0, seed=5))
    alone = respond(model, ids[:1, :3], lengths[:1], options(1, temperature=1.0, seed=5))
    np.testing.assert_array_equal(together.tokens[0], alone.tokens[0])


def test_stop_sequence_of_several_tokens(model):
    ids, lengths = prompts([4])
    free = respond(model, ids, lengths, options(1)).tokens[0].tolist()
    at = next(i for i in range(2, 11) if free[i : i + 2] not in [free[j : j + 2] for j in range(i)])
    stopped = respond(model, ids, lengths, options(1), stop_sequences=((free[at], free[at + 1]),))
    assert stopped.length[0] == at
    assert stopped.tokens[0, :at].tolist() == free[:at] and stopped.stopped[0]


def test_a_stop_token_at_the_limit_still_stops(model):
    ids, lengths = prompts([4])
    free = respond(model, ids, lengths, options(1)).tokens[0].tolist()
    at = next(i for i in range(2, 12) if free[i] not in free[:i])
    opts = dataclasses.replace(options(1), max_new_tokens=jnp.array([at]))
    for stops, ended in (((free[at],),), True), ((), False):
        found = respond(model, ids, lengths, opts, stop_sequences=stops)
        assert found.length[0] == at and found.stopped[0] == ended


def test_limits_of_rows_are_their_own(model):
    ids, lengths = prompts([4, 4])
    opts = options(2)
    opts = dataclasses.replace(opts, max_new_tokens=jnp.array([3, 9]))
    assert respond(model, ids, lengths, opts).length.tolist() == [3, 9]


@pytest.mark.parametrize("name", NAMES)
def test_a_forced_group_is_complete_and_keeps_its_states(model, name):
    ids, lengths = prompts([5, 2])
    found = respond(model, ids, lengths, options(2, forced=[name]), max_new_tokens=16)
    group = VOCABULARY.signal_ids(name)
    for row, n in enumerate(lengths):
        tokens = found.tokens[row, : found.length[row]].tolist()
        starts = [i for i, t in enumerate(tokens) if t == group[0]]
        assert len(starts) == found.num_groups[row] >= 1
        for g, start in enumerate(starts):
            assert tuple(tokens[start : start + len(group)]) == group
            assert found.group_modality[row, g] == NAMES.index(name)
            whole = np.zeros((1, 32), np.int32)
            whole[0, : n + len(tokens)] = [*ids[row, :n].tolist(), *tokens]
            expected = hidden_states(model, whole)[0, n + start : n + start + len(group)]
            np.testing.assert_allclose(found.group_hidden[row, g, : len(group)], expected, rtol=1e-4, atol=1e-4)


def test_text_only_never_emits_new_tokens_and_auto_may(model):
    ids, lengths = prompts([5, 2, 3, 4])
    assert (respond(model, ids, lengths, options(4, temperature=5.0)).tokens < VOCAB).all()
    free = respond(model, ids, lengths, options(4, temperature=5.0, allowed=NAMES), max_new_tokens=48)
    assert free.num_groups.sum() > 0
    starts = {VOCABULARY.signal_ids(n)[0]: VOCABULARY.signal_ids(n) for n in NAMES}
    for row in range(4):
        tokens, at = free.tokens[row, : free.length[row]].tolist(), 0
        while at < len(tokens):
            if tokens[at] >= VOCAB:
                group = starts[tokens[at]]
                assert tuple(tokens[at : at + len(group)]) == group
                at += len(group)
            else:
                at += 1


def test_both_modalities_can_be_forced_and_groups_are_limited(model):
    ids, lengths = prompts([5])
    both = options(1, forced=NAMES)
    found = respond(model, ids, lengths, both, max_new_tokens=12)
    assert sorted(found.group_modality[0, :2].tolist()) == [0, 1]
    always = dataclasses.replace(both, temperature=jnp.full(1, 20.0))
    assert respond(model, ids, lengths, always, max_new_tokens=120, max_groups=2).num_groups[0] <= 2


class Stubborn:
    """A model that always says the same."""

    def __init__(self, model, token):
        self.config, self.llm, self.embed_tokens, self._token = model.config, model.llm, model.embed_tokens, token

    def logits(self, hidden):
        return jnp.zeros((*hidden.shape[:-1], VOCABULARY.size)).at[..., self._token].set(1.0)


@pytest.mark.parametrize("token", [7, VOCABULARY.signal_ids("image")[0], VOCABULARY.signal_ids("audio")[0]])
@pytest.mark.parametrize("spare_groups", [0, 2])
def test_all_that_is_forced_is_emitted_whatever_the_model_prefers(model, token, spare_groups):
    """A stop, or one group over and over; with exactly enough room, and with more; greedy, and at random."""
    spares, choices = (0, 1, 3, 4, 5, 8, 9, 17), ((0,), (1,), (0, 1))
    cases = list(itertools.product(choices, spares, (0.0, 30.0)))
    forced = jnp.array([[m in names for m in range(2)] for names, _, _ in cases])
    limits = forced @ jnp.array([4, 8]) + jnp.array([spare for _, spare, _ in cases])
    opts = options(len(cases), allowed=NAMES)
    temperature = jnp.array([t for _, _, t in cases])
    opts = dataclasses.replace(opts, forced_modalities=forced, max_new_tokens=limits, temperature=temperature)
    ids, lengths = prompts([4] * len(cases))
    config = static_config(stop_sequences=((7, 9), (7,)), max_new_tokens=32, max_groups=2 + spare_groups)
    embedded = model.embed_tokens(ids)
    found = jax.device_get(jax.jit(lambda e: generate(Stubborn(model, token), e, lengths, opts, config))(embedded))
    for row, (names, _, _) in enumerate(cases):
        made = found.group_modality[row, : found.num_groups[row]].tolist()
        assert set(names) <= set(made), (cases[row], found.tokens[row].tolist())
        assert found.length[row] <= limits[row] and found.num_groups[row] <= config.max_groups
        tokens = found.tokens[row, : found.length[row]].tolist()
        assert [t for t in tokens if t >= VOCAB] == [t for m in made for t in VOCABULARY.signal_ids(NAMES[m])]


def test_changing_options_does_not_recompile(model):
    ids, lengths = prompts([3, 3])
    respond(model, ids, lengths, options(2))
    before = run._cache_size()
    respond(model, ids, lengths, options(2, temperature=0.7, top_k=5, top_p=0.9, seed=3, forced=["image"]))
    assert run._cache_size() == before


def test_decoding_in_chunks_equals_decoding_at_once(model):
    """Also where a chunk ends before, after or instead of a group."""
    ids, lengths = prompts([5, 2, 4])
    opts = options(3, temperature=1.0, seed=3, forced=["image"], allowed=NAMES)
    config, embedded = static_config(max_new_tokens=24), model.embed_tokens(ids)
    expected = respond(model, ids, lengths, opts, max_new_tokens=24)
    first = jax.jit(prefill, static_argnames="config")(model, embedded, lengths, opts, config)
    advance = jax.jit(decode, static_argnames="config")
    for max_steps in (1, 3):
        state, chunks = first, 0
        while not state.done.all():
            before = state.num_tokens
            state, chunks = advance(model, state, config, max_steps), chunks + 1
            assert (state.num_tokens - before <= max_steps * config.group_width).all()
            assert (state.num_tokens > before).any()
        assert chunks > 2
        for found, wanted in zip(jax.tree.leaves(state.output()), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unstacked", [False, True])
def test_a_row_that_joins_later_gets_the_response_it_gets_alone(model, unstacked):
    """Its place is that of a row that is done; the other row does not notice."""
    if unstacked:
        model = nnx.clone(model)
        model.llm.layers = unstack(model.llm.layers)
    ids, lengths = prompts([6, 3, 4])
    opts = dataclasses.replace(
        options(3, temperature=1.0, forced=["image"]), seed=jnp.array([1, 2, 3]), max_new_tokens=jnp.array([12, 5, 9])
    )
    alone = [
        respond(model, ids[i : i + 1, :n], lengths[i : i + 1], jax.tree.map(lambda x, i=i: x[i : i + 1], opts))
        for i, n in enumerate(lengths)
    ]
    config, slots = static_config(), 24
    begin = jax.jit(prefill, static_argnames=("config", "slots"))
    advance = jax.jit(decode, static_argnames="config")
    two, one = (jax.tree.map(lambda x, rows=rows: x[rows], opts) for rows in (slice(0, 2), slice(2, 3)))
    state = begin(model, model.embed_tokens(ids[:2]), lengths[:2], two, config, slots)
    while not state.done[1]:
        state = advance(model, state, config, 1)
    second = jax.tree.map(lambda x: x[1], state.output())
    assert not state.done[0]
    new = begin(model, model.embed_tokens(ids[2:, :4]), lengths[2:], one, config, slots)
    state = advance(model, insert_rows(state, jnp.array([1]), new), config)
    first, third = (jax.tree.map(lambda x, i=i: x[i], state.output()) for i in range(2))
    for expected, found in zip(alone, (first, second, third), strict=True):
        n = expected.length[0]
        assert found.length == n and found.num_groups == expected.num_groups[0]
        np.testing.assert_array_equal(found.tokens[:n], expected.tokens[0, :n])
        np.testing.assert_allclose(found.group_hidden[0, :4], expected.group_hidden[0, 0, :4], rtol=1e-4, atol=1e-4)
