"""ImageBind's towers against the fixtures of the original."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.encoders.imagebind import BRANCHES, ImageBind, ImageBindConfig, drop_path
from nextgpt_jax.models.hf_config import read_json
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.tables.imagebind import table
from nextgpt_jax.weights.torch_checkpoint import Tensor, open_checkpoint
from tests import FIXTURES
from tests.parity import manifest, parameters, relative_error

KEYPAD = FIXTURES.parent.parent / "examples" / "keypad" / "weights" / "base" / "imagebind"

SENSORS = ("depth", "thermal", "imu")


def tiny_config() -> ImageBindConfig:
    return ImageBindConfig.from_dict(read_json(FIXTURES / "tiny" / "imagebind.json"))


def load_tiny(modalities=BRANCHES) -> ImageBind:
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: ImageBind(tiny_config(), branches=modalities, rngs=make_rngs(0)))
    )
    return nnx.merge(graphdef, matching.load(open_checkpoint(FIXTURES / "imagebind"), state, table(modalities)))


def abstract_huge() -> ImageBind:
    return nnx.eval_shape(lambda: ImageBind(ImageBindConfig.huge(), rngs=make_rngs(0)))


@functools.partial(jax.jit, static_argnums=1)
def embed(model: ImageBind, modality: str, x, key=None):
    return model.embed(modality, x, key)


@functools.partial(jax.jit, static_argnums=1)
def embed_views(model: ImageBind, modality: str, x):
    return model.embed_views(modality, x)


@pytest.fixture(scope="module")
def model() -> ImageBind:
    return load_tiny()


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """The original's inputs and outputs; the inputs under the modality's name, in the layout that we take."""
    arrays = dict(np.load(FIXTURES / "npz" / "imagebind.npz"))
    inputs = {key[3:-4]: value.astype(np.float32) for key, value in arrays.items() if key.endswith("_f16")}
    inputs["vision"] = np.moveaxis(inputs["vision"], 1, -1)  # [B, H, W, 3]
    inputs["video"] = np.moveaxis(inputs["video"], 2, -1)  # [B, clips, F, H, W, 3]
    inputs["audio"] = inputs["audio"][:, :, 0]  # [B, clips, mel, frames]
    inputs |= {name: inputs[name][:, 0] for name in ("depth", "thermal")}  # [B, H, W]
    return arrays | inputs | {"text": arrays["in_text"].astype(np.int32)}


def one_input(arrays, modality: str):
    return jnp.asarray(arrays["audio"][0] if modality == "audio" else arrays[modality][:1])


def test_images_match_original(model, arrays):
    out = embed(model, "vision", jnp.asarray(arrays["vision"]))
    assert relative_error(out, arrays["out_vision"]) < 1e-5
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 1.0, atol=1e-6)


@pytest.mark.parametrize("modality", ["vision", "audio", "imu"])
def test_tokens_and_trunk_match_original(modality, model, arrays):
    tower = model.towers[modality]
    tokens = tower.stem(one_input(arrays, modality)[:1])
    assert relative_error(tokens, arrays[f"out_tokens_{modality}"]) < 1e-5
    assert relative_error(tower.trunk(tokens), arrays[f"out_trunk_{modality}"]) < 1e-5


@pytest.mark.parametrize(("name", "branch"), [("video", "vision"), ("audio", "audio")])
def test_views_match_original_and_average_unnormalised(name, branch, model, arrays):
    views = jnp.asarray(arrays[name])
    out = embed_views(model, branch, views)
    assert relative_error(out, arrays[f"out_{name}"]) < 1e-5
    single = jnp.stack([embed(model, branch, views[:, i]) for i in range(views.shape[1])], axis=1)
    np.testing.assert_allclose(np.linalg.norm(single, axis=-1), 1.0, atol=1e-6)  # no logit scale
    np.testing.assert_allclose(out, single.mean(1), atol=1e-6)
    assert (np.linalg.norm(out, axis=-1) < 1.0).all()


@pytest.mark.parametrize(("modality", "length"), [("depth", 5.0), ("thermal", 10.0), ("imu", 5.0)])
def test_sensors_match_original(modality, length, model, arrays):
    out = embed(model, modality, jnp.asarray(arrays[modality]))
    assert relative_error(out, arrays[f"out_{modality}"]) < 1e-5
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), length, rtol=1e-5)


def test_an_image_is_a_clip_that_stands_still(model, arrays):
    image = jnp.asarray(arrays["vision"][:1])
    clip = jnp.stack([image, image], axis=1)
    np.testing.assert_array_equal(embed(model, "vision", image), embed(model, "vision", clip))


def test_text_matches_original(model, arrays):
    out = embed(model, "text", jnp.asarray(arrays["text"]))
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


@pytest.mark.parametrize("modality", BRANCHES)
def test_one_tower_loads_alone(modality, model, arrays):
    alone = load_tiny((modality,))
    x = one_input(arrays, modality)
    np.testing.assert_array_equal(embed(alone, modality, x), embed(model, modality, x))
    other = "text" if modality == "vision" else "vision"
    with pytest.raises(ValueError, match=f"no '{other}' tower"):
        alone.embed(other, x)


@pytest.mark.parametrize("modality", ["audio", "imu"])
def test_activations_of_bfloat16_give_float32_embeddings(modality, model, arrays):
    x = one_input(arrays, modality)
    low = embed(model, modality, x.astype(jnp.bfloat16))
    assert low.dtype == embed(model, modality, x.astype(jnp.bfloat16), jax.random.key(0)).dtype == jnp.float32
    assert relative_error(low, embed(model, modality, x)) < 0.05


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    branch = jnp.ones((20_000, 2, 3))
    out = drop_path(branch, 0.7, jax.random.key(0))
    sample = out[:, 0, 0]
    np.testing.assert_array_equal(out, jnp.broadcast_to(sample[:, None, None], out.shape))
    np.testing.assert_allclose(np.unique(sample), [0.0, 1 / 0.3], rtol=1e-5)
    np.testing.assert_allclose(sample.mean(), 1.0, atol=0.04)  # 4 standard errors
    assert drop_path(branch, 0.7, None) is branch


def test_drop_path_grows_from_nothing_to_its_rate():
    """Equal samples come out of two blocks in four ways: the last block's branches kept or not, the first's always."""
    trunk = load_tiny(("audio",)).towers["audio"].trunk
    trunk.drop_path = 0.7
    rows = jnp.repeat(jax.random.normal(jax.random.key(1), (1, 3, 24)), 4000, axis=0)
    out = jax.jit(lambda trunk, x, key: trunk(x, key))(trunk, rows, jax.random.key(2))
    kinds, counts = np.unique(np.asarray(out).round(3)[:, 0], axis=0, return_counts=True)
    assert len(kinds) == 4
    np.testing.assert_allclose(sorted(counts / 4000), [0.3 * 0.3, 0.3 * 0.7, 0.7 * 0.3, 0.7 * 0.7], atol=0.03)


@pytest.mark.parametrize("modality", BRANCHES)
def test_a_key_drops_only_in_audio_and_imu(modality, model, arrays):
    key, x = jax.random.key(3), jnp.repeat(one_input(arrays, modality)[:1], 32 if modality == "audio" else 2, axis=0)
    plain, dropped = embed(model, modality, x), embed(model, modality, x, key)
    assert np.array_equal(plain, dropped) == (modality not in ("audio", "imu"))
    np.testing.assert_allclose(plain, jnp.broadcast_to(plain[:1], plain.shape), atol=1e-5)
    np.testing.assert_array_equal(embed(model, modality, x, key), dropped)


def test_imu_head_drops_features_in_training():
    model = load_tiny(("imu",))
    model.towers["imu"].trunk.drop_path = 0.0
    x = jnp.repeat(jax.random.normal(jax.random.key(0), (1, 6, 2000)), 4, axis=0)
    assert len(np.unique(embed(model, "imu", x).round(3), axis=0)) == 1
    assert len(np.unique(embed(model, "imu", x, jax.random.key(1)).round(3), axis=0)) == 4


def test_published_sizes():
    model = abstract_huge()
    sizes = {name: parameters(nnx.state(tower)) for name, tower in model.towers.items()}
    assert sizes == {
        "vision": 632_829_440, "text": 354_032_641, "audio": 86_235_648,
        "depth": 21_871_872, "thermal": 86_211_072, "imu": 19_600_384,
    }  # fmt: skip
    assert parameters(nnx.state(model)) == 1_200_781_057


def test_published_keys():
    wanted = manifest("imagebind_huge")
    buffers = [f"modality_postprocessors.{name}.1.log_logit_scale" for name in ("audio", *SENSORS)]
    for key in (*buffers, "modality_preprocessors.text.mask"):
        wanted.pop(key)
    assert matching.torch_shapes(nnx.state(abstract_huge()), table()) == wanted


def test_export_gives_the_file_back(model):
    original = open_checkpoint(FIXTURES / "imagebind")
    tensors = matching.export(nnx.state(model), table())
    unused = {key for key in original if "log_logit_scale" in key or key.endswith("mask")}
    assert original.keys() - tensors.keys() == unused - {"modality_postprocessors.text.1.log_logit_scale"}
    for key, value in tensors.items():
        np.testing.assert_array_equal(value, original[key], err_msg=key)


def test_a_key_too_many_is_refused_by_name():
    original = open_checkpoint(FIXTURES / "imagebind")
    odd = "modality_trunks.audio.blocks.0.attn.bias_q"
    unread = Tensor((1, 1, 24), np.dtype(np.float32), lambda: pytest.fail("read before it was checked"))
    checkpoint = original.with_tensors(dict.fromkeys(original, unread) | original.tensors | {odd: unread})
    state = nnx.state(nnx.eval_shape(lambda: ImageBind(tiny_config(), rngs=make_rngs(0))))
    with pytest.raises(matching.ConversionError, match=f"unexpected {odd}"):
        matching.load(checkpoint, state, table())


def test_unknown_and_absent_modalities_are_refused_by_name():
    cfg = dataclasses.replace(tiny_config(), modalities=("vision", "text"))
    assert set(nnx.eval_shape(lambda: ImageBind(cfg, rngs=make_rngs(0))).towers) == {"vision", "text"}
    with pytest.raises(ValueError, match=r"no audio \(only vision, text\)"):
        ImageBind(cfg, branches=("vision", "audio"), rngs=make_rngs(0))
    with pytest.raises(ValueError, match=r"\['smell'\] are not supported"):
        table(("smell",))


@pytest.mark.parametrize(
    ("modality", "shape", "message"),
    [
        ("vision", (1, 200, 224, 3), r"vision takes \[B, 224, 224, 3\] or \[B, 2, 224, 224, 3\], got \[1, 200"),
        ("vision", (1, 3, 224, 224, 3), "vision takes"),
        ("audio", (1, 3, 128, 204), r"audio takes \[B, 128, 204\], got"),
        ("depth", (1, 224, 224, 1), r"depth takes \[B, 224, 224\]"),
        ("thermal", (1, 3, 224, 224), r"thermal takes \[B, 224, 224\]"),
        ("imu", (1, 2000, 6), r"imu takes \[B, 6, 2000\]"),
    ],
)
def test_wrong_shapes_are_refused(modality, shape, message, model):
    with pytest.raises(ValueError, match=message):
        embed(model, modality, jnp.zeros(shape))


def test_too_long_text_is_refused(model):
    with pytest.raises(ValueError, match="text takes"):
        embed(model, "text", jnp.zeros((1, 78), jnp.int32))


def test_towers_are_those_that_the_config_sizes():
    raw = read_json(FIXTURES / "tiny" / "imagebind.json")
    assert ImageBindConfig.from_dict(raw).modalities == BRANCHES
    assert ImageBindConfig.huge().modalities == BRANCHES
    seeing = {k: v for k, v in raw.items() if k.split("_")[0] not in ("audio", *SENSORS)}
    assert ImageBindConfig.from_dict(seeing).modalities == ("vision", "text")
    assert ImageBindConfig.from_dict({**raw, "modalities": ["audio", "vision"]}).modalities == ("audio", "vision")
    assert ImageBindConfig.from_dict(read_json(KEYPAD / "config.json")).modalities == ("vision", "text", "audio")


def test_huge_is_the_published_config():
    published = {
        "video_frames": 2, "kernel_size": [2, 14, 14], "audio_kernel_size": 16, "audio_stride": 10,
        "out_embed_dim": 1024, "vision_embed_dim": 1280, "vision_num_blocks": 32, "vision_num_heads": 16,
        "audio_embed_dim": 768, "audio_num_blocks": 12, "audio_num_heads": 12, "audio_num_mel_bins": 128,
        "audio_target_len": 204, "audio_drop_path": 0.1, "text_embed_dim": 1024, "text_num_blocks": 24,
        "text_num_heads": 16, "depth_embed_dim": 384, "depth_kernel_size": 16, "depth_num_blocks": 12,
        "depth_num_heads": 8, "depth_drop_path": 0.0, "thermal_embed_dim": 768, "thermal_kernel_size": 16,
        "thermal_num_blocks": 12, "thermal_num_heads": 12, "thermal_drop_path": 0.0, "imu_embed_dim": 512,
        "imu_kernel_size": 8, "imu_num_blocks": 6, "imu_num_heads": 8, "imu_drop_path": 0.7,
    }  # fmt: skip
    assert ImageBindConfig.from_dict(published) == ImageBindConfig.huge()


def test_input_shapes():
    cfg = ImageBindConfig.huge()
    shapes = {name: cfg.input_shape(name) for name in ("image", "video", "audio", *SENSORS)}
    assert shapes == {
        "image": (224, 224, 3), "video": (15, 2, 224, 224, 3), "audio": (3, 128, 204), "depth": (224, 224),
        "thermal": (224, 224), "imu": (6, 2000),
    }  # fmt: skip
    with pytest.raises(ValueError, match="'text' is no modality"):
        cfg.input_shape("text")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_num_heads": 5}, "vision: width 32 does not divide into 5 heads"),
        ({"audio_num_heads": 5}, "audio: width 24 does not divide into 5 heads"),
        ({"imu_num_blocks": 0}, "imu: width, blocks and heads must be at least 1, got 16, 0, 2"),
        ({"image_size": 220}, "does not divide into patches"),
        ({"kernel_size": [2, 14]}, r"kernel_size=\[2, 14\] should be a list of 3, each a whole number"),
        ({"depth_kernel_size": 15}, "depth: 224 does not divide into patches of 15"),
        ({"thermal_kernel_size": 0}, "thermal: 224 does not divide into patches of 0"),
        ({"imu_kernel_size": 7}, "imu: 2000 does not divide into patches of 7"),
        ({"audio_target_len": 10}, "audio: patches of 16 every 10 do not fit a 128 x 10 spectrogram"),
        ({"audio_stride": 0}, "audio: patches of 16 every 0 do not fit"),
        ({"imu_drop_path": 1.0}, r"imu_drop_path must be in \[0, 1\), got 1.0"),
        ({"modalities": ["vision", "smell"]}, r"\['smell'\] are not supported"),
        ({"modalities": ["vision", "vision"]}, "named once each"),
        ({"video_crops": 0}, "video_crops must be at least 1, got 0"),
        ({"clip_seconds": 0}, "clip_seconds must be positive"),
        ({"audio_num_blocks": None}, "audio_num_blocks=None should be a whole number"),
        ({"out_embed_dim": None}, "out_embed_dim=None should be a whole number"),
    ],
)
def test_bad_configs_say_why(change, message):
    raw = read_json(FIXTURES / "tiny" / "imagebind.json") | change
    with pytest.raises(UserError, match=message):
        ImageBindConfig.from_dict(raw)


def test_towers_that_do_not_exist_are_not_checked():
    raw = read_json(FIXTURES / "tiny" / "imagebind.json")
    cfg = ImageBindConfig.from_dict(raw | {"modalities": ["vision", "audio"], "image_size": 28, "imu_kernel_size": 7})
    assert cfg.input_shape("image") == (28, 28, 3)
    with pytest.raises(UserError, match="lacks audio_embed_dim, audio_num_blocks, audio_num_heads"):
        ImageBindConfig.from_dict({"modalities": ["audio"], "out_embed_dim": 8})
