"""Answering the samples of a task, batch by batch: what is there already is not answered again."""

import concurrent.futures
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.answers import MEDIA, AnswerFile, Answers, claim
from nextgpt_jax.evaluation.choosing import WHOLE, Shard, batches, choose, sample_seed
from nextgpt_jax.evaluation.types import Sample, Task
from nextgpt_jax.inference import editing
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.inference.requests import make_request
from nextgpt_jax.inference.responses import write_numbered
from nextgpt_jax.inference.types import MediaOutput, Request, Response
from nextgpt_jax.inference.validation import check_readable
from nextgpt_jax.models.nextgpt import NExTGPTConfig

OnAnswered = Callable[[int], None]  # called with the number of samples that were answered just now
_READERS = 4  # threads that read the inputs of the next batch


@dataclasses.dataclass(frozen=True)
class Run:
    """What is evaluated: the samples of a task, or of a subset, by one model, in one folder.

    Attributes:
      samples: those that are answered, in the dataset's order.
      available: samples of the whole dataset.
      data: its folder.
      seed: of the answers and of the subset.
      weights: what identifies the weights of the model, by part.
      source: what `tasks.find_task` takes for the task.
    """

    task: Task
    samples: Sequence[Sample]
    available: int
    data: pathlib.Path
    config: ExperimentConfig
    folder: pathlib.Path
    seed: int
    weights: dict[str, str]
    source: str

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def batches(self) -> list[range]:
        """The indices of the samples that are answered together."""
        return batches(len(self), self.config.eval.batch)

    def record(self) -> dict[str, Any]:
        """What the answers depend on, by name; the weights stand for the places of the parts."""
        model = {name: value for name, value in vars(self.config.model).items() if name not in _PLACES}
        settings = {
            "model": model,
            "generation": dataclasses.asdict(self.config.generation),
            "batch": self.config.eval.batch,
        }
        return {
            "task": self.task.name,
            "options": dict(self.task.options),
            "samples": _digest(self.samples),
            "limit": len(self) if len(self) < self.available else None,
            "seed": self.seed,
            "config": settings,
            "weights": self.weights,
        }


_PLACES = ("llm", "encoder", "image_decoder", "video_decoder", "audio_decoder", "delta")


def prepare(
    task: Task,
    data: pathlib.Path,
    config: ExperimentConfig,
    folder: pathlib.Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    weights: dict[str, str] | None = None,
    source: str = "",
) -> Run:
    """Reads the samples of a task.

    Args:
      limit: of a subset; None: all samples.
      weights, source: see `Run`.

    Raises:
      UserError: a file is missing or damaged, or a setting is out of range.
    """
    if not 0 <= seed < 2**31:
        raise UserError(f"--seed={seed}: give 0 or more, below 2147483648")
    samples, available = choose(task.load(data), limit, seed)
    batches(len(samples), config.eval.batch)  # raises for a size that is out of range
    return Run(task, samples, available, data, config, folder, seed, weights or {}, source or task.name)


def answer(
    run: Run,
    model: NExTGPTConfig,
    make_engine: Callable[[], Engine],
    *,
    shard: Shard = WHOLE,
    on_answered: OnAnswered = lambda count: None,
    on_response: Callable[[int, Response], None] = lambda index, response: None,
) -> Answers:
    """Answers those samples of a shard that are not answered yet, and returns all answers that are there.

    Args:
      model: the config of the model, to check requests before it is loaded.
      make_engine: loads it; called only if something is to be answered.
      on_response: called with each answer that is made, and the index of its sample.
      on_answered: called after each batch, and first for the samples of the shard that are there already.

    Raises:
      UserError: the model cannot answer the task, or the folder is of another run or in use.
    """
    check_options(run, model)
    claim(run.folder, run.record())
    answers = Answers(run.folder)
    todo = [batch for batch in shard.part(run.batches) if not answers.is_answered(batch)]
    on_answered(sum(map(len, shard.part(run.batches))) - sum(map(len, todo)))
    if not todo:
        return answers
    with AnswerFile(run.folder, shard, answers.of(run.batches)) as file:
        engine = make_engine()
        for batch, requests in _requests(run, todo, engine):
            lines = _answer_batch(engine, run, batch, requests, on_response)
            file.write(sorted(lines.items()))
            answers.add(lines)
            on_answered(len(batch))
    answers.read()  # of other shards
    return answers


def options_of(run: Run, sample: Sample) -> dict[str, Any]:
    """The options of the request of a sample."""
    return {**run.task.options, **sample.options, "seed": sample_seed(run.seed, sample.id)}


def check_options(run: Run, model: NExTGPTConfig) -> None:
    """Checks what all samples have in common, so that a model that cannot do a task says so at once.

    Raises:
      UserError: an option is out of range, or the model does not read or make what the task needs.
    """
    kinds = {json.dumps([dict(s.options), sorted(s.inputs)], default=str): s for s in run.samples}
    for sample in kinds.values():
        options = options_of(run, sample)
        if edit := options.get("edit"):
            options = {"modality": edit} | options
        options = {name: value for name, value in options.items() if name not in editing.OPTIONS}
        try:
            make_request("any", {}, options, model, run.config.generation)
            for name in (name for name, files in sample.inputs.items() if files):
                check_readable(name, model)
        except UserError as error:
            raise UserError(f"{run.task.name}: {error}") from None


def _requests(run: Run, todo: Sequence[range], engine: Engine) -> Iterator[tuple[range, list[Request | UserError]]]:
    """The batches and their requests; those of the next batch are read while one is answered."""

    def make(index: int) -> Request | UserError:
        sample = run.samples[index]
        try:
            options = options_of(run, sample)
            request = make_request(sample.prompt, sample.inputs, options, engine.config, engine.defaults)
            engine.validate(request)
            return request
        except UserError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        following = [pool.submit(make, i) for i in todo[0]]
        try:
            for number, batch in enumerate(todo):
                requests = [task.result() for task in following]
                following = [pool.submit(make, i) for i in todo[number + 1]] if number + 1 < len(todo) else []
                yield batch, requests
        finally:
            for task in following:
                task.cancel()


def _answer_batch(
    engine: Engine,
    run: Run,
    batch: range,
    requests: Sequence[Request | UserError],
    on_response: Callable[[int, Response], None],
) -> dict[int, dict[str, Any]]:
    """The lines of the answers to a batch, whose media are written."""
    valid = [(i, request) for i, request in zip(batch, requests, strict=True) if isinstance(request, Request)]
    lines: dict[int, dict[str, Any]] = {
        i: {"id": run.samples[i].id, "error": str(error)}
        for i, error in zip(batch, requests, strict=True)
        if isinstance(error, UserError)
    }
    responses = engine.generate([request for _, request in valid]) if valid else []
    for (i, _), response in zip(valid, responses, strict=True):
        on_response(i, response)
        media = _write(run.folder, i, response.media)
        lines[i] = {"id": run.samples[i].id, "text": response.text, "media": media, "tokens": response.tokens}
    return lines


def _write(folder: pathlib.Path, index: int, outputs: Sequence[MediaOutput]) -> dict[str, list[str]]:
    names = write_numbered(folder / MEDIA, index, outputs)
    found: dict[str, list[str]] = {}
    for name, medium in zip(names, outputs, strict=True):
        found.setdefault(medium.modality, []).append(f"{MEDIA}/{name}")
    return found


def _digest(samples: Sequence[Sample]) -> str:
    """Of what the answers depend on, without the places of files."""
    digest = hashlib.sha256()
    for sample in samples:
        inputs = {name: [path.name for path in paths] for name, paths in sample.inputs.items()}  # without making them
        line = json.dumps([sample.id, sample.prompt, inputs, dict(sample.options)], sort_keys=True, default=str)
        digest.update(line.encode("utf-8", "backslashreplace") + b"\n")
    return digest.hexdigest()[:16]
