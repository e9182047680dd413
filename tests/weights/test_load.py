"""Models from configs: parts that are missing or of another size."""

import json
import shutil

import pytest

from nextgpt_jax.errors import UserError
from nextgpt_jax.weights.load import load_system
from tests import tiny


@pytest.fixture
def hub(tiny_root, tmp_path):
    shutil.copytree(tiny_root / "hub", tmp_path / "hub")
    return tiny.experiment(tmp_path, "stage1").model


def load(config):
    return load_system(config, decoder_parts=("text_encoder",))


def test_a_config_that_does_not_fit_its_weights(hub, tmp_path):
    path = tmp_path / "hub" / "llm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 64}))
    with pytest.raises(UserError, match="it has intermediate_size 48, and the config intermediate_size 64"):
        load(hub)


def test_missing_files(hub, tmp_path):
    (tmp_path / "hub" / "llm" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="llm holds no checkpoint"):
        load(hub)
    (tmp_path / "hub" / "imagebind" / "config.json").unlink()
    with pytest.raises(UserError, match="no such file: .*imagebind/config.json"):
        load(hub)


def test_an_unknown_template_and_decoder_kinds(hub, tmp_path):
    hub.template = "chatml"
    with pytest.raises(UserError, match="model.template: 'chatml' is not one of per_segment, reference"):
        load(hub)
    scheduler = tmp_path / "hub" / "stable-diffusion" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({"_class_name": "KDPM2DiscreteScheduler"}))
    with pytest.raises(UserError, match="KDPM2DiscreteScheduler"):
        load(hub)


def test_the_q_former_and_mlp_projections_load_and_linear_is_refused_where_it_cannot_be(hub):
    hub.output_projector, hub.input_projector = "qformer", "mlp"
    model = load(hub).model
    assert model.output_proj["image"].query_tokens.shape == (1, 12, 16)
    assert len(model.input_proj.layers) == 2
    hub.output_projector = "linear"
    with pytest.raises(UserError, match="linear output projection can't make 12 tokens of 4"):
        load(hub)
