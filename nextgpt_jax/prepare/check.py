"""Reads every medium of a stage's data ahead of training, and lists those that cannot be read. No model is loaded."""

import concurrent.futures
import dataclasses
import json
import pathlib
from typing import Any

from tqdm import tqdm

from nextgpt_jax.config import ExperimentConfig, ModelConfig
from nextgpt_jax.data.prepared import PreparedRecords
from nextgpt_jax.data.readers import Problem
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_write
from nextgpt_jax.models import registry
from nextgpt_jax.models.nextgpt import encoders_by_modality
from nextgpt_jax.prepare.reading import MediaReader
from nextgpt_jax.prompts import Input
from nextgpt_jax.training.checks import check_config
from nextgpt_jax.training.samples import read_usable, training_files
from nextgpt_jax.weights import assemble

_RECORDS = 256  # that are parsed at a time
_AHEAD = 16  # media that are read before their turn comes


def check_media(config: ExperimentConfig, output: str = "") -> int:
    """Reads the records and media of a config's stage, prints what cannot be used, and how many.

    Args:
      output: file for the list, as JSON lines: source, record, reason.

    Returns:
      The exit status: 1 if there is something.

    Raises:
      UserError: a data file cannot be read, or the list cannot be written.
    """
    check_config(config)
    everything = dataclasses.replace(config, data=dataclasses.replace(config.data, max_skipped=1.0))
    samples, _, problems = read_usable(everything, training_files(config))
    if any(isinstance(file.records, PreparedRecords) for file in samples.files):
        raise UserError("these files are prepared: their media were read then")
    encoders = _encoders(config.model)
    problems, media = list(problems), 0
    with (
        concurrent.futures.ThreadPoolExecutor(config.data.num_workers) as pool,
        tqdm(total=len(samples), unit="sample", disable=None, leave=False) as bar,
    ):
        for begin in range(0, len(samples), _RECORDS):
            numbers = range(begin, min(begin + _RECORDS, len(samples)))
            wanted = [
                (number, segment.modality, segment.content)
                for number in numbers
                for turn in samples[number]
                for segment in turn.human
                if isinstance(segment, Input)
            ]
            reasons = {n: f"this model's encoder does not read {name}" for n, name, _ in wanted if name not in encoders}
            readable = [row for row in wanted if row[1] in encoders]
            reader = MediaReader([row[1:] for row in readable], encoders, pool, _AHEAD)
            for (number, _, _), medium in zip(readable, reader, strict=True):
                media += 1
                if medium.reason:
                    reasons.setdefault(number, medium.reason)
            for number, reason in sorted(reasons.items()):
                problems.append(Problem(number, *samples.where(number), reason))
                tqdm.write(f"skipped: {problems[-1].source}, {problems[-1].record}: {reason}")
            bar.update(len(numbers))
    if output:
        lines = [json.dumps(problem.entry) + "\n" for problem in problems]
        with atomic_write(output) as temporary:
            temporary.write_text("".join(lines))
    total = sum(samples.counts().values())
    print(f"{total - len(problems)} of {total} records can be used; {media} media were read")
    return 1 if problems else 0


def _encoders(config: ModelConfig) -> dict[str, Any]:
    """The config of the encoder of each modality that is read; of an encoder that is not there, as it was published."""
    folders = map(pathlib.Path, assemble.encoder_folders(config))
    return encoders_by_modality(
        [
            registry.read_encoder(folder) if folder.is_dir() else registry.published("encoder", str(folder))
            for folder in folders
        ]
    )
