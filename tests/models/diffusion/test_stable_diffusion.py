"""The composed model against diffusers' StableDiffusionPipeline, from prompt embeddings and noise."""

import dataclasses
import json
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from diffusers.models.autoencoders import vae as vaes
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as img2img_module
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.diffusion.sample import sample
from nextgpt_jax.models.diffusion.schedulers import SAMPLERS, SamplerState, init_state
from nextgpt_jax.models.diffusion.stable_diffusion import StableDiffusion, StableDiffusionConfig
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights.tables.stable_diffusion import TEXT_ENCODER, VAE, unet_table
from tests.parity import compiled, load_into, randomise, relative_error

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers with numpy 2

PNDM = diffusers.PNDMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
)

UNET = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "sample_size": 8,
    "norm_num_groups": 8,
}


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=randomise(
            diffusers.AutoencoderKL(
                block_out_channels=(8, 16),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                norm_num_groups=4,
            )
        ),
        text_encoder=randomise(
            transformers.CLIPTextModel(
                transformers.CLIPTextConfig(
                    vocab_size=99, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4
                )
            )
        ),
        tokenizer=None,
        unet=randomise(diffusers.UNet2DConditionModel(**UNET)),
        scheduler=PNDM,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    """The configs of the pipeline as files in the hub's layout."""
    folder = tmp_path_factory.mktemp("pipeline")
    for name in ("text_encoder", "unet", "vae"):
        (folder / name).mkdir()
        config = getattr(pipeline, name).config
        text = config.to_json_string() if name == "text_encoder" else getattr(pipeline, name).to_json_string()
        (folder / name / "config.json").write_text(text)
    pipeline.scheduler.save_config(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def model(pipeline, folder):
    config = StableDiffusionConfig.from_pretrained(folder)
    model = nnx.eval_shape(lambda: StableDiffusion(config, rngs=make_rngs(0)))
    for name, table in (("text_encoder", TEXT_ENCODER), ("unet", unet_table(config.unet)), ("vae", VAE)):
        part = getattr(model, name)
        setattr(model, name, load_into(lambda part=part: part, table, getattr(pipeline, name)))
    return model


@pytest.fixture(scope="module")
def latents(model):
    """Denoised latents, compiled once for every test that samples two rows of 8 x 8."""
    denoise = compiled(model, "denoise")

    def run(prompt, negative, start, table, guidance):
        state = start if isinstance(start, SamplerState) else init_state(table, start)
        return denoise(state, prompt, negative, table, guidance).sample

    return run


def inputs(batch, height, width, seed=0):
    rng = np.random.default_rng(seed)
    prompt, negative = rng.standard_normal((2, batch, 7, 24)).astype(np.float32)
    return prompt, negative, rng.standard_normal((batch, height, width, 4)).astype(np.float32)


def expected_latents(pipeline, prompt, negative, noise, steps, guidance):
    factor = pipeline.vae_scale_factor
    return pipeline(
        prompt_embeds=torch.from_numpy(prompt),
        negative_prompt_embeds=torch.from_numpy(negative),
        latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()),
        height=noise.shape[1] * factor,
        width=noise.shape[2] * factor,
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="latent",
    ).images


def decoded(pipeline, latents):
    with torch.no_grad():
        pixels = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def test_images(pipeline, model):
    prompt, negative, noise = inputs(2, 4, 12)
    table = model.config.scheduler.sampler_table(8)
    images = compiled(model, "generate")(prompt, negative, noise, table, np.full(2, 7.5, np.float32))
    expected = decoded(pipeline, expected_latents(pipeline, prompt, negative, noise, 8, 7.5))
    assert images.dtype == jnp.float32 and images.shape == (2, 8, 24, 3)
    assert relative_error(images, expected) < 1e-3


def test_every_sampler(pipeline, folder, model, latents):
    prompt, negative, noise = inputs(2, 8, 8)
    saved = json.loads((folder / "scheduler" / "scheduler_config.json").read_text()) | {"clip_sample": False}
    original = pipeline.scheduler
    for kind, name in (
        ("PNDMScheduler", "pndm"),
        ("DDIMScheduler", "ddim"),
        ("DPMSolverMultistepScheduler", "dpm++"),
        ("EulerDiscreteScheduler", "euler"),
        ("UniPCMultistepScheduler", "unipc"),
    ):
        pipeline.scheduler = getattr(diffusers, kind).from_config(saved)
        try:
            expected = expected_latents(pipeline, prompt, negative, noise, 8, 7.5)
        finally:
            pipeline.scheduler = original
        table = dataclasses.replace(model.config.scheduler, name=name).sampler_table(8)
        actual = latents(prompt, negative, noise, table, np.full(2, 7.5, np.float32))
        assert relative_error(actual, expected.permute(0, 2, 3, 1)) < 1e-3, name


def test_guidance_is_per_row(pipeline, model, latents):
    prompt, negative, noise = inputs(2, 8, 8)
    guidance = (1.5, 4.0)
    actual = latents(prompt, negative, noise, model.config.scheduler.sampler_table(5), np.asarray(guidance, np.float32))
    for i, scale in enumerate(guidance):
        row = slice(i, i + 1)
        expected = expected_latents(pipeline, prompt[row], negative[row], noise[row], 5, scale)
        assert relative_error(actual[row], expected.permute(0, 2, 3, 1)) < 1e-3


def test_number_of_steps_sampler_and_guidance_do_not_retrace(model):
    traces = []

    @jax.jit
    def run(prompt, negative, noise, table, guidance):
        traces.append(table.stochastic)
        state = init_state(table, noise, jax.random.split(jax.random.key(0), len(noise)))
        return sample(toy, table, state, prompt, negative, guidance).sample

    prompt, negative, noise = inputs(2, 8, 8)
    for name in SAMPLERS:
        for steps, guidance in ((4, 7.5), (50, 3.0)):
            table = dataclasses.replace(model.config.scheduler, name=name).sampler_table(steps)
            assert np.isfinite(run(prompt, negative, noise, table, np.full(2, guidance, np.float32))).all()
    assert sorted(traces) == [False, True]


def toy(x, timesteps, context):
    """A denoiser that depends on all it is given."""
    shift = jnp.sin(timesteps / 100) + context.mean((1, 2)) * 10
    return 0.5 * jnp.tanh(x + shift[:, None, None, None])


def test_without_guidance_and_shared_negative(model):
    prompt, negative, noise = inputs(2, 8, 8)
    table = model.config.scheduler.sampler_table(5)
    calls = []

    def counted(x, timesteps, context):
        calls.append(x.shape[0])
        return toy(x, timesteps, context)

    def run(denoise, negative, guidance):
        return sample(
            denoise, table, init_state(table, noise), prompt, negative, np.full(2, guidance, np.float32)
        ).sample

    alone = run(counted, None, 1.0)
    assert calls == [2]
    assert relative_error(alone, run(counted, negative, 1.0)) < 1e-5
    assert calls == [2, 4]
    shared = run(toy, negative[:1], 3.0)
    assert relative_error(shared, run(toy, negative[[0, 0]], 3.0)) < 1e-5
    assert relative_error(shared, run(toy, negative, 3.0)) > 1e-3


def test_a_few_evaluations_at_a_time(model):
    prompt, negative, noise = inputs(1, 8, 8)
    table = model.config.scheduler.sampler_table(4)
    traces = []

    @jax.jit
    def run(state, first, last):
        traces.append(1)
        return sample(toy, table, state, prompt, negative, jnp.full(1, 3.0), first=first, last=last)

    state = init_state(table, jnp.asarray(noise))
    whole = run(state, 0, int(table.num_evaluations))
    for i in range(int(table.num_evaluations)):
        state = run(state, i, i + 1)
    assert len(traces) == 1
    assert relative_error(state.sample, whole.sample) < 1e-6


def test_bfloat16(model):
    prompt, negative, noise = inputs(1, 8, 8)
    table = model.config.scheduler.sampler_table(2)
    args = jnp.asarray(prompt, jnp.bfloat16), jnp.asarray(negative), noise, table, jnp.ones(1)
    assert jax.eval_shape(model.generate, *args).dtype == jnp.float32
    state = jax.eval_shape(model.denoise, init_state(table, jnp.asarray(noise)), *args[:2], table, jnp.ones(1))
    assert state.sample.dtype == jnp.float32


def test_prompt_encoding(pipeline, model):
    ids = np.random.default_rng(0).integers(0, 99, (2, 77))
    with torch.no_grad():
        expected = pipeline.text_encoder(torch.from_numpy(ids)).last_hidden_state
    assert relative_error(compiled(model, "encode_prompt")(ids), expected) < 1e-4


def test_parts(model):
    config = model.config
    text = nnx.eval_shape(lambda: StableDiffusion(config, components=("text_encoder",), rngs=make_rngs(0)))
    assert text.unet is None and text.vae is None
    with pytest.raises(ValueError, match="without its unet"):
        text.generate(*inputs(1, 8, 8), config.scheduler.sampler_table(2), jnp.ones(1))
    with pytest.raises(ValueError, match="'safety_checker'"):
        StableDiffusion(config, components=("safety_checker",), rngs=make_rngs(0))


def test_presets():
    sd15, sd2 = StableDiffusionConfig.sd15(), StableDiffusionConfig.sd2()
    assert sd15.latent_shape(512, 768) == (64, 96, 4)
    assert (
        sd15.scheduler.sampler_table(50).num_evaluations == 51 and sd2.scheduler.sampler_table(50).num_evaluations == 50
    )
    with pytest.raises(UserError, match="multiples of 8, got 512 x 500"):
        sd2.latent_shape(512, 500)


def test_configs_that_do_not_fit(folder, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        StableDiffusionConfig.from_pretrained(tmp_path)
    classes = {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 8}
    for name, change in (("unet", {"cross_attention_dim": 32}), ("unet", {"in_channels": 9}), ("unet", classes)):
        original = (folder / name / "config.json").read_text()
        try:
            (folder / name / "config.json").write_text(json.dumps(json.loads(original) | change))
            with pytest.raises(UserError, match="the UNet"):
                StableDiffusionConfig.from_pretrained(folder)
        finally:
            (folder / name / "config.json").write_text(original)


def test_from_an_image(pipeline, folder, model, latents):
    """As StableDiffusionImg2ImgPipeline with the same noise, for its latents and for the start of sampling."""
    prompt, negative, noise = inputs(2, 8, 8)
    rng = np.random.default_rng(1)
    image, drawn = rng.random((2, 16, 16, 3), np.float32), rng.standard_normal(noise.shape).astype(np.float32)
    clean = compiled(model, "encode")(image, drawn)
    saved = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    img2img = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    img2img.set_progress_bar_config(disable=True)
    for kind, name in (("PNDMScheduler", "pndm"), ("DPMSolverMultistepScheduler", "dpm++")):
        img2img.scheduler = getattr(diffusers, kind).from_config(saved)
        with (
            mock.patch.object(vaes, "randn_tensor", lambda *_, **__: channels_first(drawn)),
            mock.patch.object(img2img_module, "randn_tensor", lambda *_, **__: channels_first(noise)),
        ):
            expected = img2img(
                prompt_embeds=torch.from_numpy(prompt), negative_prompt_embeds=torch.from_numpy(negative),
                image=channels_first(image), strength=0.6, num_inference_steps=8, guidance_scale=3.0,
                output_type="latent",
            ).images  # fmt: skip
        table = model.config.scheduler.with_sampler(name).sampler_table(8, 0.6)
        state = init_state(table, noise, clean=clean)
        actual = latents(prompt, negative, state, table, np.full(2, 3.0, np.float32))
        assert relative_error(actual, expected.permute(0, 2, 3, 1)) < 1e-3, name


def channels_first(x):
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
