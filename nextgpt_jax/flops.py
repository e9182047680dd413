"""FLOPs of a program, counted on its jaxpr with loop bodies counted once per iteration."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jax.extend import core


class Flops(NamedTuple):
    """FLOPs of matmuls and convolutions, 2 per multiply-add; elementwise operations are not counted."""

    model: float  # without recomputation: what model FLOP utilization (MFU) counts
    recomputed: float = 0.0  # activations that the backward pass computes again, to save memory

    @property
    def hardware(self) -> float:
        """All executed FLOPs."""
        return self.model + self.recomputed

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.model + other.model, self.recomputed + other.recomputed)

    def times(self, n: float) -> "Flops":
        return Flops(self.model * n, self.recomputed * n)


def count(jaxpr: core.Jaxpr | core.ClosedJaxpr, *, branch: Callable = max, recomputed: bool = False) -> Flops:
    """FLOPs of a program, of all devices together. A while loop of unknown length counts as one iteration.

    Args:
      branch: how to choose the branch of a cond: max or min FLOPs.
      recomputed: count everything as recomputation.
    """
    total = Flops(0.0)
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        repeated = recomputed or "rematted_computation" in str(eqn.source_info.name_stack)
        if eqn.primitive.name in _PRIMITIVES:
            found = float(_PRIMITIVES[eqn.primitive.name](eqn))
            total += Flops(0.0, found) if repeated else Flops(found)
            continue
        inner = [count(body, branch=branch, recomputed=repeated) for body in _bodies(eqn)]
        if eqn.primitive.name == "cond":
            inner = [branch(inner, key=sum)]
        total += sum(inner, Flops(0.0)).times(_trip_count(eqn))
    return total


def _dot_general(eqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[i] for i in contracted)


def _conv_general_dilated(eqn) -> int:
    kernel, layout = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec  # (out, in, *spatial)
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel[i] for i in layout[1:])


def _attention(products: int) -> Callable:
    """cuDNN's attention, which is opaque in a jaxpr. All scores count, causal or not, as in XLA's attention."""

    def count(eqn) -> int:
        (b, t, h, d), (_, s, _, _) = (x.aval.shape for x in eqn.invars[:2])
        return 2 * products * b * t * s * h * d

    return count


_PRIMITIVES = {
    "dot_general": _dot_general,
    "conv_general_dilated": _conv_general_dilated,
    "dot_product_attention_fwd_wrapper": _attention(2),
    "dot_product_attention_bwd_wrapper": _attention(4),  # and one matmul that recomputes the scores
}


def _bodies(eqn) -> Iterator[Any]:
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.Jaxpr | core.ClosedJaxpr):
                yield item


def _trip_count(eqn) -> int:
    if eqn.primitive.name == "scan":
        return eqn.params["length"]
    if eqn.primitive.name == "pallas_call":
        return math.prod(n for n in eqn.params["grid_mapping"].grid if isinstance(n, int))
    if eqn.primitive.name == "shard_map":  # its body has the shapes of one device
        return eqn.params["mesh"].size
    return 1
