"""Checkpoints that were damaged at random: a clean error or a right result, nothing else."""

import json
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.errors import UserError
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.safetensors_writer import save_safetensors
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, open_checkpoint
from tests.weights.toy import TABLE, abstract, weights

WEIGHTS = weights()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """The files of an undamaged checkpoint, in one piece and in shards."""
    folder = tmp_path_factory.mktemp("whole")
    save_safetensors(Checkpoint.of("whole", WEIGHTS), folder / "model.safetensors")
    files = {"model.safetensors": (folder / "model.safetensors").read_bytes()}
    (folder / "model.safetensors").unlink()
    save_safetensors(Checkpoint.of("whole", WEIGHTS), folder / "model.safetensors", shard_bytes=200)
    return files | {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "model.safetensors"}


def outcome(files: dict[str, bytes]) -> dict[str, np.ndarray] | None:
    """What a checkpoint of these files gives; None: an error in one line."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (pathlib.Path(folder) / name).write_bytes(content)
        try:
            state = matching.load(open_checkpoint(folder), abstract(), TABLE)
        except UserError as error:
            assert "\n" not in str(error)
            return None
        return dict(matching.export(state, TABLE))


def right(found: dict[str, np.ndarray] | None) -> bool:
    return found is None or all(found[key].tobytes() == value.tobytes() for key, value in WEIGHTS.items())


def header_size(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_bytes_of_headers_and_lengths(whole, data):
    """Damage that the format shows is refused. (Bytes of values cannot show: they are other values.)"""
    name = data.draw(st.sampled_from(sorted(n for n in whole if n.endswith(".safetensors"))))
    content = bytearray(whole[name])
    kind = data.draw(st.sampled_from(["flip", "cut", "grow"]))
    if kind == "flip":
        for at in data.draw(st.lists(st.integers(0, header_size(content) - 1), min_size=1, max_size=3)):
            content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content += data.draw(st.binary(min_size=1, max_size=9))
    kept = {"model.safetensors"} if name == "model.safetensors" else whole.keys() - {"model.safetensors"}
    found = outcome({**{n: whole[n] for n in kept}, name: bytes(content)})
    if kind != "flip":
        assert found is None
    # A flipped bit may turn a dtype or an offset into another that is also consistent; then shapes still fit, and the
    # values are those that the header now describes. A key that changed is refused as missing and unexpected.
    if found is not None:
        assert found.keys() == WEIGHTS.keys()
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in WEIGHTS.items()}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_indices(whole, data):
    shards = {name: content for name, content in whole.items() if name != "model.safetensors"}
    index = json.loads(shards["model.safetensors.index.json"])
    keys, names = sorted(index["weight_map"]), sorted(set(index["weight_map"].values()))
    kind = data.draw(
        st.sampled_from(["lost key", "other shard", "odd name", "lost shard", "two names", "no map", "bytes"])
    )
    key = data.draw(st.sampled_from(keys))
    if kind == "lost key":
        del index["weight_map"][key]
    elif kind == "other shard":
        index["weight_map"][key] = data.draw(st.sampled_from(names))
    elif kind == "odd name":
        odd = st.sampled_from(
            ["", ".", "..", "../x.safetensors", "/etc/passwd", "a/b", "a\0b", 3, None, ["x"], "x" * 300]
        )
        index["weight_map"][key] = data.draw(odd)
    elif kind == "lost shard":
        del shards[data.draw(st.sampled_from(names))]
    elif kind == "two names":
        shards["again.safetensors"] = shards[names[0]]
        index["weight_map"][key] = "again.safetensors"
    elif kind == "no map":
        index = data.draw(st.sampled_from([[], {}, {"weight_map": []}, {"weight_map": {}}, 3, None]))
    content = json.dumps(index).encode()
    if kind == "bytes":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    shards["model.safetensors.index.json"] = content
    found = outcome(shards)
    assert right(found)
    if kind in ("odd name", "lost shard", "no map", "bytes"):
        assert found is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tensors(data):
    """Other keys, shapes and dtypes than the model's."""
    tensors = dict(WEIGHTS)
    key = data.draw(st.sampled_from(sorted(tensors)))
    kind = data.draw(st.sampled_from(["none", "lost", "renamed", "turned", "flat", "cast", "more"]))
    value = tensors.pop(key)
    if kind == "renamed":
        tensors[key + data.draw(st.sampled_from(["x", ".0", " "]))] = value
    elif kind != "lost":
        changed = {"turned": value.T, "flat": value.reshape(-1), "more": value[None], "cast": value.astype(np.float64)}
        tensors[key] = changed.get(kind, value)
    with tempfile.TemporaryDirectory() as folder:
        save_safetensors(Checkpoint.of("changed", tensors), pathlib.Path(folder) / "model.safetensors")
        found = outcome({"model.safetensors": (pathlib.Path(folder) / "model.safetensors").read_bytes()})
    same_shape = kind in ("none", "cast") or (kind in ("turned", "flat") and tensors[key].shape == value.shape)
    assert (found is not None) == same_shape
    if kind in ("none", "cast"):
        assert right(found)
