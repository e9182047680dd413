"""Shardings of parameters and batches."""

import jax
import pytest
from flax import nnx

from nextgpt_jax import sharding
from nextgpt_jax.errors import UserError
from nextgpt_jax.weights.assemble import abstract_state, model_config
from tests import tiny


def test_every_parameter_has_a_row_and_indivisible_sizes_are_named(tiny_root):
    config = tiny.experiment(tiny_root, "stage1")
    cfg = model_config(config.model)
    for path, leaf in nnx.to_flat_state(abstract_state(cfg)):
        sharding.parameter_spec(".".join(map(str, path)), leaf.shape, tiny.Mesh(fsdp=2, tensor=2))
    with pytest.raises(ValueError, match=r"no row of sharding.PARAMETERS fits the parameter llm.extra \[3\]"):
        sharding.parameter_spec("llm.extra", (3,), tiny.Mesh())
    with pytest.raises(
        UserError, match=r"llm.lm_head.kernel \[32, 721\]: 721 \(vocab\) does not divide into mesh.tensor=2"
    ):
        sharding.parameter_spec("llm.lm_head.kernel", (32, 721), tiny.Mesh(tensor=2))
    with pytest.raises(UserError, match="mesh.tensor=4 does not divide the model's 2 key/value heads"):
        sharding.validate_heads(tiny.Mesh(tensor=4), **{"attention heads": 4, "key/value heads": 2})


def test_the_largest_divisible_dimension_is_sharded():
    mesh, wide = tiny.Mesh(fsdp=4, tensor=2), ("fsdp", "tensor")
    P = jax.sharding.PartitionSpec
    assert sharding.parameter_spec("decoders.image.unet.conv.kernel", (3, 3, 320, 640), mesh) == P(
        None, None, None, wide
    )
    assert sharding.parameter_spec(
        "encoders.imagebind.towers.vision.trunk.blocks.fc1.kernel", (32, 1280, 5121), mesh
    ) == P(None, wide, None)
    assert sharding.parameter_spec("decoders.image.unet.conv.bias", (320,), mesh) == P()
    assert sharding.parameter_spec("decoders.image.unet.conv.kernel", (3, 3, 321, 644), mesh) == P(
        None, None, None, ("fsdp",)
    )


def test_indivisible_batches():
    places = "does not divide into mesh.data=2 x mesh.fsdp=2"
    with pytest.raises(UserError, match=rf"a batch \(data.batch_size / optim.grad_accum_steps\) of 6 rows {places}"):
        sharding.HostBatch(tiny.Mesh(data=2, fsdp=2), 6)
