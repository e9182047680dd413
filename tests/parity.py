"""Compares our modules with the PyTorch originals: random torch modules go through the conversion tables."""

import functools
import json
import math
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import torch
from flax import nnx

from nextgpt_jax.weights import matching
from nextgpt_jax.weights.rules import Table
from nextgpt_jax.weights.torch_checkpoint import Checkpoint

torch.set_num_threads(1)  # more only get in each other's way at the tests' sizes


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Moves biases and norm scales away from their initial zeros and ones, so that a mixed-up one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def checkpoint_of(module: torch.nn.Module) -> Checkpoint:
    """The module's state dict as a checkpoint, as if it had been read from a file."""
    tensors = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    return Checkpoint.of("torch", tensors)


def load_into(make: Callable[[], nnx.Module], table: Table, module: torch.nn.Module) -> nnx.Module:
    """make(), never materialised, with the weights of the torch module; every key has to be used."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graphdef, matching.load(checkpoint_of(module), state, table))


def exported(module: nnx.Module, table: Table) -> dict[str, torch.Tensor]:
    """The module's weights as a torch state dict."""
    return {key: torch.from_numpy(value.copy()) for key, value in matching.export(nnx.state(module), table).items()}


def compiled(module: nnx.Module, method: str = "__call__") -> Callable:
    """The module's method under jit, without optimisation: the tests compile more than they compute."""
    graphdef, state = nnx.split(module)

    def call(state, *args):
        return getattr(nnx.merge(graphdef, state), method)(*args)

    return functools.partial(jax.jit(call, compiler_options={"xla_backend_optimization_level": 0}), state)


def relative_error(actual, expected) -> float:
    """Largest absolute difference over the largest absolute value of `expected`; shapes have to be equal."""
    actual = np.asarray(actual, np.float64)
    expected = np.asarray(expected.detach() if isinstance(expected, torch.Tensor) else expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def parameters(state: nnx.State) -> int:
    """The number of parameters of a real or abstract state."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a published checkpoint, from tests/fixtures/manifests."""
    path = pathlib.Path(__file__).parent / "fixtures" / "manifests" / f"{name}.json"
    return {key: tuple(shape) for key, shape in json.loads(path.read_text())["state_dict"].items()}
