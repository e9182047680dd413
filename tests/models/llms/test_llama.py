"""LLaMA 1 to 3 against transformers, its LoRA updates against peft, and both conversion tables."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.hf_config import read_json
from nextgpt_jax.models.llms.llama import Llama, LlamaConfig
from nextgpt_jax.models.lora import LoRAConfig, merge_lora
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.models.stacking import unstack
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.safetensors_writer import save_safetensors
from nextgpt_jax.weights.tables.llama import BASE, LORA
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, open_checkpoint
from tests import FIXTURES
from tests.models.llms import reference
from tests.models.llms.reference import IDS, SIZES, decode, expected, ours, run
from tests.parity import checkpoint_of, exported, relative_error

LORA_CONFIG = LoRAConfig(rank=4, alpha=8.0, dropout=0.1)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
original = functools.partial(reference.original, transformers.LlamaForCausalLM)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 1, "head_dim": 16},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rms_norm_eps": 1e-2},
        {"rope_parameters": LLAMA3, "num_key_value_heads": 2},
        {"rope_parameters": LLAMA3, "tie_word_embeddings": True},
    ],
    ids=["plain", "grouped", "one-kv-head-wide", "theta-eps", "llama3", "llama3-tied"],
)
def test_matches_transformers(options):
    model = original(**options)
    hidden, logits = run(ours(model), IDS)
    reference_hidden, reference_logits = expected(model, IDS)
    assert relative_error(hidden, reference_hidden) < 1e-5
    assert relative_error(logits, reference_logits) < 1e-5


def test_tied_head():
    model = original(tie_word_embeddings=True)
    cfg = LlamaConfig.from_dict(model.config.to_dict())
    checkpoint = checkpoint_of(model)
    tied = Checkpoint.of("tied", {k: v for k, v in checkpoint.items() if k != "lm_head.weight"})  # as hub files have it
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Llama(cfg, rngs=make_rngs(0))))
    model_of_tied = nnx.merge(graphdef, matching.load(tied, state, BASE))
    assert relative_error(run(model_of_tied, IDS)[1], expected(model, IDS)[1]) < 1e-5


def test_right_padded_rows_need_no_mask():
    model = original()
    mask = np.ones_like(IDS)
    mask[1, 5:] = 0
    _, logits = run(ours(model), IDS)
    _, reference = expected(model, IDS, attention_mask=torch.from_numpy(mask))
    kept = mask.astype(bool)
    assert relative_error(np.asarray(logits)[kept], reference.numpy()[kept]) < 1e-5


def test_left_padded_rows_take_positions_and_a_mask():
    model = original(num_key_value_heads=2)
    mask = np.ones_like(IDS)
    mask[0, :4] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    allowed = np.tril(np.ones((9, 9), bool)) & mask[:, None, None].astype(bool)
    allowed |= np.eye(9, dtype=bool)  # a padded query sees itself
    _, logits = run(ours(model), IDS, positions=jnp.asarray(positions), mask=jnp.asarray(allowed))
    _, reference = expected(model, IDS, attention_mask=torch.from_numpy(mask), position_ids=torch.from_numpy(positions))
    kept = mask.astype(bool)
    assert relative_error(np.asarray(logits)[kept], reference.numpy()[kept]) < 1e-5


def test_cached_decoding_equals_the_full_forward():
    model = ours(original(num_key_value_heads=2))
    embeddings = model.embed_tokens(jnp.asarray(IDS))
    full, _ = run(model, IDS)
    cache = model.init_cache(2, 12)
    starts, parts = [0, 4, 5, 6, 7, 9], []
    for start, stop in zip(starts[:-1], starts[1:], strict=True):
        positions = jnp.broadcast_to(jnp.arange(start, stop), (2, stop - start))
        part, cache = decode(model, embeddings[:, start:stop], cache, positions)
        parts.append(part)
    assert relative_error(jnp.concatenate(parts, 1), full) < 1e-5
    assert not np.asarray(cache["k"][:, :, 9:]).any()


def test_beginning_without_positions_is_the_same_as_with_them():
    """In a cache with more slots than tokens, and something in them."""
    model = ours(original(num_key_value_heads=2))
    embeddings = model.embed_tokens(jnp.asarray(IDS))
    old = jax.tree.map(lambda x: x + 7.0, model.init_cache(2, 12))
    positions = jnp.broadcast_to(jnp.arange(IDS.shape[1]), IDS.shape)
    expected, cache = decode(model, embeddings, old, positions)
    found, begun = decode(model, embeddings, old, None)
    assert relative_error(found, expected) < 1e-6
    for name in cache:
        np.testing.assert_allclose(begun[name], cache[name], rtol=1e-5, atol=1e-6)


def test_cached_rows_may_stand_at_different_positions():
    """Rows of 5 and 8 tokens, right-padded in the prefill, each go on at their own end."""
    model = ours(original())
    embeddings = model.embed_tokens(jnp.asarray(IDS))
    full, _ = run(model, IDS)
    lengths = jnp.array([5, 8])
    positions = jnp.broadcast_to(jnp.arange(8), (2, 8))
    positions = jnp.where(positions < lengths[:, None], positions, 99)  # padding is dropped from the cache
    mask = jnp.arange(12)[None, None, None] <= jnp.minimum(positions, 11)[:, None, :, None]
    _, cache = decode(model, embeddings[:, :8], model.init_cache(2, 12), positions, mask)
    assert not np.asarray(cache["k"][:, 0, 5:]).any()
    step, _ = decode(model, embeddings[jnp.arange(2), lengths][:, None], cache, lengths[:, None])
    assert relative_error(step[:, 0], full[jnp.arange(2), lengths]) < 1e-5


def test_unstacked_layers_give_the_same():
    model = ours(original())
    hidden, _ = run(model, IDS)
    model.layers = unstack(model.layers)
    assert relative_error(run(model, IDS)[0], hidden) < 1e-6


def test_gradients_match_transformers_with_and_without_remat():
    model = original()
    hidden = model(torch.from_numpy(IDS), output_hidden_states=True).hidden_states[-1]
    hidden.square().mean().backward()
    graphdef, state = nnx.split(ours(model))

    def loss(state, remat):
        return jnp.square(run(nnx.merge(graphdef, state), IDS, remat=remat)[0]).mean()

    plain, *others = (
        matching.export(jax.jit(jax.grad(functools.partial(loss, remat=remat)))(state), BASE)
        for remat in ("none", "dots", "full")
    )
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert relative_error(plain[name], parameter.grad) < 1e-4, name
        for recomputed in others:
            assert np.abs(recomputed[name] - plain[name]).max() <= 1e-6 * np.abs(plain[name]).max(), name


def test_export_gives_the_weights_back():
    model = original()
    tensors = exported(ours(model), BASE)
    assert tensors.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(tensors[name], value), name


@pytest.fixture(scope="module")
def vicuna() -> Llama:
    cfg = LlamaConfig.from_dict(read_json(FIXTURES / "vicuna" / "config.json"))
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Llama(cfg, rngs=make_rngs(0))))
    return nnx.merge(graphdef, matching.load(open_checkpoint(FIXTURES / "vicuna"), state, BASE))


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURES / "npz" / "llama.npz"))


def test_sharded_fixture_matches(vicuna, arrays):
    kept = arrays["in_mask"].astype(bool)
    hidden, logits = (np.asarray(x) for x in run(vicuna, arrays["in_ids"]))
    assert relative_error(vicuna.embed_tokens(jnp.asarray(arrays["in_ids"])), arrays["out_hidden_0"]) == 0
    assert relative_error(hidden[kept], arrays["out_hidden_3"][kept]) < 1e-5
    assert relative_error(logits[kept], arrays["out_logits"][kept]) < 1e-5

    labels = arrays["in_labels"][:, 1:]
    chosen = jax.nn.log_softmax(logits[:, :-1])[np.arange(2)[:, None], np.arange(13), np.maximum(labels, 0)]
    assert float(-chosen[labels >= 0].mean()) == pytest.approx(float(arrays["out_loss"]), rel=1e-5)


def test_left_padded_fixture_matches(vicuna, arrays):
    keys = arrays["in_left_mask"].astype(bool)
    allowed = np.tril(np.ones((14, 14), bool)) & keys[:, None, None] | np.eye(14, dtype=bool)
    _, logits = run(vicuna, arrays["in_ids"], mask=jnp.asarray(allowed))
    assert relative_error(np.asarray(logits)[keys], arrays["out_left_logits"][keys]) < 1e-5


def test_greedy_fixture_matches(vicuna, arrays):
    x, cache, position = jnp.asarray(arrays["in_greedy_embeds"]), vicuna.init_cache(1, 20), 0
    for token, last, logits in zip(
        arrays["out_greedy_tokens"], arrays["out_greedy_last_hidden"], arrays["out_greedy_logits"], strict=True
    ):
        positions = jnp.arange(position, position + x.shape[1])[None]
        hidden, cache = decode(vicuna, x, cache, positions)
        position += x.shape[1]
        assert relative_error(hidden[0, -1], last) < 1e-5
        assert relative_error(vicuna.logits(hidden[0, -1]), logits) < 1e-5
        assert int(vicuna.logits(hidden[0, -1]).argmax()) == token
        x = vicuna.embed_tokens(jnp.array([[token]]))


# LoRA


def adapted(targets=LORA_CONFIG.targets) -> tuple[transformers.LlamaForCausalLM, peft.PeftModel, Checkpoint]:
    """A base model, the same under peft with random updates, and the base's weights."""
    base = original()
    weights = {key: value.numpy().copy() for key, value in base.state_dict().items()}
    checkpoint = Checkpoint.of("base", weights)
    config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=list(targets), task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    return base, wrapped, checkpoint


def load_adapted(base: Checkpoint, adapter: Checkpoint, lora: LoRAConfig = LORA_CONFIG) -> Llama:
    make = nnx.eval_shape(lambda: Llama(LlamaConfig(**SIZES), lora=lora, rngs=make_rngs(0)))
    graphdef, updates, rest = nnx.split(make, nnx.LoRAParam, ...)
    return nnx.merge(graphdef, matching.load(adapter, updates, LORA), matching.load(base, rest, BASE))


@pytest.mark.parametrize("targets", [("q_proj", "k_proj", "v_proj", "o_proj"), ("v_proj", "gate_proj", "down_proj")])
def test_lora_matches_peft_and_goes_back(tmp_path, targets):
    base, wrapped, checkpoint = adapted(targets)
    wrapped.save_pretrained(tmp_path / "saved")
    lora = LoRAConfig(rank=4, alpha=8.0, targets=targets)
    model = load_adapted(checkpoint, open_checkpoint(tmp_path / "saved"), lora)
    _, reference = expected(wrapped, IDS)
    assert relative_error(run(model, IDS)[1], reference) < 1e-5
    with wrapped.disable_adapter():
        assert relative_error(run(model, IDS)[1], expected(wrapped, IDS)[1]) > 1e-2

    tensors = matching.export(nnx.state(model, nnx.LoRAParam), LORA)
    save_safetensors(tensors, tmp_path / "ours" / "adapter_model.safetensors")
    config = (tmp_path / "saved" / "adapter_config.json").read_text()
    (tmp_path / "ours" / "adapter_config.json").write_text(config)
    again = peft.PeftModel.from_pretrained(original(), tmp_path / "ours").eval()
    assert relative_error(expected(again, IDS)[1].numpy(), reference) < 1e-6
    for name, value in wrapped.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_lora_loads_in_both_spellings():
    _, wrapped, checkpoint = adapted()
    newer = {k: v.numpy() for k, v in wrapped.state_dict().items() if "lora_" in k}
    assert all(".default." in key for key in newer)
    older = {key.replace(".default", ""): value for key, value in newer.items()}
    outputs = []
    for weights in (newer, older):
        adapter = Checkpoint.of("adapter", weights)
        outputs.append(run(load_adapted(checkpoint, adapter), IDS)[1])
    np.testing.assert_array_equal(*outputs)


@pytest.fixture
def lora_model() -> Llama:
    _, wrapped, checkpoint = adapted()
    weights = {k: v.numpy() for k, v in wrapped.state_dict().items() if "lora_" in k}
    adapter = Checkpoint.of("adapter", weights)
    return load_adapted(checkpoint, adapter)


def test_merged_lora_gives_the_same_and_unmerging_restores(lora_model):
    _, before = run(lora_model, IDS)
    kernels = [jnp.array(lora_model.layers.self_attn.q_proj.kernel[...]), jnp.array(lora_model.lm_head.kernel[...])]
    merge_lora(lora_model)
    assert not np.allclose(lora_model.layers.self_attn.q_proj.kernel[...], kernels[0])
    np.testing.assert_array_equal(lora_model.lm_head.kernel[...], kernels[1])
    assert relative_error(run(lora_model, IDS)[1], before) < 1e-5
    merge_lora(lora_model, undo=True)
    np.testing.assert_allclose(lora_model.layers.self_attn.q_proj.kernel[...], kernels[0], atol=1e-6)
    assert relative_error(run(lora_model, IDS)[1], before) < 1e-5


def test_merged_lora_matches_peft(lora_model):
    _, wrapped, _ = adapted()
    merged = wrapped.merge_and_unload()
    merge_lora(lora_model)
    tensors = matching.export(nnx.state(lora_model, nnx.Not(nnx.LoRAParam)), BASE)
    for name, value in merged.state_dict().items():
        assert relative_error(tensors[name], value) < 1e-6, name


def test_dropout_acts_only_with_a_key(lora_model):
    _, plain = run(lora_model, IDS)
    np.testing.assert_array_equal(plain, run(lora_model, IDS)[1])
    keys = [jax.random.split(jax.random.key(seed), len(IDS)) for seed in (0, 0, 1)]
    dropped = [run(lora_model, IDS, dropout_keys=some)[1] for some in keys]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert relative_error(dropped[0], plain) > 1e-3
    assert relative_error(dropped[2], dropped[0]) > 1e-3


def test_a_fresh_adapter_changes_nothing():
    model = original()
    with_lora = nnx.eval_shape(lambda: Llama(LlamaConfig(**SIZES), lora=LORA_CONFIG, rngs=make_rngs(0)))
    graphdef, _, rest = nnx.split(with_lora, nnx.LoRAParam, ...)
    fresh = jax.jit(
        lambda: nnx.state(Llama(LlamaConfig(**SIZES), lora=LORA_CONFIG, rngs=make_rngs(0)), nnx.LoRAParam)
    )()
    ready = nnx.merge(graphdef, fresh, matching.load(checkpoint_of(model), rest, BASE))
    assert relative_error(run(ready, IDS)[1], expected(model, IDS)[1]) < 1e-5


# Full size, without weights


def test_published_sizes():
    lora = LoRAConfig(rank=32, alpha=32.0)
    model = nnx.eval_shape(lambda: Llama(LlamaConfig.vicuna_7b(), lora=lora, rngs=make_rngs(0)))
    _, updates, base = nnx.split(model, nnx.LoRAParam, ...)
    assert sum(x.size for x in jax.tree.leaves(base)) == 6_738_415_616
    assert sum(x.size for x in jax.tree.leaves(updates)) == 33_554_432
    for state, table, name in ((base, BASE, "llama_7b_v1_1"), (updates, LORA, "llama_7b_lora")):
        shapes = json.loads((FIXTURES / "manifests" / f"{name}.json").read_text())["state_dict"]
        wanted = {
            key.removeprefix("llama_model.").replace(".default", ""): tuple(shape) for key, shape in shapes.items()
        }
        assert matching.torch_shapes(state, table) == wanted


@pytest.mark.parametrize(
    "config, size", [(LlamaConfig.llama31_8b(), 8_030_261_248), (LlamaConfig.llama32_1b(), 1_235_814_400)]
)
def test_published_sizes_of_llama_3(config, size):
    model = nnx.eval_shape(lambda: Llama(config, rngs=make_rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model))) == size


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"model_type": "mistral"}, "model_type='mistral' is not supported"),
        ({"attention_bias": "true"}, "attention_bias='true' should be true or false: write it without quotes"),
        ({"rope_scaling": {"type": "longrope"}}, "LlamaConfig: rope_type='longrope' is not supported"),
        ({"num_key_value_heads": 3}, "4 attention heads do not divide into 3"),
        ({"head_dim": 7}, "even head width, got 7"),
        ({"vocab_size": None}, "LlamaConfig: vocab_size=None should be a whole number"),
    ],
)
def test_unsupported_configs_say_why(options, reason):
    with pytest.raises(UserError, match=reason):
        LlamaConfig.from_dict({**SIZES, **options})


def test_unknown_lora_targets_are_refused():
    with pytest.raises(ValueError, match="qkv"):
        Llama(LlamaConfig(**SIZES), lora=LoRAConfig(rank=2, alpha=2.0, targets=("qkv",)), rngs=make_rngs(0))
