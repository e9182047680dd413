"""VQAv2 and OK-VQA: questions about images, answered by ten annotators each."""

import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from nextgpt_jax.config import EvalConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.metrics.answers import VQAAccuracy
from nextgpt_jax.evaluation.tasks.files import Fields, Media, annotations, read_lists
from nextgpt_jax.evaluation.tasks.wording import SHORT
from nextgpt_jax.evaluation.types import Metric, Sample, Task

_IMAGES = "http://images.cocodataset.org/zips/val2014.zip"
_VQA = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
_OKVQA = "https://okvqa.allenai.org/static/data"
VQAV2_LAYOUT = {
    "v2_OpenEnded_mscoco_val2014_questions.json": f"{_VQA}/v2_Questions_Val_mscoco.zip",
    "v2_mscoco_val2014_annotations.json": f"{_VQA}/v2_Annotations_Val_mscoco.zip",
    "val2014/": _IMAGES,
}
OKVQA_LAYOUT = {
    "OpenEnded_mscoco_val2014_questions.json": f"{_OKVQA}/OpenEnded_mscoco_val2014_questions.json.zip",
    "mscoco_val2014_annotations.json": f"{_OKVQA}/mscoco_val2014_annotations.json.zip",
    "val2014/": _IMAGES,
}


def load(layout: Mapping[str, str], category: str, data: pathlib.Path) -> Iterator[Sample]:
    """Questions of val2014.

    Args:
      layout: of the task.
      category: the field of an annotation that is the question's category.
    """
    asked, answered = (annotations(data, layout, name) for name in list(layout)[:2])
    (questions,) = read_lists(
        asked, questions=lambda r: (r.integer("question_id"), r.integer("image_id"), r.text("question"))
    )

    def annotation(record: Fields) -> tuple[int, tuple[list[str], str]]:
        answers = [answer.name("answer") for answer in record.objects("answers")]
        if not answers:
            raise UserError("has no answers")
        return record.integer("question_id"), (answers, record.text(category))

    (found,) = read_lists(answered, annotations=annotation)
    answers = dict(found)
    images, rows = Media(data, layout, "val2014"), []
    for number, image, question in questions:
        if number not in answers:
            raise UserError(f"{answered} has no annotation of question {number}")
        rows.append((number, question, images.find(f"COCO_val2014_{image:012d}.jpg")))
    images.check(asked)
    for number, question, file in rows:
        given, kind = answers[number]
        yield Sample(str(number), f"<image>\n{question}\n{SHORT}", {"image": [file]}, {"answers": given}, category=kind)


def metrics(samples: Sequence[Sample], settings: EvalConfig) -> Sequence[Metric]:
    """Accuracy."""
    return (VQAAccuracy(samples),)


_OPTIONS = {"modality": "text", "temperature": 0.0, "max_new_tokens": 16}
TASKS = (
    Task(
        "vqav2",
        "questions about images: VQAv2",
        VQAV2_LAYOUT,
        functools.partial(load, VQAV2_LAYOUT, "answer_type"),
        metrics,
        _OPTIONS,
        {"accuracy": 66.7},
        f"val2014, 214,354 questions with 10 answers each; 'QUESTION {SHORT}'",
        "The paper does not name the split; the answers of the test splits are not public, val2014 is the largest "
        "one with answers. It does not publish its prompt.",
    ),
    Task(
        "okvqa",
        "questions about images that need outside knowledge: OK-VQA",
        OKVQA_LAYOUT,
        functools.partial(load, OKVQA_LAYOUT, "question_type"),
        metrics,
        _OPTIONS,
        {"accuracy": 52.1},
        f"test split (of val2014), 5,046 questions with 10 answers each; 'QUESTION {SHORT}'",
        "The paper does not publish its prompt.",
    ),
)
