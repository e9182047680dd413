"""Rows of a batch that requests join and leave while the others are decoded (continuous batching)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from nextgpt_jax.generation.state import DecodeState, StaticDecodeConfig
from nextgpt_jax.inference import programs
from nextgpt_jax.inference.batching import BatchShape, round_up_to_bucket
from nextgpt_jax.inference.types import Request
from nextgpt_jax.templates import TokenizedConversation

# (shape, requests, conversations, embeddings, cache slots) -> the state after the prompts
Prefill = Callable[..., tuple[DecodeState, StaticDecodeConfig]]


def prompt_bucket(tokens: int, context: int) -> int:
    """The length that a prompt is padded to: the next of 16, 24, 32, 48, ..., at most `context`."""
    return min(round_up_to_bucket(tokens, 16), context)


class Rows:
    """A decode state with a fixed number of rows, each of which is free or answers one request.

    A prompt is read by itself, whatever the other rows do, and then takes a row. All shapes are fixed but the lengths
    of prompts, which are rounded up, so the number of compiled programs is bounded.

    Attributes:
      rows: B.
      context: tokens of a prompt and its answer at most.
      max_new_tokens: tokens of an answer at most.
    """

    def __init__(
        self,
        model: programs.FlatModel,
        mesh: Mesh | None,
        prefill: Prefill,
        *,
        rows: int,
        context: int,
        max_new_tokens: int,
    ):
        """Made by `Engine.rows`."""
        self.rows, self.context, self.max_new_tokens = rows, context, max_new_tokens
        self._model, self._mesh, self._prefill = model, mesh, prefill
        self._state: DecodeState | None = None  # made with the first prompt
        self._config: StaticDecodeConfig | None = None

    def join(
        self,
        row: int,
        request: Request,
        conversation: TokenizedConversation,
        embeddings: Sequence[np.ndarray],
        num_embeddings: int,
    ) -> None:
        """Reads a prompt and puts it into a free row.

        Args:
          embeddings: [k, E] of each input of the conversation.
          num_embeddings: of the encoder that has the most.
        """
        prompt = prompt_bucket(len(conversation.ids), self.context)
        media = BatchShape.rounded_up(1, 1, 1, num_embeddings).embeddings
        shape = BatchShape(1, prompt, self.max_new_tokens, media)
        self._state, self._config = self._joined(self._state, row, shape, [request], [conversation], embeddings)

    def warm_up(self, shape: BatchShape) -> None:
        """Compiles the programs for prompts of a shape, and those that all prompts share. Leaves the rows alone."""
        state, config = self._joined(None, 0, shape)
        with programs.use_mesh(self._mesh):
            state, _ = programs.decode(self._model, state, np.int32(0), config=config)
            state = programs.leave(state, np.int32(0))
            programs.group_hidden(state, np.int32(0))

    def _joined(
        self, state: DecodeState | None, row: int, shape: BatchShape, *prompts: Any
    ) -> tuple[DecodeState, StaticDecodeConfig]:
        """The state (None: with no rows yet) with a prompt in `row`; `prompts` as of `Prefill`."""
        new, config = self._prefill(shape, *prompts, slots=self.context)
        indices = np.full(len(new.done), self.rows, np.int32)  # rows that fill a mesh are dropped
        indices[0] = row
        with programs.use_mesh(self._mesh):
            return programs.join(
                programs.no_rows(new, rows=self.rows) if state is None else state, indices, new
            ), config

    def advance(self, steps: int) -> programs.Progress:
        """Decodes at most `steps` steps of all rows, in the background. Some row must have joined."""
        with programs.use_mesh(self._mesh):
            self._state, progress = programs.decode(self._model, self._state, np.int32(steps), config=self._config)
        return progress

    def leave(self, row: int) -> None:
        """Frees a row in the middle of its answer."""
        with programs.use_mesh(self._mesh):
            self._state = programs.leave(self._state, np.int32(row))

    def clear(self) -> None:
        """Frees all rows after a failure, which may have taken the state with it."""
        self._state = None

    def group_hidden(self, row: int) -> np.ndarray:
        """The hidden states of the signal groups of a row so far: [G, W, D]."""
        with programs.use_mesh(self._mesh):
            return jax.device_get(programs.group_hidden(self._state, np.int32(row)))
