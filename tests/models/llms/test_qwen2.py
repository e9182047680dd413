"""Qwen2.5 against transformers, its LoRA updates against peft, its conversion tables, and its sharding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models import registry
from nextgpt_jax.models.llms.causal_lm import SHARDING
from nextgpt_jax.models.llms.qwen2 import Qwen2, Qwen2Config
from nextgpt_jax.models.lora import LoRAConfig
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.sharding import logical_axes
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.tables.llama import language_model_tables
from nextgpt_jax.weights.torch_checkpoint import Checkpoint
from tests.models.llms import reference
from tests.models.llms.reference import IDS, SIZES, decode, expected, ours, run
from tests.parity import checkpoint_of, exported, relative_error

TABLES = language_model_tables(("q_proj", "k_proj", "v_proj"))
original = functools.partial(reference.original, transformers.Qwen2ForCausalLM, num_key_value_heads=2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0}},
        {"rms_norm_eps": 1e-2},
    ],
    ids=["plain", "tied-yarn", "eps"],
)
def test_matches_transformers_and_goes_back(options):
    model = original(**options)
    converted = ours(model)
    hidden, logits = run(converted, IDS)
    reference_hidden, reference_logits = expected(model, IDS)
    assert relative_error(hidden, reference_hidden) < 1e-5
    assert relative_error(logits, reference_logits) < 1e-5
    tensors, wanted = exported(converted, TABLES.whole(converted.config)), model.state_dict()
    if options.get("tie_word_embeddings"):
        wanted.pop("lm_head.weight")
    assert tensors.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(tensors[name], value), name


def test_biases_matter():
    model = original()
    _, logits = run(ours(model), IDS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("q_proj.bias"):
                parameter.zero_()
    assert relative_error(logits, expected(model, IDS)[1]) > 1e-2


def test_cached_decoding_equals_the_full_forward():
    model = ours(original())
    embeddings = model.embed_tokens(jnp.asarray(IDS))
    full, _ = run(model, IDS)
    cache, parts = model.init_cache(2, 12), []
    for start, stop in ((0, 5), (5, 6), (6, 9)):
        positions = jnp.broadcast_to(jnp.arange(start, stop), (2, stop - start))
        part, cache = decode(model, embeddings[:, start:stop], cache, positions)
        parts.append(part)
    assert relative_error(jnp.concatenate(parts, 1), full) < 1e-5


def test_gradients_match_transformers():
    model = original()
    hidden = model(torch.from_numpy(IDS), output_hidden_states=True).hidden_states[-1]
    hidden.square().mean().backward()
    graphdef, state = nnx.split(ours(model))
    gradient = jax.jit(jax.grad(lambda state: jnp.square(run(nnx.merge(graphdef, state), IDS)[0]).mean()))(state)
    found = matching.export(gradient, TABLES.base)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not name.endswith("k_proj.bias"):  # a softmax does not depend on it
            assert relative_error(found[name], parameter.grad) < 1e-4, name


def test_lora_matches_peft():
    targets, base = ("q_proj", "v_proj", "down_proj"), original()
    checkpoint = Checkpoint.of("base", {key: value.numpy().copy() for key, value in base.state_dict().items()})
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    adapter = Checkpoint.of("adapter", {k: v.numpy() for k, v in wrapped.state_dict().items() if "lora_" in k})
    cfg = reference.config_of(original())
    lora = LoRAConfig(rank=4, alpha=8.0, targets=targets)
    graphdef, updates, rest = nnx.split(
        nnx.eval_shape(lambda: Qwen2(cfg, lora=lora, rngs=make_rngs(0))), nnx.LoRAParam, ...
    )
    parameters = matching.load(adapter, updates, TABLES.lora), matching.load(checkpoint, rest, TABLES.base)
    model = nnx.merge(graphdef, *parameters)
    assert relative_error(run(model, IDS)[1], expected(wrapped, IDS)[1]) < 1e-5
    back = matching.export(nnx.state(model, nnx.LoRAParam), TABLES.lora)
    kept = {key.replace(".default", ""): value for key, value in adapter.items()}
    assert back.keys() == kept.keys()
    for key, value in kept.items():
        np.testing.assert_array_equal(back[key], value)


def test_quantized_layers_keep_their_biases():
    model = original()
    cfg = reference.config_of(model)
    plain = ours(model)
    quantized = Qwen2(cfg, quantization="int8", rngs=make_rngs(0))
    (_, leaf), *_ = [
        (path, leaf) for path, leaf in nnx.to_flat_state(nnx.state(quantized)) if path[-2:] == ("q_proj", "bias")
    ]
    assert leaf.shape == plain.layers.self_attn.q_proj.bias.shape == (2, 32)
    assert leaf.dtype == jnp.float32


def test_every_parameter_has_a_sharding_row():
    lora = LoRAConfig(rank=2, alpha=2.0, targets=registry.LANGUAGE_MODELS["qwen2"].lora_targets)
    for quantization in ("", "int8"):
        model = nnx.eval_shape(
            lambda q=quantization: Qwen2(Qwen2Config(**SIZES), lora=lora, quantization=q, rngs=make_rngs(0))
        )
        for path, leaf in nnx.to_flat_state(nnx.state(model)):
            logical_axes(".".join(map(str, path)), leaf.shape, SHARDING)
    assert logical_axes("layers.self_attn.q_proj.bias", (2, 32), SHARDING) == (None, "heads")


@pytest.mark.parametrize(
    "config, size", [(Qwen2Config.qwen25_05b(), 494_032_768), (Qwen2Config.qwen25_7b(), 7_615_616_512)]
)
def test_published_sizes(config, size):
    model = nnx.eval_shape(lambda: Qwen2(config, rngs=make_rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model))) == size


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"use_sliding_window": True}, "use_sliding_window=True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"attention_bias": False}, "attention_bias=False is not supported"),
        ({"rope_scaling": {"type": "mrope"}}, "Qwen2Config: rope_type='mrope' is not supported"),
        ({"eos_token_id": "<|im_end|>"}, "eos_token_id='<|im_end|>' is no token id"),
    ],
)
def test_unsupported_configs_say_why(options, reason):
    with pytest.raises(UserError, match=reason.replace("|", r"\|")):
        Qwen2Config.from_dict({**SIZES, "model_type": "qwen2", **options})


def test_a_head_in_a_file_of_a_tied_model_is_ignored():
    model = original(tie_word_embeddings=True)
    assert "lm_head.weight" in checkpoint_of(model)
    assert ours(model).lm_head is None


def test_a_head_that_is_not_the_embedding_of_a_tied_model_is_refused():
    """transformers 5 uses both."""
    model = original(tie_word_embeddings=True)
    tensors = dict(checkpoint_of(model))
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    with pytest.raises(
        UserError, match="tie_word_embeddings=true, but lm_head.weight is not model.embed_tokens.weight"
    ):
        matching.load(Checkpoint.of("file", tensors), nnx.state(ours(model)), TABLES.tied)
