"""A conversation of the chat page: what is shown, what the model remembers, and the answer that is being made."""

import asyncio
import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from nextgpt_jax import media
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.requests import make_request
from nextgpt_jax.inference.types import MediaOutput, Request, Response
from nextgpt_jax.media.recognition import recognize
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.prompts import Output, Segment, Turn
from nextgpt_jax.serving.answers import Answer, Cancelled, Event
from nextgpt_jax.serving.batcher import Batcher


class Conversation:
    """One user's conversation. Its methods are called in one event loop.

    Attributes:
      messages: what is shown, as Gradio has it: {"role": "user" or "assistant", "content": parts}, where a part is text
        or {"path": of a file}. A new list after every change.
      turns: what the model remembers.
      stopped: its last answer was given up by `stop`.
      closed: `close` was called.
    """

    def __init__(self, batcher: Batcher, folder: pathlib.Path):
        """`folder`: generated media are written to a folder in it."""
        self.messages: list[dict[str, Any]] = []
        self.turns: tuple[Turn, ...] = ()
        self._batcher, self._parent = batcher, folder
        self._folder: pathlib.Path | None = None
        self._answer: Answer | None = None
        self._put: Callable[[Event], None]  # into the queue of the answer's events
        self._busy = self.stopped = self.closed = False

    def stop(self) -> None:
        """Gives up the answer that is being made. What there is of it stays. Any thread may call it."""
        self.stopped = True
        if answer := self._answer:
            answer.cancel()
            self._put(Cancelled("stopped"))  # the batcher may be compiling

    def close(self) -> None:
        """Gives up the answer, and deletes the generated files."""
        self.closed = True
        self.stop()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def send(
        self, text: str, files: Sequence[str], options: Mapping[str, Any], kind: str = ""
    ) -> AsyncGenerator[None, None]:
        """Answers a message; yields whenever `messages` has changed.

        An answer that ends early stays as far as it is shown, in the memory too. If nothing of it is shown, the
        conversation is as before.

        Args:
          files: paths of input media.
          options: of `make_request`; None takes the default. What is edited is the first file of its modality or, if
            there is none, the last medium of it that is shown.
          kind: the modality of the files; "": by their content.

        Raises:
          UserError: the message cannot be answered, in one line.
          Cancelled: the answer was given up.
          Exception: what failed.
        """
        if self._busy:
            raise UserError("wait for the answer, or stop it")
        self._busy, self.stopped = True, False
        try:
            request = await asyncio.to_thread(self._request, text, files, options, kind)
            events: asyncio.Queue[Event] = asyncio.Queue()
            self._put = _putting(events)
            self._answer = await asyncio.to_thread(self._batcher.submit, request, on_event=self._put)
            if self.stopped:
                self.stop()
            async with contextlib.aclosing(self._receive(request, events, _asking(text, files))) as changes:
                async for _ in changes:
                    yield
        finally:
            if self._answer:
                self._answer.cancel()  # the page is gone; nothing after the end
            self._answer, self._busy = None, False

    def _request(self, text: str, files: Sequence[str], options: Mapping[str, Any], kind: str) -> Request:
        engine, paths = self._batcher.engine, {}
        try:
            for file in files:
                paths.setdefault(kind or recognize(file), []).append(file)
            edit = options.get("edit")
            if edit and edit not in paths and (last := self._last(edit)):
                paths[edit] = [last]
            return make_request(text, paths, options, engine.config, engine.defaults, self.turns)
        except UserError as error:
            message = str(error)
            for file in files:
                message = message.replace(file, pathlib.Path(file).name)
            raise UserError(message) from None

    def _last(self, modality: str) -> str | None:
        """The file of the last medium of a modality that is shown."""
        parts = [part for message in self.messages for part in message["content"] if isinstance(part, dict)]
        return next((part["path"] for part in reversed(parts) if recognize(part["path"]) == modality), None)

    async def _receive(
        self, request: Request, events: asyncio.Queue[Event], message: dict[str, Any]
    ) -> AsyncGenerator[None, None]:
        old, human = self.messages, request.turns[-1].human
        self.messages = asked = [*old, message]
        yield
        text, made, paths = "", [], []
        response: Response | None = None
        try:
            while not response:
                for event in await _next(events):
                    if isinstance(event, Exception):
                        raise event
                    text += event.text
                    if event.media:
                        paths.append(await asyncio.to_thread(self._write, event.media))
                        made.append(Output(event.media.modality))
                    response = event.response
                if text or paths:
                    self.messages = [*asked, _reply([text, *made], paths)]
                    yield
        except BaseException:
            self.messages = [*asked, _reply([text, *made], paths)] if text or paths else old
            self.turns = (*self.turns, Turn(human, (text, *made))) if text or paths else self.turns
            raise
        self.messages = [*asked, _reply(response.segments, paths)]  # each medium where the text asks for it
        self.turns = (*self.turns, Turn(human, response.segments))
        yield

    def _write(self, medium: MediaOutput) -> str:
        if not self._folder:
            self._folder = pathlib.Path(tempfile.mkdtemp(dir=self._parent))
        number, suffix = len(list(self._folder.iterdir())), MODALITIES[medium.modality].suffix
        path = self._folder / f"{medium.modality}_{number:03d}{suffix}"
        media.write(medium.modality, path, medium.content)
        return str(path)


def chosen_modality(choice: str, media: Sequence[str]) -> str:
    """`Request.modality` of a choice: "auto", "text" or "media", then those that are ticked.

    Raises:
      UserError: none is ticked.
    """
    if choice == "media" and not media:
        raise UserError("tick the media that the answer should have")
    return ",".join(media) if choice == "media" else choice


def number(name: str, text: str, kind: type[int] | type[float]) -> float | None:
    """The number in a field of the page; None if it is empty.

    Raises:
      UserError: it is no number.
    """
    try:
        return kind(text) if text.strip() else None
    except ValueError:
        words = "a whole number" if kind is int else "a number"
        raise UserError(f"{name}: {text.strip()!r} is not {words}") from None


def _asking(text: str, files: Sequence[str]) -> dict[str, Any]:
    """A user's message. Placeholders of media are text, not HTML, in Markdown."""
    for modality in MODALITIES.values():
        text = text.replace(modality.placeholder, "\\" + modality.placeholder)
    return {"role": "user", "content": [text, *({"path": file} for file in files)]}


def _reply(segments: Sequence[Segment], paths: Sequence[str]) -> dict[str, Any]:
    """A message of the model. `paths`: of its media, in order."""
    rest = iter(paths)
    parts = [segment.strip() if isinstance(segment, str) else {"path": next(rest)} for segment in segments]
    return {"role": "assistant", "content": [part for part in parts if part] or [""]}


def _putting(events: asyncio.Queue[Event]) -> Callable[[Event], None]:
    """What puts an event into a queue of the running event loop, from another thread."""
    loop = asyncio.get_running_loop()

    def put(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(events.put_nowait, event)

    return put


async def _next(events: asyncio.Queue[Event]) -> list[Event]:
    """The next events: at least one, all that there are. Pages show them together."""
    found = [await events.get()]
    while not events.empty():
        found.append(events.get_nowait())
    return found
