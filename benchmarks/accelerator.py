"""Times the third stage's step, and LLaMA beside transformers, at the paper's size on the accelerators at hand.

    python benchmarks/accelerator.py [train] [prefill] [decode] [--rows 8] [--remat dots] [--fsdp 1] [--quantize nf4]
    python benchmarks/accelerator.py --small         the keypad model's sizes: does the script run here?

Weights are random. `train` makes the step of configs/nextgpt_7b.py:stage3 on rows of 512 tokens, with an image to read
and one to draw, and prints its MFU. `prefill` reads 512 tokens, `decode` adds 128 greedy ones after them, reading
included: both run alternately with transformers' LlamaForCausalLM (bfloat16, SDPA) in this process, on the same GPU;
what counts is the ratio of their median times.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import keypad, nextgpt_7b
from nextgpt_jax import chips
from nextgpt_jax.command import run_command
from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.layers import make_rngs, unstack
from nextgpt_jax.llama import Llama, LlamaConfig, init_cache
from nextgpt_jax.load import frozen_dtype, model_config
from nextgpt_jax.planning import flops, plan
from nextgpt_jax.sharding import make_mesh

NEW, REPEATS = 128, 5


def random_like(tree, seed: int = 0):
    """Values for abstract arrays, each where it is to lie: numbers around zero, small ones for weights."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))

    def make(key, leaf):
        def values(key):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                return (0.02 * jax.random.normal(key, leaf.shape)).astype(leaf.dtype)
            return jax.random.randint(key, leaf.shape, 0, 2).astype(leaf.dtype)

        return jax.jit(values, out_shardings=getattr(leaf, "sharding", None))(key)

    return jax.tree.unflatten(structure, [make(key, leaf) for key, leaf in zip(keys, leaves, strict=True)])


def whole_rows(batch: dict) -> dict:
    """A batch that uses all of its places: rows are full, media are where the first tokens are."""
    length = batch["tokens"].shape[1]
    batch["lengths"] = jnp.full_like(batch["lengths"], length)
    batch["loss_mask"] = jnp.ones_like(batch["loss_mask"])
    for group in batch["media"].values():
        group["positions"] = jnp.ones_like(group["positions"])
    for group in batch["signals"].values():
        places = jnp.arange(length - group["positions"].shape[-1], length)
        group["positions"] = jnp.broadcast_to(places, group["positions"].shape)
        group["mask"] = jnp.ones_like(group["mask"])
    return batch


def train(config: ExperimentConfig) -> None:
    """The step of stage 3 with its MFU."""
    mesh = make_mesh(config.mesh)
    chip = chips.chip(mesh.devices.flat[0].device_kind)
    with jax.set_mesh(mesh):
        program = plan.training_program(config, mesh, *plan.default_media("stage3"))
        counted = flops.count(program.function.trace(*program.arguments).jaxpr)
        trainable, opt, frozen, batch, _ = program.arguments
        trainable, frozen, opt = random_like(trainable), random_like(frozen, 1), jax.tree.map(jnp.zeros_like, opt)
        batch = whole_rows(random_like(batch, 2))
        times = []
        for step in range(REPEATS + 2):  # the first compiles, the second warms up
            begin = time.perf_counter()
            trainable, opt, metrics = program.function(trainable, opt, frozen, batch, np.uint32(step))
            loss = float(metrics["loss"])
            times.append(time.perf_counter() - begin)
    seconds = statistics.median(times[2:])
    needed = counted.needed / mesh.size
    mfu = f"{needed / seconds / chip.flops:.1%}" if chip else "peak unknown"
    print("| stage 3 | rows | remat | quantized | step | rows/s | needed TFLOP/s a device | MFU | compiled in |")
    print("|---" * 9 + "|")
    cells = [
        f"{mesh.size} x {mesh.devices.flat[0].device_kind}", program.rows, config.train.remat,
        config.model.quantize or "no", f"{seconds:.3f} s", f"{program.rows / seconds:.2f}",
        f"{needed / seconds / 1e12:.1f}", mfu, f"{times[0]:.0f} s",
    ]  # fmt: skip
    print(f"| {' | '.join(map(str, cells))} |")
    assert np.isfinite(loss), loss


def language_model(cfg: LlamaConfig, dtype) -> Llama:
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Llama(cfg, rngs=make_rngs(0))))
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), state)
    model = nnx.merge(graphdef, random_like(state))
    if jax.default_backend() == "cpu":
        model.layers = unstack(model.layers)  # as the engine does
    return model


def read(model: Llama, ids):
    hidden, cache = model(model.embed_tokens(ids), cache=empty_cache(model, ids))
    return model.logits(hidden[:, -1]).argmax(-1), cache


def empty_cache(model: Llama, ids):
    return init_cache(model.config, len(ids), ids.shape[1] + NEW, model.embed_tokens.embedding[...].dtype)


def add(model: Llama, ids):
    """NEW greedy tokens after a prompt, the first of which reading it gives."""
    first, cache = read(model, ids)

    def step(i, carry):
        tokens, cache = carry
        at = jnp.full((len(ids), 1), ids.shape[1] + i)
        hidden, cache = model(model.embed_tokens(tokens[:, i, None]), positions=at, cache=cache)
        return tokens.at[:, i + 1].set(model.logits(hidden[:, -1]).argmax(-1)), cache

    tokens = jnp.zeros((len(ids), NEW), first.dtype).at[:, 0].set(first)
    return jax.lax.fori_loop(0, NEW - 1, step, (tokens, cache))[0]


def original(cfg: LlamaConfig, dtype, device: str):
    """transformers' model with random weights."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers import LlamaConfig as TorchConfig

    config = TorchConfig(**{field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)})
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, jnp.dtype(dtype).name), attn_implementation="sdpa"
        ).eval()


def alternate(ours: Callable, theirs: Callable) -> tuple[float, float]:
    """Median seconds of both, called in turns after a warm-up."""
    times = {ours: [], theirs: []}
    for _ in range(REPEATS + 1):
        for call, found in times.items():
            begin = time.perf_counter()
            call()
            found.append(time.perf_counter() - begin)
    return tuple(statistics.median(found[1:]) for found in times.values())


def inference(config: ExperimentConfig, wanted: list[str]) -> None:
    """Prefill and decode beside transformers, in the frozen weights' dtype."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    cfg, dtype = model_config(config.model, published=True).llm, frozen_dtype(config.model.dtype)
    rows, length = config.data.batch_size, config.data.max_length
    ids = np.random.default_rng(0).integers(0, cfg.vocab_size, (rows, length))
    model, theirs = language_model(cfg, dtype), original(cfg, dtype, device)
    tensor, sides = torch.from_numpy(ids).to(device), {}
    prompt = jnp.asarray(ids, jnp.int32)
    exact = dict(min_new_tokens=NEW, max_new_tokens=NEW, do_sample=False, attention_mask=torch.ones_like(tensor))

    def finished(result):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    read_ours, add_ours = jax.jit(lambda model, ids: read(model, ids)[0]), jax.jit(add)
    sides["prefill"] = (
        lambda: np.asarray(read_ours(model, prompt)),
        lambda: finished(theirs(tensor, logits_to_keep=1, use_cache=True)),
        rows * length,
    )
    sides["decode"] = (
        lambda: np.asarray(add_ours(model, prompt)),
        lambda: finished(theirs.generate(tensor, **exact)),
        rows * NEW,
    )
    print("| case | rows | this project | transformers | as fast as transformers |\n" + "|---" * 5 + "|")
    with torch.no_grad():
        for name in wanted:
            *pair, tokens = sides[name]
            mine, other = (tokens / seconds for seconds in alternate(*pair))
            print(f"| {name} | {rows} | {mine:,.0f} tokens/s | {other:,.0f} tokens/s | {mine / other:.2f} x |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="of train, prefill, decode; all by default")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--remat", default="dots", help="of train")
    parser.add_argument("--fsdp", type=int, default=1, help="of train")
    parser.add_argument("--quantize", default="", help="of train")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch lives on the same GPU
    cases = args.cases or ["train", "prefill", "decode"]
    if unknown := {*cases} - {"train", "prefill", "decode"}:
        parser.error(f"unknown case {min(unknown)}")
    config = (keypad if args.small else nextgpt_7b).get_config("stage3")
    config.data.batch_size, config.train.remat, config.mesh.fsdp = args.rows, args.remat, args.fsdp
    config.model.quantize, config.data.max_length = args.quantize, 512
    print(f"jax {jax.__version__}, {len(jax.devices())} x {jax.devices()[0].device_kind}")
    if "train" in cases:
        train(config)
    if language := [name for name in cases if name != "train"]:
        inference(config, language)


if __name__ == "__main__":
    sys.exit(run_command(lambda _: main(), sys.argv))
