"""The checker that the tests run the package with: annotations of arrays are checked, with their shapes and dtypes."""

import inspect
import typing

from beartype import beartype
from jaxtyping import AbstractArray


def checked(function):
    """The function, whose arguments and results that are annotated as arrays are checked at each call.

    Constructors are not: JAX rebuilds dataclasses of arrays with anything in their fields.
    """
    if function.__name__ == "__init__":
        return function
    annotations = {name: hint for name, hint in function.__annotations__.items() if _has_array(hint)}
    if not annotations:
        return function
    function.__annotations__ = annotations
    signature = inspect.signature(function)
    if hasattr(function, "__signature__"):
        kept = [p if p.name in annotations else p.replace(annotation=p.empty) for p in signature.parameters.values()]
        returned = annotations.get("return", signature.empty)
        function.__signature__ = signature.replace(parameters=kept, return_annotation=returned)
    return beartype(function)


def _has_array(hint) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_has_array(part) for part in typing.get_args(hint))
