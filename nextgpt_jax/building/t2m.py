"""T2M instruction data: a text that asks for an image, a video or a sound, and a reply that brings it."""

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from nextgpt_jax.building.asking import Question
from nextgpt_jax.building.captions import Caption
from nextgpt_jax.building.replies import check_text, object_schema, text_schema
from nextgpt_jax.building.t2m_templates import request_and_reply
from nextgpt_jax.chat.client import Rejected
from nextgpt_jax.modalities import MODALITIES

_NOUNS = {"image": "an image", "video": "a short video", "audio": "a sound recording"}
_SPEAKERS = (
    "a teacher preparing a lesson", "a child", "a busy designer", "somebody who writes as briefly as possible",
    "a friendly neighbor", "a film student", "a polite stranger", "a blogger", "a game developer", "a grandparent",
    "somebody who tells the story behind the wish first", "a musician", "a scientist", "a shop owner", "a traveler",
    "somebody who thinks aloud",
)  # fmt: skip
_FORMS = (
    "a question", "a command", "a wish", "two sentences", "a remark that leads to a request", "a request with a reason",
    "a request that mentions where the result will be used", "a casual message",
    "a request that starts with the subject",
)  # fmt: skip
_SYSTEM = """You write training examples for an assistant that answers with text and can attach an image, a short \
video or a sound. Each example is one message of a person and the assistant's answer.

Rules:
- The message asks for the medium, directly or between the lines, and names everything that its description contains. \
It must be clear whether an image, a video or a sound is wanted.
- The answer is one to three sentences that suit the message and present the attached medium. It claims nothing about \
the medium that the description does not say, and asks nothing back before it delivers.
- Write the words of both only: no placeholders, tags, file names, links or speaker names.
- Answer with one JSON object: {"request": "...", "reply": "..."}"""
_SCHEMA = object_schema(request=text_schema(8, 800), reply=text_schema(2, 800))
_EXPECTED = 110  # tokens of a reply
_WORD = re.compile(r"[^\W\d_]{4,}")


def from_templates(captions: Sequence[Caption], variants: int, seed: int) -> Iterator[dict[str, Any]]:
    """`variants` records for each caption. Each follows from the caption and the seed alone."""
    for caption in captions:
        for variant in range(variants):
            chance = _chance(caption, variant, seed)
            request, reply = request_and_reply(caption.modality, caption.text, chance)
            yield record_of(caption, request, reply, variant)


def questions(captions: Sequence[Caption], variants: int, seed: int) -> list[Question]:
    """The questions to an endpoint; their results are records."""
    return [_question(caption, variant, seed) for caption in captions for variant in range(variants)]


def _question(caption: Caption, variant: int, seed: int) -> Question:
    chance = _chance(caption, variant, seed)
    content = (
        f"Medium: {_NOUNS[caption.modality]}\nDescription: {caption.text}\nThe person is {chance.choice(_SPEAKERS)}. "
        f"The message is {chance.choice(_FORMS)}.\nExample number {variant + 1} for this description."
    )

    def check(reply: dict[str, str]) -> dict[str, Any]:
        request = check_text(reply["request"], "the request")
        answer = check_text(reply["reply"], "the reply", refusals=True)
        if not mentions(request, caption.text):
            raise Rejected("the request names nothing of the description")
        return record_of(caption, request, answer, variant)

    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": content}]
    return Question(messages, _SCHEMA, check, _EXPECTED)


def mentions(text: str, caption: str) -> bool:
    """Whether a text has a word of the caption, or one that begins alike. True for captions without longer
    words, or in other scripts than English."""
    if not caption.isascii():  # words are not what other languages are compared by
        return True
    stems = {word.lower()[:5] for word in _WORD.findall(caption)}
    return not stems or any(word.lower()[:5] in stems for word in _WORD.findall(text))


def record_of(caption: Caption, request: str, reply: str, variant: int) -> dict[str, Any]:
    """A record in this project's schema (docs/data.md)."""
    name = hashlib.sha256(f"{caption.modality}:{caption.text}:{variant}".encode()).hexdigest()[:12]
    return {
        "id": f"t2m-{caption.modality}-{name}",
        "source_data": caption.source,
        "conversations": [
            {"from": "human", "value": request},
            {"from": "gpt", "value": f"{reply} {MODALITIES[caption.modality].placeholder}"},
        ],
        f"{caption.modality}_captions": [caption.text],
    }


def _chance(caption: Caption, variant: int, seed: int) -> random.Random:
    return random.Random(f"{seed}:{caption.modality}:{variant}:{caption.text}")
