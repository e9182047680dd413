"""VCTK: speech that is edited."""

import pathlib
from collections.abc import Iterator

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.selection import subset
from nextgpt_jax.evaluation.tasks import measures
from nextgpt_jax.evaluation.tasks.derived import with_gap
from nextgpt_jax.evaluation.tasks.files import Media
from nextgpt_jax.evaluation.types import Sample, Task
from nextgpt_jax.json_files import read_text

LAYOUT = {
    "txt/": "https://datashare.ed.ac.uk/handle/10283/3443 (VCTK 0.92) or /10283/2651 (0.80): txt/SPEAKER/*.txt",
    "wav48/": "the same archive: wav48/SPEAKER/*.wav of 0.80, or wav48_silence_trimmed/SPEAKER/*_mic1.flac of 0.92",
}
UTTERANCES = 1_000
_GAP = 1 / 3, 2 / 3


def load(data: pathlib.Path) -> Iterator[Sample]:
    """1,000 utterances whose middle third is silent."""
    if not data.is_dir():
        raise UserError(f"no such folder: {data}")
    texts = sorted((data / "txt").glob("*/*.txt"))
    if not texts:
        raise UserError(f"there are no texts in {data / 'txt'}/SPEAKER: they come from {LAYOUT['txt/']}")
    sounds, found = Media(data, LAYOUT, "wav48", "wav48_silence_trimmed"), []
    for path in subset(texts, UTTERANCES, lambda path: path.stem):
        name = f"{path.parent.name}/{path.stem}"
        if not (text := " ".join(read_text(path).split())):
            raise UserError(f"{path} is empty")
        found.append((path.stem, text, sounds.find(f"{name}.wav", f"{name}_mic1.flac")))
    sounds.check(data / "txt")
    for name, text, file in found:
        prompt = f'<audio>\nFill the gap in this recording, so that it says: "{text}"'
        yield Sample(name, prompt, {"audio": [with_gap(file, *_GAP)]}, {"text": text, "audio": file})


TASKS = (
    Task(
        "vctk-editing",
        "editing of speech: VCTK",
        LAYOUT,
        load,
        measures.speech_edits,
        {"edit": "audio", "strength": 0.6, "temperature": 0.0},
        {"MCD": 0.302},
        f"{UTTERANCES:,} utterances, chosen by a hash of their names; the middle third is silenced; 'Fill the gap in "
        "this recording, so that it says: TEXT'; MCD with the recording as it was",
        "The paper names VCTK and a table of CampNet's, and publishes neither utterances, instructions nor the unit "
        "of its MCD, which in decibels is several for the best synthesized speech. Here what is made has the "
        "decoder's length, and silence at its end.",
    ),
)
