"""python -m convert decoder, of one file: the folder that diffusers' from_single_file would make of it."""

import json
import pathlib
import shutil

import diffusers
import numpy as np
import pytest
import safetensors.numpy
import torch

import nextgpt_jax
from convert import folders, single_files
from convert.imports import convert_checkpoint
from nextgpt_jax.config import ExperimentConfig, ModelConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.models import registry
from nextgpt_jax.weights import assemble
from nextgpt_jax.weights.single_file import open_single_file
from nextgpt_jax.weights.torch_checkpoint import open_checkpoint
from tests import tiny
from tests.convert.commands import convert, refused
from tests.weights import single_files as toy

TOKENIZER = tiny.TOKENIZERS / "stable-diffusion" / "tokenizer"


def write(folder: pathlib.Path, kind: str, ema: bool = False) -> pathlib.Path:
    path = folder / "model.safetensors"
    safetensors.numpy.save_file(toy.tensors(kind, ema), path)
    return path


def padding_with(folder: pathlib.Path, token: str) -> pathlib.Path:
    """The tokenizer, which pads with another token."""
    shutil.copytree(TOKENIZER, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": token}))
    return folder


@pytest.mark.filterwarnings("ignore")  # of diffusers
def test_a_ckpt_is_converted_as_by_from_single_file(tmp_path, capsys):
    content = {key: torch.from_numpy(value) for key, value in toy.tensors("Stable Diffusion 1", ema=True).items()}
    source, output = tmp_path / "downloads" / "model.ckpt", tmp_path / "jax"
    source.parent.mkdir()
    (source.parent / "unrelated.json").write_text("{}")
    torch.save({"state_dict": content, "global_step": 1}, source)
    convert("decoder", f"--source={source}", f"--tokenizer={TOKENIZER}", f"--output={output}")
    printed = capsys.readouterr().out
    assert "is Stable Diffusion 1; prediction_type=epsilon, the UNet itself (not its moving average: --ema)" in printed
    assert registry.read_decoder(output) == toy.CONFIGS["Stable Diffusion 1"]
    assert {file.name for file in output.glob("*.json")} == {"model_index.json", folders.MANIFEST}
    assert (output / "tokenizer" / "tokenizer.json").read_bytes() == (TOKENIZER / "tokenizer.json").read_bytes()
    manifest = folders.read_manifest(output)
    assert (manifest["source"], manifest["kind"]) == (str(source), "Stable Diffusion 1")
    assert "betas" in manifest["ignored"] and "model_ema.decay" in manifest["ignored"]
    convert("export", "decoder", f"--source={output}", f"--output={tmp_path / 'torch'}")

    folder = tmp_path / "torch"
    for name, kind in {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}.items():
        wanted = kind.from_single_file(str(source), config=str(folder), subfolder=name).state_dict()
        found = open_checkpoint(folder / name)
        assert wanted.keys() == found.keys()
        for key, value in wanted.items():
            np.testing.assert_array_equal(found[key], value.numpy(), err_msg=key)
    assert "text_model.final_layer_norm.bias" in open_checkpoint(folder / "text_encoder")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "PNDMScheduler"] and index["safety_checker"] == [None, None]


@pytest.mark.parametrize("kind, pad", [("Stable Diffusion 2", 0), ("AudioLDM", 1)])
def test_config_files_and_tokenizers_of_the_other_kinds(kind, pad, tmp_path):
    prediction = "v_prediction" if kind == "Stable Diffusion 2" else ""
    opened = open_single_file(write(tmp_path, kind), prediction_type=prediction)
    with pytest.raises(UserError, match=rf"pads with '<\|endoftext\|>' .*, but {kind} was trained with .*id {pad}"):
        single_files.write_companions(opened, TOKENIZER)
    token = next(
        t for t, i in json.loads((TOKENIZER / "tokenizer.json").read_text())["model"]["vocab"].items() if i == pad
    )
    folder = padding_with(tmp_path / "tokenizer", token)
    with single_files.write_companions(opened, folder.parent) as staging:  # has the folder "tokenizer"
        assert registry.read_decoder(pathlib.Path(staging)) == toy.CONFIGS[kind]
        assert (pathlib.Path(staging) / "tokenizer" / "tokenizer.json").is_file()
    assert not pathlib.Path(staging).exists()


def test_what_is_needed_is_asked_for(tmp_path):
    source, output = write(tmp_path, "Stable Diffusion 1"), f"--output={tmp_path / 'out'}"
    message = refused("decoder", f"--source={source}", output)
    assert "is Stable Diffusion 1, and has no tokenizer: give --tokenizer=FOLDER_OR_HUB_ID, such as" in message
    assert "holds no readable tokenizer" in refused("decoder", f"--source={source}", f"--tokenizer={tmp_path}", output)
    assert "is no folder" in refused("decoder", f"--source={source}", f"--tokenizer={source}", output)
    message = refused("decoder", f"--source={tmp_path}", "--ema", output)
    assert "is a folder: --tokenizer, --prediction_type and --ema are of single files" in message
    message = refused("llama", f"--source={tmp_path}", "--tokenizer=x", output)
    assert "--tokenizer applies to decoder, not to llama" in message


def test_elsewhere_the_command_is_named(tmp_path):
    source = write(tmp_path, "Stable Diffusion 1")
    message = f"is one file, without a tokenizer: convert it first, python -m convert decoder --source={source} "
    with pytest.raises(UserError, match=message):
        nextgpt_jax.StableDiffusion.from_pretrained(source)
    for name in ("llm", "imagebind"):
        (tmp_path / name).mkdir()
    parts = {"llm": str(tmp_path / "llm"), "encoder": str(tmp_path / "imagebind"), "image_decoder": str(source)}
    model = ModelConfig(**parts, video_decoder="", audio_decoder="", delta="")
    with pytest.raises(UserError, match=message):
        assemble.resolve_parts(model)
    with pytest.raises(UserError, match=message):
        convert_checkpoint("nextgpt", config=ExperimentConfig(model=model), dry_run=True)
