"""Times this project's models against the PyTorch originals, at full size, with the same random weights, in one run.

    python benchmarks/compare_torch.py [CASE ...]     cases: unet vae prefill decode (all by default)

Both sides run alternately in one process on the same threads, in float32 on CPU; what counts is the ratio of their
median times, printed as "x as fast as torch". Outputs are compared too: a fast wrong answer is no answer.
"""

import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from convert import engine, llama, stable_diffusion
from convert.checkpoints import Checkpoint
from nextgpt_jax.diffusion.unet_2d import UNet2DConditionModel, UNet2DConfig
from nextgpt_jax.diffusion.vae import AutoencoderKL, AutoencoderKLConfig
from nextgpt_jax.layers import unstack
from nextgpt_jax.llama import Llama, LlamaConfig, init_cache

PROMPT, NEW = 128, 32


def ours(make: Callable[[], nnx.Module], table, module: torch.nn.Module) -> nnx.Module:
    """Our module with the torch module's weights."""
    tensors = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    shapes = {key: value.shape for key, value in tensors.items()}
    checkpoint = Checkpoint("torch", shapes, dict.fromkeys(tensors, tensors.__getitem__))
    graphdef, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graphdef, engine.load(checkpoint, state, table))


def unet(rng):
    """A denoising step of Stable Diffusion 1.5's UNet: batch 2, 512 pixels."""
    from diffusers import UNet2DConditionModel as Torch

    cfg = UNet2DConfig.sd15()
    original = Torch(cross_attention_dim=768, attention_head_dim=8).eval()
    model = ours(lambda: UNet2DConditionModel(cfg, rngs=nnx.Rngs(0)), stable_diffusion.unet_table(cfg), original)
    x = rng.standard_normal((2, 64, 64, 4), np.float32)
    context = rng.standard_normal((2, 77, 768), np.float32)
    nchw, text = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(context)
    run = jax.jit(lambda model, x, context: model(x, jnp.full(2, 500), context))
    return (
        lambda: np.asarray(run(model, x, context)),
        lambda: original(nchw, torch.tensor(500), text).sample.permute(0, 2, 3, 1).numpy(),
    )


def vae(rng):
    """Decoding one 512 x 512 image with Stable Diffusion's autoencoder."""
    from diffusers import AutoencoderKL as Torch

    cfg = AutoencoderKLConfig.sd()
    original = Torch(
        block_out_channels=cfg.block_out_channels,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
    ).eval()
    model = ours(lambda: AutoencoderKL(cfg, rngs=nnx.Rngs(0)), stable_diffusion.VAE, original)
    z = rng.standard_normal((1, 64, 64, 4), np.float32)
    nchw = torch.from_numpy(z).permute(0, 3, 1, 2).contiguous()
    run = jax.jit(lambda model, z: model.decode(z))
    return (
        lambda: np.asarray(run(model, z)),
        lambda: original.decode(nchw).sample.permute(0, 2, 3, 1).numpy(),
    )


def _llama():
    """4 layers of LLaMA-7B's width, in both."""
    from transformers import LlamaConfig as TorchConfig
    from transformers import LlamaForCausalLM as Torch

    cfg = LlamaConfig(32000, 4096, 11008, num_hidden_layers=4, num_attention_heads=32)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    original = Torch(TorchConfig(**{name: getattr(cfg, name) for name in names})).eval()
    model = ours(lambda: Llama(cfg, rngs=nnx.Rngs(0)), llama.BASE, original)
    model.layers = unstack(model.layers)
    gc.collect()
    return cfg, model, original


def prefill(rng):
    """The logits after a prompt of 128 tokens, one row: 4 layers of LLaMA-7B's width."""
    _, model, original = _llama()
    ids = rng.integers(0, 32000, (1, PROMPT))

    @jax.jit
    def run(model, ids):
        hidden, _ = model(model.embed_tokens(ids))
        return model.logits(hidden[:, -1])

    return (
        lambda: np.asarray(run(model, ids)),
        lambda: original(torch.from_numpy(ids), logits_to_keep=1).logits[:, -1].numpy(),
    )


def decode(rng):
    """32 greedy tokens with a cache after a prompt of 128, one row, as generate() does: 4 layers of the 7B width."""
    cfg, model, original = _llama()
    ids = rng.integers(0, 32000, (1, PROMPT))

    @jax.jit
    def run(model, ids):
        cache = init_cache(cfg, 1, PROMPT + NEW)
        hidden, cache = model(model.embed_tokens(ids), cache=cache)

        def step(i, carry):
            tokens, hidden, cache = carry
            token = model.logits(hidden).argmax(-1)
            at = jnp.full((1, 1), PROMPT + i)
            hidden, cache = model(model.embed_tokens(token[:, None]), positions=at, cache=cache)
            return tokens.at[:, i].set(token), hidden[:, -1], cache

        return jax.lax.fori_loop(0, NEW, step, (jnp.zeros((1, NEW), jnp.int32), hidden[:, -1], cache))[0]

    length = dict(min_new_tokens=NEW, max_new_tokens=NEW, do_sample=False)
    attention = torch.ones(1, PROMPT, dtype=torch.long)
    return (
        lambda: np.asarray(run(model, ids)),
        lambda: original.generate(torch.from_numpy(ids), attention_mask=attention, **length)[:, PROMPT:].numpy(),
    )


CASES = {"unet": (unet, 3), "vae": (vae, 3), "prefill": (prefill, 7), "decode": (decode, 5)}


def compare(name: str) -> str:
    """Times one case; a row of the table."""
    make, repeats = CASES[name]
    with torch.no_grad():
        jax_run, torch_run = make(np.random.default_rng(0))
        a, b = jax_run(), torch_run()  # warm up both, compile ours
        error = float(np.abs(a - b).max() / np.abs(b).max())
        times = {"jax": [], "torch": []}
        for _ in range(repeats):
            for side, run in (("jax", jax_run), ("torch", torch_run)):
                start = time.perf_counter()
                run()
                times[side].append(time.perf_counter() - start)
    jax_time, torch_time = (statistics.median(times[side]) for side in ("jax", "torch"))
    return f"| {name} | {jax_time:.3f} s | {torch_time:.3f} s | {torch_time / jax_time:.2f} x | {error:.1e} |"


def main(argv: list[str]) -> None:
    """Runs the cases named in `argv`, or all."""
    unknown = [name for name in argv if name not in CASES]
    if unknown:
        sys.exit(f"unknown case {unknown[0]!r}: choose from {', '.join(CASES)}")
    torch.set_num_threads(os.cpu_count() or 1)
    print(f"jax {jax.__version__}, torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, float32")
    print("| case | this project | torch | as fast as torch | relative difference |")
    print("|---|---|---|---|---|")
    for name in argv or CASES:
        print(compare(name), flush=True)
        jax.clear_caches()
        gc.collect()


if __name__ == "__main__":
    main(sys.argv[1:])
