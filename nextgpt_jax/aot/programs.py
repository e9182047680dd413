"""The compiled programs of a config, with abstract arguments: a training step, prefill and decode, media samplers."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from nextgpt_jax import compiler, modalities
from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.programs import denoise
from nextgpt_jax.inference.validation import check_defaults
from nextgpt_jax.mesh import data_parallel_mesh
from nextgpt_jax.models.diffusion.schedulers import init_state
from nextgpt_jax.models.nextgpt import NExTGPTConfig, NExTGPTModel, is_trainable
from nextgpt_jax.models.partitioning import move_to_data_parallel, with_shardings
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.sharding import HostBatch, batch_sharding, cache_sharding, replicated, round_up_to_shards
from nextgpt_jax.training.checks import check_config, validate_batch
from nextgpt_jax.training.optimizer import make_optimizer
from nextgpt_jax.training.stages import STAGES
from nextgpt_jax.training.step import jit_step, optimizer_shardings
from nextgpt_jax.weights.assemble import abstract_model, frozen_dtype, model_config
from nextgpt_jax.weights.load import prepare_llm

_CACHE_SLOTS = 128  # KV cache slots for new tokens, after those of the prompt


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function with abstract arguments on a mesh, and the kinds of these, to break memory down by."""

    name: str
    function: Callable
    arguments: tuple
    kinds: tuple[str, ...]  # one per argument
    batch_size: int
    mesh: Mesh
    resident_bytes: float = 0.0  # per device: weights of the same system that this program does not use

    def argument_bytes(self) -> dict[str, float]:
        """Bytes per device of the arguments, by kind."""
        memory: dict[str, float] = {}
        for kind, argument in zip(self.kinds, self.arguments, strict=True):
            memory[kind] = memory.get(kind, 0) + _device_bytes(argument)
        return memory


def program_names() -> tuple[str, ...]:
    """The names that `build_program` takes."""
    return ("step", "prefill", "decode", *modalities.output_modalities())


def default_modalities(stage: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The media of an example if none are given: an image as input (stage 1), output (stage 2), or both (stage 3)."""
    return {"stage1": (("image",), ()), "stage2": ((), ("image",))}.get(stage, (("image",), ("image",)))


def build_program(
    config: ExperimentConfig,
    mesh: Mesh,
    name: str,
    input_modalities: Sequence[str] | None = None,
    output_modalities: Sequence[str] | None = None,
) -> Program:
    """A program by its name; to be called under jax.set_mesh(mesh), like the function of the program.

    Args:
      input_modalities: media of each example of a training step, one of each; None: as `default_modalities`.
      output_modalities: signal groups of each example of a training step, one of each; None: likewise.

    Raises:
      UserError: an unknown name, or the config does not fit the mesh.
    """
    if name not in program_names():
        raise UserError(f"--programs: {name!r} is not one of {', '.join(program_names())}")
    if name == "step":
        inputs, outputs = default_modalities(config.train.stage)
        inputs = inputs if input_modalities is None else input_modalities
        outputs = outputs if output_modalities is None else output_modalities
        return training_program(config, mesh, inputs, outputs)
    return inference_program(config, mesh, name)


def training_program(
    config: ExperimentConfig, mesh: Mesh, input_modalities: Sequence[str], output_modalities: Sequence[str]
) -> Program:
    """The step of the config's stage. Every example has one medium of each of `input_modalities`, and one signal group
    of each of `output_modalities`.

    Raises:
      UserError: a modality is unknown, or the config does not fit the mesh.
    """
    check_config(config)
    cfg = model_config(config.model, use_published_defaults=True)
    decoders = dict(cfg.decoders)
    for names, known in ((input_modalities, modalities.MODALITIES), (output_modalities, decoders)):
        for name in names:
            if name not in known:
                raise UserError(f"{name!r} is not one of {', '.join(known)}")
    model = _abstract_model(cfg, mesh, config, ("text_encoder",))
    graphdef, trainable, frozen = nnx.split(model, STAGES[config.train.stage].trainable, ...)
    tx = make_optimizer(config.optim, 1000, config.train.ema_decay)
    opt = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(tx.init, trainable),
        optimizer_shardings(tx, trainable, mesh),
    )
    b, length = validate_batch(mesh, config).size, config.data.max_length
    batch = {
        "tokens": _sharded(mesh, (b, length), jnp.int32),
        "lengths": _sharded(mesh, (b,), jnp.int32),
        "loss_mask": _sharded(mesh, (b, length), bool),
        "media": {
            name: {
                "input": _sharded(mesh, (b, 1, *cfg.input_encoders[name].input_shape(name)), jnp.float32),
                "positions": _sharded(mesh, (b, 1), jnp.int32),
            }
            for name in input_modalities
        },
        "signals": {
            name: {
                "positions": _sharded(mesh, (b, 1, len(cfg.vocabulary.signal_ids(name))), jnp.int32),
                "captions": _sharded(mesh, (b, 1, decoders[name].caption_length), jnp.int32),
                "mask": _sharded(mesh, (b, 1), bool),
            }
            for name in output_modalities
        },
    }
    step = jit_step(graphdef, tx, config, trainable, opt, mesh)
    number = _replicated(mesh, (), jnp.uint32)
    kinds = ("trained weights", "optimizer", "frozen weights", "batch", "batch")
    return Program(config.train.stage, step, (trainable, opt, frozen, batch, number), kinds, b, mesh)


def inference_program(config: ExperimentConfig, mesh: Mesh, name: str) -> Program:
    """Prefill of a prompt, one decode step, or ("image", "video", ...) the whole sampling loop of a decoder.

    The rest of the system's weights are counted as resident.

    Raises:
      UserError: the model has no such decoder, or the config does not fit the mesh.
    """
    cfg = model_config(config.model, use_published_defaults=True)
    check_config(config)
    sampler = name not in ("prefill", "decode")
    if sampler:
        if name not in cfg.output_modalities:
            raise UserError(f"--programs={name}: this model has no decoder for it")
        check_defaults(config.generation, [name])
    model = _abstract_model(cfg, mesh, config, None)
    prepare_llm(model, mesh)
    move_to_data_parallel(model, mesh)
    return _sampling_program(config, mesh, model, name) if sampler else _llm_program(config, mesh, model, name)


def _sampling_program(config: ExperimentConfig, mesh: Mesh, model: NExTGPTModel, name: str) -> Program:
    graphdef, unet, rest = nnx.split(model, lambda path, _: path[:3] == ("decoders", name, "unet"), ...)
    mesh, dtype = data_parallel_mesh(mesh), frozen_dtype(config.model.dtype)
    options, decoder = getattr(config.generation, name), dict(model.config.decoders)[name]
    b = round_up_to_shards(options.batch, mesh)
    table = decoder.scheduler.with_sampler(options.sampler).sampler_table(options.num_inference_steps)
    span = (0, int(table.num_evaluations))
    table = jax.tree.map(lambda x: _replicated(mesh, np.shape(x), np.asarray(x).dtype), table)
    shape = decoder.latent_shape(*(getattr(options, field) for field in modalities.MODALITIES[name].size))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), b))
    latents = jax.eval_shape(init_state, table, jax.ShapeDtypeStruct((b, *shape), jnp.float32), keys)
    latents = jax.tree.map(lambda x: _sharded(mesh, x.shape, x.dtype, b), latents)

    def sample(unet, latents, *arguments):
        return denoise(nnx.merge(graphdef, unet, rest).decoders[name], latents, *arguments, *span)

    arguments = (
        unet,
        latents,
        _sharded(mesh, (b, *decoder.prompt_shape), dtype),
        _replicated(mesh, (1, *decoder.prompt_shape), dtype),
        table,
        _sharded(mesh, (b,), jnp.float32),
    )
    kinds = ("weights", "latents", "prompts", "prompts", "sampler", "sampler")
    return Program(name, compiler.jit(sample, donate_argnums=1), arguments, kinds, b, mesh, _device_bytes(rest))


def _llm_program(config: ExperimentConfig, mesh: Mesh, model: NExTGPTModel, name: str) -> Program:
    tied = model.config.llm.tie_word_embeddings

    def used(path: tuple, _) -> bool:  # the embedding table only as a tied head: prompts come embedded
        return path[0] == "signal_head" or (path[0] == "llm" and (tied or path[1] != "embed_tokens"))

    graphdef, state, rest = nnx.split(model, used, ...)
    b, prompt = HostBatch(mesh, config.data.batch_size).size, config.data.max_length
    dtype = frozen_dtype(config.model.dtype)
    cache = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cache_sharding(mesh, x.ndim == 5)),
        jax.eval_shape(lambda: model.llm.init_cache(b, prompt + _CACHE_SLOTS, dtype)),
    )
    length = prompt if name == "prefill" else 1

    def feed(state, embeddings, positions, cache):
        model = nnx.merge(graphdef, state, rest)
        hidden, cache = model.llm(embeddings, positions=None if name == "prefill" else positions, cache=cache)
        return model.logits(hidden[:, -1]), cache

    arguments = (
        state,
        _sharded(mesh, (b, length, model.config.llm.hidden_size), dtype),
        _sharded(mesh, (b, length), jnp.int32),
        cache,
    )
    kinds = ("weights", "activations", "activations", "cache")
    return Program(name, compiler.jit(feed, donate_argnums=3), arguments, kinds, b, mesh, _device_bytes(rest))


def _abstract_model(
    cfg: NExTGPTConfig, mesh: Mesh, config: ExperimentConfig, decoder_parts: tuple[str, ...] | None
) -> NExTGPTModel:
    """The model without values: trainable parameters in float32, frozen ones in the dtype they are loaded in.

    Raises:
      UserError: the config does not fit the mesh.
    """
    dtype = frozen_dtype(config.model.dtype)
    model = abstract_model(lambda: NExTGPTModel(cfg, decoder_parts=decoder_parts, rngs=make_rngs(0)))
    graphdef, state = nnx.split(model)

    def with_dtype(path, leaf):
        cast = not is_trainable(path) and path[-1] != "kernel_scale" and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.replace(jax.ShapeDtypeStruct(leaf.shape, dtype if cast else leaf.dtype))

    state = nnx.from_flat_state([(path, with_dtype(path, leaf)) for path, leaf in nnx.to_flat_state(state)])
    return nnx.merge(graphdef, with_shardings(cfg, state, mesh))


def _sharded(mesh: Mesh, shape: tuple[int, ...], dtype: Any, batch_size: int | None = None) -> jax.ShapeDtypeStruct:
    """An array with the batch as its first axis; replicated if `batch_size` is given and is not that axis's size."""
    sharding = batch_sharding(mesh) if batch_size is None or shape[:1] == (batch_size,) else replicated(mesh)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _replicated(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))


def _device_bytes(tree: Any) -> float:
    """Bytes per device of abstract arrays."""

    def size(x: jax.ShapeDtypeStruct) -> float:
        random_keys = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        bits = 8 * x.dtype.itemsize if random_keys else jax.dtypes.itemsize_bits(x.dtype)
        return math.prod(x.sharding.shard_shape(x.shape)) * bits / 8

    return sum(map(size, jax.tree.leaves(tree)))
