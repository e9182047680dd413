"""ActivityNet-QA: questions about videos."""

import pathlib
from collections.abc import Iterator, Sequence

from nextgpt_jax.config import EvalConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.metrics.answers import ExactMatch
from nextgpt_jax.evaluation.metrics.judge import JudgedAnswers
from nextgpt_jax.evaluation.tasks.files import Fields, Media, annotations, read_list, with_suffixes
from nextgpt_jax.evaluation.tasks.wording import SHORT
from nextgpt_jax.evaluation.types import Metric, Sample, Task

_PUBLISHER = "https://github.com/MILVLG/activitynet-qa, dataset"
LAYOUT = {
    "test_q.json": _PUBLISHER,
    "test_a.json": _PUBLISHER,
    "videos/": "http://activity-net.org/download.html (ActivityNet 200, v1.3): v_NAME.mp4, also .mkv or .webm",
}
_TYPES = (
    *("motion", "spatial relation", "temporal relation"),
    *("yes/no", "color", "object", "location", "number", "other"),
)


def load(data: pathlib.Path) -> Iterator[Sample]:
    """The questions of the test split."""
    asked, answered = (annotations(data, LAYOUT, name, f"dataset/{name}") for name in list(LAYOUT)[:2])
    questions = read_list(asked, lambda r: (r.name("question_id"), r.text("video_name"), r.text("question")))

    def annotation(record: Fields) -> tuple[str, tuple[str, str]]:
        if not 0 <= (kind := record.integer("type")) < len(_TYPES):
            raise UserError(f"type is {kind}, not one of 0 to {len(_TYPES) - 1}")
        return record.name("question_id"), (record.name("answer"), _TYPES[kind])

    answers = dict(read_list(answered, annotation))
    videos, rows = Media(data, LAYOUT, "videos", "all_test", "."), []
    for number, video, question in questions:
        if number not in answers:
            raise UserError(f"{answered} has no answer to question {number}")
        file = videos.find(*with_suffixes(f"v_{video}", "video"), *with_suffixes(video, "video"))
        rows.append((number, question, file))
    videos.check(asked)
    for number, question, file in rows:
        answer, kind = answers[number]
        references = {"question": question, "answer": answer}
        yield Sample(number, f"<video>\n{question}?\n{SHORT}", {"video": [file]}, references, category=kind)


def metrics(samples: Sequence[Sample], settings: EvalConfig) -> Sequence[Metric]:
    """What a judge says, and exact match beside it."""
    return JudgedAnswers(samples, settings), ExactMatch(samples)


TASKS = (
    Task(
        "activitynet-qa",
        "questions about videos: ActivityNet-QA",
        LAYOUT,
        load,
        metrics,
        {"modality": "text", "temperature": 0.0, "max_new_tokens": 32},
        {"accuracy": 21.5},
        f"test split, 8,000 questions about 800 videos; 'QUESTION? {SHORT}'; a judge compares answers, exact match "
        "beside it",
        "The paper does not publish its prompt, nor which model judged its answers: other judges give other figures.",
    ),
)
