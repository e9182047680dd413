"""Families by the kind that config files name, and a model with a second encoder of several embeddings a medium."""

import dataclasses
import json
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import nextgpt_jax as ng
from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import MODALITIES, Modality
from nextgpt_jax.models import registry
from nextgpt_jax.models.diffusion.stable_diffusion import StableDiffusionConfig
from nextgpt_jax.models.encoders.imagebind import ImageBindConfig
from nextgpt_jax.models.layers import Linear
from nextgpt_jax.models.llms.llama import LlamaConfig
from nextgpt_jax.models.nextgpt import NExTGPTConfig, NExTGPTModel
from nextgpt_jax.models.partitioning import parameter_rows
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.pipeline import saved
from nextgpt_jax.prompts import Input, Turn
from nextgpt_jax.sharding import LARGEST_DIM, parameter_spec
from nextgpt_jax.templates import tokenize_conversation
from nextgpt_jax.training import losses
from nextgpt_jax.weights import nextgpt_delta, tables
from nextgpt_jax.weights.assemble import model_config
from nextgpt_jax.weights.load import load_system
from nextgpt_jax.weights.matching import match_rules
from nextgpt_jax.weights.rules import Table, affine
from nextgpt_jax.weights.safetensors_writer import save_safetensors
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, open_checkpoint
from tests import tiny
from tests.test_prompts import TOKENIZER


def test_the_kind_in_a_folder_decides(tiny_root):
    hub = tiny_root / "hub"
    assert registry.kind_of(registry.read_language_model(hub / "llm")) == "llama"
    assert registry.kind_of(registry.read_encoder(hub / "imagebind")) == "imagebind"
    kinds = {"stable-diffusion": "StableDiffusionPipeline", "audioldm": "AudioLDMPipeline"}
    for folder, kind in kinds.items():
        assert registry.kind_of(registry.read_decoder(hub / folder)) == kind


def test_a_release_without_config_is_imagebind_huge(tmp_path):
    (tmp_path / "imagebind_huge.pth").touch()
    assert registry.read_encoder(tmp_path) == ImageBindConfig.huge()


@pytest.mark.parametrize(
    "read, file, content, message",
    [
        ("read_language_model", "config.json", {"model_type": "mamba"}, "model_type='mamba' is no supported language"),
        ("read_language_model", "config.json", {}, "model_type=None is no supported language model .only llama"),
        (
            "read_encoder",
            "config.json",
            {"model_type": "clip"},
            "model_type='clip' is no supported encoder .only image",
        ),
        (
            "read_decoder",
            "model_index.json",
            {"_class_name": "FluxPipeline"},
            "_class_name='FluxPipeline' is no .*decod",
        ),
        ("read_decoder", "other.json", {}, "no such file: .*model_index.json"),
    ],
)
def test_unknown_kinds_are_named_with_the_known_ones(tmp_path, read, file, content, message):
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        getattr(registry, read)(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_folders_stand_for_the_model_they_are_named_after():
    assert registry.published("llm", "weights/vicuna-7b-v0") == LlamaConfig.vicuna_7b()
    assert registry.published("image_decoder", "weights/Stable-Diffusion-2") == StableDiffusionConfig.sd2()
    assert registry.published("image_decoder", "weights/mine") == StableDiffusionConfig.sd15()
    with pytest.raises(UserError, match="model.point_decoder: no such folder: 'x', nor a released model"):
        registry.published("point_decoder", "x")


@pytest.mark.parametrize("kind", registry.LANGUAGE_MODELS)
def test_language_models_have_tables_and_known_lora_targets(kind):
    family = registry.LANGUAGE_MODELS[kind]
    sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    config = family.config(**sizes)
    adapters = tables.language_model(config).lora
    assert {rule.flax.split(".")[-2] for rule in adapters.rules} == set(family.lora_targets)
    state = nnx.state(nnx.eval_shape(lambda: registry.build(config, rngs=make_rngs(0))))
    assert match_rules(state, tables.language_model(config).whole(config))


def test_a_modality_takes_any_decoder_of_its_kind_of_media(tiny_root, tmp_path):
    """A second kind for images is one row; one that makes something else is refused."""
    config = tiny.experiment(tiny_root, "stage2").model

    @dataclasses.dataclass(frozen=True)
    class OtherConfig(StableDiffusionConfig):
        pass

    folder = tmp_path / "other"
    shutil.copytree(tiny_root / "hub" / "stable-diffusion", folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "OtherPipeline"}))
    other = dataclasses.replace(config, image_decoder=str(folder))
    with pytest.MonkeyPatch.context() as patch:
        row = registry.DECODERS["StableDiffusionPipeline"]
        patch.setitem(registry.DECODERS, "OtherPipeline", dataclasses.replace(row, config=OtherConfig))
        assert type(dict(model_config(other).decoders)["image"]) is OtherConfig
    with pytest.raises(UserError, match="_class_name='OtherPipeline' is no supported decoder"):
        model_config(other)
    swapped = dataclasses.replace(config, video_decoder=config.image_decoder)
    with pytest.raises(
        UserError, match="model.video_decoder: a StableDiffusionPipeline is sized by height, width, and"
    ):
        model_config(swapped)


# A second encoder


@dataclasses.dataclass(frozen=True)
class PointsConfig:
    """Clouds of points to three embeddings."""

    out_embed_dim: int = 5
    modalities: tuple[str, ...] = ("points",)
    media_branches: tuple[str, ...] = ("points",)

    @classmethod
    def from_pretrained(cls, folder) -> "PointsConfig":
        return cls()

    def input_shape(self, modality: str) -> tuple[int, ...]:
        return (4, 3)

    def num_embeddings(self, modality: str) -> int:
        return 3


class Points(nnx.Module):
    def __init__(self, cfg: PointsConfig, *, branches: tuple[str, ...] = (), rngs: nnx.Rngs):
        self.proj = Linear(12, 15, rngs=rngs)

    def encode_media(self, branch, x, *, views):
        return self.proj(x.reshape(len(x), 12)).reshape(len(x), 3, 5)


@pytest.fixture
def points(monkeypatch) -> None:
    family = registry.Family(PointsConfig, Points, "points", ((r"proj\..*", LARGEST_DIM),))
    monkeypatch.setitem(registry.ENCODERS, "points", family)
    monkeypatch.setitem(MODALITIES, "cloud", Modality("cloud", "<cloud>", "points", encoder="points"))
    module = types.ModuleType("points")
    module.table = lambda branches: Table(tuple(affine("proj", "proj")))
    monkeypatch.setitem(sys.modules, "nextgpt_jax.weights.tables.points", module)


@pytest.fixture
def two_encoders(points) -> NExTGPTModel:
    encoders = (ImageBindConfig.from_dict(tiny.IMAGEBIND), PointsConfig())
    llm = LlamaConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    return NExTGPTModel(NExTGPTConfig(llm, encoders, None, "mlp", ()), rngs=make_rngs(0))


def test_each_modality_is_read_by_its_encoder(two_encoders):
    cfg = two_encoders.config
    assert cfg.input_modalities == ("image", "video", "audio", "cloud")
    assert cfg.input_encoders["cloud"] == PointsConfig()
    clouds = jnp.ones((2, 4, 3))
    assert two_encoders.encode_media("cloud", clouds).shape == (2, 3, 5)
    assert two_encoders.encode_media("image", jnp.ones((2, 16, 16, 3))).shape == (2, 1, 24)
    assert two_encoders.input_proj["points"].layers[0].kernel.shape == (5, 8)
    assert two_encoders.input_proj["imagebind"].layers[0].kernel.shape == (24, 8)
    for path, leaf in nnx.to_flat_state(nnx.state(two_encoders)):
        parameter_spec(".".join(map(str, path)), leaf.shape, tiny.Mesh(fsdp=2), parameter_rows(cfg))
    delta = nextgpt_delta.delta_state(nnx.state(two_encoders))
    keys = {
        key for source in match_rules(delta, nextgpt_delta.table(cfg)).values() for some in source.keys for key in some
    }
    assert {"points.llama_proj.0.weight", "imagebind.llama_proj.2.bias"} <= keys


def test_a_medium_takes_as_many_positions_as_it_has_embeddings(two_encoders):
    cfg = two_encoders.config
    turns = [Turn((Input("cloud", 1), "and", Input("image", 2)), ("yes",))]
    found = tokenize_conversation(turns, TOKENIZER, cfg.vocabulary, num_embeddings=cfg.num_embeddings)
    (cloud, _), (image, _) = found.inputs
    begin, end = cfg.vocabulary.media_begin, cfg.vocabulary.media_end
    assert found.ids[cloud - 1 : cloud + 4] == [begin, 0, 0, 0, end]
    assert found.ids[image - 1 : image + 2] == [begin, 0, end]

    ids = jnp.asarray(found.ids)[None]
    clouds, images = jnp.full((1, 1, 4, 3), 0.5), jnp.full((1, 1, 16, 16, 3), 0.5)
    batch = {
        "tokens": ids,
        "loss_mask": jnp.asarray(found.loss)[None],
        "media": {
            "cloud": {"input": clouds, "positions": jnp.array([[cloud]])},
            "image": {"input": images, "positions": jnp.array([[image]])},
        },
        "signals": {},
    }
    state = nnx.state(two_encoders)
    graphdef = nnx.graphdef(two_encoders)
    value, _ = jax.jit(lambda s: losses.loss(nnx.merge(graphdef, s), batch, losses.target_counts(batch)))(state)

    expected = np.array(two_encoders.embed_tokens(ids))
    points = two_encoders.input_proj["points"](two_encoders.encode_media("cloud", clouds[0]))
    expected[0, cloud : cloud + 3] = points[0]
    expected[0, image] = two_encoders.input_proj["imagebind"](two_encoders.encode_media("image", images[0]))[0, 0]
    embedded = two_encoders.embed_prompt(
        ids,
        {
            "points": (two_encoders.encode_media("cloud", clouds[0]), cloud + jnp.arange(3)[None]),
            "imagebind": (two_encoders.encode_media("image", images[0]), jnp.array([[image]])),
        },
    )
    np.testing.assert_allclose(embedded, expected, rtol=1e-5, atol=1e-6)
    hidden, _ = two_encoders.llm(jnp.asarray(expected))
    logits = np.asarray(two_encoders.logits(hidden))[0, :-1]
    targets, used = np.asarray(found.ids)[1:], np.asarray(found.loss)[1:]
    likelihood = jax.nn.log_softmax(logits)[np.arange(len(targets)), targets]
    assert float(value) == pytest.approx(float(-likelihood[used].mean()), rel=1e-5)


def test_a_system_of_two_encoders_is_converted_and_exported(points, tiny_root, tmp_path):
    tensors = {"proj.weight": np.ones((15, 12), np.float32), "proj.bias": np.arange(15, dtype=np.float32)}
    save_safetensors(Checkpoint.of("points", tensors), tmp_path / "points" / "model.safetensors")
    (tmp_path / "points" / "config.json").write_text(json.dumps({"model_type": "points"}))
    config = tiny.experiment(tiny_root, "stage1", tiny.PICTURES)
    config.model.encoder += f",{tmp_path / 'points'}"
    reports = ng.convert_checkpoint("nextgpt", output=tmp_path / "jax", config=config)
    assert reports.keys() == {"llm", "encoder", "encoder.2", "image_decoder"}
    converted = saved.read(tmp_path / "jax")
    assert converted.model.encoder == f"{tmp_path / 'jax' / 'imagebind'},{tmp_path / 'jax' / 'points'}"
    models = (load_system(some.model, decoder_parts=()).model for some in (config, converted))
    for one, other in zip(*(jax.tree.leaves(nnx.state(model)) for model in models), strict=True):
        np.testing.assert_array_equal(one, other)
    ng.export_checkpoint("nextgpt", tmp_path / "torch", source=tmp_path / "jax", config=config)
    exported = open_checkpoint(tmp_path / "torch" / "points")
    for name, value in tensors.items():
        np.testing.assert_array_equal(exported[name], value)


def test_one_encoder_of_a_kind():
    encoder = ImageBindConfig.from_dict(tiny.IMAGEBIND)
    llm = LlamaConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ValueError, match="two encoders of the kind imagebind"):
        NExTGPTConfig(llm, (encoder, encoder), None, "mlp", ())
    with pytest.raises(ValueError, match="input projection 'conv' is not one of"):
        NExTGPTConfig(llm, (encoder,), None, "conv", ())
