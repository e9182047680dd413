"""From the folders that a config names to the sizes of a model."""

import dataclasses

import pytest

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.llms.llama import LlamaConfig
from nextgpt_jax.weights.assemble import frozen_dtype, model_config, resolve_parts
from tests import tiny


@pytest.fixture
def config(tiny_root):
    return tiny.experiment(tiny_root, "stage1").model


def refused(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_local_folders_stay_as_they_are(config):
    assert resolve_parts(config) == config
    assert model_config(config).output_modalities == ("image", "video", "audio")


@pytest.mark.parametrize("field", ["llm", "encoder", "image_decoder", "delta"])
def test_missing_parts_are_named(config, field):
    setattr(config, field, "./nowhere")
    assert refused(lambda: model_config(config)).startswith(f"model.{field}: no such folder: './nowhere' (wanted: ")


def test_a_file_is_no_folder(config, tmp_path):
    (tmp_path / "model.safetensors").touch()
    config.llm = str(tmp_path / "model.safetensors")
    assert "model.safetensors is no folder (wanted: config.json" in refused(lambda: model_config(config))


def test_a_config_needs_a_decoder(config):
    config.image_decoder = config.video_decoder = config.audio_decoder = ""
    assert refused(lambda: model_config(config)).startswith("no decoder: set model.image_decoder or ")


def test_published_sizes_stand_in_for_missing_folders(config):
    missing = dataclasses.replace(config, llm="./weights/vicuna-7b-v0", delta="./weights/delta")
    found = model_config(missing, use_published_defaults=True)
    assert found.llm == LlamaConfig.vicuna_7b()
    assert found.encoders == model_config(config).encoders


def test_every_encoder_of_several_is_looked_for(config):
    config.encoder = f"{config.encoder},./nowhere"
    assert refused(lambda: resolve_parts(config)).startswith("model.encoder: no such folder: './nowhere'")


def test_dtypes():
    assert frozen_dtype("bfloat16").name == "bfloat16" and frozen_dtype("auto").name == "float32"
    assert refused(lambda: frozen_dtype("int8")) == "model.dtype: 'int8' is not one of auto, float32, bfloat16"
