"""MVBench: twenty kinds of multiple-choice questions about videos."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nextgpt_jax.config import EvalConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.metrics.answers import MultipleChoice
from nextgpt_jax.evaluation.tasks.derived import excerpt, from_frames
from nextgpt_jax.evaluation.tasks.files import Fields, Media, annotations, read_list
from nextgpt_jax.evaluation.types import Metric, Sample, Task

_HUB = "https://huggingface.co/datasets/OpenGVLab/MVBench"
LAYOUT = {
    "json/": f"{_HUB}, json",
    "video/": f"{_HUB}, video/*.zip, each unpacked there; nturgbd from "
    "https://rose1.ntu.edu.sg/dataset/actionRecognition",
}
INSTRUCTION = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that "
    "accurately addresses the question."
)
_LETTERS = "ABCDEFGHIJ"


class _Kind(NamedTuple):
    folder: str
    bounds: bool = False  # only a part of each video is shown
    fps: float = 0.0  # of folders of frames; 0: files


KINDS = {
    "action_sequence": _Kind("star/Charades_v1_480", bounds=True),
    "action_prediction": _Kind("star/Charades_v1_480", bounds=True),
    "action_antonym": _Kind("ssv2_video"),
    "fine_grained_action": _Kind("Moments_in_Time_Raw/videos"),
    "unexpected_action": _Kind("FunQA_test/test"),
    "object_existence": _Kind("clevrer/video_validation"),
    "object_interaction": _Kind("star/Charades_v1_480", bounds=True),
    "object_shuffle": _Kind("perception/videos"),
    "moving_direction": _Kind("clevrer/video_validation"),
    "action_localization": _Kind("sta/sta_video", bounds=True),
    "scene_transition": _Kind("scene_qa/video"),
    "action_count": _Kind("perception/videos"),
    "moving_count": _Kind("clevrer/video_validation"),
    "moving_attribute": _Kind("clevrer/video_validation"),
    "state_change": _Kind("perception/videos"),
    "fine_grained_pose": _Kind("nturgbd"),
    "character_order": _Kind("perception/videos"),
    "egocentric_navigation": _Kind("vlnqa"),
    "episodic_reasoning": _Kind("tvqa/frames_fps3_hq", bounds=True, fps=3.0),
    "counterfactual_inference": _Kind("clevrer/video_validation"),
}


class _Question(NamedTuple):
    video: str
    text: str
    choices: list[str]
    answer: str
    start: float
    end: float


def load(data: pathlib.Path) -> Iterator[Sample]:
    """The questions of all kinds."""
    for kind, row in KINDS.items():
        path = annotations(data, LAYOUT, f"json/{kind}.json", f"{kind}.json")

        def question(record: Fields, bounds: bool = row.bounds) -> _Question:
            found = _Question(
                record.text("video"),
                record.text("question"),
                [Fields({"candidate": choice}).name("candidate") for choice in record.items_of("candidates")],
                record.name("answer"),
                *((record.number("start"), record.number("end")) if bounds else (0.0, 0.0)),
            )
            if found.answer not in found.choices:
                raise UserError(f"answer is {found.answer!r}, which is none of the candidates")
            if not 2 <= len(found.choices) <= len(_LETTERS):
                raise UserError(f"has {len(found.choices)} candidates, not 2 to {len(_LETTERS)}")
            if bounds and not 0 <= found.start < found.end:
                raise UserError(f"is of the video from {found.start:g} s to {found.end:g} s")
            return found

        questions = read_list(path, question)
        videos = Media(data, LAYOUT, f"video/{row.folder}", row.folder)
        files = [videos.find(found.video) for found in questions]
        videos.check(path)
        for number, (found, file) in enumerate(zip(questions, files)):
            yield _sample(f"{kind}/{number}", kind, found, file, row)


def _sample(name: str, kind: str, question: _Question, file: pathlib.Path, row: _Kind) -> Sample:
    options = "\n".join(f"({letter}) {choice}" for letter, choice in zip(_LETTERS, question.choices))
    prompt = f"<video>\n{INSTRUCTION}\nQuestion: {question.text}\nOptions:\n{options}\nOnly give the best option."
    if row.fps:
        video = from_frames(file, row.fps, question.start, question.end)
    else:
        video = excerpt(file, question.start, question.end) if row.bounds else file
    references = {"choices": question.choices, "answer": question.answer}
    return Sample(name, prompt, {"video": [video]}, references, category=kind.replace("_", " "))


def metrics(samples: Sequence[Sample], settings: EvalConfig) -> Sequence[Metric]:
    """Accuracy."""
    return (MultipleChoice(samples),)


TASKS = (
    Task(
        "mvbench",
        "multiple-choice questions about videos: MVBench",
        LAYOUT,
        load,
        metrics,
        {"modality": "text", "temperature": 0.0, "max_new_tokens": 32},
        {"accuracy": 27.9},
        "20 kinds of 200 questions; the benchmark's instruction, 'Question: ...', 'Options: (A) ...', 'Only give "
        "the best option.'; the bounds of a question cut its video",
        "The benchmark begins the answer with 'Best option:(', which this system cannot, and shows 16 frames; here "
        "the encoder takes its own. The paper does not publish its prompt.",
    ),
)
