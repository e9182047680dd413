"""The cases of the accelerator benchmark: each yields rows of this project's times, then the same rows with peers."""

import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from measuring import Result, filled, mfu, peak_memory, times
from peers import OriginalPipeline, have_peers, original_language_model, peer

from configs import keypad, nextgpt_7b
from nextgpt_jax import compiler, flops
from nextgpt_jax.aot import programs
from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.generation.loop import generate
from nextgpt_jax.generation.state import SamplingParams, StaticDecodeConfig
from nextgpt_jax.mesh import make_mesh
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.models import attention, registry
from nextgpt_jax.models.diffusion.schedulers import init_state
from nextgpt_jax.models.nextgpt import NExTGPTConfig, NExTGPTModel
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights.assemble import frozen_dtype, model_config
from nextgpt_jax.weights.load import prepare_llm

ROOT = pathlib.Path(__file__).resolve().parents[1]
CALLS = 20  # of a kernel in a row, so that launches are hidden
SMALL_TOKENS, TOKENS, NEW = 32, 512, 128


def device(small: bool) -> Iterator[Result]:
    """A copy, and a bfloat16 product: the references of the shares below."""
    size, n = (2**24, 512) if small else (2**30, 8192)
    x = jnp.zeros(size, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    first, seconds = times(lambda: copy(x).block_until_ready(), 5)
    yield Result("device", "copy", seconds, 2 * x.nbytes / seconds / 1e12, "TB/s", first=first)
    a = jnp.ones((n, n), jnp.bfloat16)
    multiply = jax.jit(lambda a: a @ a)
    first, seconds = times(lambda: multiply(a).block_until_ready(), 5)
    rate = 2 * n**3 / seconds
    yield Result("device", f"product of {n} x {n}", seconds, rate / 1e12, "TFLOP/s", *mfu(rate), first=first)


def copy_rate(small: bool) -> float:
    """Bytes per second of a copy, read plus written."""
    return next(device(small)).rate * 1e12


def experiment(small: bool, variant: str) -> ExperimentConfig:
    """The config of the 7B system, or of the keypad world."""
    return (keypad if small else nextgpt_7b).get_config(variant)


def language(small: bool) -> Iterator[Result]:
    """The language model alone, with the engine's decoding loop. Compiled, the peer runs one row only."""
    cfg, dtype = model_config(experiment(small, "infer").model, use_published_defaults=True).llm, frozen_dtype("auto")
    prompt, bandwidth = SMALL_TOKENS if small else TOKENS, copy_rate(small)

    def abstract():
        config = NExTGPTConfig(llm=cfg, encoders=(), lora=None, input_projector="linear", output_projectors=())
        return NExTGPTModel(config, rngs=make_rngs(0))

    model = nnx.eval_shape(abstract)
    prepare_llm(model, None)
    graphdef, state = nnx.split(model)
    model = nnx.merge(graphdef, filled(state, dtype))
    weights = (
        sum(x.nbytes for x in jax.tree.leaves(nnx.state(model.llm))) - model.llm.embed_tokens.embedding[...].nbytes
    )
    run = compiler.jit(
        lambda model, ids, lengths, options, config: generate(model, model.embed_tokens(ids), lengths, options, config),
        static_argnames="config",
    )
    found: list[tuple[np.ndarray, Result, Result]] = []
    for rows in (1, 2) if small else (1, 8, 32):
        ids = np.random.default_rng(rows).integers(0, cfg.vocab_size, (rows, prompt))

        def ours(new, rows=rows, ids=ids):
            zeros, none = np.zeros(rows, np.int32), np.zeros((rows, 0), bool)
            options = SamplingParams(
                zeros.astype(np.float32), zeros, zeros + np.float32(1), zeros, zeros + new, none, none
            )
            config = StaticDecodeConfig((), (), cfg.vocab_size, NEW)
            return run(model, ids, zeros + prompt, options, config=config)

        first, reading = times(lambda ours=ours: jax.block_until_ready(ours(0)))
        assert (ours(NEW).length == NEW).all()
        _, whole = times(lambda ours=ours: jax.block_until_ready(ours(NEW)))
        seconds = whole - reading
        cache = 2 * cfg.num_hidden_layers * cfg.num_key_value_heads * cfg.head_dim * jnp.dtype(dtype).itemsize
        touched = (weights + rows * cache * (prompt + NEW / 2)) * NEW
        needed = 2 * weights / jnp.dtype(dtype).itemsize * rows * prompt
        decode = Result(
            "decode", f"{rows} x {NEW} after {prompt}", seconds, rows * NEW / seconds, "tokens/s",
            touched / seconds / bandwidth, "copy", peak_memory(), first,
        )  # fmt: skip
        prefill = Result(
            "prefill", f"{rows} x {prompt}", reading, rows * prompt / reading, "tokens/s", *mfu(needed / reading),
            peak_memory(),
        )  # fmt: skip
        found += [(ids, decode, prefill)]
        yield from (decode, prefill)
    for name, original in (original_language_model(cfg, dtype) if have_peers() else {}).items():
        for ids, decode, prefill in found[:1] if name.endswith("compiled") and not small else found:
            read, whole = (peer(functools.partial(original, ids, new), 1 if small else 2) for new in (1, NEW))
            decode.peers[name] = whole | {"seconds": whole["seconds"] - read["seconds"]}
            prefill.peers[name] = read
            yield from (decode, prefill)


def train(small: bool) -> Iterator[Result]:
    """Steps of the training loop's function, always on the same batch."""
    for stage in ("stage3", "stage1", "stage2"):
        config = experiment(small, stage)
        config.data.batch_size, config.train.remat = 4 if small else 16, "dots"
        config.data.max_length, config.data.bucket_boundaries = 64 if small else TOKENS, ()
        config.optim.warmup_ratio = 0.0
        mesh = make_mesh(config.mesh)
        with jax.set_mesh(mesh):
            program = programs.training_program(config, mesh, *programs.default_modalities(stage))
            counted = flops.count(program.function.trace(*program.arguments).jaxpr)
            trainable, opt, frozen, batch, _ = program.arguments
            trainable, frozen = filled(trainable), filled(frozen)
            opt, batch = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), (opt, batch))
            batch, losses, seconds = whole_rows(batch), [], []
            for step in range(20):
                begin = time.perf_counter()
                trainable, opt, metrics = program.function(trainable, opt, frozen, batch, np.uint32(step))
                losses.append(float(metrics["loss"]))
                seconds.append(time.perf_counter() - begin)
        assert np.isfinite(losses).all() and losses[-1] < losses[0], losses
        taken = statistics.median(seconds[2:])
        yield Result(
            "train", f"{stage}, {program.batch_size} x {config.data.max_length}", taken, program.batch_size / taken,
            "rows/s",
            *mfu(counted.model / mesh.size / taken), peak_memory(), seconds[0],
            note=f"loss {losses[0]:.3f} to {losses[-1]:.3f} in 20 steps",
        )  # fmt: skip
        del trainable, opt, frozen, batch


def whole_rows(batch: dict) -> dict:
    """A batch without padding: rows of full length, media at the first tokens, signals at the last."""
    rows, length = batch["tokens"].shape
    batch["tokens"] = jnp.asarray(np.random.default_rng(0).integers(3, 200, (rows, length)), jnp.int32)
    batch["lengths"] = jnp.full_like(batch["lengths"], length)
    batch["loss_mask"] = jnp.ones_like(batch["loss_mask"])
    for group in batch["media"].values():
        group["positions"] = jnp.ones_like(group["positions"])
    for group in batch["signals"].values():
        places = jnp.arange(length - group["positions"].shape[-1], length)
        group["positions"] = jnp.broadcast_to(places, group["positions"].shape)
        group["mask"] = jnp.ones_like(group["mask"])
    return batch


def sampler(name: str, batches: tuple[int, ...], unit: str, small: bool) -> Iterator[Result]:
    """A decoder from prompt embeddings to media, and the pipeline of diffusers."""
    experiment_config = experiment(small, "infer")
    config = dict(model_config(experiment_config.model, use_published_defaults=True).decoders)[name]
    options, dtype = getattr(experiment_config.generation, name), frozen_dtype("auto")
    steps = 4 if small else 50
    components = tuple(c for c in config.component_classes if c != "text_encoder")
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: registry.build(config, components=components, rngs=make_rngs(0)))
    )
    model = nnx.merge(graphdef, filled(state, dtype))
    table = config.scheduler.sampler_table(steps)
    run = compiler.jit(lambda model, *inputs: model.generate(*inputs))
    denoise = jax.jit(lambda model, *inputs: model.denoise(*inputs))
    shape = config.latent_shape(*(getattr(options, field) for field in MODALITIES[name].size))
    samples, found = {}, {}
    for batch in (1,) if small else batches:
        rng = np.random.default_rng(batch)
        prompts = rng.standard_normal((batch, *config.prompt_shape)).astype(np.float32)
        noise = rng.standard_normal((batch, *shape)).astype(np.float32)
        samples[batch] = prompts, np.zeros_like(prompts[:1]), noise
    for batch, (prompts, negative, noise) in samples.items():
        inputs = (
            jnp.asarray(prompts, dtype),
            jnp.asarray(negative, dtype),
            noise,
            table,
            np.full(batch, 7.5, np.float32),
        )
        once = flops.count(run.trace(model, *inputs).jaxpr).model  # counts one evaluation: their number is traced
        evaluation = flops.count(denoise.trace(model, init_state(table, noise), *inputs[:2], *inputs[3:]).jaxpr).model
        needed = once + (int(table.num_evaluations) - 1) * evaluation
        first, seconds = times(lambda inputs=inputs: np.asarray(run(model, *inputs)))
        found[batch] = Result(
            name, f"{batch} x {'x'.join(map(str, shape))}, {steps} steps", seconds, batch / seconds, unit,
            *mfu(needed / seconds), peak_memory(), first,
        )  # fmt: skip
        yield found[batch]
    if not have_peers():
        return
    pipeline, repeats = OriginalPipeline(name, config, options, dtype), 1 if small else 2
    for peer_name in ("diffusers", "diffusers compiled"):
        if peer_name.endswith("compiled"):
            pipeline.compile(small)
        for batch, arrays in samples.items():
            found[batch].peers[peer_name] = peer(functools.partial(pipeline.sample, *arrays, steps), repeats)
            yield found[batch]


REQUESTS = [
    {"prompt": "please draw a seven", "modality": "image"},
    {"prompt": "draw a two", "modality": "image"},
    {"prompt": "play the tone of key seven", "modality": "audio"},
    {"prompt": "show me a seven moving left", "modality": "video"},
    {"prompt": "show me a nine, then play its tone"},
    {"prompt": "hello", "modality": "text"},
]


def keypad_system(small: bool) -> Iterator[Result]:
    """The whole keypad system through infer.py: with an empty and a warm compilation cache, and on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        file, cache = pathlib.Path(folder, "requests.jsonl"), str(pathlib.Path(folder, "cache"))
        file.write_text("".join(json.dumps(request) + "\n" for request in REQUESTS))

        def answer(name: str, *flags: str, **environment: str) -> float:
            command = [sys.executable, "infer.py", "--config=configs/keypad.py", f"--requests={file}"]
            command += [f"--output={folder}/{name}", "--config.model.dtype=float32", *flags]
            begin = time.perf_counter()
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=os.environ | environment)
            return time.perf_counter() - begin

        for state in ("empty", "warm"):
            seconds = answer(state, "--warmup", JAX_COMPILATION_CACHE_DIR=cache)
            yield Result("keypad", f"six requests, {state} cache", seconds, seconds, "s", note="of the whole process")
        seconds = answer("cpu", JAX_PLATFORMS="cpu")
        note = compare_answers(pathlib.Path(folder))
        yield Result("keypad", "the same on the CPU", seconds, seconds, "s", note=note)


def compare_answers(folder: pathlib.Path) -> str:
    """The difference between the answers in folder/warm and in folder/cpu."""
    from PIL import Image

    here, there = (
        [json.loads(line) for line in (folder / name / "replies.jsonl").read_text().splitlines()]
        for name in ("warm", "cpu")
    )
    same = sum(a["text"] == b["text"] for a, b in zip(here, there, strict=True))
    furthest = 0
    for a, b in zip(here, there, strict=True):
        for one, other in zip(a["images"], b["images"], strict=True):
            images = [np.asarray(Image.open(folder / n / x), int) for n, x in (("warm", one), ("cpu", other))]
            furthest = max(furthest, int(np.abs(images[0] - images[1]).max()))
    return f"{same} of {len(here)} texts equal the CPU's, images differ by {furthest} of 255 at most"


def attention_kernels(small: bool) -> Iterator[Result]:
    """The kernel that attention() chooses, and plain XLA. Shapes are rows, queries, keys, heads, width."""
    shapes = [(2, 4096, 4096, 8, 40), (16, 4096, 4096, 8, 40), (2, 1024, 1024, 8, 80), (2, 4096, 77, 8, 40),
              (48, 2304, 2304, 5, 64), (5760, 24, 24, 5, 64), (8, 512, 512, 32, 128), (1, 1, 640, 32, 128),
              (8, 257, 257, 16, 80)]  # fmt: skip
    for b, t, s, h, d in [(2, 64, 64, 4, 16)] if small else shapes:
        q, k, v = (jnp.ones((b, n, h, d), jnp.bfloat16) for n in (t, s, s))
        lengths = jnp.full(b, s, jnp.int32) if t == 1 else None
        case = attention.Case.of(q, k, key_lengths=lengths)
        found = {}
        for name, function in {
            "chosen": lambda q, k, v, n=lengths: attention.attention(q, k, v, key_lengths=n),
            "xla": lambda q, k, v, n=lengths: jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=n),
        }.items():
            compiled = functools.partial(jax.jit(function), q, k, v)
            ended = times(lambda compiled=compiled: jax.block_until_ready([compiled() for _ in range(CALLS)]), 5)[1]
            found[name] = ended / CALLS
        target = jax.default_backend()
        kernel = attention.choose_kernel(case, target, attention.targets()[target])
        yield Result(
            "attention", f"b{b} t{t} s{s} h{h} d{d}", found["chosen"], found["chosen"] * 1e3, "ms",
            peers={"XLA": {"seconds": found["xla"], "peak": None}}, note=kernel,
        )  # fmt: skip


CASES: dict[str, tuple[Callable[[bool], Iterator[Result]], int]] = {  # with its limit in seconds
    "device": (device, 30),
    "language": (language, 200),
    "train": (train, 130),
    "image": (functools.partial(sampler, "image", (1, 8), "images/s"), 150),
    "audio": (functools.partial(sampler, "audio", (1,), "clips/s"), 60),
    "video": (functools.partial(sampler, "video", (1,), "videos/s"), 80),
    "attention": (attention_kernels, 30),
    "keypad": (keypad_system, 400),
}
