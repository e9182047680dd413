"""What the chat page is made of, and what happens there. Imports Gradio."""

import contextlib
import html
import logging
import pathlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import gradio as gr

from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.inference.types import Edit
from nextgpt_jax.serving.answers import Cancelled
from nextgpt_jax.serving.batcher import Batcher
from nextgpt_jax.serving.conversation import Conversation, chosen_modality, number

_log = logging.getLogger(__name__)
_DAY = 24 * 3600
_EXAMPLES = {"image": "draw a seven", "video": "show a moving three", "audio": "play the tone of key five"}


def make_blocks(batcher: Batcher, folder: pathlib.Path, examples: Sequence[str] = ()) -> gr.Blocks:
    """The page. Generated media are written to `folder`, from which Gradio serves."""
    engine = batcher.engine
    readable, made = engine.config.input_modalities, engine.config.output_modalities
    defaults = engine.defaults
    sessions = Sessions(batcher, folder)
    with gr.Blocks(title="NExT-GPT", analytics_enabled=False, fill_height=True, delete_cache=(3600, _DAY)) as blocks:
        state = gr.State(None, delete_callback=lambda conversation: conversation and conversation.close())
        shown = gr.Number(0, visible=False)  # messages on the page, which outlives the state
        with gr.Sidebar(position="right", width=280, open=True):
            modality = gr.Radio(
                _labelled(["auto", "text", "media"]), value="auto", label="Answer with", elem_id="modality"
            )
            media = gr.CheckboxGroup(_labelled(made), label="Media", visible=False, elem_id="media")
            edit = gr.Dropdown([("Nothing", ""), *_labelled(made)], value="", label="Edit", elem_id="edit")
            strength = gr.Slider(
                0.05, 1, Edit.strength, step=0.05, label="How much may change", visible=False, elem_id="strength"
            )
            seed = gr.Number(0, precision=0, label="Seed", elem_id="seed")
            # Not gr.Number, which cannot be empty at first.
            steps = gr.Textbox(label="Denoising steps", placeholder=_by_modality(engine, "num_inference_steps"))
            guidance = gr.Textbox(label="Guidance", placeholder=_by_modality(engine, "guidance_scale"))
            temperature = gr.Slider(0, 2, defaults.temperature, step=0.05, label="Temperature")
            tokens = gr.Number(defaults.max_new_tokens, precision=0, label="Tokens at most", elem_id="tokens")
            kind = gr.Dropdown(
                [("By content", ""), *_labelled(readable)], value="", label="Read files as", elem_id="kind"
            )
            new = gr.Button("New conversation", elem_id="new")
        chat = gr.Chatbot(
            elem_id="chat",
            scale=1,
            show_label=False,
            buttons=["copy"],
            placeholder="Drop images, sound or video below.",
        )
        notice = gr.HTML(elem_id="notice", visible=False)
        box = gr.MultimodalTextbox(
            elem_id="box", file_count="multiple", show_label=False, placeholder="Message", autofocus=True
        )
        texts = examples or [_EXAMPLES[name] for name in made if name in _EXAMPLES]
        gr.Examples([[{"text": text, "files": []}] for text in texts], [box], cache_examples=False, label="Examples")

        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
        asking = [state, shown, box, modality, media, edit, strength, seed, steps, guidance, temperature, tokens, kind]
        outputs = [chat, notice, box, state, shown]
        box.submit(sessions.send, asking, outputs, **private)
        box.stop(sessions.stop, None, None, queue=False, **private)
        for event in (new.click, chat.clear):
            event(sessions.renew, state, outputs, **private)
        modality.change(lambda value: gr.CheckboxGroup(visible=value == "media"), modality, media, **private)
        edit.change(lambda value: gr.Slider(visible=bool(value)), edit, strength, **private)
        blocks.unload(sessions.stop)
    return blocks


def _labelled(values: Sequence[str]) -> list[tuple[str, str]]:
    """Choices (label, value). Gradio would take "image" as the key of a translation."""
    return [(value.capitalize(), value) for value in values]


def _by_modality(engine: Engine, field: str) -> str:
    """The defaults of a field of the generation settings."""
    values = {name: getattr(getattr(engine.defaults, name), field) for name in engine.config.output_modalities}
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


class Sessions:
    """The conversations of the open pages."""

    def __init__(self, batcher: Batcher, folder: pathlib.Path):
        self._batcher, self._folder = batcher, folder
        self._running: dict[str, Conversation] = {}  # by the session of the page

    async def send(
        self,
        conversation: Conversation | None,
        shown: float,
        message: dict[str, Any],
        modality: str,
        media: Sequence[str],
        edit: str,
        strength: float,
        seed: float | None,
        steps: str,
        guidance: str,
        temperature: float | None,
        tokens: float | None,
        kind: str,
        request: gr.Request,
    ) -> AsyncIterator[tuple]:
        """Answers a message: values of the chat, the notice, the message box, the state and the number of messages."""
        line, text, files = "", message["text"], message["files"]
        conversation = conversation or Conversation(self._batcher, self._folder)
        before = conversation.messages
        self._running[request.session_hash or ""] = conversation
        yield gr.skip(), _notice(""), _box(answering=True), conversation, gr.skip()
        try:
            if shown != len(before):
                raise UserError("this conversation has expired: start a new one")
            options = {
                "modality": None if edit and modality == "auto" else chosen_modality(modality, media),
                "edit": edit or None,
                "strength": strength if edit else None,
                "seed": seed,
                "num_inference_steps": number("steps", steps, int),
                "guidance_scale": number("guidance", guidance, float),
                "temperature": temperature,
                "max_new_tokens": tokens,
            }
            answer = conversation.send(text, files, options, kind)
            async with contextlib.aclosing(answer) as changes:
                async for _ in changes:
                    box = _box(answering=True, value=None) if conversation.messages[-1]["role"] == "user" else gr.skip()
                    yield conversation.messages, gr.skip(), box, gr.skip(), len(conversation.messages)
        except Cancelled as error:
            line = "" if conversation.stopped else str(error)
        except UserError as error:
            line = str(error)
        except Exception:
            _log.exception("a message could not be answered")
            line = "the answer failed because of an error of the server, which its log describes"
        finally:
            self._running.pop(request.session_hash or "", None)
        if conversation.closed:  # the page has a new one
            return
        again = {"value": {"text": text, "files": files}} if conversation.messages is before else {}
        count = gr.skip() if conversation.messages is before else len(conversation.messages)
        yield conversation.messages, _notice(line), _box(answering=False, **again), gr.skip(), count

    def stop(self, request: gr.Request) -> None:
        """Gives up the answer that is being made for a page."""
        if conversation := self._running.get(request.session_hash or ""):
            conversation.stop()

    def renew(self, conversation: Conversation | None) -> tuple:
        """Forgets a conversation: values as of `send`."""
        if conversation:
            conversation.close()
        return [], _notice(""), _box(answering=False), None, 0


def _notice(line: str) -> dict[str, Any]:
    return gr.update(value=html.escape(line), visible=bool(line))


def _box(*, answering: bool, **value: Any) -> dict[str, Any]:
    return gr.update(submit_btn=not answering, stop_btn=answering, **value)
