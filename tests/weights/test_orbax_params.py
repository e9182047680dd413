"""Converted parameters on a mesh: each device gets its part of the same values."""

import subprocess
import sys

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
