"""The composed model against diffusers' TextToVideoSDPipeline, from prompt embeddings and noise."""

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
from diffusers.pipelines.deprecated.text_to_video_synthesis import (
    pipeline_text_to_video_synth_img2img as video2video_module,
)
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.diffusion.schedulers import init_state
from nextgpt_jax.models.diffusion.text_to_video import TextToVideo, TextToVideoConfig
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.tables.stable_diffusion import TEXT_ENCODER, VAE
from nextgpt_jax.weights.tables.text_to_video import UNET
from tests.parity import compiled, load_into, manifest, parameters, randomise, relative_error

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers with numpy 2

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
TABLES = {"text_encoder": TEXT_ENCODER, "unet": UNET, "vae": VAE}


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    unet = diffusers.UNet3DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        attention_head_dim=8,
        cross_attention_dim=24,
        norm_num_groups=8,
    )
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if ".conv4.3.weight" in name:  # zero until trained
                parameter.normal_(std=0.1)
    pipeline = diffusers.TextToVideoSDPipeline(
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
                    vocab_size=99,
                    hidden_size=24,
                    intermediate_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    hidden_act="gelu",
                )
            )
        ),
        tokenizer=None,
        unet=randomise(unet),
        scheduler=diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    """The configs of the pipeline as files in the hub's layout."""
    folder = tmp_path_factory.mktemp("pipeline")
    for name in TABLES:
        (folder / name).mkdir()
        part = getattr(pipeline, name)
        text = part.config.to_json_string() if name == "text_encoder" else part.to_json_string()
        (folder / name / "config.json").write_text(text)
    pipeline.scheduler.save_config(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def model(pipeline, folder):
    config = TextToVideoConfig.from_pretrained(folder)
    model = nnx.eval_shape(lambda: TextToVideo(config, rngs=make_rngs(0)))
    for name, table in TABLES.items():
        part = getattr(model, name)
        setattr(model, name, load_into(lambda part=part: part, table, getattr(pipeline, name)))
    return model


@pytest.fixture(scope="module")
def denoise(model):
    """Compiled once for every test that samples two videos of 3 frames of 4 x 8."""
    return compiled(model, "denoise")


def inputs(batch=2, frames=3, height=4, width=8):
    rng = np.random.default_rng(0)
    prompt, negative = rng.standard_normal((2, batch, 7, 24)).astype(np.float32)
    return prompt, negative, rng.standard_normal((batch, frames, height, width, 4)).astype(np.float32)


def expected_latents(pipeline, prompt, negative, noise, steps, guidance):
    """Of the pipeline's own loop: [B, F, h, w, c]."""
    _, frames, height, width, _ = noise.shape
    latents = pipeline(
        prompt_embeds=torch.from_numpy(prompt),
        negative_prompt_embeds=torch.from_numpy(negative),
        latents=torch.from_numpy(noise.transpose(0, 4, 1, 2, 3).copy()),
        num_frames=frames,
        height=height * pipeline.vae_scale_factor,
        width=width * pipeline.vae_scale_factor,
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="latent",
    ).frames
    return latents.permute(0, 2, 3, 4, 1)


def decoded(pipeline, latents):
    """Frames as the pipeline makes them of latents [B, F, h, w, c]."""
    with torch.no_grad():
        video = pipeline.decode_latents(torch.as_tensor(latents).permute(0, 4, 1, 2, 3))
    return pipeline.video_processor.postprocess_video(video, output_type="np")


def test_videos(pipeline, model):
    prompt, negative, noise = inputs(width=4)
    table = model.config.scheduler.sampler_table(6)
    videos = compiled(model, "generate")(prompt, negative, noise, table, np.full(2, 7.5, np.float32))
    expected = decoded(pipeline, expected_latents(pipeline, prompt, negative, noise, 6, 7.5))
    assert videos.dtype == jnp.float32 and videos.shape == (2, 3, 8, 8, 3)
    assert relative_error(videos, expected) < 1e-3


def test_every_sampler(pipeline, folder, model, denoise):
    prompt, negative, noise = inputs()
    saved = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    original = pipeline.scheduler
    for kind, name, options in (
        ("PNDMScheduler", "pndm", {"skip_prk_steps": True}),
        ("DDIMScheduler", "ddim", {}),
        ("DPMSolverMultistepScheduler", "dpm++", {}),
        ("EulerDiscreteScheduler", "euler", {}),
    ):
        pipeline.scheduler = getattr(diffusers, kind).from_config(saved | options)
        try:
            expected = expected_latents(pipeline, prompt, negative, noise, 6, 7.5)
        finally:
            pipeline.scheduler = original
        table = dataclasses.replace(model.config.scheduler, name=name, **options).sampler_table(6)
        state = denoise(init_state(table, noise), prompt, negative, table, np.full(2, 7.5, np.float32))
        assert relative_error(state.sample, expected) < 1e-3, name


def test_from_a_video(pipeline, model, denoise):
    """As VideoToVideoSDPipeline with the same noise; it takes one video at a time."""
    prompt, negative, noise = inputs()
    rng = np.random.default_rng(1)
    video = rng.random((2, 3, 8, 16, 3), np.float32)
    drawn = rng.standard_normal(noise.shape).astype(np.float32)
    clean = compiled(model, "encode")(video, drawn)
    video2video = diffusers.VideoToVideoSDPipeline(**pipeline.components)
    video2video.set_progress_bar_config(disable=True)
    table = model.config.scheduler.sampler_table(6, 0.6)
    state = init_state(table, noise, clean=clean)
    actual = denoise(state, prompt, negative, table, np.full(2, 7.5, np.float32)).sample
    for i in range(2):
        with (
            mock.patch.object(vaes, "randn_tensor", lambda *_, i=i, **__: channels_first(drawn[i])),
            mock.patch.object(video2video_module, "randn_tensor", lambda *_, i=i, **__: channels_first(noise[i])),
        ):
            expected = video2video(
                prompt_embeds=torch.from_numpy(prompt[i : i + 1]),
                negative_prompt_embeds=torch.from_numpy(negative[i : i + 1]), video=list(video[i]), strength=0.6,
                num_inference_steps=6, guidance_scale=7.5, output_type="latent",
            ).frames  # fmt: skip
        assert relative_error(actual[i : i + 1], expected.permute(0, 2, 3, 4, 1)) < 1e-3


def channels_first(x):
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def test_guidance_is_per_row(pipeline, model, denoise):
    prompt, negative, noise = inputs()
    guidance, table = (1.5, 4.0), model.config.scheduler.sampler_table(4)
    actual = denoise(init_state(table, noise), prompt, negative, table, np.asarray(guidance, np.float32)).sample
    for i, scale in enumerate(guidance):
        row = slice(i, i + 1)
        expected = expected_latents(pipeline, prompt[row], negative[row], noise[row], 4, scale)
        assert relative_error(actual[row], expected) < 1e-3


@pytest.mark.parametrize("batch,frames", [(2, 3), (1, 4), (1, 1)])  # with a rest, without one, fewer than at a time
def test_decoding_in_bounded_memory(pipeline, model, batch, frames):
    *_, latents = inputs(batch, frames, 3, 4)
    videos = compiled(model, "decode")(latents)
    assert videos.dtype == jnp.float32
    assert relative_error(videos, decoded(pipeline, latents)) < 1e-4

    whole = compiled(model.vae, "decode")(latents.reshape(-1, 3, 4, 4) / model.config.vae.scaling_factor)
    assert relative_error(videos.reshape(whole.shape), jnp.clip(whole / 2 + 0.5, 0, 1)) < 1e-5


def test_decoding_many_frames_takes_no_more_memory(model):
    run = compiled(model, "decode")

    def temporaries(frames):
        program = run.func.lower(*run.args, jnp.zeros((1, frames, 8, 8, 4))).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporaries(32) < 1.3 * temporaries(8)


def test_bfloat16(model):
    prompt, negative, noise = inputs()
    table = model.config.scheduler.sampler_table(2)
    args = jnp.asarray(prompt, jnp.bfloat16), jnp.asarray(negative), noise, table, jnp.ones(2)
    assert jax.eval_shape(model.generate, *args).dtype == jnp.float32
    state = jax.eval_shape(model.denoise, init_state(table, jnp.asarray(noise)), *args[:2], table, jnp.ones(2))
    assert state.sample.dtype == jnp.float32


def test_prompt_encoding(pipeline, model):
    ids = np.random.default_rng(0).integers(0, 99, (2, model.config.caption_length))
    with torch.no_grad():
        expected = pipeline.text_encoder(torch.from_numpy(ids)).last_hidden_state
    actual = compiled(model, "encode_prompt")(ids)
    assert actual.shape == (2, *model.config.prompt_shape)
    assert relative_error(actual, expected) < 1e-4


def test_parts(model):
    config = model.config
    text = nnx.eval_shape(lambda: TextToVideo(config, components=("text_encoder",), rngs=make_rngs(0)))
    assert text.unet is None and text.vae is None
    with pytest.raises(ValueError, match="this TextToVideo was built without its unet"):
        text.generate(*inputs(), config.scheduler.sampler_table(2), jnp.ones(2))
    with pytest.raises(ValueError, match="without its vae"):
        text.decode(jnp.zeros((1, 1, 4, 4, 4)))
    with pytest.raises(ValueError, match="'vocoder'"):
        TextToVideo(config, components=("vocoder",), rngs=make_rngs(0))


@pytest.mark.slow
def test_full_size():
    config = TextToVideoConfig.zeroscope()
    model = nnx.eval_shape(lambda: TextToVideo(config, rngs=make_rngs(0)))
    assert parameters(nnx.state(model)) == 1835275563
    # The text encoder and the autoencoder have the files of Stable Diffusion 2 and 1.5.
    for name, file in (("text_encoder", "sd2_text_encoder"), ("vae", "sd15_vae")):
        assert matching.torch_shapes(nnx.state(getattr(model, name)), TABLES[name]) == manifest(file)
    assert config.prompt_shape == (77, 1024) and config.caption_length == 77
    assert config.latent_shape(24, 320, 576) == (24, 40, 72, 4)
    assert config.scheduler.sampler_table(50).num_evaluations == 50


def test_sizes_that_do_not_fit(model):
    with pytest.raises(UserError, match="multiples of 2, got 8 x 7"):
        model.config.latent_shape(3, 8, 7)
    with pytest.raises(UserError, match="at least 1 frame, got 0"):
        model.config.latent_shape(0, 8, 8)


def test_configs_that_do_not_fit(folder, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        TextToVideoConfig.from_pretrained(tmp_path)
    for key, value, message in (
        ("cross_attention_dim", 32, "the UNet attends to width 32"),
        ("in_channels", 9, "the UNet has 9 channels in"),
        ("_class_name", "UNet2DConditionModel", "_class_name"),
    ):
        path = folder / "unet" / "config.json"
        original = path.read_text()
        try:
            path.write_text(json.dumps(json.loads(original) | {key: value}))
            with pytest.raises(UserError, match=message):
                TextToVideoConfig.from_pretrained(folder)
        finally:
            path.write_text(original)
