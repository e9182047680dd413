"""Embeddings of texts and media in ImageBind's space."""

import functools
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from nextgpt_jax.errors import UserError
from nextgpt_jax.pipeline.imagebind import ImageBind
from nextgpt_jax.prompts import Input
from nextgpt_jax.serving.batcher import Batcher

_T = TypeVar("_T")
_BATCH = 32


class Embedder:
    """Media are read by the encoder of the engine, texts by the text tower that belongs to it. All embeddings have
    unit length. The device is used in the batcher's thread."""

    def __init__(self, batcher: Batcher, encoder: str):
        """
        Args:
          encoder: config.model.encoder, where the text tower is; "": embeddings of text are refused.
        """
        self._batcher, self._text = batcher, _text_tower(encoder)

    def check(self, inputs: Sequence[object]) -> int:
        """The tokens of the texts among inputs.

        Raises:
          UserError: there is no text tower, or a text is too long.
        """
        texts = {i: item for i, item in enumerate(inputs) if isinstance(item, str)}
        if not texts:
            return 0
        if self._text is None:
            raise UserError("this server has no embeddings of text: its ImageBind lacks the text tower or tokenizer")
        limit, total = self._text.config.text_context_length, 0
        for i, count in zip(texts, self._text.count_tokens(list(texts.values())), strict=True):
            if count > limit:
                raise UserError(f"input[{i}] has {count} tokens: ImageBind reads {limit}")
            total += count
        return total

    def embed(self, inputs: Sequence[str | Input]) -> np.ndarray:
        """Float32 [n, width], in the order of the texts and media. Waits for the device: call it in a thread,
        after `check`.

        Raises:
          UserError: the encoder gives several embeddings a medium.
        """
        texts = [item for item in inputs if isinstance(item, str)]
        media = [item for item in inputs if not isinstance(item, str)]
        found: dict[bool, list[np.ndarray]] = {True: [], False: []}
        for some in _batches(texts):
            found[True] += list(self._batcher.call(functools.partial(self._embed_texts, some)).result())
        if media:
            for some in _batches(media):
                found[False] += self._batcher.call(functools.partial(self._batcher.engine.encode, some)).result()
            if any(len(embedding) != 1 for embedding in found[False]):
                raise UserError("this model's encoder gives several embeddings a medium: it has no shared space")
        rows = np.stack([np.ravel(found[isinstance(item, str)].pop(0)) for item in inputs]).astype(np.float32)
        return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)

    def _embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        assert self._text
        return self._text.embed(texts=texts)["texts"]


def _batches(items: list[_T]) -> Iterator[list[_T]]:
    """Answers go on in between."""
    return (items[i : i + _BATCH] for i in range(0, len(items), _BATCH))


def _text_tower(encoder: str) -> ImageBind | None:
    for folder in filter(None, encoder.split(",")):
        try:
            tower = ImageBind.from_pretrained(folder, branches=("text",))
        except UserError:  # another kind of encoder, or without that tower
            continue
        if tower.reads_text:
            return tower
    return None
