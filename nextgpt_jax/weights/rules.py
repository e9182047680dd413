"""Conversion tables: rules of (PyTorch key, Flax path, transform), used in both directions.

In a rule, `{i}` is an index. If the Flax path has the same `{i}`, the index is kept; if not, the layers are stacked on
a leading axis.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping

import numpy as np

from nextgpt_jax.weights.torch_checkpoint import Checkpoint


@dataclasses.dataclass(frozen=True)
class Transform:
    """A change of layout and its inverse. Both return views: no values change."""

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
    """One PyTorch tensor, or one per layer, and the Flax parameter it fills.

    Attributes:
      torch: alternative spellings of the key; export writes the first.
      flax: dotted path of the parameter.
      transform: the change of layout.
    """

    torch: tuple[str, ...]
    flax: str
    transform: Transform = COPY

    def match(self, path: str) -> dict[str, str] | None:
        """The indices for which the Flax path of this rule is `path`; None if there are none."""
        found = self._pattern.fullmatch(path)
        return found.groupdict() if found else None

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(self.flax)))

    def stacked_index(self) -> str | None:
        """The index that is only in the PyTorch key: the one over stacked layers."""
        missing = set(re.findall(r"\{(\w)\}", self.torch[0])) - set(re.findall(r"\{(\w)\}", self.flax))
        if len(missing) > 1:
            raise ValueError(f"{self.torch[0]} -> {self.flax} stacks more than one index")
        return missing.pop() if missing else None


def rule(torch: str | tuple[str, ...], flax: str, transform: Transform = COPY) -> Rule:
    """A Rule with one spelling or several."""
    return Rule((torch,) if isinstance(torch, str) else torch, flax, transform)


def affine(torch: str | tuple[str, ...], flax: str, transform: Transform = LINEAR, *, bias: bool = True) -> list[Rule]:
    """The rules of a Linear or Conv: kernel and, optionally, bias."""
    return _pair(torch, flax, "kernel", transform, bias)


def norm(torch: str | tuple[str, ...], flax: str, *, bias: bool = True) -> list[Rule]:
    """The rules of a normalization layer: scale and, optionally, bias."""
    return _pair(torch, flax, "scale", COPY, bias)


def _pair(torch, flax, weight, transform, bias):
    names = (torch,) if isinstance(torch, str) else torch
    rules = [rule(tuple(f"{n}.weight" for n in names), f"{flax}.{weight}", transform)]
    return rules + [rule(tuple(f"{n}.bias" for n in names), f"{flax}.bias")] if bias else rules


def prefixed(rules: list[Rule], *, torch: str | tuple[str, ...] = "", flax: str = "") -> list[Rule]:
    """The same rules with a prefix on either side, for a part of a larger checkpoint or module.

    Several `torch` prefixes are alternative spellings.
    """
    prefixes = (torch,) if isinstance(torch, str) else torch
    return [
        dataclasses.replace(r, torch=tuple(p + t for p in prefixes for t in r.torch), flax=flax + r.flax) for r in rules
    ]


@dataclasses.dataclass(frozen=True)
class Table:
    """The conversion of one kind of checkpoint.

    Attributes:
      rules: exactly one applies to each parameter of the model.
      ignored: regular expressions of keys that may be present but hold no weights.
      preprocess: replaces tensors of a checkpoint before it is matched, such as several that make one parameter. It has
        no inverse: export writes the result.
      hint: from the keys and shapes of a checkpoint that does not fit, what it holds and which setting it needs, in
        words; "" if that is not known.
    """

    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    preprocess: Callable[[Checkpoint], Checkpoint] = lambda checkpoint: checkpoint
    hint: Callable[[Mapping[str, tuple[int, ...]]], str] = lambda shapes: ""

    def matching(self, path: str) -> list[tuple[Rule, dict[str, str]]]:
        """The rules for a Flax path, with their indices."""
        candidates = self._by_form.get(re.sub(r"\d+", "#", path), [])
        return [(r, indices) for r in candidates if (indices := r.match(path)) is not None]

    @functools.cached_property
    def _by_form(self) -> dict[str, list[Rule]]:
        """The rules by their paths without numbers: models have thousands of parameters, tables hundreds of rules."""
        found: dict[str, list[Rule]] = collections.defaultdict(list)
        for r in self.rules:
            found[re.sub(r"(?:\{\w\}|\d)+", "#", r.flax)].append(r)
        return found
