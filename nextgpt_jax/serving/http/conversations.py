"""Messages of a chat to requests of the engine."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from nextgpt_jax import media
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.inference.requests import make_request
from nextgpt_jax.inference.types import Request
from nextgpt_jax.inference.validation import check_readable
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.prompts import Output, Segment, Turn, human_segments, split_placeholders
from nextgpt_jax.serving.http.errors import ApiError
from nextgpt_jax.serving.http.inputs import Inputs
from nextgpt_jax.serving.http.schemas import URL_PARTS, Message, Part


def chat_request(messages: Sequence[Message], options: Mapping[str, Any], inputs: Inputs, engine: Engine) -> Request:
    """The request of a conversation that ends with a message of the user.

    Media are read here, which takes time: call it in a thread.

    Raises:
      ApiError, UserError: a message, a medium or an option is not valid.
    """
    sides = _sides(messages)
    history = []
    for user, assistant in zip(sides[:-1:2], sides[1::2], strict=True):
        prompt, paths = _human(user, inputs)
        with inputs.named():
            for name in paths:
                check_readable(name, engine.config)
            encoders = engine.config.input_encoders
            contents = {n: [media.load(n, path, encoders[n]) for path in found] for n, found in paths.items()}
            history.append(Turn(human_segments(prompt, contents), _reply(assistant, engine)))
    prompt, paths = _human(sides[-1], inputs)
    with inputs.named():
        return make_request(prompt, paths, options, engine.config, engine.defaults, history)


def seeds(first: int | None, n: int) -> list[int]:
    """The seeds of `n` answers: one after the other, from a random one if none is given."""
    first = secrets.randbelow(2**31) if first is None else first
    return [(first + i) % 2**31 for i in range(n)]


_Side = list[tuple[str, Message]]  # messages of one role, with their places in the request


def _sides(messages: Sequence[Message]) -> list[_Side]:
    """Messages that follow each other with the same role, together: user, assistant, user, ..., user."""
    sides: list[_Side] = []
    for i, message in enumerate(messages):
        if not sides or sides[-1][0][1].role != message.role:
            sides.append([])
        sides[-1].append((f"messages[{i}]", message))
    if sides[0][0][1].role != "user":
        raise ApiError("messages[0].role: a conversation begins with the user", param="messages[0].role")
    if len(sides) % 2 == 0:
        where = f"messages[{len(messages) - 1}].role"
        raise ApiError(f"{where}: the last message is the user's, which is answered", param=where)
    return sides


def _parts(side: _Side) -> list[tuple[str, Part]]:
    """The parts of messages, with their places. Checks that each has the field of its type, and no other."""
    found: list[tuple[str, Part]] = []
    for where, message in side:
        if isinstance(message.content, str):
            found.append((f"{where}.content", Part(type="text", text=message.content)))
        else:
            found += [(f"{where}.content[{i}]", part) for i, part in enumerate(message.content or [])]
        found += [(f"{where}.media[{i}]", part) for i, part in enumerate(message.media or [])]
    for where, part in found:
        check_part(part, where)
    return found


def check_part(part: Part, where: str) -> None:
    """Raises ApiError unless a part has the field of its type, and no other."""
    given = [name for name in part.model_fields_set - {"type"} if getattr(part, name) is not None]
    if given != [part.type]:
        wrong = next((name for name in given if name != part.type), None)
        message = f"{where}.{wrong}: this part is of type {part.type}" if wrong else f"{where}.{part.type} is missing"
        raise ApiError(message, param=f"{where}.{wrong or part.type}", code="invalid_value")


def _human(side: _Side, inputs: Inputs) -> tuple[str, dict[str, list[Any]]]:
    """The prompt of a turn and its media by modality.

    Media replace their marks (`<image>`, ...) in the text. Without marks they come before it, as the model is trained,
    unless they are in between texts: then they stay where they are.
    """
    parts = _parts(side)
    for where, message in side:
        if message.media:
            raise ApiError(f"{where}.media: the user's media are parts of the content", param=f"{where}.media")
    texts = [i for i, (_, part) in enumerate(parts) if part.type == "text"]
    between = any(i not in texts for i in range(texts[0], texts[-1])) if texts else False
    marked = any(not isinstance(p, str) for i in texts for p in split_placeholders(parts[i][1].text or ""))
    prompt, paths = "", {}
    after_text = False
    for where, part in parts:
        if part.type == "text":
            prompt += ("\n" if after_text else "") + (part.text or "")
            after_text = True
            continue
        modality, path = inputs.read(part, where)
        paths.setdefault(modality, []).append(path)
        if between and not marked:
            prompt += MODALITIES[modality].placeholder
            after_text = False
    return prompt, paths


def _reply(side: _Side, engine: Engine) -> tuple[Segment, ...]:
    """What the model said. Of its media it only knows that it made them."""
    segments: list[Segment] = []
    for where, part in _parts(side):
        if part.type == "text":
            segments += [part.text] if part.text else []
        elif (modality := URL_PARTS.get(part.type, "audio")) in engine.config.output_modalities:
            segments.append(Output(modality))
        else:
            raise ApiError(f"{where}: this model makes no {modality}", param=where, code="invalid_value")
    if not segments:
        raise ApiError(f"{side[0][0]}: the message is empty", param=f"{side[0][0]}.content", code="invalid_value")
    return tuple(segments)
