"""Answers to a few prompts while a model is trained: their text and, if the decoders are loaded, their media."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.data.examples import load_medium
from nextgpt_jax.data.pairs import Conversation
from nextgpt_jax.data.prepared import Precomputed
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_write, local_folder
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.inference.requests import Record, RequestFile, make_request
from nextgpt_jax.inference.responses import write_numbered
from nextgpt_jax.inference.types import MediaOutput, Request
from nextgpt_jax.json_files import read_text
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.models.nextgpt import NExTGPTConfig
from nextgpt_jax.prompts import Input, Turn
from nextgpt_jax.weights.load import LoadedModel

_HELD_OUT = 4  # samples whose first turn is answered, if there is no file of prompts


class Sample(NamedTuple):
    """An answer, to be shown."""

    prompt: str
    text: str
    media: list[MediaOutput]


def check_sampling(config: ExperimentConfig) -> None:
    """Checks the settings of sampling before anything is loaded.

    Raises:
      UserError: this job cannot draw samples, or there are no prompts.
    """
    train = config.train
    if train.sample_every < 0:
        raise UserError("train.sample_every should not be negative; 0: no samples")
    if not train.sample_every:
        return
    if jax.process_count() > 1:
        raise UserError(
            f"train.sample_every: a job of {jax.process_count()} processes draws no samples: set it to 0, and draw "
            "them from the checkpoints with infer.py --workdir"
        )
    if not train.sample_prompts and not config.data.validation:
        raise UserError(
            "train.sample_every needs prompts: set train.sample_prompts to a text file with one on each line, or to a "
            "JSONL file as infer.py --requests takes it, or set data.validation, whose first samples are answered then"
        )
    if train.sample_prompts:
        _read_prompts(train.sample_prompts)


class Sampler:
    """Answers the prompts of a run with its weights of the moment. The frozen ones are the run's own, not a copy.

    On a mesh the encoders and decoders are gathered on each device while they work, as in inference.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        loaded: LoadedModel,
        folder: pathlib.Path,
        held_out: Sequence[Conversation] | None,
    ):
        """
        Args:
          folder: of the run; samples are written below FOLDER/samples.
          held_out: samples of data.validation.

        Raises:
          UserError: a prompt cannot be answered by this model, or a file of it cannot be read.
        """
        self._config, self._loaded, self._folder = config, loaded, folder / "samples"
        options: dict[str, Any] = {"seed": config.train.seed}
        if not config.train.sample_media:
            options["modality"] = "text"
        self._prompts, self._requests, model = [], [], loaded.model.config
        if config.train.sample_prompts:
            for record in _read_prompts(config.train.sample_prompts):
                chosen = options | record.options
                if not config.train.sample_media:
                    chosen["modality"] = "text"
                request = make_request(record.prompt, record.paths, chosen, model, config.generation)
                self._add(record.prompt, request)
        else:
            assert held_out is not None
            for index in range(min(_HELD_OUT, len(held_out))):
                human = held_out[index][0].human
                request = make_request("unused", {}, options, model, config.generation)
                turn = Turn(tuple(_loaded(segment, model) for segment in human))
                self._add("".join(map(_shown, human)), dataclasses.replace(request, turns=(turn,)))
        engine = self._engine(loaded.model)
        for request in self._requests:
            engine.validate(request)

    def _add(self, prompt: str, request: Request) -> None:
        self._prompts.append(prompt)
        self._requests.append(request)

    def _engine(self, model: Any) -> Engine:
        mesh = self._loaded.mesh
        system = dataclasses.replace(self._loaded, model=model, mesh=mesh if mesh and mesh.size > 1 else None)
        return Engine(system, self._config.generation, keep_stacked=True)

    def __call__(self, step: int, graphdef: nnx.GraphDef, trainable: nnx.State, frozen: nnx.State) -> list[Sample]:
        """Answers the prompts, and writes the answers to FOLDER/samples/STEP."""
        engine = self._engine(nnx.merge(graphdef, trainable, frozen))
        responses = engine.generate(self._requests)
        samples = [Sample(p, r.text, r.media) for p, r in zip(self._prompts, responses, strict=True)]
        write_samples(self._folder / str(step), samples)
        return samples


def write_samples(folder: pathlib.Path, samples: Sequence[Sample]) -> None:
    """Writes replies.jsonl, as infer.py --requests does, and the media that it names."""
    with local_folder(folder) as target:
        _write_samples(target, samples)


def _write_samples(folder: pathlib.Path, samples: Sequence[Sample]) -> None:
    lines = []
    for i, sample in enumerate(samples):
        names = write_numbered(folder, i, sample.media)
        line = {"prompt": sample.prompt, "text": sample.text, "media": names}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    with atomic_write(folder / "replies.jsonl") as temporary:
        temporary.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")


def _read_prompts(path: str) -> list[Record]:
    if pathlib.Path(path).suffix == ".jsonl":
        records = []
        for record in RequestFile(path, "train.sample_prompts"):
            if isinstance(record, UserError):
                raise UserError(f"train.sample_prompts: {path}: {record}")
            records.append(record)
        return records
    try:
        lines = read_text(path).splitlines()
    except UserError as error:
        raise UserError(f"train.sample_prompts: {error}") from None
    if not (records := [Record(line, {}, {}) for line in lines if line.strip()]):
        raise UserError(f"train.sample_prompts: {path} has no prompts")
    return records


def _loaded(segment: Any, model: NExTGPTConfig) -> Any:
    """A segment with the content of its medium."""
    if not isinstance(segment, Input):
        return segment
    name, medium = segment.modality, segment.content
    if isinstance(medium, Precomputed):
        raise UserError("train.sample_every: held-out data that is prepared has no media: set train.sample_prompts")
    return Input(name, load_medium(medium, name, model.input_encoders[name]))


def _shown(segment: Any) -> str:
    return segment if isinstance(segment, str) else MODALITIES[segment.modality].placeholder
