"""ImageBind's vision and text towers against the fixtures of the original."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert import engine
from convert.checkpoints import open_checkpoint
from convert.imagebind import table
from nextgpt_jax.errors import UserError
from nextgpt_jax.hub import read_json
from nextgpt_jax.imagebind import ImageBind, ImageBindConfig
from tests.parity import relative_error

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


def tiny_config() -> ImageBindConfig:
    return ImageBindConfig.from_hub(read_json(FIXTURES / "tiny" / "imagebind.json"))


def load_tiny(modalities=("vision", "text")) -> ImageBind:
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: ImageBind(tiny_config(), modalities=modalities, rngs=nnx.Rngs(0)))
    )
    return nnx.merge(graphdef, engine.load(open_checkpoint(FIXTURES / "imagebind"), state, table(modalities)))


@functools.partial(jax.jit, static_argnums=1)
def embed(model: ImageBind, modality: str, x):
    return model.embed(modality, x)


@pytest.fixture(scope="module")
def model() -> ImageBind:
    return load_tiny()


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """The original's inputs and outputs; images and clips with channels last."""
    arrays = dict(np.load(FIXTURES / "npz" / "imagebind.npz"))
    arrays["images"] = np.moveaxis(arrays["in_vision_f16"].astype(np.float32), 1, -1)  # [B, H, W, 3]
    arrays["clips"] = np.moveaxis(arrays["in_video_f16"].astype(np.float32), 2, -1)  # [B, clips, F, H, W, 3]
    return arrays


def test_images_match_original(model, arrays):
    out = embed(model, "vision", jnp.asarray(arrays["images"]))
    assert relative_error(out, arrays["out_vision"]) < 1e-5
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 1.0, atol=1e-6)


def test_tokens_and_trunk_match_original(model, arrays):
    tower = model.towers["vision"]
    tokens = tower.stem(jnp.asarray(arrays["images"][:1]))
    assert relative_error(tokens, arrays["out_tokens_vision"]) < 1e-5
    assert relative_error(tower.trunk(tokens), arrays["out_trunk_vision"]) < 1e-5


def test_clips_match_original_and_average_unnormalised(model, arrays):
    clips = arrays["clips"]
    out = embed(model, "vision", jnp.asarray(clips.reshape(-1, *clips.shape[2:])))
    assert relative_error(out.reshape(*clips.shape[:2], -1).mean(1), arrays["out_video"]) < 1e-5


def test_an_image_is_a_clip_that_stands_still(model, arrays):
    image = jnp.asarray(arrays["images"][:1])
    clip = jnp.stack([image, image], axis=1)
    np.testing.assert_array_equal(embed(model, "vision", image), embed(model, "vision", clip))


def test_text_matches_original(model, arrays):
    out = embed(model, "text", jnp.asarray(arrays["in_text"], jnp.int32))
    assert relative_error(out, arrays["out_text"]) < 1e-5


def test_text_ignores_what_follows_the_end_token(model):
    ids = jnp.array([[49406, 320, 1929, 49407]], jnp.int32)
    padded = jnp.pad(ids, ((0, 0), (0, 5)), constant_values=7)
    assert relative_error(embed(model, "text", padded), embed(model, "text", ids)) < 1e-5


def test_text_scale_is_clipped():
    model = load_tiny(("text",))
    scale = model.towers["text"].log_logit_scale
    ids = jnp.array([[1, 2, 3]], jnp.int32)
    before = embed(model, "text", ids)
    np.testing.assert_allclose(np.linalg.norm(before), np.exp(scale[...]), rtol=1e-5)
    scale[...] = jnp.full((), 10.0)
    np.testing.assert_allclose(np.linalg.norm(embed(model, "text", ids)), 100.0, rtol=1e-5)


@pytest.mark.parametrize("modality", ["vision", "text"])
def test_one_tower_loads_alone(modality, model, arrays):
    alone = load_tiny((modality,))
    x = jnp.asarray(arrays["images"][:1]) if modality == "vision" else jnp.asarray(arrays["in_text"][:1], jnp.int32)
    np.testing.assert_array_equal(embed(alone, modality, x), embed(model, modality, x))
    other = "text" if modality == "vision" else "vision"
    with pytest.raises(ValueError, match=f"no '{other}' tower"):
        alone.embed(other, x)


@pytest.mark.parametrize(("modality", "parameters"), [("vision", 632_829_440), ("text", 354_032_641)])
def test_published_sizes(modality, parameters):
    state = nnx.state(
        nnx.eval_shape(lambda: ImageBind(ImageBindConfig.huge(), modalities=(modality,), rngs=nnx.Rngs(0)))
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == parameters
    published = json.loads((FIXTURES / "manifests" / "imagebind_huge.json").read_text())["state_dict"]
    wanted = {key: tuple(shape) for key, shape in published.items() if key.split(".")[1] == modality}
    wanted.pop("modality_preprocessors.text.mask", None)  # a buffer
    assert engine.torch_shapes(state, table((modality,))) == wanted


def test_export_gives_the_file_back(model):
    original = open_checkpoint(FIXTURES / "imagebind")
    tensors = engine.export(nnx.state(model), table())
    assert len(tensors) > 50
    for key, value in tensors.items():
        np.testing.assert_array_equal(value, original[key], err_msg=key)


def test_other_modalities_are_refused_by_name():
    with pytest.raises(ValueError, match=r"\['audio'\] are not supported \(only \['vision', 'text'\]\)"):
        ImageBind(tiny_config(), modalities=("vision", "audio"), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="audio"):
        table(("audio",))


def test_wrong_shapes_are_refused(model):
    with pytest.raises(ValueError, match=r"vision takes \[B, 224, 224, 3\]"):
        embed(model, "vision", jnp.zeros((1, 200, 224, 3)))
    with pytest.raises(ValueError, match="vision takes"):
        embed(model, "vision", jnp.zeros((1, 3, 224, 224, 3)))
    with pytest.raises(ValueError, match="text takes"):
        embed(model, "text", jnp.zeros((1, 78), jnp.int32))


def test_bad_configs_say_why():
    raw = read_json(FIXTURES / "tiny" / "imagebind.json")
    with pytest.raises(UserError, match="width 32 does not divide into 5 heads"):
        ImageBindConfig.from_hub({**raw, "vision_num_heads": 5})
    with pytest.raises(UserError, match="does not divide into patches"):
        ImageBindConfig.from_hub({**raw, "image_size": 220})
    with pytest.raises(UserError, match="lacks out_embed_dim"):
        ImageBindConfig.from_hub({k: v for k, v in raw.items() if k != "out_embed_dim"})
