"""python -m convert, called by tests."""

import pathlib

import pytest

from convert.__main__ import main
from nextgpt_jax.errors import UserError
from nextgpt_jax.weights.torch_checkpoint import Checkpoint


def convert(*argv: object) -> None:
    main(["convert", *map(str, argv)])


def refused(*argv: object) -> str:
    """The one line of a command that fails, and leaves nothing."""
    output = next(pathlib.Path(str(a).split("=", 1)[1]) for a in argv if str(a).startswith("--output="))
    before = sorted(output.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        convert(*argv)
    assert "\n" not in str(caught.value)
    assert sorted(output.parent.rglob("*")) == before
    return str(caught.value)


def same(one: Checkpoint, other: Checkpoint) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert (one.tensors[key].dtype, one[key].tobytes()) == (other.tensors[key].dtype, other[key].tobytes()), key
