"""Decoders in one file: against what diffusers' own functions make of the same keys, bit for bit, and refusals."""

import dataclasses
import pathlib

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from diffusers.loaders import single_file_utils as diffusers

from nextgpt_jax.errors import UserError
from nextgpt_jax.weights import matching, tables
from nextgpt_jax.weights.matching import ConversionError
from nextgpt_jax.weights.single_file import SingleFile, open_single_file
from nextgpt_jax.weights.tables.single_file_stable_diffusion import UNET, VAE
from nextgpt_jax.weights.torch_checkpoint import Checkpoint
from tests.weights import single_files

CONVOLUTION = f"{UNET}input_blocks.0.0.weight"


def opened(folder: pathlib.Path, content: dict[str, np.ndarray], **options) -> SingleFile:
    safetensors.numpy.save_file(content, folder / "file.safetensors")
    return open_single_file(folder / "file.safetensors", **options)


def hub_layout(found: SingleFile, kind: str, name: str) -> Checkpoint:
    """A part as it is exported: with the hub's keys."""
    config = single_files.CONFIGS[kind]
    state, (table, own) = single_files.abstract_part(config, name), found.parts[name]
    parameters = matching.match(own, state, table).parameters
    return matching.export_parameters(parameters, state, tables.decoder(config)[name])


def expected(content: dict[str, np.ndarray], kind: str, name: str) -> dict[str, torch.Tensor]:
    """A part as diffusers converts it; of AudioLDM, which it does not read, as its classes name the tensors."""
    config = single_files.CONFIGS[kind]
    source = {key: torch.from_numpy(value) for key, value in content.items()}
    if name == "unet":
        film = {f"class_embedding.{n}": source[f"{UNET}film_emb.{n}"] for n in ("weight", "bias") if kind == "AudioLDM"}
        return diffusers.convert_ldm_unet_checkpoint(source, dataclasses.asdict(config.unet)) | film
    if name == "vae":
        levels = [None] * len(config.vae.block_out_channels)
        return diffusers.convert_ldm_vae_checkpoint(source, {"down_block_types": levels, "up_block_types": levels})
    if name == "vocoder":
        prefix = f"{VAE}vocoder."
        own = {key.removeprefix(prefix): value for key, value in source.items() if key.startswith(prefix)}
        return {f"upsampler.{key[4:]}" if key.startswith("ups.") else key: value for key, value in own.items()}
    if kind == "AudioLDM":
        sizes = {k: v for k, v in dataclasses.asdict(config.text_encoder).items() if k != "projection_dim"}
        own = transformers.RobertaModel(transformers.RobertaConfig(**sizes)).state_dict()  # CLAP's text branch
        found = {f"text_model.{key}": source[f"cond_stage_model.model.text_branch.{key}"] for key in own}
        for i in (0, 2):
            for n in ("weight", "bias"):
                key = f"cond_stage_model.model.text_projection.{i}.{n}"
                found[f"text_projection.linear{i // 2 + 1}.{n}"] = source[key]
        return found
    if kind == "Stable Diffusion 2":
        return diffusers.convert_open_clip_checkpoint(None, source)
    return diffusers.convert_ldm_clip_checkpoint(source)


def same(one: Checkpoint, other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in other.items():
        np.testing.assert_array_equal(one[key], value.numpy(), err_msg=key)


@pytest.mark.parametrize("kind", single_files.CONFIGS)
def test_parameters_are_those_that_diffusers_gives(kind, tmp_path):
    content = single_files.tensors(kind)
    found = opened(tmp_path, content, prediction_type="v_prediction" if kind == "Stable Diffusion 2" else "")
    assert found.kind == kind and "average" not in found.taken
    assert set(found.ignored) >= {"betas", "alphas_cumprod"}
    for name in found.parts:
        same(hub_layout(found, kind, name), expected(content, kind, name))


def test_averaged_weights(tmp_path):
    """As diffusers, which takes an average only of files with more than 100 of its tensors."""
    content = single_files.tensors("Stable Diffusion 1", ema=True)
    plain, averaged = (opened(tmp_path, content, ema=ema) for ema in (False, True))
    assert plain.taken == "prediction_type=epsilon, the UNet itself (not its moving average: --ema)"
    assert averaged.taken == "prediction_type=epsilon, the moving average of the UNet"
    source = {key: torch.from_numpy(value) for key, value in content.items()}
    config = dataclasses.asdict(single_files.CONFIGS["Stable Diffusion 1"].unet)
    for found, ema in ((plain, False), (averaged, True)):
        wanted = diffusers.convert_ldm_unet_checkpoint(source, config, extract_ema=ema)
        same(hub_layout(found, "Stable Diffusion 1", "unet"), wanted)


def test_files_that_were_converted_back_from_the_hubs_layout(tmp_path):
    """Their autoencoder attends with linear maps, and their OpenCLIP has no layer that is not used."""
    content = dict(single_files.tensors("Stable Diffusion 2"))
    for key in [key for key in content if key.startswith("cond_stage_model.model.transformer.resblocks.23.")]:
        del content[key]
    for key in [key for key in content if ".mid.attn_1." in key and content[key].ndim == 4]:
        content[key] = content[key][:, :, 0, 0]
    found = opened(tmp_path, content, prediction_type="epsilon")
    for name in ("vae", "text_encoder"):
        same(hub_layout(found, "Stable Diffusion 2", name), expected(content, "Stable Diffusion 2", name))


def test_a_vocoder_with_weight_norm(tmp_path):
    content = dict(single_files.tensors("AudioLDM"))
    weight = content.pop(f"{VAE}vocoder.conv_pre.weight")
    content[f"{VAE}vocoder.conv_pre.weight_g"] = np.sqrt(np.square(weight).sum((1, 2), keepdims=True))
    content[f"{VAE}vocoder.conv_pre.weight_v"] = weight
    found = hub_layout(opened(tmp_path, content), "AudioLDM", "vocoder")
    np.testing.assert_allclose(found["conv_pre.weight"], weight, rtol=1e-5)


@pytest.mark.parametrize(
    "kind, prediction, scheduler",
    [
        ("Stable Diffusion 1", "", ("PNDMScheduler", "epsilon")),
        ("Stable Diffusion 1", "v_prediction", ("PNDMScheduler", "v_prediction")),
        ("Stable Diffusion 2", "epsilon", ("PNDMScheduler", "epsilon")),
        ("Stable Diffusion 2", "v_prediction", ("DDIMScheduler", "v_prediction")),
        ("AudioLDM", "", ("DDIMScheduler", "epsilon")),
    ],
)
def test_the_scheduler_is_the_published_one(kind, prediction, scheduler, tmp_path):
    files = opened(tmp_path, single_files.tensors(kind), prediction_type=prediction).config_files
    found = files["scheduler/scheduler_config.json"]
    assert (found["_class_name"], found["prediction_type"]) == scheduler
    assert files["model_index.json"]["scheduler"] == ["diffusers", scheduler[0]]


def test_stable_diffusion_2_does_not_say_what_it_predicts(tmp_path):
    with pytest.raises(UserError, match="does not say what it predicts: give --prediction_type=v_prediction"):
        opened(tmp_path, single_files.tensors("Stable Diffusion 2"))
    with pytest.raises(UserError, match="'velocity' is not one of epsilon, v_prediction"):
        opened(tmp_path, single_files.tensors("Stable Diffusion 2"), prediction_type="velocity")


def test_a_file_without_an_average_has_none_to_take(tmp_path):
    with pytest.raises(UserError, match="--ema: .* has no moving average"):
        opened(tmp_path, single_files.tensors("Stable Diffusion 1"), ema=True)


@pytest.mark.parametrize(
    "key, what",
    [
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "a LoRA file"),
        ("unet.mid_block.attentions.0.to_q.lora_A.weight", "a LoRA file"),
        ("control_model.time_embed.0.weight", "a ControlNet"),
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", "Stable Diffusion XL"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.qkv.weight", "FLUX"),
        ("cond_stage_models.0.model.weight", "AudioLDM 2"),
        ("down_blocks.0.resnets.0.norm1.weight", "one part of a diffusers folder"),
        ("text_model.encoder.layers.0.layer_norm1.weight", "a text encoder"),
        ("decoder.up.0.block.0.norm1.weight", "an autoencoder"),
        ("emb_params", "a textual inversion"),
        ("weight", "no single-file decoder"),
    ],
)
def test_other_models_are_refused_by_name(key, what, tmp_path):
    with pytest.raises(UserError, match=f"is {what}.*Stable Diffusion 1 and 2, and AudioLDM are read") as caught:
        opened(tmp_path, {key: np.zeros(2, np.float32)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels, what", [(9, "an inpainting model"), (8, "an InstructPix2Pix"), (7, "an upscaler")])
def test_unets_with_other_inputs_are_refused_by_name(channels, what, tmp_path):
    content = {**single_files.tensors("Stable Diffusion 1"), CONVOLUTION: np.zeros((32, channels, 3, 3), np.float32)}
    with pytest.raises(UserError, match=rf"is {what} \({channels} channels in\)"):
        opened(tmp_path, content)


@pytest.mark.parametrize(
    "kind, prefix, message",
    [
        ("Stable Diffusion 1", "first_stage_model.", "is Stable Diffusion 1 without its autoencoder"),
        ("Stable Diffusion 1", "cond_stage_model.", "without its text encoder"),
        ("AudioLDM", "first_stage_model.vocoder.", "is AudioLDM without its vocoder"),
        ("AudioLDM", "scale_factor", "scale_factor is missing"),
        ("AudioLDM", "cond_stage_model.model.text_projection.2.", "text_projection.2.weight is missing"),
        ("Stable Diffusion 1", f"{UNET}middle_block.1.proj_in.", "proj_in.weight is missing"),
        ("Stable Diffusion 1", f"{UNET}input_blocks.1.", "input_blocks.1.0.in_layers.2.weight is missing"),
        ("Stable Diffusion 1", f"{VAE}encoder.down.", "encoder.down.0.block.0.conv1.weight is missing"),
    ],
)
def test_what_is_missing_is_named(kind, prefix, message, tmp_path):
    content = {key: value for key, value in single_files.tensors(kind).items() if not key.startswith(prefix)}
    with pytest.raises(UserError, match=message) as caught:
        opened(tmp_path, content)
    assert str(caught.value).startswith(str(tmp_path))


def test_tensors_that_are_unknown_or_malformed_are_named(tmp_path):
    content = single_files.tensors("Stable Diffusion 1")
    with pytest.raises(ConversionError, match=r"unexpected v_pred \[\]"):
        opened(tmp_path, {**content, "v_pred": np.zeros((), np.float32)})
    flat = {**content, f"{VAE}encoder.conv_in.weight": np.zeros(3, np.float32)}
    with pytest.raises(ConversionError, match=r"conv_in.weight has shape \[3\]"):
        opened(tmp_path, flat)
    with pytest.raises(ConversionError, match="scale_factor is nan"):
        opened(tmp_path, {**single_files.tensors("AudioLDM"), "scale_factor": np.asarray(np.nan, np.float32)})
    found = opened(tmp_path, {**content, f"{UNET}extra.weight": np.zeros(2, np.float32)})
    with pytest.raises(ConversionError, match="unexpected model.diffusion_model.extra.weight"):
        hub_layout(found, "Stable Diffusion 1", "unet")
