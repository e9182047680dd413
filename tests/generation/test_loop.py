"""Decoding against plain recomputation: the cache, padding, stops, sampling, signal groups."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nextgpt_jax.generation.loop import SamplingParams, StaticDecodeConfig, generate, modality_options, sample_token
from nextgpt_jax.modalities import Vocabulary
from nextgpt_jax.models.connectors.projectors import OutputProjectorConfig
from nextgpt_jax.models.layers import LoRAConfig, unstack
from nextgpt_jax.models.llms.llama import LlamaConfig
from nextgpt_jax.models.nextgpt import NExTGPTConfig, NExTGPTModel

VOCAB, WIDTH = 40, 32
VOCABULARY = Vocabulary(VOCAB)
NAMES = ("image", "audio")


@pytest.fixture(scope="module")
def model():
    llm = LlamaConfig(VOCAB, WIDTH, 48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    sizes = dict(hidden_dim=16, num_layers=1, num_heads=2, feedforward_dim=16)
    outputs = (
        ("image", OutputProjectorConfig("transformer", WIDTH, 8, 4, 3, **sizes)),
        ("audio", OutputProjectorConfig("transformer", WIDTH, 8, 8, 1, **sizes)),
    )
    cfg = NExTGPTConfig(llm, None, LoRAConfig(2, 2.0), "linear", 8, outputs)
    model = NExTGPTModel(cfg, rngs=nnx.Rngs(0))
    grow = functools.partial(jax.tree.map, lambda x: x * 3)  # livelier logits than the initial ones
    nnx.update(model, grow(nnx.state(model, lambda path, _: path[-1] == "kernel" or path[0] == "signal_head")))
    return model


def options(rows, **given):
    defaults = dict(temperature=0.0, top_k=0, top_p=1.0, seed=0, max_new_tokens=64)
    arrays = {k: jnp.full(rows, given.pop(k, v)) for k, v in defaults.items()}
    allow, force = modality_options(NAMES, given.pop("modality", "text"))
    allow, force = given.pop("allow", allow), given.pop("force", force)
    assert not given
    return SamplingParams(
        **arrays, allow=jnp.tile(jnp.array(allow), (rows, 1)), force=jnp.tile(jnp.array(force), (rows, 1))
    )


run = jax.jit(generate, static_argnames="config")


def prompts(lengths, seed=0):
    ids = np.random.default_rng(seed).integers(0, VOCAB, (len(lengths), max(lengths)))
    return jnp.asarray(ids), jnp.asarray(lengths)


def decode(model, ids, lengths, opts, **config):
    config = StaticDecodeConfig(**{"stop_sequences": (), "modalities": NAMES, "max_new_tokens": 12, **config})
    return jax.device_get(run(model, model.embed_tokens(ids), lengths, opts, config))


@jax.jit
def hidden_states(model, ids):
    """Of whole rows, without a cache; [B, T, D]."""
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
    found = decode(model, ids, lengths, options(4))
    allowed = np.arange(VOCABULARY.size) < VOCAB
    for row, n in enumerate(lengths):
        assert found.tokens[row].tolist() == recompute(model, ids[row, :n].tolist(), 12, allowed)
        assert found.length[row] == 12


def test_padding_and_neighbours_do_not_matter(model):
    ids, lengths = prompts([3, 7])
    together = decode(model, ids, lengths, options(2, temperature=1.0, seed=5))
    alone = decode(model, ids[:1, :3], lengths[:1], options(1, temperature=1.0, seed=5))
    np.testing.assert_array_equal(together.tokens[0], alone.tokens[0])


def test_stop_sequence_of_several_tokens(model):
    ids, lengths = prompts([4])
    free = decode(model, ids, lengths, options(1)).tokens[0].tolist()
    at = next(i for i in range(2, 11) if free[i : i + 2] not in [free[j : j + 2] for j in range(i)])
    stopped = decode(model, ids, lengths, options(1), stop_sequences=((free[at], free[at + 1]),))
    assert stopped.length[0] == at
    assert stopped.tokens[0, :at].tolist() == free[:at]


def test_limits_of_rows_are_their_own(model):
    ids, lengths = prompts([4, 4])
    opts = options(2)
    opts = dataclasses.replace(opts, max_new_tokens=jnp.array([3, 9]))
    assert decode(model, ids, lengths, opts).length.tolist() == [3, 9]


@pytest.mark.parametrize("name", NAMES)
def test_a_forced_group_is_complete_and_keeps_its_states(model, name):
    ids, lengths = prompts([5, 2])
    found = decode(model, ids, lengths, options(2, modality=name), max_new_tokens=16)
    group = VOCABULARY.signal_ids(name)
    for row, n in enumerate(lengths):
        tokens = found.tokens[row, : found.length[row]].tolist()
        starts = [i for i, t in enumerate(tokens) if t == group[0]]
        assert len(starts) == found.num_groups[row] >= 1
        for g, start in enumerate(starts):
            assert tuple(tokens[start : start + len(group)]) == group
            assert found.kind[row, g] == NAMES.index(name)
            whole = np.zeros((1, 32), np.int32)
            whole[0, : n + len(tokens)] = [*ids[row, :n].tolist(), *tokens]
            expected = hidden_states(model, whole)[0, n + start : n + start + len(group)]
            np.testing.assert_allclose(found.hidden[row, g, : len(group)], expected, rtol=1e-4, atol=1e-4)


def test_text_only_never_emits_new_tokens_and_auto_may(model):
    ids, lengths = prompts([5, 2, 3, 4])
    assert (decode(model, ids, lengths, options(4, temperature=5.0)).tokens < VOCAB).all()
    free = decode(model, ids, lengths, options(4, temperature=5.0, modality="auto"), max_new_tokens=48)
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
    both = options(1, allow=[True, True], force=[True, True])
    found = decode(model, ids, lengths, both, max_new_tokens=12)
    assert sorted(found.kind[0, :2].tolist()) == [0, 1]
    always = dataclasses.replace(both, temperature=jnp.full(1, 20.0))
    assert decode(model, ids, lengths, always, max_new_tokens=120, max_groups=2).num_groups[0] <= 2


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
    force = jnp.array([[m in names for m in range(2)] for names, _, _ in cases])
    limits = force @ jnp.array([4, 8]) + jnp.array([spare for _, spare, _ in cases])
    opts = options(len(cases), allow=[True, True])
    temperature = jnp.array([t for _, _, t in cases])
    opts = dataclasses.replace(opts, force=force, max_new_tokens=limits, temperature=temperature)
    ids, lengths = prompts([4] * len(cases))
    config = StaticDecodeConfig(((7, 9), (7,)), NAMES, max_new_tokens=32, max_groups=2 + spare_groups)
    embedded = model.embed_tokens(ids)
    found = jax.device_get(jax.jit(lambda e: generate(Stubborn(model, token), e, lengths, opts, config))(embedded))
    for row, (names, _, _) in enumerate(cases):
        made = found.kind[row, : found.num_groups[row]].tolist()
        assert set(names) <= set(made), (cases[row], found.tokens[row].tolist())
        assert found.length[row] <= limits[row] and found.num_groups[row] <= config.max_groups
        tokens = found.tokens[row, : found.length[row]].tolist()
        assert [t for t in tokens if t >= VOCAB] == [t for m in made for t in VOCABULARY.signal_ids(NAMES[m])]


def test_changing_options_does_not_recompile(model):
    ids, lengths = prompts([3, 3])
    decode(model, ids, lengths, options(2))
    before = run._cache_size()
    decode(model, ids, lengths, options(2, temperature=0.7, top_k=5, top_p=0.9, seed=3, modality="image"))
    assert run._cache_size() == before


@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (3, 1.0), (0, 0.6), (4, 0.5)])
def test_sampling_matches_the_filtered_distribution(top_k, top_p):
    logits = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0], np.float32)
    temperature, n = 0.8, 20000
    keys = jax.random.split(jax.random.key(0), n)
    full = [jnp.full(n, v) for v in (temperature, top_k, top_p)]
    drawn = sample_token(jnp.tile(logits, (n, 1)), keys, *full)
    p = np.exp(logits / temperature)
    if top_k:
        p[top_k:] = 0
    p /= p.sum()
    p[np.cumsum(p) - p >= top_p] = 0
    p /= p.sum()
    np.testing.assert_allclose(np.bincount(drawn, minlength=6) / n, p, atol=0.015)


def test_temperature_0_is_greedy_beside_sampling_rows():
    logits = jnp.array([[0.0, 1.0, 0.5]] * 2)
    keys = jax.random.split(jax.random.key(0), 2)
    token = sample_token(logits, keys, jnp.array([0.0, 1.0]), jnp.zeros(2, int), jnp.ones(2))
    assert token[0] == 1


def test_unknown_modality():
    with pytest.raises(ValueError, match="smell"):
        modality_options(NAMES, "smell")
