"""Rows of a batch that requests join and leave while the others are decoded (continuous batching)."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from nextgpt_jax.generation.state import DecodeState, StaticDecodeConfig
from nextgpt_jax.inference import programs
from nextgpt_jax.inference.batching import BatchShape, round_up_to_bucket, round_up_to_power_of_two
from nextgpt_jax.inference.types import Request
from nextgpt_jax.templates import TokenizedConversation

# (shape, requests, conversations, embeddings, cache slots) -> the state after the prompts
Prefill = Callable[..., tuple[DecodeState, StaticDecodeConfig]]


def prompt_bucket(tokens: int, context: int) -> int:
    """The length that a prompt is padded to: the next of 16, 24, 32, 48, ..., at most `context`."""
    return min(round_up_to_bucket(tokens, 16), context)


def attended_bucket(tokens: int, context: int) -> int:
    """The slots of the cache that are read for rows of so many tokens: the next of 64, 128, 256, ..., or `context`."""
    return min(round_up_to_power_of_two(max(tokens, 64)), context)


class Rows:
    """A decode state with a fixed number of rows, each of which is free or answers one request.

    Prompts are read by themselves, whatever the rows do, and then take rows. All shapes are fixed but the number and
    lengths of prompts, which are rounded up, so the number of compiled programs is bounded.

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
        rows: Sequence[int],
        requests: Sequence[Request],
        conversations: Sequence[TokenizedConversation],
        embeddings: Sequence[np.ndarray],
        shape: BatchShape,
    ) -> None:
        """Reads prompts together and puts each into a free row.

        Args:
          embeddings: [k, E] of each input of all conversations, in order.
          shape: of `shape`, for as many prompts or more.
        """
        self._state, self._config = self._joined(self._state, rows, shape, requests, conversations, embeddings)

    def shape(self, prompts: int, tokens: int, num_embeddings: int) -> BatchShape:
        """The shape of a batch of prompts of at most so many tokens and media embeddings (of each encoder)."""
        media = round_up_to_power_of_two(max(1, num_embeddings))
        return BatchShape(prompts, prompt_bucket(tokens, self.context), self.max_new_tokens, media)

    def warm_up(self, shape: BatchShape) -> None:
        """Compiles the programs for prompts of a shape. Leaves the rows alone."""
        self._joined(None, [], shape)

    def warm_up_decoding(self, shape: BatchShape, tokens: Iterable[int]) -> None:
        """Compiles the programs that prompts of all shapes share. Leaves the rows alone.

        Args:
          shape: of any prompt.
          tokens: of the longest row.
        """
        state, self._config = self._joined(None, [], shape)
        with programs.use_mesh(self._mesh):
            for most in tokens:
                state, _ = programs.decode(self._model, state, np.int32(0), config=self._attending(most))
            state = programs.leave(state, np.int32(0))
            programs.group_hidden(state, np.int32(0))

    def _joined(
        self, state: DecodeState | None, rows: Sequence[int], shape: BatchShape, *prompts: Any
    ) -> tuple[DecodeState, StaticDecodeConfig]:
        """The state (None: with no rows yet) with prompts in `rows`; `prompts` as of `Prefill`."""
        new, config = self._prefill(shape, *prompts, slots=self.context)
        indices = np.full(len(new.done), self.rows, np.int32)  # those that fill the batch are dropped
        indices[: len(rows)] = rows
        with programs.use_mesh(self._mesh):
            return programs.join(
                programs.no_rows(new, rows=self.rows) if state is None else state, indices, new
            ), config

    def advance(self, steps: int, tokens: int | None = None) -> programs.Progress:
        """Decodes at most `steps` steps of all rows, in the background. Some row must have joined.

        Args:
          tokens: that no row will have more of after these steps, prompts included; None: `context`. Only so much of
            the cache is read, rounded up.
        """
        with programs.use_mesh(self._mesh):
            config = self._attending(self.context if tokens is None else tokens)
            self._state, progress = programs.decode(self._model, self._state, np.int32(steps), config=config)
        return progress

    def _attending(self, tokens: int) -> StaticDecodeConfig:
        assert self._config
        return dataclasses.replace(self._config, attended=attended_bucket(tokens, self.context))

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
