"""Times this project's models against the PyTorch originals, at full size, with the same random weights, in one run.

    python benchmarks/compare_torch.py [CASE ...]            all cases by default; an unknown name lists them
    python benchmarks/compare_torch.py --memory [CASE ...]   peak memory instead of time

Both sides run alternately in one process on the same threads, in float32 on CPU. The result is the ratio of their
median times, printed as "x as fast as torch", and the difference between their outputs.

With --memory each side runs in its own process, which builds the model and runs it once (on Linux). The result is the
peak of the resident memory above that of the imports: weights, compilation and activations.
"""

import dataclasses
import gc
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch_imagebind import TorchImageBind

from nextgpt_jax.models.diffusion.unet_2d import UNet2DConditionModel, UNet2DConfig
from nextgpt_jax.models.diffusion.unet_3d import UNet3DConditionModel, UNet3DConfig
from nextgpt_jax.models.diffusion.vae import AutoencoderKL, AutoencoderKLConfig
from nextgpt_jax.models.diffusion.vocoder import HifiGan, VocoderConfig
from nextgpt_jax.models.encoders.imagebind import ImageBind, ImageBindConfig
from nextgpt_jax.models.llms.llama import Llama, LlamaConfig
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.models.stacking import unstack
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.rules import Table
from nextgpt_jax.weights.tables import audioldm as audioldm_table
from nextgpt_jax.weights.tables import imagebind as imagebind_table
from nextgpt_jax.weights.tables import llama as llama_table
from nextgpt_jax.weights.tables import stable_diffusion as stable_diffusion_table
from nextgpt_jax.weights.tables import text_to_video as text_to_video_table
from nextgpt_jax.weights.torch_checkpoint import Checkpoint

PROMPT, NEW = 128, 32


@dataclasses.dataclass(frozen=True)
class Case:
    """Both sides of one comparison. Models are built by calling `original` and `model`."""

    original: Callable[[], torch.nn.Module]
    model: Callable[[], nnx.Module]
    table: Table
    inputs: tuple[np.ndarray, ...]  # in this project's layout
    ours: Callable[..., jax.Array]  # (model, *inputs), jitted
    theirs: Callable[..., torch.Tensor]  # (original, *inputs as tensors), in this project's layout
    prepare: Callable[[Any], None] = lambda model: None  # applied to our model after loading
    repeats: int = 3


def unet(rng) -> Case:
    """A denoising step of Stable Diffusion 1.5's UNet: batch 2, 512 pixels."""
    from diffusers import UNet2DConditionModel as Torch

    return Case(
        original=lambda: Torch(cross_attention_dim=768, attention_head_dim=8),
        model=lambda: UNet2DConditionModel(UNet2DConfig.sd15(), rngs=make_rngs(0)),
        table=stable_diffusion_table.unet_table(UNet2DConfig.sd15()),
        inputs=(_normal(rng, 2, 64, 64, 4), _normal(rng, 2, 77, 768)),
        ours=lambda model, x, context: model(x, jnp.full(2, 500), context),
        theirs=lambda model, x, context: _last(model(_first(x), torch.tensor(500), context).sample),
    )


def unet_audio(rng) -> Case:
    """A denoising step of AudioLDM-L's UNet: batch 2, 9 seconds."""
    from diffusers import UNet2DConditionModel as Torch

    cfg = UNet2DConfig.audioldm_l()
    return Case(
        original=lambda: Torch(**dataclasses.asdict(cfg)),
        model=lambda: UNet2DConditionModel(cfg, rngs=make_rngs(0)),
        table=stable_diffusion_table.unet_table(cfg),
        inputs=(_normal(rng, 2, 225, 16, 8), _normal(rng, 2, 512)),
        ours=lambda model, x, text: model(x, jnp.full(2, 500), class_labels=text),
        theirs=lambda model, x, text: _last(model(_first(x), torch.tensor(500), None, class_labels=text).sample),
    )


def unet3d(rng) -> Case:
    """A denoising step of Zeroscope's UNet: one video of 4 frames, 576 x 320 pixels, without guidance."""
    from diffusers import UNet3DConditionModel as Torch

    return Case(
        original=lambda: Torch(),
        model=lambda: UNet3DConditionModel(UNet3DConfig.zeroscope(), rngs=make_rngs(0)),
        table=text_to_video_table.UNET,
        inputs=(_normal(rng, 1, 4, 40, 72, 4), _normal(rng, 1, 77, 1024)),
        ours=lambda model, x, context: model(x, jnp.full(1, 500), context),
        theirs=lambda model, x, context: _last(model(_first(x), torch.tensor(500), context).sample),
    )


def vae(rng) -> Case:
    """Decoding one 512 x 512 image with Stable Diffusion's autoencoder."""
    from diffusers import AutoencoderKL as Torch

    cfg = AutoencoderKLConfig.sd()
    return Case(
        original=lambda: Torch(
            block_out_channels=cfg.block_out_channels,
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
        ),
        model=lambda: AutoencoderKL(cfg, rngs=make_rngs(0)),
        table=stable_diffusion_table.VAE,
        inputs=(_normal(rng, 1, 64, 64, 4),),
        ours=lambda model, z: model.decode(z),
        theirs=lambda model, z: _last(model.decode(_first(z)).sample),
    )


def vocoder(rng) -> Case:
    """AudioLDM's vocoder on 9 seconds."""
    from transformers import SpeechT5HifiGan as Torch
    from transformers import SpeechT5HifiGanConfig as TorchConfig

    cfg = VocoderConfig.audioldm()
    return Case(
        original=lambda: Torch(TorchConfig(**dataclasses.asdict(cfg), normalize_before=False)),
        model=lambda: HifiGan(cfg, rngs=make_rngs(0)),
        table=audioldm_table.VOCODER,
        inputs=(_normal(rng, 1, 900, 64),),
        ours=lambda model, mel: model(mel),
        theirs=lambda model, mel: model(mel),
    )


def imagebind_vision(rng) -> Case:
    """ImageBind's vision tower on 4 images."""
    return _imagebind("vision", _normal(rng, 4, 224, 224, 3), lambda x: _first(x)[:, :, None].repeat(1, 1, 2, 1, 1))


def imagebind_audio(rng) -> Case:
    """ImageBind's audio tower on 8 clips of 2 seconds."""
    return _imagebind("audio", _normal(rng, 8, 128, 204), lambda x: x[:, None])


def _imagebind(modality: str, inputs: np.ndarray, to_torch: Callable[[torch.Tensor], torch.Tensor]) -> Case:
    cfg = ImageBindConfig.huge()
    return Case(
        original=lambda: TorchImageBind(cfg, modality),
        model=lambda: ImageBind(cfg, branches=(modality,), rngs=make_rngs(0)),
        table=imagebind_table.table((modality,)),
        inputs=(inputs,),
        ours=lambda model, x: model.embed(modality, x),
        theirs=lambda model, x: model(to_torch(x)),
    )


def _llama(**rest) -> Case:
    """4 layers of LLaMA-7B's width, on both sides."""
    from transformers import LlamaConfig as TorchConfig
    from transformers import LlamaForCausalLM as Torch

    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

    def prepare(model):
        model.layers = unstack(model.layers)

    return Case(
        original=lambda: Torch(TorchConfig(**{name: getattr(LLAMA, name) for name in names})),
        model=lambda: Llama(LLAMA, rngs=make_rngs(0)),
        table=llama_table.BASE,
        prepare=prepare,
        **rest,
    )


LLAMA = LlamaConfig(32000, 4096, 11008, num_hidden_layers=4, num_attention_heads=32)


def prefill(rng) -> Case:
    """The logits after a prompt of 128 tokens, one row: 4 layers of LLaMA-7B's width."""

    def run(model, ids):
        hidden, _ = model(model.embed_tokens(ids))
        return model.logits(hidden[:, -1])

    return _llama(
        inputs=(rng.integers(0, 32000, (1, PROMPT)),),
        ours=run,
        theirs=lambda model, ids: model(ids, logits_to_keep=1).logits[:, -1],
        repeats=7,
    )


def decode(rng) -> Case:
    """32 greedy tokens with a cache after a prompt of 128, one row, as generate() does: 4 layers of the 7B width."""

    def run(model, ids):
        cache = model.init_cache(1, PROMPT + NEW)
        hidden, cache = model(model.embed_tokens(ids), cache=cache)

        def step(i, carry):
            tokens, hidden, cache = carry
            token = model.logits(hidden).argmax(-1)
            at = jnp.full((1, 1), PROMPT + i)
            hidden, cache = model(model.embed_tokens(token[:, None]), positions=at, cache=cache)
            return tokens.at[:, i].set(token), hidden[:, -1], cache

        return jax.lax.fori_loop(0, NEW, step, (jnp.zeros((1, NEW), jnp.int32), hidden[:, -1], cache))[0]

    def theirs(model, ids):
        length = dict(min_new_tokens=NEW, max_new_tokens=NEW, do_sample=False)
        return model.generate(ids, attention_mask=torch.ones_like(ids), **length)[:, PROMPT:]

    return _llama(inputs=(rng.integers(0, 32000, (1, PROMPT)),), ours=run, theirs=theirs, repeats=5)


CASES = {
    case.__name__: case
    for case in (unet, unet3d, unet_audio, vae, vocoder, imagebind_vision, imagebind_audio, prefill, decode)
}


def _normal(rng, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def _first(x: torch.Tensor) -> torch.Tensor:
    """Channels last to channels first."""
    return x.movedim(-1, 1).contiguous()


def _last(x: torch.Tensor) -> torch.Tensor:
    """Channels first to channels last."""
    return x.movedim(1, -1)


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    """The module, with random weights for those that start at zero, which would hide errors."""
    for parameter in module.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return module.eval()


def loaded(case: Case, module: torch.nn.Module) -> nnx.Module:
    """Our model with the torch module's weights."""
    tensors = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    graphdef, state = nnx.split(nnx.eval_shape(case.model))
    model = nnx.merge(graphdef, matching.load(Checkpoint.of("torch", tensors), state, case.table))
    case.prepare(model)
    gc.collect()
    return model


def compare(name: str) -> str:
    """Times one case. Returns a row of the table."""
    case = CASES[name](np.random.default_rng(0))
    original = randomized(case.original())
    model, run = loaded(case, original), jax.jit(case.ours)
    tensors = [torch.from_numpy(x) for x in case.inputs]
    sides = {
        "jax": lambda: np.asarray(run(model, *case.inputs)),
        "torch": lambda: case.theirs(original, *tensors).numpy(),
    }
    a, b = (side() for side in sides.values())  # warm up both, compile ours
    error = float(np.abs(a - b).max() / np.abs(b).max())
    times = {side: [] for side in sides}
    for _ in range(case.repeats):
        for side, call in sides.items():
            start = time.perf_counter()
            call()
            times[side].append(time.perf_counter() - start)
    jax_time, torch_time = (statistics.median(times[side]) for side in sides)
    return f"| {name} | {jax_time:.3f} s | {torch_time:.3f} s | {torch_time / jax_time:.2f} x | {error:.1e} |"


def resident(field: str) -> float:
    """GiB of this process: VmRSS now, VmHWM at its peak."""
    kilobytes = re.search(rf"{field}:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]
    return int(kilobytes) / 2**20


def peak(name: str, side: str) -> float:
    """Peak GiB of one side of a case in this process, above that of the imports; weights are arbitrary."""
    case = CASES[name](np.random.default_rng(0))
    before = resident("VmRSS")
    if side == "torch":
        case.theirs(case.original().eval(), *map(torch.from_numpy, case.inputs)).numpy()
    else:
        graphdef, state = nnx.split(nnx.eval_shape(case.model))
        model = nnx.merge(graphdef, jax.tree.map(lambda x: jnp.full(x.shape, 0.01, x.dtype), state))
        case.prepare(model)
        np.asarray(jax.jit(case.ours)(model, *case.inputs))
    return resident("VmHWM") - before


def compare_peaks(name: str) -> str:
    """Runs each side of one case in its own process. Returns a row of the table."""

    def alone(side):
        command = [sys.executable, __file__, f"--peak={side}", name]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    ours, theirs = alone("jax"), alone("torch")
    return f"| {name} | {ours:.2f} GiB | {theirs:.2f} GiB | {ours / theirs:.2f} x |"


def main(argv: list[str]) -> None:
    """Runs the cases named in `argv`, or all."""
    names, options = [a for a in argv if not a.startswith("-")], [a for a in argv if a.startswith("-")]
    if unknown := [name for name in names if name not in CASES]:
        sys.exit(f"unknown case {unknown[0]!r}: choose from {', '.join(CASES)}")
    if len(options) > 1 or not {*options} <= {"--memory", "--peak=jax", "--peak=torch"}:
        sys.exit(f"unknown options {' '.join(options)}: there is --memory")
    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_grad_enabled(False)
    if options and options[0].startswith("--peak"):  # one side, for the parent process
        print(peak(names[0], options[0].removeprefix("--peak=")))
        return
    row = compare_peaks if options else compare
    print(f"jax {jax.__version__}, torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, float32")
    if options:
        print("| case | this project | torch | as much as torch |\n|---|---|---|---|")
    else:
        print("| case | this project | torch | as fast as torch | relative difference |\n|---|---|---|---|---|")
    for name in names or CASES:
        print(row(name), flush=True)
        jax.clear_caches()
        gc.collect()


if __name__ == "__main__":
    main(sys.argv[1:])
