"""Packages that the tests and benchmarks compare with where they are installed: they are heavy, or bring their own
builds of others. `pip install pytorch-fid clean-fid torchlibrosa torchvision` (the torchvision of torch's version)."""

import contextlib
import importlib
import sys
import types

import pytest
import torch

_OPS = ("nms", "qnms")  # whose shapes torchvision registers when it is imported, whether they exist or not


def package(name: str) -> types.ModuleType:
    """A module of such a package; skips the test if it is not installed."""
    try:
        return importlib.import_module(name)
    except RuntimeError:  # torchvision's extension is of another build than torch, which its Python parts don't need
        for module in [module for module in sys.modules if module.partition(".")[0] in ("torchvision", name)]:
            del sys.modules[module]
        for op in _OPS:
            with contextlib.suppress(RuntimeError):
                torch.library.define(f"torchvision::{op}", "(Tensor a, Tensor b, float c) -> Tensor")
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name} is not installed")


@contextlib.contextmanager
def fid_weights(state: dict[str, torch.Tensor]):
    """In the body, pytorch-fid's networks get these weights instead of downloading theirs."""
    module = package("pytorch_fid.inception")
    download = module.load_state_dict_from_url
    module.load_state_dict_from_url = lambda *_, **__: state
    try:
        yield module
    finally:
        module.load_state_dict_from_url = download
