"""The bodies of requests, JSON or forms, to checked objects."""

import asyncio
import difflib
import functools
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, ClassVar, Self, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from nextgpt_jax.serving.http.errors import ApiError

_T = TypeVar("_T", bound="Body")
_MAX_FIELDS, _MAX_FILES = 100, 32  # of a form


class Body(BaseModel):
    """Base of what requests hold. Unknown fields are refused, and so are those of OpenAI's API that are not built,
    except where they are null or have a value of `neutral`, which asks for nothing.

    Attributes:
      neutral: by fields that are not built, the values that change nothing.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if name in cls.model_fields or not cls._asks(name, value)}

    @classmethod
    def _asks(cls, name: str, value: Any) -> bool:
        values = cls.neutral.get(name, ())
        return value is None or any(value == v and type(value) is type(v) for v in values)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """From JSON. Raises ApiError."""
        return _checked(cls, functools.partial(cls.model_validate_json, content))

    @classmethod
    def parse_form(cls, fields: Mapping[str, Any]) -> Self:
        """From the text fields of a form, where numbers are text. Raises ApiError."""
        return _checked(cls, functools.partial(cls.model_validate, dict(fields), strict=False))


def _checked(cls: type[_T], validate: Callable[[], _T]) -> _T:
    try:
        return validate()
    except ValidationError as error:
        raise _invalid(cls, error) from None


def _invalid(cls: type[BaseModel], error: ValidationError) -> ApiError:
    """The error that is deepest inside: those of the other kinds that a value could have had are less helpful."""
    found = max(error.errors(include_url=False, include_context=False), key=lambda e: len(e["loc"]))
    where, kind = _path(found["loc"]), found["type"]
    if kind == "json_invalid":
        return ApiError(f"the body is not JSON: {found['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(found["loc"][-1]), cls.model_fields, 1, cutoff=0.8)
        hint = f"; did you mean {near[0]}?" if near and len(found["loc"]) == 1 else ""
        return ApiError(f"{where} is not supported by this server: leave it out{hint}", param=where, code="unsupported")
    if not where:
        return ApiError(f"the body: {found['msg']}", code="invalid_value")
    return ApiError(f"{where}: {found['msg'].removeprefix('Value error, ')}", param=where, code="invalid_value")


def _path(location: tuple[int | str, ...]) -> str:
    """messages[0].content[1].type: without the names of the types that were tried."""
    path = ""
    for item in location:
        if isinstance(item, int):
            path += f"[{item}]"
        elif item.isidentifier() and item not in ("str", "int", "float", "bool"):
            path += f".{item}" if path else item
    return path


class Form:
    """A parsed form: text fields by name, files by name."""

    def __init__(self, fields: dict[str, str], files: dict[str, list[UploadFile]]):
        self.fields, self.files = fields, files


async def read_json(request: Request, cls: type[_T], pool: Executor) -> _T:
    """The body of a request, parsed in a thread. Raises ApiError."""
    content = await request.body()
    return await asyncio.get_running_loop().run_in_executor(pool, cls.parse, content)


def is_form(request: Request) -> bool:
    """Whether the body of a request is a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind in ("multipart/form-data", "application/x-www-form-urlencoded")


async def read_form(request: Request) -> Form:
    """The body of a request; large files are on disk until the request ends.

    Raises:
      ApiError: it is no form, or a text field is repeated.
    """
    try:
        form = await request.form(max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=2**20)
    except MultiPartException as error:
        raise ApiError(f"the body is no form: {error.message}", code="invalid_form") from None
    except (KeyError, ValueError, UnicodeError) as error:  # of headers that the parser does not expect
        raise ApiError(f"the body is no form: {error}", code="invalid_form") from None
    fields: dict[str, str] = {}
    files: dict[str, list[UploadFile]] = {}
    for name, value in form.multi_items():
        name = name.removesuffix("[]")  # as the official client writes lists
        if isinstance(value, UploadFile):
            files.setdefault(name, []).append(value)
        elif name in fields:
            raise ApiError(f"{name} is given twice", param=name, code="invalid_value")
        else:
            fields[name] = value
    return Form(fields, files)
