"""State dicts in torch's format, written without torch."""

import ml_dtypes
import numpy as np
import pytest
import torch

from nextgpt_jax.errors import UserError
from nextgpt_jax.weights.torch_checkpoint import SAFETENSORS_DTYPES, Checkpoint, Tensor, open_checkpoint
from nextgpt_jax.weights.torch_writer import save_torch
from tests.convert.commands import same


def test_torch_reads_all_dtypes_and_shapes(tmp_path):
    rng = np.random.default_rng(0)
    shapes = [(), (0,), (3,), (2, 3), (2, 0, 3), (2, 3, 1, 2)]
    arrays = {
        f"{name}.{shape}.ä": rng.integers(0, 2, shape).astype(dtype)
        for name, dtype in SAFETENSORS_DTYPES.items()
        for shape in shapes
    }
    written = Checkpoint.of("arrays", arrays)
    save_torch(written, tmp_path / "pytorch_model.pt")
    found = torch.load(tmp_path / "pytorch_model.pt", weights_only=True)
    assert list(found) == list(arrays)
    for key, array in arrays.items():
        bits = found[key].view(torch.int16) if array.dtype == ml_dtypes.bfloat16 else found[key]
        expected = array.view(np.int16) if array.dtype == ml_dtypes.bfloat16 else array
        np.testing.assert_array_equal(bits.numpy(), expected)
        assert not found[key].requires_grad
    same(open_checkpoint(tmp_path / "pytorch_model.pt"), written)
    assert (torch.load(tmp_path / "pytorch_model.pt", weights_only=True, mmap=True)[key] == found[key]).all()


def test_equal_tensors_give_equal_files(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        save_torch(Checkpoint.of("x", {"x": np.arange(5)}), tmp_path / name / "x.pt")
    assert (tmp_path / "a" / "x.pt").read_bytes() == (tmp_path / "b" / "x.pt").read_bytes()


def test_tensors_that_cannot_be_read_leave_nothing(tmp_path):
    def unreadable():
        raise UserError("the source has become shorter")

    with pytest.raises(UserError, match="has become shorter"):
        save_torch(Checkpoint("x", {"x": Tensor((2,), np.dtype(np.float32), unreadable)}), tmp_path / "x.pt")
    assert not list(tmp_path.iterdir())
