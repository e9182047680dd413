"""The frozen encoders by themselves, for preparing data, and the fingerprints by which prepared data knows them."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from nextgpt_jax.config import ModelConfig
from nextgpt_jax.models import registry
from nextgpt_jax.models.nextgpt import FrozenEncoders, NExTGPTConfig
from nextgpt_jax.models.partitioning import with_shardings
from nextgpt_jax.models.rngs import abstract, make_rngs
from nextgpt_jax.templates import Template
from nextgpt_jax.weights import assemble, orbax_params
from nextgpt_jax.weights.load import frozen_checkpoints, read_part
from nextgpt_jax.weights.matching import flat_paths, match
from nextgpt_jax.weights.rules import Table
from nextgpt_jax.weights.torch_checkpoint import open_checkpoint
from nextgpt_jax.weights.weight_files import Layout

_PART = "text_encoder"
_PROBE = (  # what a tokenizer makes of these stands for what it does beyond its vocabulary
    "A small dog, running on the beach; it's 2 p.m.!",
    "### Human: what   is this?\n### Assistant: naïve café — 東京 12345",
    " two spaces  and\ttabs\n\nABC",
)


def load_encoders(
    config: ModelConfig, cfg: NExTGPTConfig, *, with_encoders: bool, captions: Collection[str], mesh: Mesh
) -> FrozenEncoders:
    """The encoders of media, and the text encoders of the decoders of some modalities, on a mesh, in `config.dtype`.

    Args:
      config: of folders, as `assemble.resolve_parts` returns it.

    Raises:
      UserError: a file is missing or does not fit.
    """
    graphdef, state = nnx.split(_abstract(cfg, with_encoders, captions))
    leaves, filled = dict(nnx.to_flat_state(with_shardings(cfg, state, mesh))), {}
    dtype = assemble.frozen_dtype(config.dtype)
    for prefix, (folder, table, layout) in frozen_checkpoints(config, cfg, (_PART,)).items():
        if part := _below(leaves, prefix):
            state = read_part(folder, part, table, layout, dtype, "")
            filled |= {prefix + path: leaf for path, leaf in nnx.to_flat_state(state)}
    return nnx.merge(graphdef, nnx.from_flat_state([(path, filled[path]) for path in leaves]))


def fingerprints(
    config: ModelConfig, cfg: NExTGPTConfig, *, with_encoders: bool, captions: Collection[str]
) -> dict[str, str]:
    """What identifies the encoders, by their kind, and the text encoders of decoders, by their modality: a SHA-256 of
    their settings and parameters in float32, the same for every layout of files. All of the files are read.

    Args:
      config: of folders, as `assemble.resolve_parts` returns it.

    Raises:
      UserError: a file is missing or does not fit.
    """
    leaves = dict(nnx.to_flat_state(nnx.state(_abstract(cfg, with_encoders, captions))))
    settings = {registry.kind_of(encoder): encoder for encoder in cfg.encoders}
    settings |= {name: getattr(decoder, _PART) for name, decoder in cfg.decoders}
    found = {}
    for prefix, (folder, table, layout) in frozen_checkpoints(config, cfg, (_PART,)).items():
        if part := _below(leaves, prefix):
            digest = hashlib.sha256(_canonical(_changed_fields(settings[prefix[1]])))
            for name, array in _parameters(folder, part, table, layout):
                digest.update(f"\n{name} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array, np.float32).data)
            found[prefix[1]] = digest.hexdigest()
    return found


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """What identifies a tokenizer: a SHA-256 of its vocabulary and of what it makes of some texts."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    ids = [_ids(tokenizer, text) for text in _PROBE]
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    return hashlib.sha256(_canonical([vocabulary, ids, special])).hexdigest()


def _ids(tokenizer: Any, text: str) -> list[int] | None:
    try:
        return tokenizer(text)["input_ids"]
    except Exception:  # of the library's own, for characters that a small vocabulary lacks
        return None


def layout_fingerprint(tokenizer: Any, template: Template, cfg: NExTGPTConfig) -> str:
    """What identifies the token ids of conversations: a SHA-256 of tokenizer, template and vocabulary."""
    chat = getattr(tokenizer, "chat_template", None)
    vocabulary = [cfg.vocabulary.base_size, cfg.signals, cfg.num_embeddings]
    return hashlib.sha256(_canonical([tokenizer_fingerprint(tokenizer), repr(template), chat, vocabulary])).hexdigest()


def _abstract(cfg: NExTGPTConfig, with_encoders: bool, captions: Collection[str]) -> FrozenEncoders:
    return abstract(lambda: FrozenEncoders(cfg, with_encoders=with_encoders, captions=captions, rngs=make_rngs(0)))


def _below(leaves: dict[tuple, nnx.Variable], prefix: Sequence[str]) -> nnx.State | None:
    found = [(path[len(prefix) :], leaf) for path, leaf in leaves.items() if path[: len(prefix)] == tuple(prefix)]
    return nnx.from_flat_state(found) if found else None


def _parameters(
    folder: pathlib.Path, state: nnx.State, table: Table, layout: Layout
) -> Iterator[tuple[str, np.ndarray]]:
    """The parameters of a part in the order of their names, those of stacked layers one by one."""
    names = flat_paths(state)
    leaves = sorted(nnx.to_flat_state(state), key=lambda item: names[item[0]])
    if orbax_params.is_converted(folder):
        orbax_params.check(folder, state)
    else:
        parameters = match(open_checkpoint(folder, layout), state, table).parameters
    for path, leaf in leaves:
        if orbax_params.is_converted(folder):
            ((_, value),) = nnx.to_flat_state(orbax_params.read(folder, nnx.from_flat_state([(path, leaf)])))
            yield names[path], np.asarray(value[...])
            continue
        yield names[path], parameters[names[path]].cast(jnp.float32).read()


def _changed_fields(settings: Any) -> dict[str, Any]:
    """The fields of a config that differ from their defaults: a later release may have new ones."""
    return {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if getattr(settings, field.name) != field.default
    }


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()
