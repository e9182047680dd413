"""From generated token ids to text: complete responses, and text as it is decoded."""

import pathlib
from collections.abc import Sequence

from nextgpt_jax import media
from nextgpt_jax.inference.programs import Progress
from nextgpt_jax.inference.types import MediaOutput, Response
from nextgpt_jax.modalities import MODALITIES, Vocabulary
from nextgpt_jax.prompts import Output, Segment
from nextgpt_jax.templates import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # decoded from bytes that are no complete character


class ResponseParser:
    """Splits token ids into text and output media."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary):
        self._tokenizer, self._base_size = tokenizer, vocabulary.base_size
        self._outputs = {vocabulary.signal_ids(name)[0]: name for name in vocabulary.output_modalities}

    def response(self, ids: Sequence[int], prompt_tokens: int, stopped: bool) -> Response:
        """The response with these ids, without its media.

        Args:
          stopped: it ended with a stop sequence or a stop text, not at its limit of tokens.
        """
        segments = tuple(self._segments(ids))
        return Response(_text(segments), [], len(ids), segments, "stop" if stopped else "length", prompt_tokens)

    def text(self, ids: Sequence[int]) -> str:
        """The text of a complete response."""
        return _text(self._segments(ids))

    def stable_text(self, ids: Sequence[int]) -> str:
        """The text of the first ids of a response that no further ids can change."""
        end = len(ids)
        while end and ids[end - 1] < self._base_size and self._is_partial(ids[end - 1]):
            end -= 1
        return _text(self._segments(ids[:end]))

    def _segments(self, ids: Sequence[int]) -> list[Segment]:
        segments: list[Segment] = []
        text_ids: list[int] = []
        for token in ids:
            if token < self._base_size:
                text_ids.append(token)
            elif token in self._outputs:
                segments += [self._decode(text_ids), Output(self._outputs[token])]
                text_ids = []
        segments.append(self._decode(text_ids).rstrip())
        return [segment for segment in segments if segment != ""]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""

    def _is_partial(self, token: int) -> bool:
        """Whether a token is part of a character. How it is decoded can depend on its neighbors."""
        return _REPLACEMENT in self._decode([token])


def _text(segments: Sequence[Segment]) -> str:
    return "".join(s for s in segments if isinstance(s, str)).strip()


def known_ids(progress: Progress, row: int) -> tuple[list[int], bool]:
    """The ids of a row's response so far, and whether they are all. `progress` is on the host."""
    tokens, length = progress.tokens[row], int(progress.length[row])
    if progress.done[row]:
        return tokens[:length].tolist(), True
    return [*tokens[: int(progress.num_tokens[row])].tolist(), int(progress.next_token[row])], False


def write_numbered(folder: pathlib.Path, number: int, outputs: Sequence[MediaOutput]) -> list[str]:
    """Writes the media of an answer of many, and returns their names: 00007_0.png, 00007_1.wav, ..."""
    names = [f"{number:05d}_{k}{MODALITIES[m.modality].suffix}" for k, m in enumerate(outputs)]
    for name, medium in zip(names, outputs, strict=True):
        media.write(medium.modality, folder / name, medium.content)
    return names


class TextStream:
    """The text of a response in pieces, while its ids become known.

    Held back until the next ids decide about them: incomplete characters, the first ids of a stop sequence, and white
    space at the end.
    """

    def __init__(self, parser: ResponseParser, stop_sequences: Sequence[Sequence[int]]):
        self._parser, self._stop_sequences = parser, [list(s) for s in stop_sequences]
        self._emitted = ""

    def advance(self, ids: Sequence[int], done: bool) -> str:
        """The text to append.

        Args:
          ids: all ids so far; the complete response, without its stop sequence, if `done`.
        """
        ids = list(ids)
        if done:
            text = self._parser.text(ids)
        else:
            text = self._parser.stable_text(ids[: len(ids) - self._begun_stop(ids)])
        # Tokenizers that are not consistent with themselves: no text is better than wrong text.
        delta = text[len(self._emitted) :] if text.startswith(self._emitted) else ""
        self._emitted += delta
        return delta

    def _begun_stop(self, ids: list[int]) -> int:
        """The number of ids at the end that may turn out to be the beginning of a stop sequence."""
        lengths = (n for stop in self._stop_sequences for n in range(1, len(stop)) if ids[-n:] == stop[:n])
        return max(lengths, default=0)
