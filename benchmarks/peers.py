"""The PyTorch originals of the accelerator benchmark: transformers' LLaMA and the pipelines of diffusers."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from measuring import REPEATS, times


def have_peers() -> bool:
    """True if PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def peer(call: Callable, repeats: int = REPEATS) -> dict[str, float | None]:
    """Median seconds and peak memory (GiB) of a torch function."""
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


def original_language_model(cfg, dtype) -> dict[str, Callable]:
    """transformers' generate(ids, new tokens), eager and compiled."""
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


class OriginalPipeline:
    """The pipeline of diffusers with random weights, with the sizes of our decoder's config."""

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
            components: dict[str, Any] = {
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
                components["vocoder"] = transformers.SpeechT5HifiGan(vocoder)
                text = transformers.ClapTextConfig(
                    vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
                )
                components["text_encoder"] = transformers.ClapTextModelWithProjection(text)
        if name == "image":
            components |= dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        kinds = {
            "image": diffusers.StableDiffusionPipeline,
            "video": diffusers.TextToVideoSDPipeline,
            "audio": diffusers.AudioLDMPipeline,
        }
        scheduler = schedulers.get(config.scheduler.name, diffusers.DDIMScheduler)(**noise)
        self.pipeline = kinds[name](**components, tokenizer=None, scheduler=scheduler)
        self.pipeline.to(where, getattr(torch, jnp.dtype(dtype).name))
        self.pipeline.set_progress_bar_config(disable=True)
        if name == "video":
            self.pipeline.vae.enable_slicing()  # as its documentation recommends

    def compile(self, small: bool) -> None:
        """Compiles the networks with torch.compile."""
        for network in (self.pipeline.unet, self.pipeline.vae.decoder):
            network.compile(mode="default" if small else "reduce-overhead")

    def sample(self, prompts, negative, noise, steps) -> None:
        """One call of the pipeline, on arrays as our decoder takes them."""
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
