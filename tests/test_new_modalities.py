"""Rows added to the table of modalities: a model of their own can be trained, and existing models stay as they are."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import nextgpt_jax as ng
from nextgpt_jax import media
from nextgpt_jax.config import GenerationDefaults, ImageOptions, ModelConfig
from nextgpt_jax.modalities import MODALITIES, RELEASED, Modality, SignalTokens
from nextgpt_jax.weights.assemble import model_config
from tests import KEYPAD, tiny


@dataclasses.dataclass
class SketchModelConfig(ModelConfig):
    sketch_decoder: str = ""


@dataclasses.dataclass
class SketchGenerationDefaults(GenerationDefaults):
    sketch: ImageOptions = dataclasses.field(default_factory=ImageOptions)


@pytest.fixture
def rows(monkeypatch):
    """A seventh input, "touch", read like thermal images, and a fourth output, "sketch", drawn like images."""
    monkeypatch.setitem(MODALITIES, "touch", Modality("touch", "<touch>", "vision"))
    monkeypatch.setitem(
        MODALITIES, "sketch", Modality("sketch", "<sketch>", "vision", False, "SKT", 5, ("height", "width"), ".png")
    )
    for name in ("touch", "sketch"):
        monkeypatch.setitem(media.FORMATS, name, media.FORMATS["image"])


def sketch_experiment(root, folder):
    """A config of a model that draws sketches and images, and its dataset below `folder`."""
    config = tiny.experiment(root, "stage3", tiny.PICTURES)
    fields = {field.name: getattr(config.model, field.name) for field in dataclasses.fields(config.model)}
    config.model = SketchModelConfig(**fields, sketch_decoder=str(root / "hub" / "stable-diffusion"))
    config.model.output_modalities = ("sketch", "image")
    fields = {field.name: getattr(config.generation, field.name) for field in dataclasses.fields(config.generation)}
    config.generation = SketchGenerationDefaults(**fields, sketch=dataclasses.replace(config.generation.image))
    config.train.steps, config.train.save_every = 3, 3
    rng, records = np.random.default_rng(0), []
    for i in range(4):
        media.write("image", folder / "touchs" / f"{i}.png", rng.integers(0, 256, (20, 16, 3), np.uint8))
        messages = [
            {"from": "human", "value": "what is <touch>? sketch it"},
            {"from": "gpt", "value": "Sure. <sketch>"},
        ]
        records.append({"conversations": messages, "input_touchs": [f"{i}.png"], "sketch_captions": [f"number {i}"]})
    (folder / "instructions.json").write_text(json.dumps(records))
    config.data.instructions = str(folder / "instructions.json")
    return config


def test_rows_of_the_table_make_a_new_model(rows, tiny_root, tmp_path):
    config = sketch_experiment(tiny_root, tmp_path)
    ng.train(config, workdir=tmp_path / "run")
    model = ng.NExTGPT.from_pretrained(tmp_path / "run", config=config)
    assert model.output_modalities == ("sketch", "image") and "touch" in model.input_modalities
    assert model.config.vocabulary.new_tokens[2:7] == ("[SKT0]", "[SKT1]", "[SKT2]", "[SKT3]", "[SKT4]")
    pixels = np.zeros((16, 16, 3), np.uint8)
    options = ng.GenerationConfig(num_inference_steps=2, max_new_tokens=12)
    reply = model("draw it", media={"touch": [pixels]}, output_modalities=["sketch"], generation_config=options)
    assert [medium.modality for medium in reply.media] == ["sketch"]
    assert reply.of("sketch")[0].shape == (16, 16, 3)
    assert [path.name for path in reply.save(tmp_path)] == ["sketch_000.png"]
    config.model.output_modalities = ("image", "sketch")  # the same tokens in another order
    with pytest.raises(ng.UserError, match="make model.output_modalities equal"):
        ng.train(config, workdir=tmp_path / "run")


def test_existing_models_stay_as_they_are(rows):
    """The keypad's delta has the released tokens, whatever rows there are, and still draws."""
    model = ng.NExTGPT.from_pretrained(KEYPAD)
    assert model.config.signals == RELEASED and len(model.config.vocabulary.new_tokens) == 38
    reply = model("draw a seven", generation_config=ng.GenerationConfig(num_inference_steps=2))
    assert reply.text == "Here is a handwritten seven." and len(reply.images) == 1


def test_a_delta_s_config_names_its_signal_tokens(tiny_root, tmp_path, rows):
    config = sketch_experiment(tiny_root, tmp_path).model
    signals = (SignalTokens("sketch", "SKT", 5), SignalTokens("image", "IMG", 4))
    assert model_config(config).signals == signals
    shutil.copytree(KEYPAD.parents[1] / "examples" / "keypad" / "weights" / "delta", tmp_path / "delta")
    (tmp_path / "delta" / "nextgpt_config.json").write_text(json.dumps({"signal_tokens": [["image", "IMG"]]}))
    with pytest.raises(ng.UserError, match="signal_tokens should be a list"):
        model_config(dataclasses.replace(ng.load_config(str(KEYPAD)).model, delta=str(tmp_path / "delta")))


def test_unknown_or_repeated_output_modalities_are_refused(tiny_root):
    config = tiny.experiment(tiny_root, "stage1").model
    for names, message in (
        (("image", "image"), "image"),
        (("smell",), "smell"),
        (("audio",), "no signal tokens for image"),
    ):
        config.output_modalities = names
        with pytest.raises(ng.UserError, match=message):
            model_config(config)
