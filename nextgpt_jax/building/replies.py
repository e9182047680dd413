"""Replies of a chat endpoint: the JSON in them, checked by a schema, and texts that can be trained on."""

import re
import reprlib
from collections.abc import Mapping
from typing import Any

from nextgpt_jax.chat.client import Rejected
from nextgpt_jax.errors import UserError
from nextgpt_jax.json_files import parse_json
from nextgpt_jax.modalities import MODALITIES

_TYPES = {"object": dict, "array": list, "string": str}
_FENCE = re.compile(r"\A\s*```(?:json)?\s*(.*?)\s*```\s*\Z", re.DOTALL)
_TAG = re.compile(rf"</?(?:{'|'.join(MODALITIES)}|img)\d*>|\[(?:IMG|VID|AUD)\d+\]|###", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\b(?:as an ai\b|as a language model|i(?:'m| am) (?:sorry|unable|not able)|i (?:can't|cannot|can not) "
    r"(?:help|assist|create|generate|produce|draw|make|show|play|provide|display|see|hear|view))",
    re.IGNORECASE,
)


def parse_reply(text: str) -> Any:
    """The JSON of a reply, which may be in a fenced block, or have words around it.

    Raises:
      Rejected: there is none.
    """
    fenced = _FENCE.match(text)
    text = fenced[1] if fenced else text[text.find("{") : text.rfind("}") + 1]
    if not text:
        raise Rejected("no JSON object")
    try:
        return parse_json(text)
    except UserError:
        raise Rejected("not valid JSON") from None


def check_schema(value: Any, schema: Mapping[str, Any], where: str = "reply") -> None:
    """Checks a value by a JSON schema: of its words, type, properties (all required, no others), items, enum, and the
    smallest and largest lengths are known.

    Raises:
      Rejected: it does not fit.
    """
    kind = schema["type"]
    if not isinstance(value, _TYPES[kind]):
        raise Rejected(f"{where} is no {kind}")
    if "enum" in schema and value not in schema["enum"]:
        raise Rejected(f"{where} is {reprlib.repr(value)}, not one of {', '.join(schema['enum'])}")
    low, high = (schema.get(f"{end}{'Items' if kind == 'array' else 'Length'}") for end in ("min", "max"))
    if low is not None and len(value) < low or high is not None and len(value) > high:
        raise Rejected(f"{where} is too {'short' if low is not None and len(value) < low else 'long'}")
    if kind == "object":
        for name, inner in schema["properties"].items():
            if name not in value:
                raise Rejected(f"{where} lacks {name}")
            check_schema(value[name], inner, name)
        if len(value) > len(schema["properties"]):
            raise Rejected(f"{where} has unknown fields")
    elif kind == "array":
        for item in value:
            check_schema(item, schema["items"], f"an item of {where}")


def object_schema(**properties: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object with exactly these fields."""
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def text_schema(low: int, high: int) -> dict[str, Any]:
    """The schema of a text of `low` to `high` characters."""
    return {"type": "string", "minLength": low, "maxLength": high}


def check_text(text: str, what: str, *, refusals: bool = False) -> str:
    """A text without white space at its ends.

    Args:
      what: it is, for messages.
      refusals: whether to look for words by which a model says that it does not do what it is asked for.

    Raises:
      Rejected: it is blank, has a mark or tag of a medium or a signal token in it, or is a refusal.
    """
    if not text.strip():
        raise Rejected(f"{what} is blank")
    if _TAG.search(text):
        raise Rejected(f"{what} has a tag in it")
    if refusals and _REFUSAL.search(text):
        raise Rejected(f"{what} is a refusal")
    return text.strip()
