"""Shardings of parameters and batches."""

import jax
import pytest
from flax import nnx

from nextgpt_jax import sharding
from nextgpt_jax.errors import UserError
from nextgpt_jax.models.partitioning import parameter_rows
from nextgpt_jax.sharding import LARGEST_DIM, LARGEST_DIM_PER_LAYER, parameter_spec, prefixed
from nextgpt_jax.weights.assemble import abstract_state, model_config
from tests import tiny

P = jax.sharding.PartitionSpec


def test_every_parameter_has_a_row_and_indivisible_sizes_are_named(tiny_root):
    cfg = model_config(tiny.experiment(tiny_root, "stage1").model)
    rows = parameter_rows(cfg)
    for path, leaf in nnx.to_flat_state(abstract_state(cfg)):
        parameter_spec(".".join(map(str, path)), leaf.shape, tiny.Mesh(fsdp=2, tensor=2), rows)
    with pytest.raises(ValueError, match=r"no sharding row fits the parameter llm.extra \[3\]"):
        parameter_spec("llm.extra", (3,), tiny.Mesh(), rows)
    with pytest.raises(ValueError, match=r"no sharding row fits the parameter llm.norm.scale \[3, 3\]"):
        parameter_spec("llm.norm.scale", (3, 3), tiny.Mesh(), rows)
    with pytest.raises(
        UserError, match=r"llm.lm_head.kernel \[32, 721\]: 721 \(vocab\) is not divisible by mesh.tensor=2"
    ):
        parameter_spec("llm.lm_head.kernel", (32, 721), tiny.Mesh(tensor=2), rows)
    with pytest.raises(UserError, match="mesh.tensor=4 does not divide the model's 2 key/value heads"):
        sharding.validate_heads(tiny.Mesh(tensor=4), **{"attention heads": 4, "key/value heads": 2})


def test_logical_axes_become_mesh_axes(tiny_root):
    rows = parameter_rows(model_config(tiny.experiment(tiny_root, "stage1").model))
    mesh = tiny.Mesh(fsdp=4, tensor=2)
    found = parameter_spec("llm.layers.self_attn.q_proj.kernel", (2, 32, 32), mesh, rows)
    assert found == P(None, ("fsdp",), ("tensor",))


def test_the_largest_divisible_dimension_is_sharded():
    mesh, wide = tiny.Mesh(fsdp=4, tensor=2), ("fsdp", "tensor")
    rows = prefixed(r"a\.\w+", ((r"blocks\..*", LARGEST_DIM_PER_LAYER), (r".*", LARGEST_DIM)))
    assert parameter_spec("a.b.conv.kernel", (3, 3, 320, 640), mesh, rows) == P(None, None, None, wide)
    assert parameter_spec("a.b.blocks.fc1.kernel", (5120, 1280, 33), mesh, rows) == P(None, wide, None)
    assert parameter_spec("a.b.conv.bias", (320,), mesh, rows) == P()
    assert parameter_spec("a.b.conv.kernel", (3, 3, 321, 644), mesh, rows) == P(None, None, None, ("fsdp",))


def test_indivisible_batches():
    shards = "is not divisible by mesh.data=2 x mesh.fsdp=2"
    with pytest.raises(UserError, match=rf"a batch \(data.batch_size / optim.grad_accum_steps\) of 6 rows {shards}"):
        sharding.HostBatch(tiny.Mesh(data=2, fsdp=2), 6)
