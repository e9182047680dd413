"""Language models of transformers at small sizes, with random weights, and ours with the same."""

import functools

import jax
import numpy as np
import torch
from flax import nnx

from nextgpt_jax.models import registry
from nextgpt_jax.models.lora import LoRAConfig
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights import tables
from tests.parity import load_into

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
IDS = np.random.default_rng(0).integers(0, 60, (2, 9))


def original(model_class: type, **options) -> torch.nn.Module:
    """A random model; `options` are fields of its config."""
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**{**SIZES, "attn_implementation": "eager", **options})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.2 if parameter.ndim == 2 else 0.3  # large enough for attention to be far from uniform
            parameter.add_(spread * torch.randn(parameter.shape)) if "embed" not in name else parameter.normal_()
    return model


def config_of(model: torch.nn.Module):
    """Our config of a model of transformers."""
    config = model.config.to_dict()
    return registry.LANGUAGE_MODELS[config["model_type"]].config.from_dict(config)


def ours(model: torch.nn.Module, lora: LoRAConfig | None = None) -> nnx.Module:
    """Our model with the weights of one of transformers."""
    cfg = config_of(model)
    return load_into(
        lambda: registry.build(cfg, lora=lora, rngs=make_rngs(0)), tables.language_model(cfg).whole(cfg), model
    )


@functools.partial(jax.jit, static_argnames="remat")
def run(model: nnx.Module, ids, **options):
    """Hidden states and logits."""
    hidden, _ = model(model.embed_tokens(ids), **options)
    return hidden, model.logits(hidden)


@jax.jit
def decode(model: nnx.Module, embeddings, cache, positions, mask=None):
    """One step with a cache."""
    return model(embeddings, positions=positions, mask=mask, cache=cache)


def expected(model: torch.nn.Module, ids, **options):
    """Hidden states and logits of transformers."""
    with torch.no_grad():
        out = model(torch.from_numpy(ids), output_hidden_states=True, **options)
    return out.hidden_states[-1], out.logits
