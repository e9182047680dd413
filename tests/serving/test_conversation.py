"""Conversations of the chat page, with answers that the tests write."""

import asyncio

import numpy as np
import pytest
from PIL import Image

from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.types import MediaOutput, Response, StreamEvent
from nextgpt_jax.prompts import Input, Output, Turn
from nextgpt_jax.serving.answers import Cancelled, TimedOut
from nextgpt_jax.serving.conversation import Conversation, chosen_modality, number
from tests.serving.script import Script

IMAGE = MediaOutput("image", np.zeros((4, 4, 3), np.uint8))
TEXT, MEDIUM = StreamEvent(text="a seven and"), StreamEvent(media=IMAGE)
HELLO = StreamEvent(response=Response("hello", [], 2, ("hello",), "stop", 3))
END = StreamEvent(response=Response("a seven and", [IMAGE], 9, ("a seven", Output("image"), " and"), "stop", 3))


def send(conversation, *message, **options):
    """Sends a message and waits; what was shown after each step."""

    async def run():
        return [conversation.messages async for _ in conversation.send(*message, options)]

    return asyncio.run(run())


def shown(messages):
    """Text and names of files, message by message."""
    parts = [part if isinstance(part, str) else part["path"].split("/")[-1] for m in messages for part in m["content"]]
    return " | ".join(parts)


def test_an_answer_is_shown_piece_by_piece_and_remembered(tmp_path):
    script = Script([TEXT, MEDIUM, END])
    conversation = Conversation(script, tmp_path)
    steps = send(conversation, "draw <image>", [str(picture(tmp_path))], seed=3)
    assert shown(steps[0]) == r"draw \<image> | a.png"
    assert shown(steps[-1]) == r"draw \<image> | a.png | a seven | image_000.png | and"
    (turn,) = conversation.turns
    assert [s.modality if isinstance(s, Input) else s for s in turn.human] == ["draw ", "image"]
    assert turn.assistant == END.response.segments
    assert script.requests[0].seed == 3

    send(conversation, "again", [])
    assert script.requests[1].turns == (turn, Turn(("again",)))
    assert [m["role"] for m in conversation.messages] == ["user", "assistant"] * 2
    assert Image.open(conversation.messages[-1]["content"][1]["path"]).size == (4, 4)
    conversation.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_an_edit_is_of_the_file_or_goes_on_with_the_last_medium_that_is_shown(tmp_path):
    script = Script([TEXT, MEDIUM, END])
    conversation = Conversation(script, tmp_path)
    with pytest.raises(UserError, match="needs the image that is edited"):
        send(conversation, "now a nine", [], edit="image")
    send(conversation, "now a nine", [str(picture(tmp_path))], edit="image", strength=0.8)
    send(conversation, "now a two", [], edit="image", modality=None)
    first, second = script.requests
    assert first.edit.strength == 0.8 and first.modality == second.modality == "image"
    given, made = (Image.open(path) for path in (tmp_path / "a.png", conversation.messages[1]["content"][1]["path"]))
    for request, picture_of in ((first, given), (second, made)):
        size = request.edit.content.shape[:2]
        expected = np.asarray(picture_of.convert("RGB").resize(size, Image.Resampling.LANCZOS), float)
        assert np.abs(request.edit.content - expected).mean() < 8
    assert [s.modality for s in second.turns[-1].human if isinstance(s, Input)] == ["image"]


@pytest.mark.parametrize("error", [TimedOut("too late"), ValueError("broken")])
@pytest.mark.parametrize("before", [(), (TEXT,), (TEXT, MEDIUM)])
def test_an_answer_that_ends_early_stays_as_far_as_it_is_there(tmp_path, before, error):
    conversation = Conversation(Script([*before, error]), tmp_path)
    with pytest.raises(type(error)):
        send(conversation, "hi", [])
    segments = ("a seven and", Output("image"))[: len(before)]
    assert conversation.turns == ((Turn(("hi",), segments),) if before else ())
    assert shown(conversation.messages) == " | ".join(
        ["hi", "a seven and", "image_000.png"][: len(before) + 1] * bool(before)
    )


def picture(folder):
    path = folder / "a.png"
    Image.new("RGB", (40, 40)).save(path)
    return path


@pytest.mark.parametrize("when", ["at once", "before the answer", "in it"])
def test_stopping(tmp_path, when):
    script = Script()
    conversation = Conversation(script, tmp_path)

    async def run():
        sending = conversation.send("hi", [], {})
        if when == "at once":
            first = asyncio.ensure_future(anext(sending))
            await asyncio.sleep(0)
            conversation.stop()
            await first
        else:
            await anext(sending)
            if when == "in it":
                script.answers[0].deliver(TEXT)
                await anext(sending)
            conversation.stop()
        with pytest.raises(Cancelled):
            await anext(sending)

    asyncio.run(run())
    assert script.answers[0].ended and conversation.stopped
    assert conversation.turns == ((Turn(("hi",), ("a seven and",)),) if when == "in it" else ())
    script.events = [HELLO]
    send(conversation, "hi again", [])
    assert not conversation.stopped and conversation.turns[-1].human == ("hi again",)


def test_closing_the_page_cancels_and_a_second_message_waits(tmp_path):
    script = Script()
    conversation = Conversation(script, tmp_path)

    async def run():
        sending = conversation.send("hi", [], {})
        await anext(sending)
        with pytest.raises(UserError, match="wait for the answer, or stop it"):
            await anext(conversation.send("and", [], {}))
        assert not script.answers[0].ended
        await sending.aclose()
        assert script.answers[0].ended

    asyncio.run(run())


def test_wrong_messages_change_nothing(tmp_path):
    script = Script([HELLO])
    conversation = Conversation(script, tmp_path)
    send(conversation, "hi", [])
    messages, turns = conversation.messages, conversation.turns
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    for message, line in [
        (("", [], {}), "the prompt is empty"),
        (("hi", [str(text)], {}), "^notes.png is no image, video or sound in a supported format"),
        (("hi", [str(picture(tmp_path))], {}, "audio"), "^a.png .*audio"),
        (("<audio>", [], {}), "1 <audio> mark but 0 audios"),
        (("hi", [], {"temperature": -1.0}), "temperature"),
    ]:
        with pytest.raises(UserError, match=line) as error:
            asyncio.run(anext(conversation.send(*message)))
        assert str(tmp_path) not in str(error.value)
    assert conversation.messages is messages and conversation.turns is turns and len(script.requests) == 1


def test_fields():
    assert chosen_modality("media", ["image", "audio"]) == "image,audio"
    assert chosen_modality("text", ["image"]) == "text"
    with pytest.raises(UserError, match="tick the media"):
        chosen_modality("media", [])
    assert (number("steps", " 20 ", int), number("guidance", "1.5", float), number("steps", " ", int)) == (
        20,
        1.5,
        None,
    )
    with pytest.raises(UserError, match="^steps: '1.5' is not a whole number$"):
        number("steps", "1.5", int)
