"""Writing safetensors: atomically, in one file or in shards that PyTorch's libraries read."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from nextgpt_jax.errors import UserError
from nextgpt_jax.weights.safetensors_writer import save_safetensors
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, Tensor, open_checkpoint
from tests.weights.toy import in_memory, weights


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


def test_shards_have_an_index_and_the_same_tensors(tmp_path):
    tensors = weights()
    limit = max(value.nbytes for value in tensors.values())
    files = save_safetensors(in_memory(tensors), tmp_path / "model.safetensors", shard_bytes=limit)
    count = len(files)
    assert count > 2
    assert sorted(f.name for f in files) == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors.values())
    for file in files:
        assert set(safetensors.numpy.load_file(file)) == {k for k, f in index["weight_map"].items() if f == file.name}
    back = open_checkpoint(tmp_path)
    assert {key: value.tobytes() for key, value in back.items()} == {k: v.tobytes() for k, v in tensors.items()}
