"""DAVIS: videos that are edited."""

import pathlib
from collections.abc import Iterator

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.tasks import measures
from nextgpt_jax.evaluation.tasks.derived import from_frames
from nextgpt_jax.evaluation.tasks.files import Media, annotations, read_table
from nextgpt_jax.evaluation.types import Sample, Task

_TABLE = "LOVEU-TGVE-2023_Dataset.csv"
_LOVEU = "https://github.com/showlab/loveu-tgve-2023 (LOVEU-TGVE-2023)"
LAYOUT = {
    _TABLE: f"{_LOVEU}; or a table of one's own with its columns",
    "DAVIS_480p/480p_frames/": f"{_LOVEU}; or JPEGImages/480p/ of https://davischallenge.org/davis2017/code.html",
}
_FPS = 24.0  # of DAVIS's frames
_KINDS = {  # of edits: column
    "style": "Style Change Caption",
    "object": "Object Change Caption",
    "background": "Background Change Caption",
    "multiple": "Multiple Changes Caption",
}


def load(data: pathlib.Path) -> Iterator[Sample]:
    """Each edit of each video of the part DAVIS."""
    path = annotations(data, LAYOUT, _TABLE)
    rows = [row for row in _davis(read_table(path, dict, ("Video name", "Style Change Caption"))) if len(row) > 1]
    if not rows:
        raise UserError(f"{path} has no videos of DAVIS")
    frames = Media(data, LAYOUT, "DAVIS_480p/480p_frames", "JPEGImages/480p", "JPEGImages/Full-Resolution")
    folders = [frames.find(row["Video name"].strip()) for row in rows]
    frames.check(path)
    for row, folder in zip(rows, folders):
        name, video = row["Video name"].strip(), from_frames(folder, _FPS)
        for kind, column in _KINDS.items():
            if not (caption := row.get(column, "").strip()):
                raise UserError(f"{path}: {name} lacks {column}")
            prompt, references = f"<video>\nEdit the video: {caption}", {"caption": caption}
            yield Sample(f"{name}/{kind}", prompt, {"video": [video]}, references, category=kind)


def _davis(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows below the title of DAVIS, if the table has titles: rows with one cell."""
    titles = [i for i, row in enumerate(rows) if len(row) == 1]
    begin = next((i for i in titles if "davis" in [*rows[i].values()][0].lower()), None)
    if begin is None:
        return rows
    return rows[begin + 1 : next((i for i in titles if i > begin), len(rows))]


TASKS = (
    Task(
        "davis-editing",
        "editing of videos: DAVIS",
        LAYOUT,
        load,
        measures.video_edits,
        {"edit": "video", "strength": 0.6, "temperature": 0.0},
        {"CLIP-T": 0.2683, "CLIP-I": 0.9645},
        "16 videos of DAVIS in LOVEU-TGVE-2023, 4 edits each (style, object, background, several), from the first "
        "frame on at 24 frames per second; 'Edit the video: CAPTION'",
        "The paper names DAVIS and a table of Pix2Video's, and publishes neither videos, instructions nor strength; "
        "LOVEU-TGVE-2023 is the public set of edits of DAVIS.",
    ),
)
