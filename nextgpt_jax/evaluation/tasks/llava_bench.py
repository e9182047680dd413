"""LLaVA-Bench (In-the-Wild): open questions about images, whose answers a judge rates beside GPT-4's."""

import pathlib
from collections.abc import Iterator, Sequence

from nextgpt_jax.config import EvalConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.metrics.judge import LLaVABench
from nextgpt_jax.evaluation.tasks.files import Fields, Media, annotations, read_lines, read_objects
from nextgpt_jax.evaluation.types import Metric, Sample, Task

_HUB = "https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild"
_KINDS = ("conv", "detail", "complex")
_RULES = "rule.json"
LAYOUT = {"questions.jsonl": _HUB, "context.jsonl": _HUB, "answers_gpt4.jsonl": _HUB, "images/": _HUB}


def load(data: pathlib.Path) -> Iterator[Sample]:
    """All questions."""
    asked, described, answered = (annotations(data, LAYOUT, name) for name in list(LAYOUT)[:3])

    def question(record: Fields) -> tuple[str, str, str, str]:
        if (kind := record.text("category").removeprefix("llava_bench_")) not in _KINDS:
            raise UserError(f"category is {kind!r}, not one of {', '.join(_KINDS)}")
        return record.name("question_id"), record.text("image"), record.text("text"), kind

    def context(record: Fields) -> tuple[str, str]:
        captions = [record.text("caption")] if isinstance(record["caption"], str) else record.texts("caption")
        return record.text("image"), "\n".join(captions)

    questions = read_lines(asked, question)
    contexts = dict(read_lines(described, context))
    answers = dict(read_lines(answered, lambda r: (r.name("question_id"), r.text("text"))))
    rules = {}
    if (path := data / _RULES).is_file():
        rules = read_objects(path, lambda _, rule: Fields(rule).text("prompt"))
        if missing := [kind for kind in _KINDS if f"llava_bench_{kind}" not in rules]:
            raise UserError(f"{path} lacks llava_bench_{missing[0]}")
    images = Media(data, LAYOUT, "images")
    files = [images.find(image) for _, image, *_ in questions]
    images.check(asked)
    for (number, image, text, kind), file in zip(questions, files):
        if image not in contexts:
            raise UserError(f"{described} has no line of {image}")
        if number not in answers:
            raise UserError(f"{answered} has no answer to question {number}")
        references = {"question": text, "context": contexts[image], "answer": answers[number]}
        if rules:
            references["rule"] = rules[f"llava_bench_{kind}"]
        yield Sample(number, f"<image>\n{text}", {"image": [file]}, references, category=kind)


def metrics(samples: Sequence[Sample], settings: EvalConfig) -> Sequence[Metric]:
    """The judge's scores."""
    return (LLaVABench(samples, settings),)


TASKS = (
    Task(
        "llava-bench",
        "open questions about images: LLaVA-Bench (In-the-Wild)",
        LAYOUT,
        load,
        metrics,
        {"modality": "text", "temperature": 0.0, "max_new_tokens": 512},
        {},
        "60 questions about 24 images; 'QUESTION'; a judge rates the answer and GPT-4's from 1 to 10, the figure is "
        "the quotient of the means; if rule.json of https://github.com/haotian-liu/LLaVA (llava/eval/table) lies "
        "beside the questions, the judge is asked in its words",
        "The benchmark's judge was gpt-4-0314, which is no longer served: figures of other judges are not "
        "comparable with published ones. The paper has no figure.",
    ),
)
