"""From a ModelConfig to a system in memory: the parts' configs, their base weights, the tokenizers, a delta."""

import dataclasses
import inspect
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from nextgpt_jax import sharding
from nextgpt_jax.config import ModelConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import MODALITIES, RELEASED, SignalTokens, Vocabulary, output_modalities, signal_tokens
from nextgpt_jax.models import quantize, registry
from nextgpt_jax.models.layers import LoRAConfig, make_rngs, merge_lora, unstack
from nextgpt_jax.models.nextgpt import NExTGPTConfig, NExTGPTModel, is_trainable, output_projector_for
from nextgpt_jax.prompts import TEMPLATES, Template
from nextgpt_jax.weights import nextgpt_delta, orbax_params, tables
from nextgpt_jax.weights.matching import fill, match, sharding_of
from nextgpt_jax.weights.rules import Table
from nextgpt_jax.weights.run_checkpoints import Workdir
from nextgpt_jax.weights.tokenizers import load_tokenizer
from nextgpt_jax.weights.torch_checkpoint import open_checkpoint


@dataclasses.dataclass
class LoadedModel:
    """A model with the tokenizers of its language model and decoders, and the mesh that it lies on, if any."""

    model: NExTGPTModel
    tokenizer: Any
    caption_tokenizers: dict[str, Any]
    template: Template
    mesh: Mesh | None = None


def model_config(
    config: ModelConfig, *, use_published_defaults: bool = False, signals: tuple[SignalTokens, ...] | None = None
) -> NExTGPTConfig:
    """Reads the parts' config.json files. With `use_published_defaults`, the published sizes stand in for folders
    that do not exist. `signals` are the signal tokens of the trained weights that the model is for; None: those of the
    delta, or, without one, of `config.output_modalities`.

    Raises:
      UserError: a folder is missing or a part is not supported.
    """

    quantize.check(config.quantize)

    def part(field: str, folder: str, read):
        if use_published_defaults and not pathlib.Path(folder).is_dir():
            return registry.published(field, folder)
        return read(_folder(folder, f"model.{field}"))

    llm = part("llm", config.llm, registry.read_language_model)
    if config.delta and use_published_defaults and not pathlib.Path(config.delta).exists():
        config = dataclasses.replace(config, delta="")
    if signals is None:
        signals = _signals(config)
    if config.delta and (rows := nextgpt_delta.base_vocab_size(pathlib.Path(config.delta))):
        llm = dataclasses.replace(llm, vocab_size=rows)  # Vicuna v0's own has one more, for padding
    encoders = [part("encoder", folder, registry.read_encoder) for folder in encoder_folders(config)]
    decoders = {
        name: part(f"{name}_decoder", folder, registry.read_decoder)
        for name, folder in _decoder_folders(config).items()
    }
    vocabulary = Vocabulary(llm.vocab_size, signals)
    if unknown := [name for name in decoders if name not in vocabulary.output_modalities]:
        raise UserError(
            f"model.{unknown[0]}_decoder is set, but the model has no signal tokens for {unknown[0]} (only for "
            f"{', '.join(vocabulary.output_modalities)})"
        )
    for name, decoder in decoders.items():
        given, wanted = tuple(inspect.signature(decoder.latent_shape).parameters), MODALITIES[name].size
        if given != wanted:
            raise UserError(
                f"model.{name}_decoder: a {registry.kind_of(decoder)} is sized by {', '.join(given)}, and {name} by "
                f"{', '.join(wanted)}: give a decoder of {name}"
            )
    sizes = dict(
        kind=config.output_projector,
        hidden_dim=config.projector_width,
        num_layers=config.projector_layers,
        num_heads=config.projector_heads,
        feedforward_dim=config.projector_feedforward,
    )
    try:
        lora = LoRAConfig(config.lora_rank, config.lora_alpha, config.lora_dropout, tuple(config.lora_targets))
        outputs = [
            (name, output_projector_for(c, len(vocabulary.signal_ids(name)), llm.hidden_size, **sizes))
            for name, c in decoders.items()
        ]
        return NExTGPTConfig(
            llm=llm,
            encoders=tuple(encoders),
            lora=lora,
            input_projector=config.input_projector,
            output_projectors=tuple(outputs),
            signals=signals,
            decoders=tuple(decoders.items()),
            quantize=config.quantize,
        )
    except ValueError as error:
        raise UserError(f"config.model: {error}") from None


def _signals(config: ModelConfig) -> tuple[SignalTokens, ...]:
    asked = signal_tokens(config.output_modalities) if config.output_modalities else RELEASED
    if not config.delta:
        return asked
    found = nextgpt_delta.read_signals(pathlib.Path(config.delta))
    if config.output_modalities and found != asked:
        names = ", ".join(s.modality for s in found)
        raise UserError(
            f"model.output_modalities: the delta {config.delta} has signal tokens for {names}: leave it empty"
        )
    return found


def _decoder_folders(config: ModelConfig) -> dict[str, str]:
    """The decoders' folders by modality; those that are not set do without."""
    folders = {name: getattr(config, f"{name}_decoder", "") for name in output_modalities()}
    if not any(folders.values()):
        raise UserError(f"no decoder: set {' or '.join(f'model.{name}_decoder' for name in folders)}")
    return {name: folder for name, folder in folders.items() if folder}


def encoder_folders(config: ModelConfig) -> list[str]:
    """The encoders' folders."""
    return config.encoder.split(",")


def _folder(path: str, field: str) -> pathlib.Path:
    if not pathlib.Path(path).is_dir() or not path:
        raise UserError(f"{field}: no such folder: {path!r} (a part in the hub's layout, with its config.json)")
    return pathlib.Path(path)


def frozen_dtype(name: str) -> jnp.dtype:
    """The dtype of frozen weights and activations: "auto" is bfloat16 on accelerators and float32 on CPU."""
    if name == "auto":
        return jnp.dtype(jnp.float32 if sharding.platform() == "cpu" else jnp.bfloat16)
    if name not in ("float32", "bfloat16"):
        raise UserError(f"model.dtype: {name!r} is not one of auto, float32, bfloat16")
    return jnp.dtype(name)


def delta_table(cfg: NExTGPTConfig) -> Table:
    """The conversion table of this model's delta."""
    return nextgpt_delta.table(cfg)


def abstract_state(cfg: NExTGPTConfig) -> nnx.State:
    """The shapes of all parameters of a model, none of them in memory.

    Raises:
      UserError: as `abstract_model`.
    """
    return nnx.state(abstract_model(lambda: NExTGPTModel(cfg, rngs=make_rngs(0))))


def abstract_model(make: Callable[[], NExTGPTModel]) -> NExTGPTModel:
    """A model without values.

    Raises:
      UserError: the config asks for what a part does not have.
    """
    try:
        return nnx.eval_shape(make)
    except ValueError as error:
        raise UserError(f"config.model: {error}") from None


def part_folders(config: ModelConfig) -> dict[str, tuple[str, str]]:
    """The parts that a config names: by field, the component (as `python -m convert` calls it) and the folder."""
    kinds = {"image": "stable_diffusion", "video": "text_to_video", "audio": "audioldm"}
    named = {"llm": ("llama", config.llm), "encoder": ("imagebind", config.encoder)}
    named |= {f"{m}_decoder": (kinds.get(m, "decoder"), folder) for m, folder in _decoder_folders(config).items()}
    return named | ({"delta": ("delta", config.delta)} if config.delta else {})


def load_system(
    config: ModelConfig,
    *,
    decoder_parts: tuple[str, ...] | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
    verbose: bool = False,
    signals: tuple[SignalTokens, ...] | None = None,
) -> LoadedModel:
    """Builds the model from its base weights; the delta comes from `config.delta`, or is initialised from `seed`.

    `decoder_parts` says what of the decoders is loaded (None: all), `signals` is as for `model_config`. Frozen weights
    get `config.dtype`, trainable ones are float32. On a `mesh` every parameter is placed as sharding.py says, and each
    process reads its part of converted parameters only.

    Raises:
      UserError: a file is missing or does not fit, or the mesh does not fit the model.
    """
    cfg, dtype = model_config(config, signals=signals), frozen_dtype(config.dtype)
    if config.template not in TEMPLATES:
        raise UserError(f"model.template: {config.template!r} is not one of {', '.join(TEMPLATES)}")

    def make():
        return NExTGPTModel(cfg, decoder_parts=decoder_parts, rngs=make_rngs(seed))

    graphdef, abstract = nnx.split(abstract_model(make))
    if mesh:
        abstract = placed(cfg, abstract, mesh)
    sources = {  # where the parameters lie in the model -> (checkpoint, table)
        ("llm",): (config.llm, tables.language_model(cfg.llm).whole(cfg.llm)),
    }
    for encoder, folder in zip(cfg.encoders, encoder_folders(config), strict=True):
        table = tables.encoder(encoder, encoder.media_branches)
        sources["encoders", registry.kind_of(encoder)] = folder, table
    folders = {name: pathlib.Path(folder) for name, folder in _decoder_folders(config).items()}
    for name, decoder in cfg.decoders:
        for part, table in tables.decoder(decoder).items():
            if decoder_parts is None or part in decoder_parts:
                sources["decoders", name, part] = folders[name] / part, table

    leaves = dict(nnx.to_flat_state(abstract))
    filled = {}
    if config.delta:
        delta, taken = _restored_delta(pathlib.Path(config.delta), abstract, delta_table(cfg))
        for path, leaf in nnx.to_flat_state(delta):
            frozen = path[0] == "llm" and not nextgpt_delta.is_lora(path)
            filled[path] = leaf.replace(leaf[...].astype(dtype)) if frozen else leaf
        if verbose:
            print(f"delta {config.delta}: took {', '.join(taken)}")
        if ("llm", "embed_tokens", "embedding") in filled:
            sources[("llm",)] = config.llm, tables.language_model(cfg.llm).layers
    for prefix, (folder, table) in sources.items():
        part = {p[len(prefix) :]: v for p, v in leaves.items() if p[: len(prefix)] == prefix and p not in filled}
        part = {p: v for p, v in part.items() if not nextgpt_delta.is_lora(p)}
        state = read_part(pathlib.Path(folder), nnx.from_flat_state(part.items()), table, dtype, cfg.quantize)
        filled |= {prefix + p: v for p, v in nnx.to_flat_state(state)}
    if missing := leaves.keys() - filled.keys():
        shardings = nnx.from_flat_state([(p, leaves[p].replace(sharding_of(leaves[p]))) for p in sorted(missing)])
        initialize = jax.jit(lambda: nnx.state(make(), lambda path, _: path in missing), out_shardings=shardings)
        initial = initialize()
        filled |= dict(nnx.to_flat_state(initial))
    model = nnx.merge(graphdef, nnx.from_flat_state([(path, filled[path]) for path in leaves]))
    captions = {name: load_tokenizer(folder / "tokenizer") for name, folder in folders.items()}
    return LoadedModel(model, load_tokenizer(config.llm), captions, TEMPLATES[config.template], mesh)


def placed(cfg: NExTGPTConfig, state: nnx.State, mesh: Mesh) -> nnx.State:
    """An abstract state of the model that says where on the mesh each parameter lies.

    Raises:
      UserError: the mesh does not fit the model.
    """
    heads = {"attention heads": cfg.llm.num_attention_heads, "key/value heads": cfg.llm.num_key_value_heads}
    sharding.validate_heads(mesh, **heads)
    if cfg.quantize:
        width, inner = cfg.llm.hidden_size, cfg.llm.intermediate_size
        for axis, n in (("fsdp", width), ("tensor", width), ("tensor", inner)):  # the inputs that each axis cuts
            tile, devices = quantize.block(n, cfg.quantize), mesh.shape[axis]
            if tile < n and (n // devices) % tile:
                raise UserError(
                    f"model.quantize={cfg.quantize}: config.mesh.{axis}={devices} cuts the blocks of {tile} inputs "
                    f"that share a scale (of {n} inputs): take int8, or another size"
                )
    return sharding.place(state, mesh)


def load_trained(
    config: ModelConfig, workdir: str, *, decoder_parts: tuple[str, ...] | None = None, mesh: Mesh | None = None
) -> LoadedModel:
    """The system with trained weights, ready to answer: those of a run's newest checkpoint, or of `config.delta` if
    `workdir` is "".

    Raises:
      UserError: a file is missing or does not fit, or the run belongs to another model.
    """
    if not workdir:
        system = load_system(config, decoder_parts=decoder_parts, mesh=mesh)
    else:
        run = Workdir(workdir)
        config = dataclasses.replace(config, delta=run.base_delta)
        system = load_system(config, decoder_parts=decoder_parts, mesh=mesh, signals=run.signals)
        delta, _ = run.restore_delta(nnx.state(system.model, is_trainable))
        nnx.update(system.model, delta)
    prepare_llm(system.model, mesh)
    return system


def prepare_llm(model: NExTGPTModel, mesh: Mesh | None) -> None:
    """Puts the language model of a system, which may be abstract, into the form that answers fastest, in place: LoRA
    merged into the kernels that are not quantized, and layers apart where that is faster."""
    if runs_unstacked(mesh):
        model.llm.layers = unstack(model.llm.layers, donate=True)
    merge_lora(model.llm)


def runs_unstacked(mesh: Mesh | None) -> bool:
    """Whether the language model answers faster with its layers apart (see layers.unstack), on a mesh or without one.

    Simulated meshes of CPU devices keep them stacked, which compiles sooner.
    """
    platform = sharding.platform(mesh)
    return platform == "gpu" or (platform == "cpu" and mesh is None)


def read_part(folder: pathlib.Path, state: nnx.State, table: Table, dtype, quantization: str) -> nnx.State:
    """A part from converted parameters if the folder has them, and else from the hub's files.

    Kernels that have a scale beside them are quantized one after the other, so that memory holds one of them at most as
    it is in the files.
    """
    leaves = dict(nnx.to_flat_state(state))
    scales = {path[:-1] + ("kernel",): path for path in leaves if path[-1] == "kernel_scale"}
    kept = nnx.from_flat_state([(path, leaf) for path, leaf in leaves.items() if path not in scales.values()])
    if orbax_params.is_converted(folder):
        orbax_params.check(folder, kept)

        def read(part: nnx.State) -> nnx.State:
            return orbax_params.read(folder, part, dtype=dtype)
    else:
        parameters = match(open_checkpoint(folder), kept, table).parameters

        def read(part: nnx.State) -> nnx.State:
            return fill(part, parameters, dtype)

    filled = {}
    for path, scale in scales.items():
        where = sharding_of(leaves[path]), sharding_of(leaves[scale])
        ((_, kernel),) = nnx.to_flat_state(read(nnx.from_flat_state([(path, leaves[path])])))
        made = jax.jit(quantize.quantize_layers, static_argnums=1, out_shardings=where)(kernel[...], quantization)
        filled |= {path: leaves[path].replace(made[0]), scale: leaves[scale].replace(made[1])}
    rest = [(path, leaf) for path, leaf in nnx.to_flat_state(kept) if path not in scales]
    return nnx.from_flat_state([*filled.items(), *nnx.to_flat_state(read(nnx.from_flat_state(rest)))])


def _restored_delta(path: pathlib.Path, state: nnx.State, table: Table) -> tuple[nnx.State, list[str]]:
    if not orbax_params.is_converted(path):
        return nextgpt_delta.load_delta(open_checkpoint(path), state, table)
    wanted, held = nextgpt_delta.saved_delta(path, state)
    return orbax_params.restore(path, wanted), held
