"""Training on prepared data (data/prepared.py): neither encoders nor text encoders are loaded, but what the embeddings
were computed with has to be what the config names."""

from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.data.prepared import DTYPES, Embedded, PreparedRecords
from nextgpt_jax.data.readers import Samples
from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.models.nextgpt import NExTGPTConfig
from nextgpt_jax.weights import assemble
from nextgpt_jax.weights.frozen import fingerprints, tokenizer_fingerprint
from nextgpt_jax.weights.load import LoadedModel, load_system
from nextgpt_jax.weights.tokenizers import load_tokenizer


def prepared_dtype(samples: Sequence[Samples]) -> str:
    """The dtype of the embeddings of a run's samples, the widest of several; empty: their media have to be encoded.

    Raises:
      UserError: some files are prepared, and others are not.
    """
    records = [file.records for some in samples for file in some.files]
    prepared = [r for r in records if isinstance(r, PreparedRecords)]
    if not prepared:
        return ""
    if others := [r for r in records if not isinstance(r, PreparedRecords)]:
        raise UserError(
            f"{prepared[0].path} is prepared and {others[0].path} is not: prepare all files of a run, those of "
            "data.validation too, or none"
        )
    found = {r.manifest.dtype for r in prepared}
    return found.pop() if len(found) == 1 else next(iter(DTYPES))


def load_for_samples(
    config: ExperimentConfig,
    samples: Sequence[Samples],
    mesh: Mesh,
    decoder_parts: tuple[str, ...] | None = ("text_encoder",),
    *,
    needs_encoders: bool = False,
) -> LoadedModel:
    """The model of a run, with the encoders that its samples need.

    Args:
      decoder_parts: of the decoders, for media that have to be encoded. None: all, in any case.
      needs_encoders: load the encoders of media in any case.

    Raises:
      UserError: as `load_system`; or samples were prepared with other encoders.
    """
    options = dict(seed=config.train.seed, mesh=mesh, verbose=jax.process_index() == 0)
    if not prepared_dtype(samples):
        return load_system(config.model, decoder_parts=decoder_parts, **options)
    folders = assemble.resolve_parts(config.model)
    cfg = assemble.model_config(folders)
    # Samples that need what the model lacks are refused when their examples are made.
    folders_of_data = [r for some in samples for file in some.files if isinstance(r := file.records, PreparedRecords)]
    media = {name for r in folders_of_data for name in r.manifest.media} & set(cfg.input_modalities)
    captions = {name for r in folders_of_data for name in r.manifest.captions} & set(cfg.output_modalities)
    wanted = embedded(config, cfg, media=media, captions=captions)
    for records in folders_of_data:
        for kind, given in (("media", records.manifest.media), ("captions", records.manifest.captions)):
            for name, row in given.items():
                if name in wanted[kind]:
                    _check(records.path, kind, name, row, wanted[kind][name])
    parts = None if decoder_parts is None else ()
    return load_system(config.model, decoder_parts=parts, with_encoders=needs_encoders, **options)


def embedded(
    config: ExperimentConfig, cfg: NExTGPTConfig, *, media: set[str], captions: set[str]
) -> dict[str, dict[str, Embedded]]:
    """What the embeddings of some modalities are with the encoders that a config names: "media" and "captions". The
    weights are read whole.

    Raises:
      UserError: a file is missing or does not fit.
    """
    folders = assemble.resolve_parts(config.model)
    found = fingerprints(folders, cfg, with_encoders=bool(media), captions=captions)
    tokenizers = assemble.decoder_folders(folders)
    encoders = {name: encoder for name, encoder in cfg.input_encoders.items() if name in media}
    decoders = {name: decoder for name, decoder in cfg.decoders if name in captions}
    return {
        "media": {
            name: Embedded(
                (encoder.num_embeddings(name), encoder.out_embed_dim),
                found[MODALITIES[name].encoder],
                list(encoder.input_shape(name)),
            )
            for name, encoder in encoders.items()
        },
        "captions": {
            name: Embedded(
                decoder.prompt_shape,
                found[name],
                tokenizer_fingerprint(load_tokenizer(f"{tokenizers[name]}/tokenizer")),
            )
            for name, decoder in decoders.items()
        },
    }


def _check(path: str, kind: str, name: str, given: Embedded, wanted: Embedded) -> None:
    field = "model.encoder" if kind == "media" else f"model.{name}_decoder"
    subject = f"{path}: the embeddings of its {name}{'s' if kind == 'media' else ' captions'}"
    remedy = "prepare the data again with this config, or give the config that it was prepared with"
    if given.shape != wanted.shape:
        sizes = [" x ".join(map(str, row.shape)) for row in (given, wanted)]
        raise UserError(f"{subject} are {sizes[0]}, and those of {field} {sizes[1]}: {remedy}")
    if given.weights != wanted.weights:
        raise UserError(
            f"{subject} were computed with weights {given.weights[:12]}, and {field} has weights "
            f"{wanted.weights[:12]}: {remedy}"
        )
    if given.settings != wanted.settings:
        what = "inputs of shape" if kind == "media" else "tokenizer"
        found, has = (str(row.settings)[:24] for row in (given, wanted))
        raise UserError(f"{subject} were computed with {what} {found}, and {field} has {has}: {remedy}")
