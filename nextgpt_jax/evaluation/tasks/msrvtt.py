"""MSR-VTT: videos from captions, and captions of videos."""

import pathlib
from collections.abc import Iterator

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.tasks import measures
from nextgpt_jax.evaluation.tasks.files import Media, annotations, read_lists, read_table, with_suffixes
from nextgpt_jax.evaluation.tasks.wording import CAPTION, TUNED
from nextgpt_jax.evaluation.types import Sample, Task

_CLIP4CLIP = "https://github.com/ArrowLuo/CLIP4Clip/releases/download/v0.0/msrvtt_data.zip"
_VIDEOS = "https://www.robots.ox.ac.uk/~maxbain/frozen-in-time/data/MSRVTT.zip, MSRVTT/videos/all"
_FOLDERS = ("videos", "videos/all", "TestVideo", "video", ".")
_INFO, _PAIRS = "test_videodatainfo.json", "MSRVTT_JSFUSION_test.csv"
_NAMES = (_INFO, "MSRVTT_data.json", "videodatainfo.json")
LAYOUT = {_INFO: f"the publisher, or MSRVTT_data.json of {_CLIP4CLIP}", "videos/": _VIDEOS}
PAIRS_LAYOUT = {_PAIRS: _CLIP4CLIP, "videos/": _VIDEOS}


def _videos(data: pathlib.Path) -> Iterator[tuple[str, pathlib.Path, list[str]]]:
    """The id, file and captions of each video of the test split."""
    path = annotations(data, LAYOUT, *_NAMES)
    videos, sentences = read_lists(
        path,
        videos=lambda r: (r.text("video_id"), r.text("split")),
        sentences=lambda r: (r.text("video_id"), r.integer("sen_id"), r.text("caption")),
    )
    captions: dict[str, list[str]] = {video: [] for video, split in videos if split == "test"}
    if not captions:
        raise UserError(f"{path} has no videos whose split is test")
    for video, _, caption in sorted(sentences, key=lambda row: row[1]):
        if video in captions:
            captions[video].append(caption)
    if silent := [video for video, found in captions.items() if not found]:
        raise UserError(f"{path} has no sentences of {silent[0]}")
    media = Media(data, LAYOUT, *_FOLDERS)
    files = [media.find(*with_suffixes(video, "video")) for video in captions]
    media.check(path)
    for (video, found), file in zip(captions.items(), files):
        yield video, file, found


def load_generation(data: pathlib.Path) -> Iterator[Sample]:
    """The first caption of each video of the test split."""
    for video, file, captions in _videos(data):
        yield _generation(video, captions[0], file)


def load_pairs(data: pathlib.Path) -> Iterator[Sample]:
    """The 1,000 videos and captions of the 1k-A split."""
    path = annotations(data, PAIRS_LAYOUT, _PAIRS)
    rows = read_table(path, lambda r: (r.text("video_id"), r.text("sentence")), ("video_id", "sentence"))
    media = Media(data, PAIRS_LAYOUT, *_FOLDERS)
    files = [media.find(*with_suffixes(video, "video")) for video, _ in rows]
    media.check(path)
    for (video, caption), file in zip(rows, files):
        yield _generation(video, caption, file)


def _generation(video: str, caption: str, file: pathlib.Path) -> Sample:
    references = {"caption": caption, "video": file}
    return Sample(video, f"Generate a video of: {caption}", references=references)


def load_captions(data: pathlib.Path) -> Iterator[Sample]:
    """The videos of the test split."""
    for video, file, captions in _videos(data):
        prompt = f"<video>\n{CAPTION.format(modality='video')}"
        yield Sample(video, prompt, {"video": [file]}, {"captions": captions})


_OPEN = "The paper publishes neither its captions, prompt nor seeds"
_PROMPT = "'Generate a video of: CAPTION'; FID of frames with these videos"
TASKS = (
    Task(
        "msrvtt-generation",
        "text to video: MSR-VTT",
        LAYOUT,
        load_generation,
        measures.video_quality,
        {"modality": "video", "temperature": 0.0},
        {"FID": 13.04, "CLIPSIM": 0.3085},
        f"test split, the first caption of each of 2,990 videos; {_PROMPT}",
        f"{_OPEN}; Make-A-Video, with which it compares, generates a video for each of 59,794 captions.",
    ),
    Task(
        "msrvtt-generation-1ka",
        "text to video: MSR-VTT, the 1k-A split",
        PAIRS_LAYOUT,
        load_pairs,
        measures.video_quality,
        {"modality": "video", "temperature": 0.0},
        {},
        f"1k-A split, 1,000 videos and captions; {_PROMPT}",
        f"{_OPEN}, and does not say that it uses this split: a quicker relative of msrvtt-generation.",
    ),
    Task(
        "msrvtt-captions",
        "captions of videos: MSR-VTT",
        LAYOUT,
        load_captions,
        measures.captions,
        {"modality": "text", "temperature": 0.0, "max_new_tokens": 64},
        {"BLEU-4": 58.4, "METEOR": 38.5},
        f"test split, 2,990 videos with 20 captions each; '{CAPTION.format(modality='video')}'",
        TUNED,
    ),
)
