"""Converted parameters on a mesh: each device gets its part of the same values. What else reads them."""

import functools
import operator
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from nextgpt_jax.weights import orbax_params
from nextgpt_jax.weights.matching import Parameter

PROGRAM = """
import pathlib, sys
import jax, numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P
from nextgpt_jax.weights import orbax_params
from nextgpt_jax.weights.components import COMPONENTS

folder = pathlib.Path(sys.argv[1])
state = COMPONENTS["llama"](folder)[0].state
whole = orbax_params.restore(folder, state)
mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"))

def spec(shape):
    axes = [None] * len(shape)
    for i, (n, axis) in enumerate(zip(reversed(shape), ("tensor", "fsdp"))):
        size = mesh.shape[axis]
        axes[len(shape) - 1 - i] = axis if n % size == 0 else None
    return NamedSharding(mesh, P(*axes))

placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spec(x.shape)), state)
found = orbax_params.restore(folder, placed)
split = 0
for a, b, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(whole), jax.tree.leaves(placed), strict=True):
    assert a.sharding == wanted.sharding
    split += a.addressable_shards[0].data.size < a.size
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
assert len(jax.devices()) == 8 and split > 8
print("same")
"""


def test_restoring_onto_eight_devices(tiny_root, tmp_path, monkeypatch):
    from convert.__main__ import main

    main(["convert", "llama", f"--source={tiny_root / 'hub' / 'llm'}", f"--output={tmp_path / 'jax'}"])
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    argv = [sys.executable, "-c", PROGRAM, str(tmp_path / "jax")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.stdout == "same\n", done.stderr


READERS = {
    "PyTreeCheckpointer": lambda folder, _: ocp.PyTreeCheckpointer().restore(folder),
    "StandardCheckpointer": lambda folder, _: ocp.StandardCheckpointer().restore(folder),
    "Checkpointer": lambda folder, _: ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(folder),
    "Checkpointer with args": lambda folder, _: ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(
        folder, args=ocp.args.PyTreeRestore()
    ),
    "StandardCheckpointer with a target": lambda folder, target: ocp.StandardCheckpointer().restore(folder, target),
    "PyTreeCheckpointer with a target": lambda folder, target: ocp.PyTreeCheckpointer().restore(
        folder, item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_orbax_restores_the_folder_by_itself(reader, tmp_path):
    values = {
        "layers.fc.kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "norm.scale": np.arange(3).astype(ml_dtypes.bfloat16),
        "count": np.int32(7),
    }
    orbax_params.save({name: Parameter.of(value, value.ndim == 3) for name, value in values.items()}, tmp_path)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding) for name, value in values.items()}
    nested = {
        "layers": {"fc": {"kernel": target["layers.fc.kernel"]}},
        "norm": {"scale": target["norm.scale"]},
        "count": target["count"],
    }
    found = READERS[reader](tmp_path / orbax_params.FOLDER, nested)
    for name, value in values.items():
        restored = functools.reduce(operator.getitem, name.split("."), found)
        assert isinstance(restored, jax.Array) == ("target" in reader)
        assert restored.dtype == value.dtype
        np.testing.assert_array_equal(np.asarray(restored), value)
