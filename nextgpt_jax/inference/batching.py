"""Sizes of batches, rounded up so that few programs are compiled, and the arrays of a batch of requests."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nextgpt_jax.generation.state import SamplingParams
from nextgpt_jax.inference.types import Request
from nextgpt_jax.inference.validation import parse_modality
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.templates import TokenizedConversation


def round_up_to_power_of_two(n: int) -> int:
    """The next of 1, 2, 4, 8, ...: batch sizes."""
    return 1 << max(0, n - 1).bit_length()


def round_up_to_bucket(n: int, smallest: int = 32) -> int:
    """The next of 32, 48, 64, 96, 128, 192, ...: lengths of prompts and answers. Padding adds a half at most."""
    return min(size * round_up_to_power_of_two(-(-n // size)) for size in (smallest, smallest * 3 // 2))


def pad_rows(values: Iterable, rows: int, padding: Any, dtype: np.typing.DTypeLike) -> np.ndarray:
    """[rows, ...]: the values, then rows of `padding`, which has the shape of a value."""
    array = np.full((rows, *np.shape(padding)), padding, dtype)
    for row, value in enumerate(values):
        array[row] = value
    return array


class BatchShape(NamedTuple):
    """The shape of a batch that is decoded: rows B, prompt length P, new tokens N and media embeddings of a row M."""

    rows: int
    prompt: int
    new_tokens: int
    embeddings: int  # of each encoder

    @classmethod
    def rounded_up(cls, rows: int, prompt: int, new_tokens: int, embeddings: int) -> "BatchShape":
        """The smallest shape in use with these sizes."""
        lengths = round_up_to_bucket(prompt), round_up_to_bucket(new_tokens)
        return cls(round_up_to_power_of_two(rows), *lengths, round_up_to_power_of_two(max(1, embeddings)))


class PromptBatch(NamedTuple):
    """The arrays of a batch of requests: arguments of `programs.prefill`."""

    ids: np.ndarray  # int32 [B, P]
    lengths: np.ndarray  # int32 [B]
    media: dict[str, tuple[np.ndarray, np.ndarray]]  # by encoder: embeddings float32 [B, M, E], and their positions
    # in ids, int32 [B, M]; P: unused
    params: SamplingParams


def prompt_batch(
    shape: BatchShape,
    requests: Sequence[Request],
    conversations: Sequence[TokenizedConversation],
    embeddings: Iterable[np.ndarray],
    *,
    context: int,
    embedding_dims: Mapping[str, int],
    modalities: Sequence[str],
) -> PromptBatch:
    """The arrays of the requests, and of rows that are done from the start, which fill the batch.

    Args:
      embeddings: [k, E] of each input of all conversations, in order.
      context: tokens that the language model can hold, prompt included.
      embedding_dims: width E of each encoder's embeddings.
      modalities: the output modalities of the model.
    """
    rows = shape.rows
    ids = np.zeros((rows, shape.prompt), np.int32)
    size = rows, shape.embeddings
    media = {
        encoder: (np.zeros((*size, dim), np.float32), np.full(size, shape.prompt, np.int32))
        for encoder, dim in embedding_dims.items()
    }
    remaining = iter(embeddings)
    for row, conversation in enumerate(conversations):
        ids[row, : len(conversation.ids)] = conversation.ids
        used = dict.fromkeys(media, 0)
        for position, medium in conversation.inputs:
            encoder, embedded = MODALITIES[medium.modality].encoder, next(remaining)
            slots = slice(used[encoder], used[encoder] + len(embedded))
            media[encoder][0][row, slots] = embedded
            media[encoder][1][row, slots] = position + np.arange(len(embedded))
            used[encoder] = slots.stop

    def column(values: Iterable, padding: Any, dtype: np.typing.DTypeLike) -> np.ndarray:
        return pad_rows(values, rows, padding, dtype)

    lengths = [len(c.ids) for c in conversations]
    limits = [min(r.max_new_tokens, context - n) for r, n in zip(requests, lengths, strict=True)]
    chosen = [parse_modality(modalities, r.modality) for r in requests]
    allowed, forced = ([pair[i] for pair in chosen] for i in range(2))
    none = [False] * len(modalities)
    params = SamplingParams(
        temperature=column((r.temperature for r in requests), 0, np.float32),
        top_k=column((r.top_k for r in requests), 0, np.int32),
        top_p=column((r.top_p for r in requests), 1, np.float32),
        seed=column((r.seed for r in requests), 0, np.int32),
        max_new_tokens=column(limits, 0, np.int32),
        allowed_modalities=column(allowed, none, bool),
        forced_modalities=column(forced, none, bool),
    )
    return PromptBatch(ids, column(lengths, 1, np.int32), media, params)
