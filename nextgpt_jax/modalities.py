"""The one table of output modalities, and the tokens they add to the language model's vocabulary.

The 38 new tokens follow the base vocabulary in this order: `<Img>`, `</Img>` (around every input embedding, whatever
its modality), then each modality's signal tokens. Nothing else in the project is written out per modality.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Modality:
    """One row: how a modality is written in prompts and asked for by the language model."""

    name: str
    placeholder: str  # stands for one input in a prompt, or one output in a reply
    signal: str  # spelling of the signal tokens: [IMG0], [IMG1], ...
    num_signal_tokens: int
    first_signal: int  # index among the new tokens
    encoder: str  # branch of ImageBind that reads it
    loss_weight: float = 1.0  # of the alignment loss


MODALITIES: dict[str, Modality] = {
    m.name: m
    for m in (
        Modality("image", "<image>", "IMG", 4, 2, "vision"),
        Modality("video", "<video>", "VID", 24, 6, "vision"),
        Modality("audio", "<audio>", "AUD", 8, 30, "audio"),
    )
}

NEW_TOKENS: tuple[str, ...] = (
    "<Img>",
    "</Img>",
    *(f"[{m.signal}{i}]" for m in MODALITIES.values() for i in range(m.num_signal_tokens)),
)
MEDIA_BEGIN, MEDIA_END = 0, 1  # indices among the new tokens


def signal_ids(modality: str, base_vocab: int) -> tuple[int, ...]:
    """The ids of a modality's signal tokens, consecutive, above a base vocabulary of `base_vocab` rows."""
    row = MODALITIES[modality]
    first = base_vocab + row.first_signal
    return tuple(range(first, first + row.num_signal_tokens))
