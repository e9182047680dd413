"""The conversion engine: strictness, sharded folders, dtypes, and the round trip of every transform."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.layers import Conv, LayerNorm, Linear, stack
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.matching import ConversionError
from nextgpt_jax.weights.rules import (
    CONV,
    COPY,
    LINEAR,
    POINTWISE,
    TRANSPOSED_CONV,
    Table,
    affine,
    norm,
    prefixed,
    rule,
)
from nextgpt_jax.weights.safetensors_writer import save_safetensors
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, Tensor, open_checkpoint


class Toy(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.conv = Conv(2, 3, (3, 3), rngs=rngs)
        self.blocks = stack(lambda rngs: Linear(3, 4, rngs=rngs), 2, rngs)
        self.norm = LayerNorm(4)


TABLE = Table(
    rules=(
        *affine(("conv_in", "stem.conv"), "conv", CONV),
        *affine("blocks.{i}.fc", "blocks"),
        *norm("norm", "norm"),
    ),
    ignored=(r"blocks\.\d+\.inv_freq",),
)


def abstract() -> nnx.State:
    return nnx.state(nnx.eval_shape(lambda: Toy(rngs=nnx.Rngs(0))))


def weights(**changes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = matching.torch_shapes(abstract(), TABLE)
    tensors = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    return {**tensors, **changes}


def in_memory(tensors) -> Checkpoint:
    return Checkpoint.of("memory", tensors)


def load(tensors, **options) -> nnx.State:
    return matching.load(in_memory(tensors), abstract(), TABLE, **options)


def problem(tensors, **options) -> str:
    with pytest.raises(ConversionError) as caught:
        load(tensors, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(tensors, *keys):
    return {key: value for key, value in tensors.items() if key not in keys}


def test_round_trip_is_bit_for_bit():
    tensors = weights()
    tensors["norm.bias"][:3] = np.nan, -0.0, np.inf
    state = load(tensors)
    assert state["blocks"]["kernel"].shape == (2, 3, 4)
    assert state["conv"]["kernel"].shape == (3, 3, 2, 3)
    np.testing.assert_array_equal(state["blocks"]["kernel"][1], tensors["blocks.1.fc.weight"].T)
    back = matching.export(state, TABLE)
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        assert back[key].flags["C_CONTIGUOUS"]
        assert back[key].tobytes() == value.tobytes(), key


def test_a_missing_key_is_named():
    assert problem(without(weights(), "blocks.1.fc.bias")).endswith("missing blocks.1.fc.bias [4]")


def test_an_unexpected_key_is_named():
    tensors = weights(**{"blocks.2.fc.bias": np.zeros(4, np.float32)})
    assert problem(tensors).endswith("unexpected blocks.2.fc.bias [4]")
    load(tensors, allow_unused=True)


def test_ignored_keys_may_be_there():
    load(weights(**{"blocks.0.inv_freq": np.zeros(2, np.float32)}))
    assert "unexpected blocks.0.inv_freq.x" in problem(weights(**{"blocks.0.inv_freq.x": np.zeros(2, np.float32)}))


def test_a_wrong_shape_is_named():
    message = problem(weights(**{"blocks.0.fc.weight": np.zeros((3, 4), np.float32)}))
    assert message.endswith("blocks.0.fc.weight has shape [3, 4], the model needs [4, 3]")


def test_all_problems_are_listed_at_once():
    tensors = without(weights(extra=np.zeros(1, np.float32)), "conv_in.bias")
    message = problem({**tensors, "norm.weight": np.zeros(5, np.float32)})
    for part in ("memory does not fit", "missing conv_in.bias", "norm.weight has shape [5]", "unexpected extra [1]"):
        assert part in message
    many = problem({f"other.{i}": np.zeros(1, np.float32) for i in range(20)})
    assert many.endswith("; and 20 more")  # 8 missing are shown


def test_nothing_is_read_when_something_is_wrong():
    tensors = without(weights(), "norm.bias")

    def read():
        raise AssertionError("a tensor was read")

    checkpoint = Checkpoint("memory", {k: Tensor(v.shape, v.dtype, read) for k, v in tensors.items()})
    with pytest.raises(ConversionError, match="missing norm.bias"):
        matching.load(checkpoint, abstract(), TABLE)


def test_alternative_spellings_load_and_the_first_is_written():
    tensors = weights()
    renamed = {key.replace("conv_in", "stem.conv"): value for key, value in tensors.items()}
    back = matching.export(load(renamed), TABLE)
    assert back.keys() == tensors.keys()
    assert "unexpected stem.conv.bias" in problem({**tensors, "stem.conv.bias": tensors["conv_in.bias"]})


def test_a_wrong_table_is_a_bug():
    with pytest.raises(ValueError, match=r"0 rows match the parameter norm.bias \(4,\)"):
        matching.match_rules(abstract(), Table(TABLE.rules[:-1]))
    with pytest.raises(ValueError, match="2 rows match the parameter conv.bias"):
        matching.match_rules(abstract(), Table((*TABLE.rules, *affine("again", "conv", CONV))))
    with pytest.raises(ValueError, match="stacks more than one index"):
        rule("a.{i}.b.{j}", "ab").stacked_index()


def test_prefixes_go_on_either_side():
    rows = prefixed(list(TABLE.rules), torch=("part.", "module."), flax="inner.")
    assert rows[0].torch == ("part.conv_in.weight", "part.stem.conv.weight",
                             "module.conv_in.weight", "module.stem.conv.weight")  # fmt: skip
    assert rows[0].flax == "inner.conv.kernel"


def test_indices_are_carried_over_or_stacked():
    class Nested(nnx.Module):
        def __init__(self, *, rngs):
            self.groups = nnx.List([stack(lambda rngs: Linear(2, 2, rngs=rngs), 3, rngs) for _ in range(2)])

    state = nnx.state(nnx.eval_shape(lambda: Nested(rngs=nnx.Rngs(0))))
    shapes = matching.torch_shapes(state, Table(tuple(affine("g.{i}.layer.{j}", "groups.{i}"))))
    assert shapes.keys() == {f"g.{i}.layer.{j}.{p}" for i in range(2) for j in range(3) for p in ("weight", "bias")}


# Files


def save_sharded(folder, tensors, weight_map=None, twice=()):
    folder.mkdir(exist_ok=True)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    parts = [dict(list(tensors.items())[i::2]) for i in range(2)]
    for key in twice:
        parts[0][key] = parts[1][key] = tensors[key]
    found = {}
    for name, part in zip(names, parts, strict=True):
        safetensors.numpy.save_file(part, folder / name)
        found |= dict.fromkeys(part, name)
    index = {"weight_map": {**found, **(weight_map or {})}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_sharded_folder_loads(tmp_path):
    tensors = weights()
    checkpoint = open_checkpoint(save_sharded(tmp_path, tensors))
    assert len(checkpoint) == len(tensors)
    assert set(checkpoint) == set(tensors)
    back = matching.export(matching.load(checkpoint, abstract(), TABLE), TABLE)
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value)


def refused(path, *words):
    with pytest.raises(UserError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_broken_shard_folders_are_refused(tmp_path):
    folder = save_sharded(tmp_path / "a", weights())
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "names a shard that is not there", "model-00002-of-00002.safetensors")

    outside = save_sharded(tmp_path / "b", weights(), {"norm.bias": "../a/model-00001-of-00002.safetensors"})
    refused(outside, "points outside its folder", "../a/")
    absolute = save_sharded(tmp_path / "b", weights(), {"norm.bias": str(tmp_path / "x.safetensors")})
    refused(absolute, "points outside its folder")

    refused(save_sharded(tmp_path / "c", weights(), twice=["norm.bias"]), "norm.bias is in more than one shard")
    lost = save_sharded(tmp_path / "d", weights(), {"ghost": "model-00001-of-00002.safetensors"})
    refused(lost, "lists ghost, which no shard holds")

    (folder / "model.safetensors.index.json").write_text("{}")
    refused(folder, "has no weight_map")
    (folder / "model.safetensors.index.json").write_text("{")
    refused(folder, "is not valid JSON")


def test_missing_and_empty_places_are_refused(tmp_path):
    refused(tmp_path / "nothing", "no such checkpoint")
    refused(tmp_path, "holds no checkpoint", "model.safetensors")


@pytest.mark.parametrize("kept", [4, 100, -3])
def test_truncated_safetensors_are_refused(tmp_path, kept):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(weights(), path)
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, str(path), "not a readable safetensors file")


def test_bfloat16_safetensors_are_read_exactly(tmp_path):
    tensors = {key: torch.from_numpy(value).bfloat16() for key, value in weights().items()}
    tensors["norm.bias"] = tensors["norm.bias"].float()  # one file may mix dtypes
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint["norm.weight"].dtype == ml_dtypes.bfloat16
    for dtype in (jnp.float32, jnp.bfloat16):
        state = matching.load(checkpoint, abstract(), TABLE, dtype=dtype)
        assert state["conv"]["kernel"].dtype == dtype
        back = matching.export(state, TABLE)
        for key, value in tensors.items():
            wanted = value if dtype == jnp.float32 else value.bfloat16()
            np.testing.assert_array_equal(back[key].astype(np.float32), wanted.float().numpy(), err_msg=key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pickles_are_read_without_running_code(tmp_path, dtype):
    tensors = {key: torch.from_numpy(value).to(dtype) for key, value in weights().items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    back = matching.export(matching.load(open_checkpoint(tmp_path), abstract(), TABLE), TABLE)
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value.float().numpy())

    torch.save({"a": Trap(str(tmp_path / "sprung"))}, tmp_path / "trap.pt")
    refused(tmp_path / "trap.pt", "not a readable weights file")
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "noise.pt").write_bytes(b"noise")
    refused(tmp_path / "noise.pt", "not a readable weights file")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_saved_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "new" / "model.safetensors"
    save_safetensors(in_memory(weights()), path)
    before = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o644
    save_safetensors(in_memory(weights()), path, dtype=jnp.bfloat16)
    assert path.stat().st_size < len(before)
    with_ints = {"ids": np.arange(3), "w": np.ones(2, np.float32)}
    save_safetensors(in_memory(with_ints), tmp_path / "ints.safetensors", dtype=np.float16)
    back = open_checkpoint(tmp_path / "ints.safetensors")
    assert (back["ids"].dtype, back["w"].dtype) == (np.int64, np.float16)

    def full():
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    broken = in_memory(weights()).tensors | {"z": Tensor((2,), np.dtype(np.float32), full)}
    with pytest.raises(UserError, match="can't be written: No space left on device"):
        save_safetensors(Checkpoint("broken", broken), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


# Transforms

sizes = st.integers(1, 5)


@st.composite
def transform_and_shape(draw):
    kind = draw(st.sampled_from(["copy", "linear", "conv", "transposed_conv", "pointwise"]))
    if kind == "copy":
        return COPY, tuple(draw(st.lists(sizes, max_size=4)))
    if kind == "linear":
        return LINEAR, (draw(sizes), draw(sizes))
    if kind == "pointwise":
        return POINTWISE, (draw(sizes), draw(sizes), 1, 1)
    shape = draw(sizes), draw(sizes), *draw(st.lists(sizes, min_size=1, max_size=3))
    return (CONV if kind == "conv" else TRANSPOSED_CONV), shape


@settings(deadline=None)
@given(transform_and_shape(), st.sampled_from([np.float32, np.float16, np.int64, ml_dtypes.bfloat16]))
def test_every_transform_has_its_inverse(drawn, dtype):
    transform, shape = drawn
    w = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    flax = transform.to_flax(w)
    back = transform.to_torch(flax)
    assert (back.shape, back.dtype) == (w.shape, w.dtype)
    np.testing.assert_array_equal(back, w)
    assert sorted(flax.ravel().tolist()) == sorted(w.ravel().tolist())


@settings(deadline=None, max_examples=30)
@given(transform_and_shape(), st.integers(1, 4))
def test_stacked_tables_round_trip(drawn, layers):
    transform, shape = drawn
    rng = np.random.default_rng(0)
    tensors = {f"layer.{i}.w": rng.normal(size=shape).astype(np.float32) for i in range(layers)}
    target = nnx.State({"w": nnx.Param(jnp.zeros((layers, *transform.to_flax(tensors["layer.0.w"]).shape)))})
    table = Table((rule("layer.{i}.w", "w", transform),))
    back = matching.export(matching.load(in_memory(tensors), target, table), table)
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value)
