"""The OpenAPI document: bodies are read by hand, and described from their classes here."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

_REF = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_described: dict[str, type[BaseModel]] = {}


def body_of(cls: type[BaseModel], form_field: str = "") -> dict[str, Any]:
    """The part of a route's description that says what its body is: JSON of a class, or a form with that JSON in a
    field."""
    _described[cls.__name__] = cls
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": _REF.format(model=cls.__name__)}}}
    if form_field:
        form = {"type": "object", "properties": {form_field: {"type": "string"}}, "required": [form_field]}
        content["multipart/form-data"] = {"schema": form}
    return {"requestBody": {"required": True, "content": content}}


def form_of(cls: type[BaseModel], *files: str, json: bool = True) -> dict[str, Any]:
    """The same, of a form with the fields of a class and files."""
    _described[cls.__name__] = cls
    schema = cls.model_json_schema(ref_template=_REF)
    fields = {name: found for name, found in schema["properties"].items() if name not in files}
    fields |= {name: {"type": "string", "format": "binary"} for name in files}
    form = {"type": "object", "properties": fields, "required": schema.get("required", [])}
    content = {"multipart/form-data": {"schema": form}}
    if json:
        content["application/json"] = {"schema": {"$ref": _REF.format(model=cls.__name__)}}
    return {"requestBody": {"required": True, "content": content}}


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of the app."""
    if app.openapi_schema:
        return app.openapi_schema
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    for cls in _described.values():
        schema = cls.model_json_schema(ref_template=_REF)
        schemas |= schema.pop("$defs", {})
        schemas[cls.__name__] = schema
    schemas["Error"] = _ERROR
    error = {"description": "Error", "content": {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}}
    for path in found["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = error
    app.openapi_schema = found
    return found
