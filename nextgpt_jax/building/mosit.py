"""MosIT instruction data: conversations of 3 to 7 turns that bring in media and are answered with others.

A conversation is planned first: a topic, a pattern of modalities, and for every message that brings a medium one of the
library that fits the topic. Its texts are then written around these media, so that they are about what is in them.
"""

import collections
import dataclasses
import os
import pathlib
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from nextgpt_jax.building.asking import Question
from nextgpt_jax.building.captions import Caption
from nextgpt_jax.building.matching import Library, Match
from nextgpt_jax.building.mosit_templates import Written, write_turns
from nextgpt_jax.building.replies import check_text, object_schema, text_schema
from nextgpt_jax.building.topics import MAX_TURNS, MIN_TURNS, Pattern
from nextgpt_jax.chat.client import Rejected
from nextgpt_jax.data.pairs import Conversation
from nextgpt_jax.modalities import MODALITIES, output_modalities
from nextgpt_jax.prompts import Input, Output

_NEAREST = 8  # media among which one is drawn
_NOUNS = {"image": "an image", "video": "a video", "audio": "a sound", "depth": "a depth map",
          "thermal": "a thermal image", "imu": "a motion recording"}  # fmt: skip
_STYLES = (
    "lively and curious", "matter-of-fact", "humorous", "thoughtful", "brief, as in a messenger", "warm and personal",
    "like a lesson", "like planning something together", "enthusiastic", "calm", "like an interview", "playful",
)  # fmt: skip
_SYSTEM = """You write training conversations between a person and an assistant that reads and answers with text, \
images, videos and sounds. You are given a topic, and for each turn what the person attaches (with a description) \
and what the assistant attaches to its answer.

Rules:
- Write exactly the given turns. Each has one message of the person and one answer of the assistant; they follow from \
what was said before and hang together as one natural conversation about the topic.
- The person never describes what they attach; they ask about it, or use it. The assistant has seen or heard it, and \
says nothing about it that its description does not support.
- Where the assistant attaches something, the person has asked for it or clearly welcomes it. Describe each such \
attachment by itself in one sentence, so that it can be made from that sentence alone, without the conversation.
- Never refuse, and never say that you cannot see, hear or make something.
- Texts hold the words only: no placeholders, tags, file names, links, numbers of attachments or speaker names.
- Answer with one JSON object: {"turns": [{"human": "...", "assistant": "...", "attachments": [{"kind": "image", \
"description": "..."}]}]}; "attachments" are the assistant's, and [] where it has none."""
_ATTACHMENT = {
    "image": ("picture", "image", "photo", "photograph", "drawing"), "video": ("video", "clip", "film"),
    "audio": ("sound", "recording", "audio"),
}  # fmt: skip
_ORDINALS = {"first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7}
_REFERENCE = re.compile(
    rf"\bthe ({'|'.join(_ORDINALS)}) ({'|'.join(word for words in _ATTACHMENT.values() for word in words)})\b",
    re.IGNORECASE,
)


class Turn(NamedTuple):
    """The media of a message, and the modalities and media (empty: still to be described) of its reply."""

    inputs: tuple[Caption, ...]
    outputs: tuple[str, ...]
    like: tuple[Caption, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A conversation before its texts are written."""

    number: int
    topic: str
    pattern: Pattern
    turns: tuple[Turn, ...]
    style: str


class Plans(NamedTuple):
    """Plans, why others have no media, and how near the chosen media are."""

    plans: list[Plan]
    skipped: collections.Counter[str]
    similarities: list[float]


def make_plans(
    library: Library,
    topics: Sequence[str],
    patterns: Sequence[Pattern],
    number: int,
    min_similarity: float,
    seed: int,
    outputs_too: bool,
) -> Plans:
    """Plans of `number` conversations; fewer if the library has no media for some topics.

    Args:
      topics: empty: each is the caption of a medium of the library, drawn at random.
      min_similarity: of a medium to the topic.
      outputs_too: media of the library are chosen for replies as well, whose captions say what is to be made.
    """
    plans = []
    skipped: collections.Counter[str] = collections.Counter()
    similarities: list[float] = []
    for i in range(number):
        chance = random.Random(f"{seed}:{i}")
        pattern = chance.choice(patterns)
        topic = chance.choice(topics) if topics else chance.choice(library.media).text
        chosen: list[Match] = []

        def choose(
            names: Sequence[str], topic: str = topic, chance: random.Random = chance, chosen: list[Match] = chosen
        ) -> tuple[Caption, ...]:
            found = []
            for name in names:
                used = {match.medium for match in chosen} | {match.medium for match in found}
                near = [
                    match
                    for match in library.nearest(topic, name, _NEAREST + MAX_TURNS)
                    if match.similarity >= min_similarity and match.medium not in used
                ]
                if not near:
                    raise LookupError(f"no {name} for {topic[:60]!r}")
                found.append(chance.choice(near[:_NEAREST]))
            chosen += found
            return tuple(match.medium for match in found)

        try:
            turns = tuple(Turn(choose(g), made, choose(made) if outputs_too else ()) for g, made in pattern.turns)
        except LookupError as error:
            skipped[str(error.args[0])] += 1
            continue
        plans.append(Plan(i, topic, pattern, turns, chance.choice(_STYLES)))
        similarities += [match.similarity for match in chosen]
    return Plans(plans, skipped, similarities)


def from_templates(plans: Sequence[Plan], folder: pathlib.Path, seed: int) -> Iterator[dict[str, Any]]:
    """Records by templates; the plans have media for the replies too.

    Args:
      folder: that names of media are relative to.
    """
    for plan in plans:
        chance = random.Random(f"{seed}:{plan.number}:text")
        turns = write_turns(plan.topic, [t.inputs for t in plan.turns], [t.like for t in plan.turns], chance)
        captions = [[medium.text for medium in turn.like] for turn in plan.turns]
        yield _record(plan, turns, captions, folder, seed)


def questions(plans: Sequence[Plan], folder: pathlib.Path, seed: int) -> list[Question]:
    """The questions to an endpoint; their results are records.

    Args:
      folder: that names of media are relative to.
    """
    return [_question(plan, folder, seed) for plan in plans]


def _question(plan: Plan, folder: pathlib.Path, seed: int) -> Question:
    lines = [
        f"Conversation {plan.number + 1}. Topic: {plan.topic}",
        f"It is {plan.style}.",
        f"It has {len(plan.turns)} turns:",
    ]
    for number, turn in enumerate(plan.turns, 1):
        given = " and ".join(f"{_NOUNS[medium.modality]} (it shows: {medium.text})" for medium in turn.inputs)
        made = " and ".join(_NOUNS[name] for name in turn.outputs)
        lines.append(
            f"{number}. The person attaches {given or 'nothing'}. "
            f"The assistant answers with text {f'and attaches {made}' if made else 'only'}."
        )

    def check(reply: dict[str, Any]) -> dict[str, Any]:
        return _record(plan, *_checked_turns(plan, reply["turns"]), folder, seed)

    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": "\n".join(lines)}]
    attachment = object_schema(
        kind={"type": "string", "enum": list(output_modalities())}, description=text_schema(8, 500)
    )
    attachments = {"type": "array", "items": attachment}
    turn = object_schema(human=text_schema(2, 1500), assistant=text_schema(2, 1500), attachments=attachments)
    count = len(plan.turns)
    schema = object_schema(turns={"type": "array", "items": turn, "minItems": count, "maxItems": count})
    return Question(messages, schema, check, 100 * count)


def _checked_turns(plan: Plan, reply: Sequence[dict[str, Any]]) -> tuple[list[Written], list[list[str]]]:
    """The texts of a reply, and the captions of each turn's outputs in the order of the pattern.

    Raises:
      Rejected: they do not fit the plan.
    """
    turns, captions, said = [], [], set()
    counts: collections.Counter[str] = collections.Counter()
    for planned, turn in zip(plan.turns, reply, strict=True):
        human = check_text(turn["human"], "a message")
        model = check_text(turn["assistant"], "an answer", refusals=True)
        kinds = collections.Counter(item["kind"] for item in turn["attachments"])
        if kinds != collections.Counter(planned.outputs):
            raise Rejected("a turn with other attachments than asked for")
        if human.lower() in said:
            raise Rejected("a message that repeats another")
        said.add(human.lower())
        counts.update(medium.modality for medium in planned.inputs)
        _check_references(human, counts)
        counts.update(planned.outputs)
        _check_references(model, counts)
        descriptions: dict[str, list[str]] = collections.defaultdict(list)
        for item in turn["attachments"]:
            descriptions[item["kind"]].append(" ".join(check_text(item["description"], "a description").split()))
        turns.append(Written(human, model))
        captions.append([descriptions[name].pop(0) for name in planned.outputs])
    made = [caption.lower() for group in captions for caption in group]
    if len(set(made)) < len(made):
        raise Rejected("a description that repeats another")
    return turns, captions


def _check_references(text: str, counts: collections.Counter[str]) -> None:
    """Raises Rejected for "the second picture" where there is one."""
    for ordinal, noun in _REFERENCE.findall(text):
        name = next(name for name, words in _ATTACHMENT.items() if noun.lower() in words)
        if _ORDINALS[ordinal.lower()] > counts[name]:
            raise Rejected("a reference to a medium that is not there")


def _record(
    plan: Plan, turns: Sequence[Written], captions: Sequence[Sequence[str]], folder: pathlib.Path, seed: int
) -> dict[str, Any]:
    """A record in this project's schema (docs/data.md)."""
    chance = random.Random(f"{seed}:{plan.number}:marks")
    messages, fields = [], collections.defaultdict(list)
    for planned, turn, made in zip(plan.turns, turns, captions, strict=True):
        marks = "".join(MODALITIES[medium.modality].placeholder for medium in planned.inputs)
        parts = [marks, turn.human] if chance.random() < 0.7 else [turn.human, marks]
        messages.append({"from": "human", "value": "\n".join(part for part in parts if part)})
        marks = "".join(MODALITIES[name].placeholder for name in planned.outputs)
        messages.append({"from": "gpt", "value": f"{turn.model} {marks}".strip()})
        for medium in planned.inputs:
            assert medium.path is not None
            name = os.path.relpath(os.path.abspath(medium.path), folder.resolve())  # ".." leaves the real folder
            fields[f"input_{medium.modality}s"].append(name)
        for name, caption in zip(planned.outputs, made, strict=True):
            fields[f"{name}_captions"].append(caption)
    return {"id": f"mosit-{plan.number:07d}", "source_data": plan.topic, "conversations": messages, **fields}


def conversation_problem(conversation: Conversation) -> str:
    """What keeps a conversation from being one of MosIT, whoever wrote it; empty: nothing."""
    if not MIN_TURNS <= len(conversation) <= MAX_TURNS:
        return f"{len(conversation)} turns, not {MIN_TURNS} to {MAX_TURNS}"
    media = 0
    for turn in conversation:
        for segments in (turn.human, turn.assistant or ()):
            if not any(isinstance(segment, str) and segment.strip() for segment in segments):
                return "a message without words"
            for segment in segments:
                media += isinstance(segment, Input | Output)
                if isinstance(segment, Output) and not segment.caption.strip():
                    return "a medium without a caption"
    return "" if media else "no medium"
