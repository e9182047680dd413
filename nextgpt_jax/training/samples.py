"""The samples of a run: read, checked and counted before anything is loaded, and the builder of their examples."""

from collections.abc import Mapping, Sequence

import numpy as np

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.data import truncation
from nextgpt_jax.data.examples import BatchSpec, ExampleBuilder
from nextgpt_jax.data.readers import Problem, Samples, read_samples
from nextgpt_jax.data.survey import check_problems, survey
from nextgpt_jax.errors import UserError
from nextgpt_jax.models.nextgpt import NExTGPTConfig
from nextgpt_jax.templates import Template, Tokenizer
from nextgpt_jax.training.distributed import print_on_main
from nextgpt_jax.training.stages import STAGES
from nextgpt_jax.weights.frozen import layout_fingerprint
from nextgpt_jax.weights.load import LoadedModel

_MANY = 100_000  # samples, which take seconds
_FIRST = 8  # samples of each source, of which one has to be readable


def read_usable(config: ExperimentConfig, files: str) -> tuple[Samples, BatchSpec, list[Problem]]:
    """The records that can be used, with their media counted, and room for these; and the other records.

    Raises:
      UserError: a file cannot be read, or more than data.max_skipped of its records cannot be used.
    """
    samples = read_samples(STAGES[config.train.stage].task, files, config.data.media_root, config.data.format)
    for file in samples.files:
        if file.unused:
            print_on_main(f"{file.records.path}: columns that are not used: {', '.join(file.unused)}")
    if len(samples) >= _MANY:
        print_on_main(f"looking through {len(samples):,} records and for their media")
    found = survey(samples, config.data.max_media, config.data.max_skipped)
    check_problems(found.problems, samples.counts(), config.data.max_skipped, found.given_up)
    for problem in found.problems:
        print_on_main(f"skipped: {problem.source}, {problem.record}: {problem.reason}")
    return found.usable(samples), BatchSpec(found.inputs, found.outputs), found.problems


def training_files(config: ExperimentConfig) -> str:
    """The setting with the data files of the config's stage."""
    return config.data.instructions if STAGES[config.train.stage].task == "conversation" else config.data.captions


def make_example_builder(
    config: ExperimentConfig, loaded: LoadedModel, spec: BatchSpec, prepared: str = ""
) -> ExampleBuilder:
    """The builder of training examples for a model, with room for the media of `spec`.

    Args:
      prepared: `prepared_dtype` of the samples.
    """
    cfg, template = loaded.model.config, loaded.template
    tokenizers = loaded.tokenizer, loaded.caption_tokenizers
    return example_builder(cfg, *tokenizers, template, config.data.max_length, spec, prepared)


def example_builder(
    cfg: NExTGPTConfig,
    tokenizer: Tokenizer,
    caption_tokenizers: Mapping[str, Tokenizer],
    template: Template,
    max_length: int,
    spec: BatchSpec,
    prepared: str = "",
) -> ExampleBuilder:
    """The same for a model that need not be loaded.

    Args:
      caption_tokenizers: by output modality.
      max_length: tokens of an example.
    """
    return ExampleBuilder(
        tokenizer=tokenizer,
        caption_tokenizers=caption_tokenizers,
        caption_lengths={name: decoder.caption_length for name, decoder in cfg.decoders},
        vocabulary=cfg.vocabulary,
        encoders=cfg.input_encoders,
        max_length=max_length,
        spec=spec,
        template=template,
        caption_widths={name: decoder.prompt_shape for name, decoder in cfg.decoders},
        prepared=prepared,
        layout=layout_fingerprint(tokenizer, template, cfg) if prepared else "",
    )


def check_examples(builder: ExampleBuilder, samples: Samples, max_truncated: float) -> None:
    """Says what is cut off, and fails before anything is written if it is too much, or if media cannot be read at all.

    Raises:
      UserError: it is; or none of the first samples of a source can be read.
    """
    found = truncation.measure(samples, builder)
    truncation.check(found, builder.max_length, max_truncated)
    for source, row in found.items():
        if row.cut:
            print_on_main(row.describe(source, builder.max_length))
    if not len(samples):
        raise UserError("the data files hold no record that can be used")
    mixture = samples.mixture()
    for source in range(len(mixture.names)):
        _check_readable(builder, samples, np.flatnonzero(mixture.sources == source)[:_FIRST].tolist())


def _check_readable(builder: ExampleBuilder, samples: Samples, indices: Sequence[int]) -> None:
    error = None
    for index in reversed(indices):
        try:
            builder(samples[index])
            return
        except UserError as failed:
            error = failed
    if error:
        raise error
