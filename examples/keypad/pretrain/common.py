"""The training loop, weights in the hub's layout, and captions as ids."""

import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

from examples.keypad import things, vocabularies
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.rules import Table
from nextgpt_jax.weights.safetensors_writer import save_safetensors
from nextgpt_jax.weights.torch_checkpoint import open_checkpoint

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"


def fit(
    name: str,
    model: nnx.Module,
    loss: Callable[[nnx.Module, Any, Array], tuple[Array, dict[str, Array]]],
    batches: Iterator[Any],
    *,
    steps: int,
    lr: float,
    ema: float = 0.0,
    weight_decay: float = 0.01,
) -> nnx.Module:
    """AdamW with warm-up and cosine decay on all parameters. Returns the trained model, averaged if `ema`."""
    graphdef, params = nnx.split(model)
    schedule = optax.warmup_cosine_decay_schedule(0.0, lr, min(200, steps // 10), steps, 0.01 * lr)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=weight_decay))

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, average, opt, batch, key):
        def objective(params):
            return loss(nnx.merge(graphdef, params), batch, key)

        (value, metrics), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt = tx.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: ema * a + (1.0 - ema) * p, average, params)
        return params, average, opt, {"loss": value, **metrics}

    opt = jax.jit(tx.init)(params)
    average = jax.tree.map(jnp.copy, params)
    key, begin, logged = jax.random.key(0), time.time(), 0.0
    for i in range(steps):
        params, average, opt, metrics = step(params, average, opt, next(batches), jax.random.fold_in(key, i))
        if time.time() - logged > 10.0 or i == steps - 1:
            values = "  ".join(f"{k} {float(v):.4f}" for k, v in metrics.items())
            logged = time.time()
            print(f"{name}  step {i + 1}/{steps}  {values}  {logged - begin:.0f} s", flush=True)
    return nnx.merge(graphdef, average if ema else params)


def save(model: nnx.Module, table: Table, config: dict, folder: pathlib.Path, weights: str) -> None:
    """Writes a component in the hub's layout, weights in float16."""
    save_safetensors(matching.export(nnx.state(model), table), folder / weights, dtype=np.float16)
    write_json(folder / "config.json", config)
    print(f"saved {folder}", flush=True)


def load(make: Callable[[], nnx.Module], folder: pathlib.Path, table: Table) -> nnx.Module:
    """A saved component, without initializing it first."""
    graphdef, abstract = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graphdef, matching.load(open_checkpoint(folder), abstract, table))


def write_json(path: pathlib.Path, value: dict) -> None:
    """Writes indented JSON, creating the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def caption_ids(tokenizer, captions: list[str]) -> np.ndarray:
    """Ids padded to the encoders' context: [N, CONTEXT]."""
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=vocabularies.CONTEXT)["input_ids"]
    return np.array(ids, np.int32)


def all_captions(tokenizer, modality: str) -> np.ndarray:
    """Ids of every spelling of all captions of a modality: [things, spellings, CONTEXT]."""
    return np.stack([caption_ids(tokenizer, list(things.captions(t))) for t in things.everything(modality)])
