"""The one table of modalities, and the tokens that those which can be produced add to the language model's vocabulary.

The 38 new tokens follow the base vocabulary in this order: `<Img>`, `</Img>` (around every input embedding, whatever
its modality), then each modality's signal tokens. Nothing else in the project is written out per modality.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Modality:
    """One row: how a modality is written in prompts, read by the encoder and asked for by the language model."""

    name: str
    placeholder: str  # stands for one input in a prompt, or one output in a reply
    encoder: str  # branch of ImageBind that reads it
    views: bool = False  # is a medium read in several views, whose embeddings are averaged?
    signal: str = ""  # spelling of the signal tokens: [IMG0], [IMG1], ...; "" cannot be produced
    num_signal_tokens: int = 0
    first_signal: int = 0  # index among the new tokens
    size: tuple[str, ...] = ()  # fields of its options (config.py) that fix the shape of what is produced
    suffix: str = ""  # of the files that are written


MODALITIES: dict[str, Modality] = {
    m.name: m
    for m in (
        Modality("image", "<image>", "vision", False, "IMG", 4, 2, ("height", "width"), ".png"),
        Modality("video", "<video>", "vision", True, "VID", 24, 6, ("frames", "height", "width"), ".mp4"),
        Modality("audio", "<audio>", "audio", True, "AUD", 8, 30, ("seconds",), ".wav"),
        Modality("depth", "<depth>", "depth"),
        Modality("thermal", "<thermal>", "thermal"),
        Modality("imu", "<imu>", "imu"),
    )
}
OUTPUTS: dict[str, Modality] = {name: m for name, m in MODALITIES.items() if m.signal}

NEW_TOKENS: tuple[str, ...] = (
    "<Img>",
    "</Img>",
    *(f"[{m.signal}{i}]" for m in OUTPUTS.values() for i in range(m.num_signal_tokens)),
)
MEDIA_BEGIN, MEDIA_END = 0, 1  # indices among the new tokens


def signal_ids(modality: str, base_vocab: int) -> tuple[int, ...]:
    """The ids of a modality's signal tokens, consecutive, above a base vocabulary of `base_vocab` rows."""
    row = OUTPUTS[modality]
    first = base_vocab + row.first_signal
    return tuple(range(first, first + row.num_signal_tokens))
