"""Times the paper's system on the accelerator at hand, each case beside its peer on the same device in the same run.

    python benchmarks/accelerator.py [CASE ...] [--limit 480] [--json accelerator.json]
    python benchmarks/accelerator.py --small         tiny sizes: does every case run here, peers included? On a CPU too

Cases run in the order of their importance, each in a process of its own with a limit on its time, until --limit seconds
are over. Weights are random and made on the host, so that nothing is compiled for them.

device     what the device reaches: a copy, and a bfloat16 product; the measure of the shares below
language   7B: reading 512 tokens, and 128 greedy ones after them (reading not included) for 1, 8 and 32 rows, beside
           transformers' LlamaForCausalLM with SDPA, as it is and compiled (static cache)
train      7B: 20 steps of stages 3, 1 and 2: 16 rows of 512 tokens, an image to read and one to draw, remat dots
image      Stable Diffusion 1.5, 512 pixels, 50 steps with guidance, and the autoencoder, beside diffusers
audio      AudioLDM-L, 9 seconds, beside diffusers
video      Zeroscope, 24 frames of 576 x 320, beside diffusers
attention  kernels of nextgpt_jax.models.attention beside plain XLA, for the shapes of the decoders
keypad     infer.py on six requests with an empty and a warm compilation cache, and its answers beside the CPU's

Peers run where PyTorch is installed, in bfloat16, too; "compiled" is torch.compile(mode="reduce-overhead"). The share
of the peak FLOP/s counts the operations that the model needs, over what the device's maker publishes.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch has the same device

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import keypad, nextgpt_7b
from nextgpt_jax import chips, compiler, flops
from nextgpt_jax.aot import programs
from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.generation.loop import generate
from nextgpt_jax.generation.state import SamplingParams, StaticDecodeConfig
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.models import attention
from nextgpt_jax.models.diffusion.schedulers import init_state
from nextgpt_jax.models.layers import make_rngs
from nextgpt_jax.models.nextgpt import DECODERS, NExTGPTConfig, NExTGPTModel
from nextgpt_jax.sharding import make_mesh
from nextgpt_jax.weights.load import frozen_dtype, model_config, prepare_llm

ROOT = pathlib.Path(__file__).resolve().parents[1]
REPEATS = 3
CALLS = 20  # of a kernel, one after the other, so that the time of a launch is hidden
SMALL_TOKENS, TOKENS, NEW = 32, 512, 128


@dataclasses.dataclass
class Result:
    """A row of the table. Seconds are medians; peak memory is that of each side's own allocator, in GiB."""

    case: str
    setting: str
    seconds: float
    rate: float
    unit: str
    share: float | None = None  # of `share_of`
    share_of: str = ""
    peak: float | None = None
    first: float | None = None  # seconds of the first call, which compiles
    peers: dict[str, dict[str, float | None]] = dataclasses.field(default_factory=dict)
    note: str = ""

    def _rate_in(self, seconds: float) -> float:
        """The rate of doing the same in `seconds`; rates are in units per second or in seconds."""
        return self.rate * (seconds / self.seconds if self.unit in ("ms", "s") else self.seconds / seconds)

    def line(self) -> str:
        """The row as Markdown."""
        share = f"{self.share:.0%} of {self.share_of}" if self.share is not None else "-"
        peers = [
            f"{name}: {self._rate_in(found['seconds']):,.4g} {self.unit} ({memory(found['peak'])}), "
            f"{found['seconds'] / self.seconds:.2f} x"
            for name, found in self.peers.items()
        ]
        first = "-" if self.first is None else f"{self.first:.0f} s"
        cells = [self.case, self.setting, f"{self.rate:,.4g} {self.unit}", share, memory(self.peak), first,
                 "; ".join(peers) or "-", self.note or "-"]  # fmt: skip
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| case | setting | this project | share | peak memory | first call | peers, this project as fast as them | note |"
)


def memory(gib: float | None) -> str:
    return "?" if gib is None else f"{gib:.2f} GiB"


def filled(state: nnx.State, dtype=None) -> nnx.State:
    """Values for an abstract state, where they are to be: small random numbers, ones for scales, zeros for biases."""
    numbers = (0.02 * np.random.default_rng(0).standard_normal(10_000_019)).astype(np.float32)
    pool = functools.cache(numbers.astype)

    def values(path, leaf):
        kind = dtype if dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
        if path[-1] == "scale":
            made = np.ones(leaf.shape, kind)
        elif path[-1] in ("bias", "lora_b") or not jnp.issubdtype(kind, jnp.floating):
            made = np.zeros(leaf.shape, kind)
        else:
            made = np.resize(pool(np.dtype(kind)), leaf.shape)
        return jax.device_put(made, getattr(leaf.get_raw_value(), "sharding", None))

    return nnx.from_flat_state([(p, x.replace(values(p, x))) for p, x in nnx.to_flat_state(state)])


def times(call: Callable, repeats: int = REPEATS) -> tuple[float, float]:
    """Seconds of the first call, and the median of `repeats` more."""
    found = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return found[0], statistics.median(found[1:])


def peak_memory() -> float | None:
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 2**30 if "peak_bytes_in_use" in stats else None


def have_peers() -> bool:
    """Is PyTorch here, which the peers need?"""
    return importlib.util.find_spec("torch") is not None


def peer(call: Callable, repeats: int = REPEATS) -> dict[str, float | None]:
    """Median seconds and peak memory of a torch function."""
    import torch

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()

    def finished():
        with torch.inference_mode():
            call()
        if cuda:
            torch.cuda.synchronize()

    first, seconds = times(finished, repeats)
    return {"seconds": seconds, "first": first, "peak": torch.cuda.max_memory_allocated() / 2**30 if cuda else None}


def device(small: bool) -> Iterator[Result]:
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


def mfu(rate: float) -> tuple[float | None, str]:
    chip = chips.chip(jax.devices()[0].device_kind)
    return (rate / chip.flops, "peak FLOP/s") if chip else (None, "")


def copy_rate(small: bool) -> float:
    """Bytes a second of a copy, read and written."""
    return next(device(small)).rate * 1e12


def experiment(small: bool, variant: str) -> ExperimentConfig:
    return (keypad if small else nextgpt_7b).get_config(variant)


def language(small: bool) -> Iterator[Result]:
    """The language model alone, by the decoding loop of the engine."""
    cfg, dtype = model_config(experiment(small, "infer").model, use_published_defaults=True).llm, frozen_dtype("auto")
    prompt, bandwidth = SMALL_TOKENS if small else TOKENS, copy_rate(small)

    def abstract():
        config = NExTGPTConfig(
            llm=cfg, encoder=None, lora=None, input_projector="linear", input_dim=8, output_projectors=()
        )
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


def original_language_model(cfg, dtype) -> dict[str, Callable]:
    """transformers' generate(ids, new tokens), as it is and compiled (for one row: all that the time allows for)."""
    import torch
    from transformers import AutoModelForCausalLM, CompileConfig
    from transformers import LlamaConfig as TorchConfig

    where = "cuda" if torch.cuda.is_available() else "cpu"
    config = TorchConfig(**{field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)})
    with torch.device(where):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, jnp.dtype(dtype).name), attn_implementation="sdpa"
        ).eval()
    compile_config = CompileConfig()
    compile_config._compile_all_devices = True  # on CPUs too, for --small

    def run(ids, new, **options):
        tensor = torch.from_numpy(ids).to(where)
        exact = dict(min_new_tokens=new, max_new_tokens=new, do_sample=False, attention_mask=torch.ones_like(tensor))
        return model.generate(tensor, **exact, **options)

    static = functools.partial(run, cache_implementation="static", compile_config=compile_config)
    return {"transformers": run, "transformers compiled": static}


def train(small: bool) -> Iterator[Result]:
    """Steps of the training loop's own function, on one batch again and again."""
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
    """A batch that uses all of its places: rows are full, media are where the first tokens are."""
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
    """A decoder from prompt embeddings to media, beside the pipeline of diffusers."""
    experiment_config = experiment(small, "infer")
    config = dict(model_config(experiment_config.model, use_published_defaults=True).decoders)[name]
    options, dtype = getattr(experiment_config.generation, name), frozen_dtype("auto")
    steps = 4 if small else 50
    components = tuple(c for c in DECODERS[name][1].component_classes if c != "text_encoder")
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: DECODERS[name][1](config, components=components, rngs=make_rngs(0)))
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
        once = flops.count(run.trace(model, *inputs).jaxpr).model  # with one evaluation, as their number is traced
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


class OriginalPipeline:
    """The pipeline of diffusers with random weights of the sizes of our decoder's config."""

    def __init__(self, name: str, config, options, dtype):
        import diffusers
        import torch
        import transformers

        self.name, self.options = name, options
        where = "cuda" if torch.cuda.is_available() else "cpu"
        vae, n = config.vae, len(config.vae.block_out_channels)
        unets = {"video": diffusers.UNet3DConditionModel}
        schedulers = {"pndm": diffusers.PNDMScheduler, "ddim": diffusers.DDIMScheduler}
        noise = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
        if config.scheduler.name == "pndm":
            noise["skip_prk_steps"] = True
        with torch.device(where):
            parts: dict[str, Any] = {
                "unet": unets.get(name, diffusers.UNet2DConditionModel)(**dataclasses.asdict(config.unet)),
                "vae": diffusers.AutoencoderKL(
                    in_channels=vae.in_channels,
                    out_channels=vae.out_channels,
                    latent_channels=vae.latent_channels,
                    block_out_channels=vae.block_out_channels,
                    layers_per_block=vae.layers_per_block,
                    norm_num_groups=vae.norm_num_groups,
                    down_block_types=("DownEncoderBlock2D",) * n,
                    up_block_types=("UpDecoderBlock2D",) * n,
                ),
                "text_encoder": None,
            }
            if name == "audio":
                vocoder = transformers.SpeechT5HifiGanConfig(
                    **dataclasses.asdict(config.vocoder), normalize_before=False
                )
                parts["vocoder"] = transformers.SpeechT5HifiGan(vocoder)
                text = transformers.ClapTextConfig(
                    vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
                )
                parts["text_encoder"] = transformers.ClapTextModelWithProjection(text)
        if name == "image":
            parts |= dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        kinds = {
            "image": diffusers.StableDiffusionPipeline,
            "video": diffusers.TextToVideoSDPipeline,
            "audio": diffusers.AudioLDMPipeline,
        }
        scheduler = schedulers.get(config.scheduler.name, diffusers.DDIMScheduler)(**noise)
        self.pipeline = kinds[name](**parts, tokenizer=None, scheduler=scheduler)
        self.pipeline.to(where, getattr(torch, jnp.dtype(dtype).name))
        self.pipeline.set_progress_bar_config(disable=True)
        if name == "video":
            self.pipeline.vae.enable_slicing()  # as its documentation recommends

    def compile(self, small: bool) -> None:
        for part in (self.pipeline.unet, self.pipeline.vae.decoder):
            part.compile(mode="default" if small else "reduce-overhead")

    def sample(self, prompts, negative, noise, steps) -> None:
        import torch

        kind, where = self.pipeline.unet.dtype, self.pipeline.unet.device
        prompts, negative = (
            torch.from_numpy(np.broadcast_to(x, prompts.shape).copy()).to(where, kind) for x in (prompts, negative)
        )
        if self.name == "audio":
            prompts, negative = prompts[:, 0], negative[:, 0]
        latents = torch.from_numpy(np.moveaxis(noise, -1, 1).copy()).to(where, kind)
        if self.name == "audio":
            size = dict(audio_length_in_s=self.options.seconds)
        else:
            size = dict(height=self.options.height, width=self.options.width)
        if self.name == "video":
            size["num_frames"] = noise.shape[1]
        self.pipeline(
            prompt_embeds=prompts, negative_prompt_embeds=negative, latents=latents, num_inference_steps=steps,
            guidance_scale=7.5, output_type="pt", **size,
        )  # fmt: skip


REQUESTS = [
    {"prompt": "please draw a seven", "modality": "image"},
    {"prompt": "draw a two", "modality": "image"},
    {"prompt": "play the tone of key seven", "modality": "audio"},
    {"prompt": "show me a seven moving left", "modality": "video"},
    {"prompt": "show me a nine, then play its tone"},
    {"prompt": "hello", "modality": "text"},
]


def keypad_system(small: bool) -> Iterator[Result]:
    """The whole keypad system by infer.py, with an empty and a warm compilation cache; then its answers on the CPU."""
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
    """How far the answers in folder/warm are from those in folder/cpu."""
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
    """What attention() chooses, beside plain XLA: rows, queries, keys, heads, width."""
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


CASES: dict[str, tuple[Callable[[bool], Iterator[Result]], int]] = {  # and the seconds that it may take
    "device": (device, 30),
    "language": (language, 200),
    "train": (train, 130),
    "image": (functools.partial(sampler, "image", (1, 8), "images/s"), 150),
    "audio": (functools.partial(sampler, "audio", (1,), "clips/s"), 60),
    "video": (functools.partial(sampler, "video", (1,), "videos/s"), 80),
    "attention": (attention_kernels, 30),
    "keypad": (keypad_system, 400),
}


def versions() -> dict[str, str]:
    """What the figures depend on."""
    from importlib import metadata

    names = ("jax", "flax", *(("torch", "transformers", "diffusers") if have_peers() else ()))
    found = {name: metadata.version(name) for name in names}
    try:
        command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        found["card"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        found["card"] = f"none: {platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    return found | {"date": time.strftime("%Y-%m-%d")}


def run_case(name: str, small: bool, seconds: float) -> list[Result]:
    """Runs a case in a process of its own. What it found within its time is kept."""
    with tempfile.TemporaryDirectory() as folder:
        rows, log = pathlib.Path(folder, "rows"), pathlib.Path(folder, "log")
        rows.touch()
        command = [sys.executable, __file__, name, f"--rows={rows}", *["--small"] * small]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        with log.open("w") as file:
            try:
                case = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
                status = case.wait(timeout=seconds)
                ended = "" if not status else f"exit status {status}: {last_lines(log)}"
            except subprocess.TimeoutExpired:
                os.killpg(case.pid, signal.SIGKILL)  # with the processes that it has started
                case.wait()
                ended = f"stopped after {seconds:.0f} s"
        if ended:
            print(f"{name}: {ended}", file=sys.stderr, flush=True)
        results = [Result(**json.loads(line)) for line in rows.read_text().splitlines()]
        return list({(result.case, result.setting): result for result in results}.values())  # the last, with all peers


def last_lines(log: pathlib.Path, count: int = 20) -> str:
    return "\n".join(log.read_text().strip().splitlines()[-count:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--limit", type=float, default=480, help="seconds for all cases together")
    parser.add_argument("--json", type=pathlib.Path, help="write the results to this file too")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--rows", type=pathlib.Path, help=argparse.SUPPRESS)  # run one case here, and write its rows
    args = parser.parse_args()
    if unknown := [name for name in args.cases if name not in CASES]:
        parser.error(f"unknown case {unknown[0]!r}: choose from {', '.join(CASES)}")
    if args.rows:
        for result in CASES[args.cases[0]][0](args.small):
            with args.rows.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(result)) + "\n")
        return
    begin, found, about = time.perf_counter(), [], versions()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(f"{HEAD}\n{'|---' * 8}|", flush=True)
    for name in args.cases or CASES:
        left = args.limit - (time.perf_counter() - begin)
        if left < 10:
            print(f"{name}: no time left", file=sys.stderr)
            continue
        results = run_case(name, args.small, min(left, CASES[name][1] * (10 if args.small else 1)))
        print("".join(f"{result.line()}\n" for result in results), end="", flush=True)
        found += results
    print(f"\nall in {time.perf_counter() - begin:.0f} s")
    if args.json:
        results = [dataclasses.asdict(result) for result in found]
        args.json.write_text(json.dumps({"versions": about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
