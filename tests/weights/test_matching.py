"""Matching checkpoints with models: strictness, and values in both directions."""

import numpy as np
import pytest
from flax import nnx

from nextgpt_jax.models.layers import Linear
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.models.stacking import stack
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.matching import ConversionError
from nextgpt_jax.weights.rules import CONV, Table, affine, rule
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, Tensor
from tests.weights.toy import TABLE, abstract, load, weights


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


def test_indices_are_carried_over_or_stacked():
    class Nested(nnx.Module):
        def __init__(self, *, rngs):
            self.groups = nnx.List([stack(lambda rngs: Linear(2, 2, rngs=rngs), 3, rngs) for _ in range(2)])

    state = nnx.state(nnx.eval_shape(lambda: Nested(rngs=make_rngs(0))))
    shapes = matching.torch_shapes(state, Table(tuple(affine("g.{i}.layer.{j}", "groups.{i}"))))
    assert shapes.keys() == {f"g.{i}.layer.{j}.{p}" for i in range(2) for j in range(3) for p in ("weight", "bias")}
