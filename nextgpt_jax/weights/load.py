"""Loads models: the frozen weights of the parts, and a delta or the trained weights of a run."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from nextgpt_jax.config import ModelConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.mesh import platform as mesh_platform
from nextgpt_jax.modalities import SignalTokens
from nextgpt_jax.models import quantize, registry
from nextgpt_jax.models.lora import merge_lora
from nextgpt_jax.models.nextgpt import NExTGPTConfig, NExTGPTModel, is_trainable
from nextgpt_jax.models.partitioning import with_shardings
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.models.stacking import unstack
from nextgpt_jax.templates import TEMPLATES, Template, Tokenizer, stop_sequences
from nextgpt_jax.weights import assemble, nextgpt_delta, orbax_params, tables, weight_files
from nextgpt_jax.weights.matching import fill, match, sharding_of
from nextgpt_jax.weights.rules import Table
from nextgpt_jax.weights.run_checkpoints import Workdir
from nextgpt_jax.weights.run_steps import LATEST
from nextgpt_jax.weights.tokenizers import load_tokenizer
from nextgpt_jax.weights.torch_checkpoint import open_checkpoint
from nextgpt_jax.weights.weight_files import Layout


@dataclasses.dataclass
class LoadedModel:
    """A model with the tokenizers of its parts.

    Attributes:
      model: the parameters.
      tokenizer: of the language model.
      caption_tokenizers: of the decoders' text encoders, by modality.
      template: the layout of conversations.
      mesh: the mesh that the parameters are sharded on; None: they are on one device.
    """

    model: NExTGPTModel
    tokenizer: Any
    caption_tokenizers: dict[str, Any]
    template: Template
    mesh: Mesh | None = None

    @property
    def stop_sequences(self) -> tuple[tuple[int, ...], ...]:
        """The ids that end a response: the template's, and the end tokens of tokenizer and language model."""
        ends = [self.tokenizer.eos_token_id, *self.model.config.llm.eos_token_ids]
        known = [(token,) for token in ends if token is not None and token < self.model.config.vocabulary.base_size]
        return tuple(dict.fromkeys([*stop_sequences(self.tokenizer, self.template), *known]))


def load_system(
    config: ModelConfig,
    *,
    decoder_parts: tuple[str, ...] | None = None,
    with_encoders: bool = True,
    seed: int = 0,
    mesh: Mesh | None = None,
    verbose: bool = False,
    signals: tuple[SignalTokens, ...] | None = None,
) -> LoadedModel:
    """Loads the parts of a model, and its delta if it has one. Other trainable parameters are initialized.

    Frozen weights have `config.dtype`, trainable ones float32. On a `mesh`, each process reads its own slices of
    converted parameters only.

    Args:
      config: names the parts; hub ids are downloaded.
      decoder_parts: the parts of the decoders to load, such as ("text_encoder",) for training. None: all.
      with_encoders: load the encoders of media. Data that is prepared needs none.
      seed: of the initialization.
      mesh: devices to shard the parameters on.
      verbose: print which pieces the delta has.
      signals: see `assemble.model_config`.

    Raises:
      UserError: a file is missing or does not fit, or the mesh does not fit the model.
    """
    config = assemble.resolve_parts(config)
    cfg, dtype = assemble.model_config(config, signals=signals), assemble.frozen_dtype(config.dtype)
    if config.template not in TEMPLATES:
        raise UserError(f"model.template: {config.template!r} is not one of {', '.join(TEMPLATES)}")
    tokenizer, template = load_tokenizer(config.llm), TEMPLATES[config.template]
    template.end_markers(tokenizer)  # raises, before weights are read

    def make() -> NExTGPTModel:
        return NExTGPTModel(cfg, decoder_parts=decoder_parts, with_encoders=with_encoders, rngs=make_rngs(seed))

    graphdef, abstract = nnx.split(assemble.abstract_model(make))
    if mesh:
        abstract = with_shardings(cfg, abstract, mesh)
    leaves, filled = dict(nnx.to_flat_state(abstract)), {}
    if config.delta:
        delta, pieces = _load_delta(pathlib.Path(config.delta), abstract, nextgpt_delta.table(cfg))
        for path, leaf in nnx.to_flat_state(delta):
            frozen = path[0] == "llm" and not nextgpt_delta.is_lora(path)
            filled[path] = leaf.replace(leaf[...].astype(dtype)) if frozen else leaf
        if verbose:
            print(f"delta {config.delta}: took {', '.join(pieces)}")
    has_embedding = ("llm", "embed_tokens", "embedding") in filled
    for prefix, (folder, table, layout) in _checkpoints(config, cfg, decoder_parts, has_embedding).items():
        part = {p[len(prefix) :]: v for p, v in leaves.items() if p[: len(prefix)] == prefix and p not in filled}
        if not part:
            continue
        part = {p: v for p, v in part.items() if not nextgpt_delta.is_lora(p)}
        state = read_part(folder, nnx.from_flat_state(part.items()), table, layout, dtype, cfg.quantize)
        filled |= {prefix + p: v for p, v in nnx.to_flat_state(state)}
    missing = {path: leaf for path, leaf in leaves.items() if path not in filled}
    filled |= _initialize(cfg, decoder_parts, seed, missing)
    model = nnx.merge(graphdef, nnx.from_flat_state([(path, filled[path]) for path in leaves]))
    return LoadedModel(model, tokenizer, load_caption_tokenizers(config), template, mesh)


def load_caption_tokenizers(config: ModelConfig) -> dict[str, Tokenizer]:
    """The tokenizers of the decoders' text encoders, by modality.

    Args:
      config: of folders, as `assemble.resolve_parts` returns it.
    """
    folders = assemble.decoder_folders(config)
    return {name: load_tokenizer(pathlib.Path(folder) / "tokenizer") for name, folder in folders.items()}


def _checkpoints(
    config: ModelConfig, cfg: NExTGPTConfig, decoder_parts: tuple[str, ...] | None, delta_has_embedding: bool
) -> dict[tuple, tuple[pathlib.Path, Table, Layout]]:
    """Folder, table and layout of each frozen part, by the prefix of its parameters."""
    llm = tables.language_model(cfg.llm)
    table = llm.layers if delta_has_embedding else llm.whole(cfg.llm)
    language = {("llm",): (pathlib.Path(config.llm), table, weight_files.TRANSFORMERS)}
    return language | frozen_checkpoints(config, cfg, decoder_parts)


def frozen_checkpoints(
    config: ModelConfig, cfg: NExTGPTConfig, decoder_parts: tuple[str, ...] | None
) -> dict[tuple, tuple[pathlib.Path, Table, Layout]]:
    """Folder, table and layout of the parts of the encoders and decoders, by the prefix of their parameters."""
    found: dict[tuple, tuple[pathlib.Path, Table, Layout]] = {}
    for encoder, folder in zip(cfg.encoders, assemble.encoder_folders(config), strict=True):
        table = tables.encoder(encoder, encoder.media_branches)
        found["encoders", registry.kind_of(encoder)] = pathlib.Path(folder), table, weight_files.ENCODER
    folders = assemble.decoder_folders(config)
    for name, decoder in cfg.decoders:
        for part, table in tables.decoder(decoder).items():
            if decoder_parts is None or part in decoder_parts:
                found["decoders", name, part] = (
                    pathlib.Path(folders[name]) / part,
                    table,
                    weight_files.decoder_layout(part),
                )
    return found


def _initialize(
    cfg: NExTGPTConfig, decoder_parts: tuple[str, ...] | None, seed: int, leaves: dict[tuple, nnx.Variable]
) -> dict[tuple, nnx.Variable]:
    """The initial values of the abstract parameters `leaves`, in their shardings."""
    if not leaves:
        return {}
    paths = tuple(sorted(leaves))
    initialize = _initializer(cfg, decoder_parts, seed, paths, tuple(sharding_of(leaves[path]) for path in paths))
    return {path: leaves[path].replace(value) for path, value in zip(paths, initialize(), strict=True)}


@functools.lru_cache(maxsize=8)
def _initializer(
    cfg: NExTGPTConfig, decoder_parts: tuple[str, ...] | None, seed: int, paths: tuple[tuple, ...], shardings: tuple
) -> Callable[[], list[jax.Array]]:
    """A program that returns the initial values at `paths`; another model of the same config needs no other."""

    def initialize() -> list[jax.Array]:
        # Of the whole model: initial values do not depend on whether encoders are loaded.
        model = NExTGPTModel(cfg, decoder_parts=decoder_parts, rngs=make_rngs(seed))
        values = dict(nnx.to_flat_state(nnx.state(model)))
        return [values[path][...] for path in paths]

    return jax.jit(initialize, out_shardings=list(shardings))


def load_trained(
    config: ModelConfig,
    workdir: str,
    *,
    step: str | int = LATEST,
    ema: bool | None = None,
    decoder_parts: tuple[str, ...] | None = None,
    mesh: Mesh | None = None,
) -> LoadedModel:
    """A model with trained weights, prepared for inference: of a checkpoint of the run in `workdir`, if that is not "",
    or of `config.delta`.

    Args:
      step, ema: of the checkpoint, see `Workdir.restore_delta`.

    Raises:
      UserError: a file is missing or does not fit, there is no such checkpoint, or the run belongs to another model.
    """
    if not workdir:
        system = load_system(config, decoder_parts=decoder_parts, mesh=mesh)
    else:
        run = Workdir(workdir)
        config = dataclasses.replace(config, delta=run.base_delta)
        run.find_step(step)  # raises, before weights are read
        system = load_system(config, decoder_parts=decoder_parts, mesh=mesh, signals=run.signals)
        delta, _ = run.restore_delta(nnx.state(system.model, is_trainable), step, ema)
        nnx.update(system.model, delta)
    prepare_llm(system.model, mesh)
    return system


def prepare_llm(model: NExTGPTModel, mesh: Mesh | None) -> None:
    """Prepares the language model of a model, possibly abstract, for inference, in place: merges LoRA into the kernels
    that are not quantized, and unstacks the layers where that is faster."""
    if runs_unstacked(mesh):
        model.llm.layers = unstack(model.llm.layers, donate=True)
    merge_lora(model.llm)


def runs_unstacked(mesh: Mesh | None) -> bool:
    """Whether decoding is faster with unstacked layers (see stacking.unstack), on a mesh or without one.

    Simulated meshes of CPU devices keep them stacked, which compiles faster.
    """
    platform = mesh_platform(mesh)
    return platform == "gpu" or (platform == "cpu" and mesh is None)


def read_part(
    folder: pathlib.Path, state: nnx.State, table: Table, layout: Layout, dtype, quantization: str
) -> nnx.State:
    """A frozen part from a converted folder or from one in the published layout.

    Kernels with a scale are quantized one by one, so that memory holds at most one of them unquantized.
    """
    leaves = dict(nnx.to_flat_state(state))
    scales = {path[:-1] + ("kernel",): path for path in leaves if path[-1] == "kernel_scale"}
    kept = nnx.from_flat_state([(path, leaf) for path, leaf in leaves.items() if path not in scales.values()])
    if orbax_params.is_converted(folder):
        orbax_params.check(folder, kept)

        def read(part: nnx.State) -> nnx.State:
            return orbax_params.read(folder, part, dtype=dtype)
    else:
        parameters = match(open_checkpoint(folder, layout), kept, table).parameters

        def read(part: nnx.State) -> nnx.State:
            return fill(part, parameters, dtype)

    filled = {}
    for path, scale in scales.items():
        shardings = sharding_of(leaves[path]), sharding_of(leaves[scale])
        ((_, kernel),) = nnx.to_flat_state(read(nnx.from_flat_state([(path, leaves[path])])))
        quantize_layers = jax.jit(quantize.quantize_layers, static_argnums=1, out_shardings=shardings)
        values, block_scales = quantize_layers(kernel[...], quantization)
        filled |= {path: leaves[path].replace(values), scale: leaves[scale].replace(block_scales)}
    rest = [(path, leaf) for path, leaf in nnx.to_flat_state(kept) if path not in scales]
    return nnx.from_flat_state([*filled.items(), *nnx.to_flat_state(read(nnx.from_flat_state(rest)))])


def _load_delta(path: pathlib.Path, state: nnx.State, table: Table) -> tuple[nnx.State, list[str]]:
    """The parameters that a delta, published or converted, has, and the names of its pieces."""
    if not orbax_params.is_converted(path):
        return nextgpt_delta.load_delta(open_checkpoint(path, weight_files.DELTA), state, table)
    wanted, held = nextgpt_delta.saved_delta(path, state)
    return orbax_params.restore(path, wanted), held
