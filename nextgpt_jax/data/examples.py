"""Conversations to training examples of one layout, whatever the stage and the mixture of modalities. A batch is:

tokens     int32 [B, T]      padded with 0 on the right (attention is causal, so no mask is needed)
lengths    int32 [B]         tokens per example without padding; for throughput only
loss_mask  bool [B, T]       True for target tokens
media      {modality: {"input": float32 [B, M, *medium], "positions": int32 [B, M]}}; positions >= T: unused slot
signals    {modality: {"positions": int32 [B, G, n], "captions": int32 [B, G, L], "mask": bool [B, G]}}
           of prepared data, both have "embeddings" [B, M, k, E] and [B, G, L, d] in place of "input" and "captions"
sources    bool [B, S]       where each example is from; if there are several sources

M and G are the slots of the batch's `BatchSpec`, by modality; modalities without slots are absent (layouts.py).
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from nextgpt_jax import media
from nextgpt_jax.data.media_files import Source, local_path, resolved
from nextgpt_jax.data.pairs import Conversation
from nextgpt_jax.data.prepared import DTYPES, PreparedConversation
from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import MODALITIES, Vocabulary
from nextgpt_jax.prompts import Input, Output
from nextgpt_jax.templates import Template, TokenizedConversation, Tokenizer, tokenize_conversation


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """Slots per example for inputs and outputs of each modality; modalities without any are absent."""

    inputs: Mapping[str, int]
    outputs: Mapping[str, int]

    def union(self, other: "BatchSpec") -> "BatchSpec":
        """The smallest spec with room for what either has."""
        pairs = (self.inputs, other.inputs), (self.outputs, other.outputs)
        return BatchSpec(
            *({n: max(a.get(n, 0), b.get(n, 0)) for n in MODALITIES if n in a or n in b} for a, b in pairs)
        )


@dataclasses.dataclass(frozen=True)
class ExampleBuilder:
    """Builds a training example from a conversation, with room for `spec`, or for another spec that is within it.

    Raises:
      UserError: the spec has a modality that this model cannot read or generate.
    """

    tokenizer: Tokenizer
    caption_tokenizers: Mapping[str, Tokenizer]  # by output modality of the model
    caption_lengths: Mapping[str, int]
    vocabulary: Vocabulary
    encoders: Mapping[str, Any]  # encoder configs by input modality of the model
    max_length: int
    spec: BatchSpec
    template: Template
    caption_widths: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)  # [L, d] of embeddings
    prepared: str = ""  # the dtype of the embeddings of prepared data; empty: encoders run in the step
    layout: str = ""  # the fingerprint (weights/frozen.py) of token ids: prepared data with the same one keeps its own

    def __post_init__(self):
        for name in self.spec.inputs:
            if name not in self.encoders:
                raise UserError(f"the samples have {name} inputs, which this model's encoder does not read")
        for name in self.spec.outputs:
            if name not in self.caption_tokenizers:
                raise UserError(f"the samples have {name} outputs, but model.{name}_decoder is not set")

    def length(self, conversation: Conversation) -> int:
        """The tokens of a conversation's example."""
        return min(len(self.tokenize(conversation).ids), self.max_length)

    def tokenize(self, conversation: Conversation) -> TokenizedConversation:
        """A conversation as ids, whole."""
        if isinstance(conversation, PreparedConversation) and conversation.layout == self.layout:
            return conversation.tokenized
        counts = {name: encoder.num_embeddings(name) for name, encoder in self.encoders.items()}
        return tokenize_conversation(conversation, self.tokenizer, self.vocabulary, self.template, counts)

    def empty(self, spec: BatchSpec | None = None, count: int | None = None) -> dict:
        """An example without tokens, media or targets, as numpy arrays; with `count`, a batch of so many."""
        spec, batch = spec or self.spec, () if count is None else (count,)
        made: dict[str, Any] = {
            "tokens": np.zeros((*batch, self.max_length), np.int32),
            "lengths": np.zeros(batch, np.int32),
            "loss_mask": np.zeros((*batch, self.max_length), bool),
            "media": {},
            "signals": {},
        }
        for name, slots in sorted(spec.inputs.items()):
            encoder, positions = self.encoders[name], np.full((*batch, slots), self.max_length, np.int32)
            if self.prepared:
                shape = encoder.num_embeddings(name), encoder.out_embed_dim
                found = {"embeddings": np.zeros((*batch, slots, *shape), DTYPES[self.prepared])}
            else:
                found = {"input": np.zeros((*batch, slots, *encoder.input_shape(name)), np.float32)}
            made["media"][name] = found | {"positions": positions}
        for name, slots in sorted(spec.outputs.items()):
            signals = len(self.vocabulary.signal_ids(name))
            if self.prepared:
                shape = (*batch, slots, *self.caption_widths[name])
                found = {"embeddings": np.zeros(shape, DTYPES[self.prepared])}
            else:
                found = {"captions": np.zeros((*batch, slots, self.caption_lengths[name]), np.int32)}
            made["signals"][name] = found | {
                "positions": np.zeros((*batch, slots, signals), np.int32),
                "mask": np.zeros((*batch, slots), bool),
            }
        return made

    def __call__(self, conversation: Conversation, spec: BatchSpec | None = None) -> dict:
        """An example, as numpy arrays without the batch axis, truncated to `max_length`.

        Raises:
          UserError: a medium cannot be read.
        """
        example = self.empty(spec)
        self.fill(example, conversation)
        return example

    def fill(self, example: dict, conversation: Conversation) -> None:
        """Writes a conversation's example into the arrays of an empty one, which may be views of a batch.

        Raises:
          UserError: a medium cannot be read; the example is as it was.
        """
        tokenized = self.tokenize(conversation)
        inputs, outputs = self._inside(tokenized)
        free: dict[tuple[str, str], Iterator[int]] = collections.defaultdict(itertools.count)  # slots
        try:
            for position, medium in inputs:
                name = medium.modality
                entry, slot = example["media"][name], next(free["media", name])
                if self.prepared:
                    entry["embeddings"][slot] = medium.content.embeddings
                else:
                    load_medium(medium.content, name, self.encoders[name], entry["input"][slot])
                entry["positions"][slot] = position
        except UserError:
            for entry in example["media"].values():
                entry["input"].fill(0)
                entry["positions"].fill(self.max_length)
            raise
        for position, output in outputs:
            name = output.modality
            entry, slot = example["signals"][name], next(free["signals", name])
            entry["positions"][slot] = np.arange(position, position + len(self.vocabulary.signal_ids(name)))
            if self.prepared:
                entry["embeddings"][slot] = output.embedding
            else:
                tokenizer, length = self.caption_tokenizers[name], self.caption_lengths[name]
                entry["captions"][slot] = caption_ids(tokenizer, output.caption, length)
            entry["mask"][slot] = True
        length = min(len(tokenized.ids), self.max_length)
        example["lengths"][...] = length
        example["tokens"][:length], example["loss_mask"][:length] = tokenized.ids[:length], tokenized.loss[:length]

    def _inside(self, tokenized: TokenizedConversation) -> tuple[list[tuple[int, Input]], list[tuple[int, Output]]]:
        """The inputs and outputs that are not cut off, with their positions."""
        lengths = {name: encoder.num_embeddings(name) for name, encoder in self.encoders.items()}
        inputs = [(p, m) for p, m in tokenized.inputs if p + lengths[m.modality] <= self.max_length]
        outputs = [
            (p, o) for p, o in tokenized.outputs if p + len(self.vocabulary.signal_ids(o.modality)) <= self.max_length
        ]
        return inputs, outputs

    def lost_media(self, tokenized: TokenizedConversation) -> int:
        """The number of inputs and outputs that are cut off."""
        inputs, outputs = self._inside(tokenized)
        return len(tokenized.inputs) + len(tokenized.outputs) - len(inputs) - len(outputs)


def load_medium(medium: Source, modality: str, encoder: Any, out: np.ndarray | None = None) -> np.ndarray:
    """The input of an encoder for a medium, float32, written to `out` if it is given.

    Raises:
      UserError: it is missing or cannot be read.
    """
    with local_path(resolved(medium, modality)) as path:
        return media.load(modality, path, encoder, out)


def caption_ids(tokenizer: Tokenizer, caption: str, length: int) -> np.ndarray:
    """A caption as input of a text encoder, int32 [length]: start, text (truncated if too long), end, padding."""
    ids = tokenizer(caption, padding="max_length", truncation=True, max_length=length)["input_ids"]
    return np.asarray(ids, np.int32)
