"""The checker that the tests run the package with: annotations of arrays are checked, with their shapes and dtypes."""

import functools
import inspect
import operator
import types
import typing

import jax
import numpy as np
from beartype import beartype
from jaxtyping import AbstractArray


def checked(function):
    """The function, whose arguments and results that are annotated as arrays are checked at each call.

    NumPy's arrays are taken for JAX's. Constructors are not checked: JAX rebuilds dataclasses of arrays with anything
    in their fields.
    """
    if function.__name__ == "__init__":
        return function
    annotations = {name: _with_numpy(hint) for name, hint in function.__annotations__.items() if _is_array(hint)}
    if not annotations:
        return function
    function.__annotations__ = annotations
    if hasattr(function, "__signature__"):
        signature = inspect.signature(function)
        parameters = [p.replace(annotation=annotations.get(p.name, p.empty)) for p in signature.parameters.values()]
        returned = annotations.get("return", signature.empty)
        function.__signature__ = signature.replace(parameters=parameters, return_annotation=returned)
    return beartype(function)


def _is_array(hint) -> bool:
    """Whether the hint is an array with a shape, or a union with one."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return _is_union(hint) and any(_is_array(part) for part in typing.get_args(hint))


def _is_union(hint) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _with_numpy(hint):
    if _is_union(hint):
        return functools.reduce(operator.or_, map(_with_numpy, typing.get_args(hint)))
    if isinstance(hint, type) and issubclass(hint, AbstractArray) and hint.array_type is jax.Array:
        return hint.dtype[jax.Array, hint.dim_str] | hint.dtype[np.ndarray, hint.dim_str]
    return hint
