"""The vocabulary of conversion tables: rows of (PyTorch key, Flax path, transform).

In a row, `{i}` stands for an index. Where the Flax path has the same `{i}`, the index is carried over; where it has
not, the layers are stacked on a leading axis. One table serves both directions: every transform has its inverse.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from nextgpt_jax.weights.torch_checkpoint import Checkpoint


@dataclasses.dataclass(frozen=True)
class Transform:
    """A change of layout and its inverse. Both are views: no values change."""

    to_flax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


COPY = Transform(lambda w: w, lambda w: w)
LINEAR = Transform(np.transpose, np.transpose)  # [out, in] <-> [in, out]
CONV = Transform(  # [out, in, *k] <-> [*k, in, out]
    lambda w: np.moveaxis(w, (0, 1), (-1, -2)), lambda w: np.moveaxis(w, (-1, -2), (0, 1))
)
TRANSPOSED_CONV = Transform(  # [in, out, *k] <-> [*k, in, out]
    lambda w: np.moveaxis(w, (0, 1), (-2, -1)), lambda w: np.moveaxis(w, (-2, -1), (0, 1))
)
POINTWISE = Transform(  # a 1 x 1 convolution [out, in, 1, 1] <-> a linear kernel [in, out]
    lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None]
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row. `torch` lists the spellings met in checkpoints; the first one is written on export."""

    torch: tuple[str, ...]
    flax: str
    transform: Transform = COPY

    def match(self, path: str) -> dict[str, str] | None:
        """The indices with which this row's Flax path is `path`, or None."""
        pattern = re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(self.flax))
        found = re.fullmatch(pattern, path)
        return found.groupdict() if found else None

    def stacked_index(self) -> str | None:
        """The index that the PyTorch key has and the Flax path has not."""
        missing = set(re.findall(r"\{(\w)\}", self.torch[0])) - set(re.findall(r"\{(\w)\}", self.flax))
        if len(missing) > 1:
            raise ValueError(f"{self.torch[0]} -> {self.flax} stacks more than one index")
        return missing.pop() if missing else None


def rule(torch: str | tuple[str, ...], flax: str, transform: Transform = COPY) -> Rule:
    return Rule((torch,) if isinstance(torch, str) else torch, flax, transform)


def affine(torch: str | tuple[str, ...], flax: str, transform: Transform = LINEAR, *, bias: bool = True) -> list[Rule]:
    """The rows of a Linear or Conv: kernel, and bias if it has one."""
    return _pair(torch, flax, "kernel", transform, bias)


def norm(torch: str | tuple[str, ...], flax: str, *, bias: bool = True) -> list[Rule]:
    """The rows of a normalisation layer: scale, and bias if it has one."""
    return _pair(torch, flax, "scale", COPY, bias)


def _pair(torch, flax, weight, transform, bias):
    names = (torch,) if isinstance(torch, str) else torch
    rows = [rule(tuple(f"{n}.weight" for n in names), f"{flax}.{weight}", transform)]
    return rows + [rule(tuple(f"{n}.bias" for n in names), f"{flax}.bias")] if bias else rows


def prefixed(rules: list[Rule], *, torch: str | tuple[str, ...] = "", flax: str = "") -> list[Rule]:
    """The same rows with a prefix on either side: a part inside a larger checkpoint or module.

    Several torch prefixes are alternative spellings.
    """
    prefixes = (torch,) if isinstance(torch, str) else torch
    return [
        dataclasses.replace(r, torch=tuple(p + t for p in prefixes for t in r.torch), flax=flax + r.flax) for r in rules
    ]


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of one kind of checkpoint, and the keys (regular expressions) that may be there but hold no weights.

    `view` shows the rows a checkpoint as they expect it, where several of its tensors make one; on import only.
    """

    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    view: Callable[[Checkpoint], Checkpoint] = lambda checkpoint: checkpoint
