"""The composed model against diffusers' AudioLDMPipeline, from prompt embeddings and noise."""

import dataclasses
import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.diffusion.audioldm import AudioLDM, AudioLDMConfig
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.tables.audioldm import tables
from tests.parity import compiled, load_into, manifest, parameters, randomise, relative_error

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers with numpy 2
    pytest.mark.filterwarnings("ignore:.*AudioLDMPipeline"),  # diffusers calls it deprecated
]

SCHEDULER = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear", "steps_offset": 1}


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        in_channels=8,
        out_channels=8,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=(8, 16, 16),
        norm_num_groups=4,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=12,
        class_embeddings_concat=True,
    )
    vae = diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=8,
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        scaling_factor=0.92,
    )
    text_encoder = transformers.ClapTextModelWithProjection(
        transformers.ClapTextConfig(
            vocab_size=99,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=14,
            projection_dim=12,
        )
    )
    vocoder = transformers.SpeechT5HifiGan(  # 10 ms a frame, 15 L + 1 samples
        transformers.SpeechT5HifiGanConfig(
            model_in_dim=16,
            sampling_rate=1500,
            upsample_initial_channel=16,
            upsample_rates=(5, 3),
            upsample_kernel_sizes=(16, 5),
            resblock_kernel_sizes=(3,),
            resblock_dilation_sizes=((1, 3),),
            normalize_before=False,
        )
    )
    with torch.no_grad():
        for parameter in vocoder.parameters():
            parameter.copy_(torch.randn(parameter.shape) / max(parameter[0].numel(), 1) ** 0.5)
    pipeline = diffusers.AudioLDMPipeline(
        vae=randomise(vae),
        text_encoder=randomise(text_encoder),
        tokenizer=None,
        unet=randomise(unet),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **SCHEDULER),
        vocoder=randomise(vocoder),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    """The configs of the pipeline as files in the hub's layout."""
    folder = tmp_path_factory.mktemp("pipeline")
    for name in AudioLDM.component_classes:
        part = getattr(pipeline, name)
        (folder / name).mkdir()
        owner = part.config if name in ("text_encoder", "vocoder") else part
        (folder / name / "config.json").write_text(owner.to_json_string())
    pipeline.scheduler.save_config(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def model(pipeline, folder):
    config = AudioLDMConfig.from_pretrained(folder)
    model = nnx.eval_shape(lambda: AudioLDM(config, rngs=make_rngs(0)))
    for name, table in tables(config).items():
        part = getattr(model, name)
        setattr(model, name, load_into(lambda part=part: part, table, getattr(pipeline, name)))
    return model


def inputs(config, batch, seconds, seed=0):
    """Prompt embeddings of various lengths, and noise."""
    rng = np.random.default_rng(seed)
    prompt, negative = rng.standard_normal((2, batch, *config.prompt_shape)).astype(np.float32)
    return prompt, negative, rng.standard_normal((batch, *config.latent_shape(seconds))).astype(np.float32)


def expected_waveforms(pipeline, prompt, negative, noise, seconds, steps, guidance):
    return pipeline(
        prompt_embeds=torch.from_numpy(prompt[:, 0]),
        negative_prompt_embeds=torch.from_numpy(negative[:, 0]),
        latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()),
        audio_length_in_s=seconds,
        num_inference_steps=steps,
        guidance_scale=guidance,
    ).audios


# 7 and 25 rows don't halve evenly; 0.27 seconds are rounded up to 7 rows and cut again; 0.0499 to 1 row, not to 2.
@pytest.mark.parametrize(
    "name,seconds,rows,samples",
    [("ddim", 0.27, 7, 405), ("pndm", 0.27, 7, 405), ("ddim", 1.0, 25, 1500), ("ddim", 0.0499, 1, 63)],
)
def test_waveforms(pipeline, model, name, seconds, rows, samples):
    prompt, negative, noise = inputs(model.config, 2, seconds)
    assert noise.shape == (2, rows, 4, 8) and model.config.num_samples(seconds) == samples
    scheduler, original = (
        dataclasses.replace(model.config.scheduler, name=name, skip_prk_steps=True),
        pipeline.scheduler,
    )
    if name == "pndm":
        pipeline.scheduler = diffusers.PNDMScheduler(skip_prk_steps=True, **SCHEDULER)
    try:
        expected = expected_waveforms(pipeline, prompt, negative, noise, seconds, 5, 2.5)
    finally:
        pipeline.scheduler = original
    guidance = np.full(2, 2.5, np.float32)
    waveforms = compiled(model, "generate")(prompt, negative, noise, scheduler.sampler_table(5), guidance)
    assert waveforms.dtype == jnp.float32
    assert waveforms.shape == (2, model.config.vocoder.num_samples(4 * rows))
    assert relative_error(waveforms[:, :samples], expected) < 1e-3
    assert np.ptp(expected) > 0.2


def test_sizes_follow_the_pipeline(model):
    config = AudioLDMConfig.large()
    assert config.latent_shape(9) == (225, 16, 8) and config.num_samples(9) == 144000
    assert config.latent_shape(5.0) == (125, 16, 8) and config.num_samples(5.0) == 80000
    assert config.latent_shape(0.29) == (7, 16, 8)  # 28 whole frames
    assert config.prompt_shape == (1, 512) and config.caption_length == 77 and config.sampling_rate == 16000
    assert model.config.prompt_shape == (1, 12) and model.config.caption_length == 12
    for seconds in (0, -1.0, 0.03, float("nan"), float("inf")):
        with pytest.raises(UserError, match="at least 0.04 seconds long"):
            config.latent_shape(seconds)
        with pytest.raises(UserError, match="at least 0.04 seconds long"):
            config.num_samples(seconds)


def test_prompt_encoding(pipeline, model):
    ids = np.random.default_rng(0).integers(3, 99, (2, 12))
    ids[1, 5:] = 1
    mask = torch.from_numpy(ids != 1).int()
    with torch.no_grad():
        expected = pipeline.text_encoder(torch.from_numpy(ids), attention_mask=mask).text_embeds
    expected = torch.nn.functional.normalize(expected, dim=-1)[:, None]
    assert relative_error(compiled(model, "encode_prompt")(ids), expected) < 1e-4


def test_prompt_embeddings_are_not_normalised_again(model):
    prompt, _, noise = inputs(model.config, 1, 0.08)
    run = compiled(model, "predict")
    assert relative_error(run(noise, jnp.full(1, 500.0), prompt), run(noise, jnp.full(1, 500.0), 2 * prompt)) > 1e-3


def test_bfloat16(model):
    prompt, negative, noise = inputs(model.config, 1, 0.08)
    args = (
        jnp.asarray(prompt, jnp.bfloat16),
        jnp.asarray(negative),
        noise,
        model.config.scheduler.sampler_table(2),
        jnp.ones(1),
    )
    assert jax.eval_shape(model.generate, *args).dtype == jnp.float32


def test_parts(model):
    text = nnx.eval_shape(lambda: AudioLDM(model.config, components=("text_encoder",), rngs=make_rngs(0)))
    assert text.unet is None and text.vocoder is None
    with pytest.raises(ValueError, match="without its unet"):
        text.generate(*inputs(model.config, 1, 0.08), model.config.scheduler.sampler_table(2), jnp.ones(1))
    decoder = nnx.eval_shape(lambda: AudioLDM(model.config, components=("vae",), rngs=make_rngs(0)))
    with pytest.raises(ValueError, match="without its vocoder"):
        decoder.decode(jnp.zeros((1, 2, 4, 8)))


def test_full_size():
    config = AudioLDMConfig.large()
    whole = nnx.eval_shape(lambda: AudioLDM(config, rngs=make_rngs(0)))
    assert parameters(nnx.state(whole)) == 975082866 and parameters(nnx.state(whole.unet)) == 739139080
    for name, table in tables(config).items():
        buffers = ("mean", "scale") if name == "vocoder" else ()
        wanted = {key: shape for key, shape in manifest(f"audioldm_l_{name}").items() if key not in buffers}
        assert matching.torch_shapes(nnx.state(getattr(whole, name)), table) == wanted


@pytest.mark.parametrize(
    "part,change,message",
    [
        ("unet", {"in_channels": 4}, "the UNet has 4 channels in"),
        ("unet", {"projection_class_embeddings_input_dim": 16}, "class embeddings of width 16, the text encoder 12"),
        ("unet", {"class_embed_type": None, "class_embeddings_concat": False}, "class embeddings of width None"),
        ("unet", {"cross_attention_dim": 24}, "attends to a text of width 24"),
        ("vae", {"out_channels": 3}, "the autoencoder has 3 channels"),
        ("vocoder", {"model_in_dim": 18}, "18 mel bands do not divide"),
    ],
)
def test_configs_that_do_not_fit(folder, part, change, message):
    path = folder / part / "config.json"
    original = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(original) | change))
        with pytest.raises(UserError, match=message):
            AudioLDMConfig.from_pretrained(folder)
    finally:
        path.write_text(original)
