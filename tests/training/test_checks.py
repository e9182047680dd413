"""Configs that do not fit are refused before anything is written."""

import pytest

from nextgpt_jax.errors import UserError
from nextgpt_jax.training.loop import train
from tests import tiny


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("data.captions", "nowhere.json", "no such file: nowhere.json"),
        ("data.captions", "a.json:2,b.json", "b.json has no weight, but others have"),
        ("data.validation", "a.json:2", "data.validation: held-out files have no weights"),
        ("model.llm", "nowhere", "model.llm: no such folder"),
        ("train.stage", "stage9", "not one of stage1"),
        ("optim.grad_accum_steps", 3, "does not divide"),
        ("data.batch_size", 0, "data.batch_size should be at least 1"),
        ("data.max_media", 256, "data.max_media should be at most 255"),
        ("model.output_projector", "mamba", "'mamba' is not one of"),
        ("model.dtype", "int8", "model.dtype"),
        ("model.input_projector", "tree", "config.model: input projection 'tree'"),
        ("model.lora_targets", ("q",), "config.model: LoRA targets"),
        ("train.steps", -5, "should not be negative"),
        ("data.captions", ".", "holds no data files"),
        ("train.seed", -1, "train.seed should be at least 0 and below"),
        ("train.seed", 2**31, "train.seed should be at least 0 and below"),
        ("train.remat", "half", "train.remat: 'half' is not one of none, dots, full, offload"),
        ("train.remat", "offload", "train.remat=offload moves activations to the host's memory"),
        ("model.quantize", "int3", "model.quantize: 'int3' is not one of int8, nf4"),
    ],
)
def test_bad_configs_leave_nothing(tiny_root, tmp_path, field, value, message):
    config = tiny.experiment(tiny_root, "stage1")
    group, name = field.split(".")
    setattr(getattr(config, group), name, value)
    with pytest.raises(UserError, match=message):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
