"""How many floating-point operations a program needs, counted on its jaxpr: loops by their length, not once."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jax.extend import core


class Flops(NamedTuple):
    """Operations of matrix products and convolutions, two a multiply-add; what is elementwise is not counted."""

    needed: float
    recomputed: float = 0.0  # that the backward pass does again to save memory

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.needed + other.needed, self.recomputed + other.recomputed)

    def times(self, n: float) -> "Flops":
        return Flops(self.needed * n, self.recomputed * n)


def count(jaxpr: core.Jaxpr | core.ClosedJaxpr, *, branch: Callable = max, again: bool = False) -> Flops:
    """The operations of a program on all devices together.

    Args:
      branch: which branch of a conditional counts, by its operations: max, or min for what is done in any case.
      again: is all of it recomputation?

    A while loop whose length is not known before it runs counts as one round of it.
    """
    total = Flops(0.0)
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        repeated = again or "rematted_computation" in str(eqn.source_info.name_stack)
        if eqn.primitive.name in _PRIMITIVES:
            done = float(_PRIMITIVES[eqn.primitive.name](eqn))
            total += Flops(0.0, done) if repeated else Flops(done)
            continue
        inner = [count(body, branch=branch, again=repeated) for body in _bodies(eqn)]
        if eqn.primitive.name == "cond":
            inner = [branch(inner, key=sum)]
        total += sum(inner, Flops(0.0)).times(_rounds(eqn))
    return total


def _dot_general(eqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[i] for i in contracted)


def _conv_general_dilated(eqn) -> int:
    kernel, layout = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec  # (out, in, *spatial)
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel[i] for i in layout[1:])


def _attention(products: int) -> Callable:
    """Of cuDNN's attention, which is no jaxpr. All scores count, as in XLA's, though a causal mask empties half."""

    def count(eqn) -> int:
        (b, t, h, d), (_, s, _, _) = (x.aval.shape for x in eqn.invars[:2])
        return 2 * products * b * t * s * h * d

    return count


_PRIMITIVES = {
    "dot_general": _dot_general,
    "conv_general_dilated": _conv_general_dilated,
    "dot_product_attention_fwd_wrapper": _attention(2),
    "dot_product_attention_bwd_wrapper": _attention(4),  # and one that makes the scores again
}


def _bodies(eqn) -> Iterator[Any]:
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.Jaxpr | core.ClosedJaxpr):
                yield item


def _rounds(eqn) -> int:
    if eqn.primitive.name == "scan":
        return eqn.params["length"]
    if eqn.primitive.name == "pallas_call":
        return math.prod(n for n in eqn.params["grid_mapping"].grid if isinstance(n, int))
    if eqn.primitive.name == "shard_map":  # its body has the shapes of one device
        return eqn.params["mesh"].size
    return 1
