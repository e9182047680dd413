"""AudioCaps: sounds from captions, and captions of sounds."""

import pathlib
from collections.abc import Iterator

from nextgpt_jax.evaluation.tasks import measures
from nextgpt_jax.evaluation.tasks.files import Media, annotations, read_table, with_suffixes
from nextgpt_jax.evaluation.tasks.wording import CAPTION, TUNED
from nextgpt_jax.evaluation.types import Sample, Task

LAYOUT = {
    "test.csv": "https://github.com/cdjkim/audiocaps, dataset/test.csv",
    "audio/": "YouTube, ten seconds from the start_time of each row of test.csv: YOUTUBE_ID.wav, YYOUTUBE_ID.wav, "
    "YOUTUBE_ID_START_TIME.wav or AUDIOCAP_ID.wav, also .flac, .mp3, .m4a, .ogg or .opus",
}
_FOLDERS = ("audio", "test", "wav", ".")


def _clips(data: pathlib.Path) -> Iterator[tuple[str, pathlib.Path, list[str]]]:
    """Each clip's id, file and captions."""
    path = annotations(data, LAYOUT, "test.csv")
    rows = read_table(
        path,
        lambda r: (r.text("youtube_id"), r.text("start_time"), r.text("audiocap_id"), r.text("caption")),
        ("audiocap_id", "youtube_id", "start_time", "caption"),
    )
    captions: dict[tuple[str, str], list[str]] = {}
    numbers: dict[tuple[str, str], list[str]] = {}
    for clip, start, number, caption in rows:
        captions.setdefault((clip, start), []).append(caption)
        numbers.setdefault((clip, start), []).append(number)
    sounds, files = Media(data, LAYOUT, *_FOLDERS), {}
    for clip, start in captions:
        names = (clip, f"Y{clip}", f"{clip}_{start}", *numbers[clip, start])
        files[clip, start] = sounds.find(*(file for name in names for file in with_suffixes(name, "audio")))
    sounds.check(path)
    for key, found in captions.items():
        yield "_".join(key), files[key], found


def load_generation(data: pathlib.Path) -> Iterator[Sample]:
    """The first caption of each clip of the test split."""
    for clip, file, captions in _clips(data):
        references = {"caption": captions[0], "audio": file}
        yield Sample(clip, f"Generate a sound of: {captions[0]}", references=references)


def load_captions(data: pathlib.Path) -> Iterator[Sample]:
    """The clips of the test split."""
    for clip, file, captions in _clips(data):
        prompt = f"<audio>\n{CAPTION.format(modality='audio')}"
        yield Sample(clip, prompt, {"audio": [file]}, {"captions": captions})


_GONE = (
    "Some clips are no longer on YouTube, so every copy of the test split is a little smaller than the published one."
)
TASKS = (
    Task(
        "audiocaps-generation",
        "text to audio: AudioCaps",
        LAYOUT,
        load_generation,
        measures.sound_quality,
        {"modality": "audio", "temperature": 0.0},
        {"FD": 23.58, "IS": 8.35},
        "test split, the first caption of each of 975 clips; 'Generate a sound of: CAPTION'; FD with these clips",
        f"The paper publishes neither its captions, prompt nor seeds. {_GONE}",
    ),
    Task(
        "audiocaps-captions",
        "captions of sounds: AudioCaps",
        LAYOUT,
        load_captions,
        measures.sound_captions,
        {"modality": "text", "temperature": 0.0, "max_new_tokens": 64},
        {"SPIDEr": 0.521, "CIDEr": 0.802},
        f"test split, 975 clips with 5 captions each; '{CAPTION.format(modality='audio')}'",
        f"{TUNED} {_GONE}",
    ),
)
