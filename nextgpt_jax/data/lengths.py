"""The lengths of samples in tokens, for batches by length: kept between starts (cache.py), made by many processes.

A tokenizer is called with the texts of many conversations at once, which is several times faster.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nextgpt_jax.data.cache import Arrays
from nextgpt_jax.data.examples import ExampleBuilder
from nextgpt_jax.data.pairs import Conversation
from nextgpt_jax.data.passes import of_files
from nextgpt_jax.data.readers import Samples
from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import Vocabulary
from nextgpt_jax.templates import Template, TokenizedConversation, Tokenizer, tokenize_conversation

_CHUNK = 1 << 12  # records that a process looks at at a time
_TOGETHER = 512  # conversations


def lengths(samples: Sequence[Conversation], builder: ExampleBuilder) -> np.ndarray:
    """The tokens of each sample's example, as `ExampleBuilder.length` says, int32 [n]."""
    if isinstance(samples, Samples):
        found = np.array(samples.of_records([made["lengths"] for made in _of_files(samples, builder)]))
    else:
        found = np.zeros(len(samples), np.int32)
    for index in np.flatnonzero(found == 0).tolist():  # those that could not be made, or could not then
        found[index] = builder.length(samples[index])
    return np.minimum(found, builder.max_length)


def tokenize_all(conversations: Iterable[Conversation], builder: ExampleBuilder) -> Iterator[TokenizedConversation]:
    """What `ExampleBuilder.tokenize` makes of each conversation.

    Raises:
      UserError: the tokenizer does not suit the template.
    """
    return _Tokens.of(builder).make_all(conversations)


def _of_files(samples: Samples, builder: ExampleBuilder) -> list[Arrays]:
    """The length of each record, whole; 0 for those without a conversation that this model can be trained on."""
    tokens = _Tokens.of(builder)
    shared, digest = (Samples(samples.files, samples.task, samples.format), tokens), tokens.digest()
    settings = [digest] if digest else None
    return of_files("lengths", samples, settings, _in_file, shared, _joined, _CHUNK)


def _joined(parts: Sequence[np.ndarray]) -> Arrays:
    return Arrays({"lengths": np.concatenate(parts)})


def _in_file(shared: tuple[Samples, "_Tokens"], task: tuple[int, range]) -> np.ndarray:
    (samples, tokens), (file, numbers) = shared, task
    found, rows, conversations = np.zeros(len(numbers), np.int32), [], []
    for row, number in enumerate(numbers):
        try:
            conversations.append(samples.conversation(file, number))
            rows.append(row)
        except UserError:
            continue
    found[rows] = [len(made.ids) if made else 0 for made in tokens.make_all(conversations, strict=False)]
    return found


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """What the ids of a conversation depend on besides it."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    template: Template
    counts: Mapping[str, int]

    @classmethod
    def of(cls, builder: ExampleBuilder) -> "_Tokens":
        counts = {name: encoder.num_embeddings(name) for name, encoder in builder.encoders.items()}
        return cls(builder.tokenizer, builder.vocabulary, builder.template, counts)

    def digest(self) -> str:
        """Of all of it; empty, if the tokenizer does not say all that it depends on."""
        if not getattr(self.tokenizer, "is_fast", False):
            return ""
        import transformers

        tokenizer: Any = self.tokenizer
        parts = [tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.bos_token_id]
        parts += [type(tokenizer).__name__, transformers.__version__, self.vocabulary, self.template]
        return hashlib.sha256(repr([*parts, sorted(self.counts.items())]).encode()).hexdigest()

    def make_all(self, conversations: Iterable[Conversation], strict: bool = True) -> Iterator[Any]:
        """The ids of each conversation. If not `strict`, None for one that there are no ids for."""
        some: list[Conversation] = []
        for conversation in conversations:
            some.append(conversation)
            if len(some) == _TOGETHER:
                yield from self._make(some, strict)
                some = []
        yield from self._make(some, strict)

    def _make(self, conversations: Sequence[Conversation], strict: bool) -> Iterator[Any]:
        tokenizer = _TextsFirst(self.tokenizer)
        for conversation in conversations:
            self._one(conversation, tokenizer, strict)
        tokenizer.tokenize()
        for conversation in conversations:
            yield self._one(conversation, tokenizer, strict)

    def _one(self, conversation: Conversation, tokenizer: Any, strict: bool) -> TokenizedConversation | None:
        try:
            return tokenize_conversation(conversation, tokenizer, self.vocabulary, self.template, self.counts)
        except (KeyError, UserError):  # KeyError: of signal tokens
            if strict:
                raise
            return None


class _TextsFirst:
    """A tokenizer that notes the texts it is given, and knows their ids after `tokenize`."""

    def __init__(self, tokenizer: Any):
        self._tokenizer, self._known = tokenizer, False
        self.bos_token_id = tokenizer.bos_token_id  # which takes transformers long to find
        self._ids: dict[str, list[int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        if not self._known:
            self._ids[text] = []
            return [0]  # of the base vocabulary, as most texts'; where that matters, the text may be another later
        return self._ids[text] if text in self._ids else self._tokenizer.encode(text, add_special_tokens=False)

    def tokenize(self) -> None:
        texts = [*self._ids]
        if not getattr(self._tokenizer, "is_fast", False):
            found = [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]
        else:
            found = self._tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        self._ids, self._known = dict(zip(texts, found, strict=True)), True
