"""The table of modalities, and the vocabulary of a model.

A row of MODALITIES says how a modality is written, and which branch of which encoder reads it. Which signal tokens a
model has is part of that model (`Vocabulary`), so a new row leaves existing weights as they are.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from nextgpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Modality:
    """How a modality is written in prompts, read by the encoder and requested by the language model.

    Attributes:
      name: as in flags, files and configs.
      placeholder: stands for one input in a prompt, or for one output in a training target.
      branch: the branch of its encoder that reads it.
      views: an input is read in several views (clips, crops), whose embeddings are averaged.
      signal: spelling of its signal tokens in new models: [IMG0], [IMG1], ...; empty: it cannot be generated.
      num_signal_tokens: how many signal tokens new models have for it.
      size: the fields of its generation settings (config.py) that fix the shape of an output.
      suffix: of the files that are written.
      encoder: the kind of encoder that reads it (models/registry.py).
    """

    name: str
    placeholder: str
    branch: str
    views: bool = False
    signal: str = ""
    num_signal_tokens: int = 0
    size: tuple[str, ...] = ()
    suffix: str = ""
    encoder: str = "imagebind"


MODALITIES: dict[str, Modality] = {
    m.name: m
    for m in (
        Modality("image", "<image>", "vision", False, "IMG", 4, ("height", "width"), ".png"),
        Modality("video", "<video>", "vision", True, "VID", 24, ("frames", "height", "width"), ".mp4"),
        Modality("audio", "<audio>", "audio", True, "AUD", 8, ("seconds",), ".wav"),
        Modality("depth", "<depth>", "depth"),
        Modality("thermal", "<thermal>", "thermal"),
        Modality("imu", "<imu>", "imu"),
    )
}


def output_modalities() -> tuple[str, ...]:
    """The modalities that some model can generate, in the order of the table."""
    return tuple(name for name, row in MODALITIES.items() if row.signal)


class SignalTokens(NamedTuple):
    """The signal tokens of one output modality: [PREFIX0] to [PREFIX<num_tokens - 1>]."""

    modality: str
    prefix: str
    num_tokens: int


# The vocabulary of the released weights: 2 + 4 + 24 + 8 = 38 new tokens.
RELEASED = (SignalTokens("image", "IMG", 4), SignalTokens("video", "VID", 24), SignalTokens("audio", "AUD", 8))


def signal_tokens(names: Sequence[str]) -> tuple[SignalTokens, ...]:
    """The signal tokens of a new model that can generate the modalities `names`, in this order.

    Raises:
      UserError: a name is repeated, or no modality that can be generated.
    """
    known = output_modalities()
    if wrong := [name for name in names if name not in known or list(names).count(name) > 1]:
        raise UserError(f"output modality {wrong[0]!r}: give some of {', '.join(known)}, each once")
    return tuple(SignalTokens(name, MODALITIES[name].signal, MODALITIES[name].num_signal_tokens) for name in names)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The token ids of a model: the base vocabulary, then `<Img>` and `</Img>` (around every input embedding, whatever
    its modality), then the signal tokens of each output modality.

    Attributes:
      base_size: tokens of the language model's own vocabulary.
      signals: the output modalities, in the order of their tokens.
    """

    base_size: int
    signals: tuple[SignalTokens, ...] = RELEASED

    @property
    def new_tokens(self) -> tuple[str, ...]:
        """The spellings of the tokens above the base vocabulary."""
        return ("<Img>", "</Img>", *(f"[{s.prefix}{i}]" for s in self.signals for i in range(s.num_tokens)))

    @property
    def size(self) -> int:
        """All tokens."""
        return self.base_size + len(self.new_tokens)

    @property
    def media_begin(self) -> int:
        """The id of `<Img>`."""
        return self.base_size

    @property
    def media_end(self) -> int:
        """The id of `</Img>`."""
        return self.base_size + 1

    @property
    def output_modalities(self) -> tuple[str, ...]:
        """The modalities that have signal tokens."""
        return tuple(s.modality for s in self.signals)

    def signal_ids(self, modality: str) -> tuple[int, ...]:
        """The consecutive ids of a modality's signal tokens. Raises KeyError if it has none."""
        first = self.base_size + 2
        for signal in self.signals:
            if signal.modality == modality:
                return tuple(range(first, first + signal.num_tokens))
            first += signal.num_tokens
        raise KeyError(modality)


def signals_to_json(signals: Iterable[SignalTokens]) -> list[list]:
    """As files of weights record them."""
    return [list(s) for s in signals]


def signals_from_json(value: object, where: str) -> tuple[SignalTokens, ...]:
    """The inverse of `signals_to_json`.

    Raises:
      UserError: `value`, read from the file `where`, is something else.
    """
    rows: list[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(r, list) and [type(x) for x in r] == [str, str, int] and r[2] > 0 for r in rows):
        raise UserError(f'{where}: signal_tokens should be a list such as [["image", "IMG", 4]]')
    return tuple(SignalTokens(*row) for row in rows)
