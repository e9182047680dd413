"""Reading checkpoints: files, shards, dtypes, pickles."""

import fractions
import json
import sys
import types

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from nextgpt_jax.errors import UserError
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.torch_checkpoint import open_checkpoint
from tests.weights.toy import TABLE, abstract, weights


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


def test_objects_of_a_trainer_beside_the_weights_are_ignored(tmp_path, monkeypatch):
    """As in Stable Diffusion's first releases. Other objects are refused."""
    trainer = types.ModuleType("pytorch_lightning.callbacks")
    trainer.Callback = type("Callback", (), {"__module__": trainer.__name__})
    rest = {"callbacks": {trainer.Callback: {"best": np.float64(1.5), "of": trainer.Callback()}}, "global_step": 3}
    with monkeypatch.context() as installed:
        for name in ("pytorch_lightning", trainer.__name__):
            installed.setitem(sys.modules, name, trainer)
        torch.save({"state_dict": {"a": torch.arange(3)}, **rest}, tmp_path / "model.ckpt")
    found = open_checkpoint(tmp_path / "model.ckpt")
    assert list(found) == ["a"] and found["a"].tolist() == [0, 1, 2]
    torch.save({"a": torch.zeros(1), "b": fractions.Fraction(1)}, tmp_path / "other.ckpt")
    refused(tmp_path / "other.ckpt", "not a readable weights file")


def test_pickles_with_views_and_transposed_tensors(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    content = {"part": whole[1:3, 2:], "turned": whole.t(), "number": torch.tensor(3), "none": torch.zeros(0, 3)}
    for name, options in {"new.bin": {}, "old.bin": {"_use_new_zipfile_serialization": False}}.items():
        torch.save({"state_dict": content, "epoch": 3}, tmp_path / name, **options)
        read = open_checkpoint(tmp_path / name)
        assert read.keys() == content.keys()
        for key, value in content.items():
            np.testing.assert_array_equal(read[key], value.numpy())


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "imagebind_huge.pth"])
def test_a_pointer_of_git_lfs(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 499723\n")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=f"{name} is a Git LFS pointer, not the file itself: run `git lfs pull`"):
            open_checkpoint(path)


@pytest.mark.parametrize(
    "content, reason",
    [
        (
            {"a": np.ones(3)},
            "it holds objects of the type numpy._core.multiarray._reconstruct, and only tensors",
        ),
        ({"a": torch.nn.Linear(1, 1)}, "it holds objects of the type torch.nn.modules.linear.Linear, and only tensors"),
        (b"garbage, and no pickle", "it is no pickle of tensors (Unsupported operand 103)"),
        (b"", "it ends early"),
        (None, "PytorchStreamReader failed reading zip archive: failed finding central directory"),
    ],
)
def test_why_a_pickle_cannot_be_read(content, reason, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content or {"a": torch.ones(100)}, path)
        if content is None:
            path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path} is not a readable weights file: {reason}")
    assert "weights_only" not in str(caught.value) and str(caught.value).isprintable()
