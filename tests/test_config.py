"""The config's sections: unknown names are errors, names and values of earlier releases work."""

import copy
import dataclasses
import pickle

import pytest

from nextgpt_jax.config import (
    AudioOptions,
    DataConfig,
    ExperimentConfig,
    ImageOptions,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    current_name,
    field_names,
    set_field,
)
from nextgpt_jax.errors import UserError

RENAMED = [
    ("optim.rates.lora", "optim.lr_multipliers.lora", 0.5),
    ("optim.clip", "optim.grad_clip_norm", 2.0),
    ("optim.accumulate", "optim.grad_accum_steps", 4),
    ("optim.warmup", "optim.warmup_ratio", 0.2),
    ("train.keep", "train.max_to_keep", 7),
    ("data.threads", "data.num_workers", 3),
    ("data.media", "data.media_root", "media"),
    ("data.buckets", "data.bucket_boundaries", (8, 16)),
    ("decode.temperature", "generation.temperature", 0.1),
    ("decode.image.steps", "generation.image.num_inference_steps", 9),
    ("decode.video.guidance", "generation.video.guidance_scale", 3.0),
    ("generation.audio.steps", "generation.audio.num_inference_steps", 9),
]


def get(config, name):
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize("old, new, value", RENAMED)
def test_names_of_earlier_releases(old, new, value):
    assert new in field_names() and current_name(old) == current_name(new) == new
    parent, _, field = old.rpartition(".")
    config = ExperimentConfig()
    with pytest.warns(FutureWarning, match="is now"):
        setattr(get(config, parent), field, value)
    assert get(config, new) == value
    with pytest.warns(FutureWarning, match="is now"):
        assert get(config, old) == value
    other = ExperimentConfig()
    set_field(other, old, value)
    assert other == config != ExperimentConfig()


def test_constructors_take_names_of_earlier_releases():
    with pytest.warns(FutureWarning, match="ImageOptions.* is now"):
        assert ImageOptions(steps=3, guidance=2.0) == ImageOptions(num_inference_steps=3, guidance_scale=2.0)
    with pytest.warns(FutureWarning, match="TrainConfig.keep is now max_to_keep"):
        assert TrainConfig(keep=9) == TrainConfig(max_to_keep=9)
    assert dataclasses.replace(TrainConfig(), max_to_keep=9).max_to_keep == 9
    with pytest.warns(FutureWarning), pytest.raises(UserError, match="keep is now max_to_keep"):
        dataclasses.replace(TrainConfig(), keep=9)


def test_a_template_of_earlier_releases():
    with pytest.warns(FutureWarning, match="'pieces' is now 'per_segment'"):
        assert ModelConfig(template="pieces") == ModelConfig(template="per_segment")
    config = ModelConfig()
    with pytest.warns(FutureWarning, match="'pieces' is now 'per_segment'"):
        config.template = "pieces"
    assert config.template == "per_segment"


@pytest.mark.parametrize(
    "use, message",
    [
        (lambda c: setattr(c.optim, "grad_clip", 1.0), "OptimConfig has no field 'grad_clip'; did you mean grad_clip_"),
        (lambda c: setattr(c.data, "xyz", 1), "DataConfig has no field 'xyz': its fields are captions, "),
        (lambda c: setattr(c, "modle", ModelConfig()), "ExperimentConfig has no field 'modle'; did you mean model"),
        (lambda c: c.train.step, "TrainConfig has no field 'step'; did you mean steps"),
        (lambda c: MeshConfig(tensors=2), "MeshConfig has no field 'tensors'; did you mean tensor"),
    ],
)
def test_unknown_fields(use, message):
    config = ExperimentConfig()
    with pytest.raises(UserError, match=message):
        use(config)
    with pytest.raises(AttributeError):
        use(config)
    assert config == ExperimentConfig()


def test_configs_are_copied_and_pickled():
    config = ExperimentConfig(optim=OptimConfig(lr=1.0), data=DataConfig(bucket_boundaries=(1, 2)))
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.asdict(config)["optim"]["lr"] == 1.0
    assert not hasattr(config, "nothing")


def test_set_field_checks_types():
    config = ExperimentConfig()
    set_field(config, "optim.lr", 1)
    set_field(config, "data.bucket_boundaries", [8, 16])
    assert config.optim.lr == 1.0 and config.data.bucket_boundaries == (8, 16)
    set_field(config, "generation.audio", AudioOptions(seconds=1.0))
    for name, value in (("optim.lr", "fast"), ("train.steps", True), ("train.steps", 1.0)):
        with pytest.raises(UserError, match=f"{name} should be of type"):
            set_field(config, name, value)
    with pytest.raises(UserError, match="unknown field optim.lrr; did you mean optim.lr"):
        set_field(config, "optim.lrr", 1.0)


def test_elements_of_tuples_have_their_type():
    config = ExperimentConfig()
    set_field(config, "data.bucket_boundaries", [8, 16])
    assert config.data.bucket_boundaries == (8, 16)
    for name, value in (("data.bucket_boundaries", (1.5, 2)), ("model.lora_targets", [1])):
        with pytest.raises(UserError, match=f"{name} should hold elements of type"):
            set_field(config, name, value)
