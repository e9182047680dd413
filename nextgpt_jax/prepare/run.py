"""Prepares the samples of a stage: embeddings of their media and captions, and token ids, in shards."""

import collections
import concurrent.futures
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.data import prepared
from nextgpt_jax.data.examples import BatchSpec, ExampleBuilder, caption_ids
from nextgpt_jax.data.fingerprint import fingerprint
from nextgpt_jax.data.pairs import Conversation
from nextgpt_jax.data.prepared import PreparedRecords
from nextgpt_jax.data.readers import Problem, problem_of
from nextgpt_jax.errors import UserError
from nextgpt_jax.mesh import data_parallel_mesh, make_mesh
from nextgpt_jax.prepare import caption_files
from nextgpt_jax.prepare.encoding import BatchEncoder
from nextgpt_jax.prepare.merging import merge
from nextgpt_jax.prepare.reading import MediaReader
from nextgpt_jax.prepare.shards import Folder
from nextgpt_jax.prompts import Input, Output, segments_of
from nextgpt_jax.templates import TEMPLATES
from nextgpt_jax.training.checks import check_config
from nextgpt_jax.training.prepared import embedded
from nextgpt_jax.training.samples import example_builder, read_usable, training_files
from nextgpt_jax.weights import assemble
from nextgpt_jax.weights.frozen import layout_fingerprint, load_encoders
from nextgpt_jax.weights.load import load_caption_tokenizers
from nextgpt_jax.weights.tokenizers import load_tokenizer


@dataclasses.dataclass(frozen=True)
class Options:
    """How data is prepared.

    Attributes:
      records_per_shard: records of the data files that a shard is made of.
      batch_size: images that are encoded together; of larger media fewer.
      dtype: of embeddings, a key of prepared.DTYPES.
      caption_embeddings: folder of caption embeddings of the reference's; empty: all are computed, as are those that it
        lacks.

    Raises:
      UserError: one is out of range.
    """

    records_per_shard: int = 2048
    batch_size: int = 64
    dtype: str = "float32"
    caption_embeddings: str = ""

    def __post_init__(self):
        if self.caption_embeddings and not os.path.isdir(self.caption_embeddings):
            raise UserError(f"--caption_embeddings={self.caption_embeddings}: no such folder")
        for name in ("records_per_shard", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} should be at least 1")
        if self.dtype not in prepared.DTYPES:
            raise UserError(f"--dtype={self.dtype} is not one of {', '.join(prepared.DTYPES)}")


class Preparer:
    """Writes shards of the samples of a config's stage. Nothing is loaded before the first shard is written.

    Attributes:
      folder: that is written to.
      plan: what is prepared.
      count: shards.
    """

    def __init__(self, config: ExperimentConfig, output: str | os.PathLike, options: Options):
        """Reads and checks the data files, and claims the folder.

        Raises:
          UserError: the config, the data files or the folder do not fit.
        """
        check_config(config)
        self._config, self._options, self.folder = config, options, Folder(output)
        self._samples, self._spec, self._problems = read_usable(config, training_files(config))
        for file in self._samples.files:
            if isinstance(file.records, PreparedRecords):
                raise UserError(f"{file.records.path} is prepared already")
        self._parts = assemble.resolve_parts(config.model)
        self._cfg = assemble.model_config(self._parts)
        self._tokenize = self._make_builder()
        self.count = math.ceil(len(self._samples) / options.records_per_shard)
        self.plan = self._make_plan()
        self.folder.begin(self.plan)
        self._encoder: BatchEncoder | None = None

    def _make_builder(self) -> ExampleBuilder:
        tokenizers = load_tokenizer(self._parts.llm), load_caption_tokenizers(self._parts)
        template = TEMPLATES[self._parts.template]
        return example_builder(self._cfg, *tokenizers, template, self._config.data.max_length, self._spec)

    def _make_plan(self) -> dict[str, Any]:
        spec: BatchSpec = self._spec
        found = embedded(self._config, self._cfg, media={*spec.inputs}, captions={*spec.outputs})
        rows = {kind: {n: dataclasses.asdict(row) for n, row in rows.items()} for kind, rows in found.items()}
        files = self._samples.files
        return {
            "format": prepared.FORMAT,
            "task": self._samples.task,
            "dtype": self._options.dtype,
            "records_per_shard": self._options.records_per_shard,
            "batch_size": self._options.batch_size,
            **rows,
            "layout": layout_fingerprint(self._tokenize.tokenizer, self._tokenize.template, self._cfg),
            "sources": [
                {"path": f.records.path, "records": len(f.records), "fingerprint": fingerprint([f.records.path])}
                for f in files
            ],
            "unusable": [problem.entry for problem in self._problems],
            "samples": len(self._samples),
            **({"caption_embeddings": self._options.caption_embeddings} if self._options.caption_embeddings else {}),
        }

    def missing(self, numbers: Sequence[int] | None = None) -> list[int]:
        """Those of the shards (None: all) that are not finished."""
        numbers = range(self.count) if numbers is None else numbers
        return [n for n in numbers if self.folder.part(self.folder.name(n, self.count)) is None]

    def write(self, numbers: Sequence[int], *, progress: bool = True) -> None:
        """Writes the shards of these numbers that are not finished.

        Raises:
          UserError: weights do not fit, embeddings are not finite, or a file cannot be written.
        """
        missing = self.missing(numbers)
        if not missing:
            return
        mesh = data_parallel_mesh(make_mesh(self._config.mesh))
        workers = self._config.data.num_workers
        with jax.set_mesh(mesh), concurrent.futures.ThreadPoolExecutor(workers) as pool:
            if self._encoder is None:
                spec, config = self._spec, self._parts
                model = load_encoders(
                    config, self._cfg, with_encoders=bool(spec.inputs), captions={*spec.outputs}, mesh=mesh
                )
                dtype = assemble.frozen_dtype(config.dtype)
                options = self._options
                self._encoder = BatchEncoder(model, mesh, dtype, options.dtype, options.batch_size)
            total = sum(len(self._range(n)) for n in missing)
            with tqdm(total=total, unit="sample", disable=None if progress else True, leave=False) as bar:
                following = self._begin(missing[0], pool)
                for number, after in zip(missing, [*missing[1:], None]):
                    shard = following
                    embeddings = self._embed(shard, bar)
                    following = self._begin(after, pool) if after is not None else None  # read while this is written
                    self._write(number, shard, embeddings())

    def _range(self, number: int) -> range:
        size = self._options.records_per_shard
        return range(number * size, min((number + 1) * size, len(self._samples)))

    def _begin(self, number: int, pool: concurrent.futures.Executor) -> "_Shard":
        """Parses the records of a shard, and begins to read their media."""
        shard = _Shard()
        for index in self._range(number):
            try:
                conversation = self._samples[index]
            except UserError as error:
                shard.problems.append(problem_of(self._samples, index, error))
                continue
            shard.samples.append(_Sample(index, conversation, _segments(conversation, Input)))
        wanted = [(medium.modality, medium.content) for sample in shard.samples for medium in sample.inputs]
        encoders = self._cfg.input_encoders
        ahead = 2 * max((self._size("media", m) for m in self._spec.inputs), default=1)
        shard.reader = MediaReader(wanted, encoders, pool, ahead)
        return shard

    def _size(self, kind: str, modality: str) -> int:
        """Inputs in a batch."""
        assert self._encoder is not None
        if kind == "captions":
            return self._encoder.size((1,))
        encoders = self._cfg.input_encoders
        image = encoders["image"].input_shape("image") if "image" in encoders else None
        return self._encoder.size(encoders[modality].input_shape(modality), image)

    def _embed(self, shard: "_Shard", bar: tqdm) -> Any:
        """Encodes the media and captions of a shard; gives a function that waits for the embeddings."""
        encoder, spec = self._encoder, self._spec
        assert encoder is not None and shard.reader is not None
        sizes = {("media", name): self._size("media", name) for name in spec.inputs}
        sizes |= {("captions", name): self._size("captions", name) for name in spec.outputs}
        media = iter(shard.reader)
        for sample in shard.samples:
            for _ in sample.inputs:
                medium = next(media)
                if medium.input is not None:
                    key = medium.modality, medium.sha256
                    encoder.add("media", medium.modality, key, medium.input, sizes["media", medium.modality])
                if medium.reason:
                    sample.reason = sample.reason or medium.reason
                sample.sha256.append(medium.sha256)
            bar.update()
        seen: set[Any] = set()
        checked: collections.Counter[str] = collections.Counter()
        for sample in shard.samples:
            self._find_given(sample)
            outputs = [] if sample.reason else _segments(sample.conversation, Output)
            for i, output in enumerate(outputs):
                key = "caption", output.modality, output.caption
                if i in sample.given:
                    checked[output.modality] += 1
                    if checked[output.modality] > caption_files.CHECKED:
                        continue
                if key not in seen:
                    seen.add(key)
                    ids = caption_ids(
                        self._tokenize.caption_tokenizers[output.modality],
                        output.caption,
                        self._tokenize.caption_lengths[output.modality],
                    )
                    encoder.add("captions", output.modality, key, ids, sizes["captions", output.modality])
        return lambda: encoder.flush(sizes)

    def _find_given(self, sample: "_Sample") -> None:
        """Reads the embeddings of a sample's captions that are on disk."""
        outputs = _segments(sample.conversation, Output)
        if not self._options.caption_embeddings or sample.reason or not outputs:
            return
        file, number = self._samples.find(sample.index)
        record = self._samples.files[file].records[number]
        decoders = dict(self._cfg.decoders)
        folder = pathlib.Path(self._options.caption_embeddings)
        for i, (output, path) in enumerate(
            zip(outputs, caption_files.caption_files(record, outputs, folder), strict=True)
        ):
            if not path.is_file():
                continue
            try:
                found = caption_files.read_embedding(path, decoders[output.modality].prompt_shape)
            except UserError as error:
                sample.reason = str(error)
                return
            sample.given[i] = path, found.astype(prepared.DTYPES[self._options.dtype])

    def _write(self, number: int, shard: "_Shard", embeddings: Mapping[Any, np.ndarray]) -> None:
        written: dict[str, dict[str, int]] = {"inputs": {}, "outputs": {}}

        def records() -> Iterator[bytes]:
            for sample in shard.samples:
                if sample.reason:
                    source, record = self._samples.where(sample.index)
                    shard.problems.append(Problem(sample.index, source, record, sample.reason))
                    continue
                outputs = _segments(sample.conversation, Output)
                for kind, media in (("inputs", sample.inputs), ("outputs", outputs)):
                    for name in {m.modality for m in media}:
                        count = sum(m.modality == name for m in media)
                        written[kind][name] = max(written[kind].get(name, 0), count)
                arrays = [embeddings[m.modality, s] for m, s in zip(sample.inputs, sample.sha256)]
                arrays += [self._caption_embedding(sample, i, o, embeddings) for i, o in enumerate(outputs)]
                tokenized = self._tokenize.tokenize(sample.conversation)
                yield prepared.encode(sample.conversation, tokenized, sample.sha256, arrays)

        def describe() -> dict[str, Any]:
            skipped = [problem.entry for problem in sorted(shard.problems, key=lambda problem: problem.index)]
            return {kind: dict(sorted(counts.items())) for kind, counts in written.items()} | {"skipped": skipped}

        self.folder.write_shard(self.folder.name(number, self.count), records(), describe)

    def _caption_embedding(
        self, sample: "_Sample", i: int, output: Output, embeddings: Mapping[Any, np.ndarray]
    ) -> np.ndarray:
        computed = embeddings.get(("caption", output.modality, output.caption))
        if i not in sample.given:
            assert computed is not None
            return computed
        path, found = sample.given[i]
        if computed is not None:
            caption_files.check_equal(path, found.astype(np.float32), computed.astype(np.float32), output.modality)
        return found

    def merge(self) -> bool:
        """Writes the manifest if all shards are finished. Returns whether they are.

        Raises:
          UserError: more of a file was skipped than data.max_skipped allows, or the manifest cannot be written.
        """
        return merge(self.folder, self.plan, self.count, self._config.data.max_skipped)


@dataclasses.dataclass
class _Sample:
    index: int
    conversation: Conversation
    inputs: list[Any]
    sha256: list[str] = dataclasses.field(default_factory=list)
    given: dict[int, tuple[pathlib.Path, np.ndarray]] = dataclasses.field(default_factory=dict)  # by output
    reason: str = ""


@dataclasses.dataclass
class _Shard:
    samples: list[_Sample] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    reader: MediaReader | None = None


def _segments(conversation: Conversation, kind: type) -> list[Any]:
    return [segment for segment in segments_of(conversation) if isinstance(segment, kind)]
