"""Choices that follow from texts such as ids: of samples, and of what the protocol of a benchmark leaves open.

They are always the same, whatever the version of Python or numpy.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def number(key: str) -> int:
    """A number that follows from a text, evenly distributed over 64 bits."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8])


def pick(options: Sequence[T], key: str) -> T:
    """One of some options."""
    return options[number(key) % len(options)]


def subset(items: Sequence[T], count: int, key: Callable[[T], str]) -> list[T]:
    """`count` of the items in their order, or all if there are no more; which ones follows from their keys alone."""
    order = sorted(range(len(items)), key=lambda i: (number(key(items[i])), i))
    return [items[i] for i in sorted(order[:count])]
