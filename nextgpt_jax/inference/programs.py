"""The compiled programs of answering. Each jitted function is compiled once for each combination of its shapes.

Results have explicit shardings on the mesh in use: the compiler's own choice may have no name on the mesh, and could
recompile the next program.
"""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from nextgpt_jax import compiler
from nextgpt_jax.generation import loop, step
from nextgpt_jax.generation.state import DecodeState, insert_rows
from nextgpt_jax.models.diffusion.latent_diffusion import LatentDiffusion
from nextgpt_jax.models.diffusion.schedulers import SamplerState, SamplerTable, init_state
from nextgpt_jax.models.nextgpt import NExTGPTModel
from nextgpt_jax.sharding import constrain, constrain_batch, replicate_params

_OF_LATENTS = np.uint32(2**32 - 1)  # folded into a medium's key for the noise of its latents; steps fold their numbers


def use_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """jax.set_mesh, or nothing without a mesh."""
    return jax.set_mesh(mesh) if mesh else contextlib.nullcontext()


@jax.tree_util.register_pytree_node_class
class FlatModel:
    """A model that is flattened once, not at every call of a program: that takes 15 ms for 2,000 parameters."""

    def __init__(self, model: NExTGPTModel):
        """Later changes of `model` have no effect."""
        self._leaves, treedef = jax.tree.flatten(model)
        self._structure = _Structure(treedef)

    def unflatten(self) -> NExTGPTModel:
        """The model; in a program, with the program's values."""
        return jax.tree.unflatten(self._structure.treedef, self._leaves)

    def tree_flatten(self) -> tuple[list, "_Structure"]:
        """Called by JAX."""
        return self._leaves, self._structure

    @classmethod
    def tree_unflatten(cls, structure: "_Structure", leaves: Sequence) -> "FlatModel":
        """Called by JAX."""
        flat = object.__new__(cls)
        flat._leaves, flat._structure = list(leaves), structure
        return flat


def part(model: NExTGPTModel, *, encoders: bool = False, decoder: str = "") -> FlatModel:
    """The language model and the projections, the encoders only if asked for, and at most one decoder.

    A program takes its model parameter by parameter, used or not: with all 2,000 of the keypad model that is 0.8 ms of
    each call, with those of its language model 0.05.
    """
    chosen = copy.copy(model)  # shallow: a model has thousands of modules
    if not encoders:
        chosen.encoders = nnx.Dict()
    chosen.decoders = nnx.Dict({decoder: chosen.decoders[decoder]} if decoder else {})
    return FlatModel(chosen)


class _Structure:
    """A tree definition whose hash is computed once, and which equals itself without a comparison."""

    def __init__(self, treedef: jax.tree_util.PyTreeDef):
        self.treedef, self._hash = treedef, hash(treedef)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Structure) and self.treedef == other.treedef)


class Progress(NamedTuple):
    """The fields of a DecodeState that tell which tokens and signal groups are known so far."""

    tokens: Int[Array, "b n"]
    num_tokens: Int[Array, " b"]
    next_token: Int[Array, " b"]
    done: Bool[Array, " b"]
    stopped: Bool[Array, " b"]
    length: Int[Array, " b"]
    num_groups: Int[Array, " b"]
    group_modality: Int[Array, "b g"]


@functools.partial(compiler.jit, static_argnames="modality")
def encode_media(model: FlatModel, media, *, modality):
    """Encoder embeddings of a batch of preprocessed media."""
    return constrain_batch(model.unflatten().encode_media(modality, media))


@functools.partial(compiler.jit, static_argnames=("config", "slots"))
def prefill(model: FlatModel, ids, lengths, media, params, config, slots=None):
    """The decode state after the prompts `ids` [B, P] with their media (see NExTGPTModel.embed_prompt).

    `slots` of the cache: see `step.prefill`.
    """
    model = model.unflatten()
    return _constrain_state(step.prefill(model, model.embed_prompt(ids, media), lengths, params, config, slots))


@functools.partial(compiler.jit, static_argnames="rows")
def no_rows(state: DecodeState, *, rows):
    """A state of `rows` rows that are done, with the sizes of `state`."""

    def zeros(axis, x):
        shape = list(x.shape)
        shape[axis] = rows
        return jnp.zeros(shape, x.dtype)

    cache = jax.tree.map(lambda x: zeros(x.ndim - 4, x), state.cache)
    others = jax.tree.map(lambda x: zeros(0, x), dataclasses.replace(state, cache={}))
    return _constrain_state(dataclasses.replace(others, cache=cache, done=jnp.ones(rows, bool)))


@functools.partial(compiler.jit, donate_argnums=0)
def join(state: DecodeState, rows, new: DecodeState):
    """`insert_rows`; a row of `new` whose index in `rows` is out of range is dropped."""
    return _constrain_state(insert_rows(state, rows, new))


@functools.partial(compiler.jit, donate_argnums=0)
def leave(state: DecodeState, row):
    """The state with a row (traced) that is done, whatever it was."""
    return _constrain_state(dataclasses.replace(state, done=state.done.at[row].set(True)))


@compiler.jit
def group_hidden(state: DecodeState, row):
    """The hidden states of the signal groups of a row (traced): [G, W, D]."""
    return state.group_hidden[row]


@functools.partial(compiler.jit, static_argnames="config", donate_argnums=1)
def decode(model: FlatModel, state, max_steps, config):
    """The state after at most `max_steps` (traced) further steps, and its Progress."""
    state = _constrain_state(loop.decode(model.unflatten(), state, config, max_steps))
    return state, Progress(*(getattr(state, name) for name in Progress._fields))


def _constrain_state(state: DecodeState) -> DecodeState:
    def cache(x):
        return constrain(x, *[None] * (x.ndim - 4), "batch", None, "heads", None)

    fields = {name: jax.tree.map(cache if name == "cache" else constrain_batch, x) for name, x in vars(state).items()}
    return DecodeState(**fields)


@functools.partial(compiler.jit, static_argnames="modality")
def encode_caption(model: FlatModel, ids, *, modality):
    """Prompt embeddings of a decoder's own text encoder."""
    return constrain_batch(model.unflatten().decoders[modality].encode_prompt(ids))


@functools.partial(compiler.jit, static_argnames=("modality", "size"))
def start_sampling(model: FlatModel, hidden, table, seeds, indices, media=None, spread=None, *, modality, size):
    """The sampler's first state and the prompt embeddings, from the hidden states [B, W, D] at signal tokens.

    All noise of a medium depends on its seed and its index in its answer.

    Args:
      media: to begin from (see `editing.encoder_inputs`); None: from noise alone.
      spread: of their latents: 1 draws them from the autoencoder's distribution, 0 takes its mean.
      size: arguments of `latent_shape`.
    """
    model = model.unflatten()
    ids = jnp.array(model.config.vocabulary.signal_ids(modality))
    prompt_embeds = model.prompt_embeddings(modality, hidden, jnp.broadcast_to(ids, hidden.shape[:2]))
    decoder = model.decoders[modality]
    shape = decoder.config.latent_shape(*size)
    keys = jax.vmap(lambda s, i: jax.random.fold_in(jax.random.key(s), i))(seeds, indices)
    noise, clean = jax.vmap(lambda key: jax.random.normal(key, shape))(keys), None
    if media is not None:
        drawn = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, _OF_LATENTS), shape))(keys)
        pixels = media if decoder.config.medium == "audio" else media.astype(jnp.float32) / 255
        clean = decoder.encode(constrain_batch(pixels), spread * drawn, hidden.dtype)
    return _constrain_sampler(init_state(table, noise, keys, clean)), constrain_batch(prompt_embeds)


@compiler.jit
def shared_prompt(embeds, prompt_embeds):
    """Prompt embeddings [1, L, D] for all rows of others."""
    return constrain_batch(jnp.broadcast_to(embeds, prompt_embeds.shape).astype(prompt_embeds.dtype))


@functools.partial(compiler.jit, static_argnames="modality", donate_argnums=1)
def denoise_media(
    model: FlatModel, state, prompt_embeds, negative_prompt_embeds, table, guidance_scale, first, last, *, modality
):
    """`denoise` by the decoder of a modality; `first` and `last` are traced."""
    arguments = (state, prompt_embeds, negative_prompt_embeds, table, guidance_scale, first, last)
    return denoise(model.unflatten().decoders[modality], *arguments)


@functools.partial(compiler.jit, static_argnames=("modality", "dtype"))
def decode_media(model: FlatModel, latents, *, modality, dtype):
    """Media from latents: uint8 [B, ..., H, W, 3] of images and videos, float32 [B, samples] of audio."""
    decoder = model.unflatten().decoders[modality]
    media = decoder.decode(latents, dtype)
    return constrain_batch(media if decoder.config.medium == "audio" else jnp.round(media * 255).astype(jnp.uint8))


def denoise(
    decoder: LatentDiffusion,
    state: SamplerState,
    prompt_embeds: Float[Array, "b l d"],
    negative_prompt_embeds: Float[Array, "_ l d"],
    table: SamplerTable,
    guidance_scale: Float[Array, " b"],
    first: Int[Array, ""] | int,
    last: Int[Array, ""] | int,
) -> SamplerState:
    """`decoder.denoise` for a batch on the mesh in use, with the UNet's weights gathered once, before its loop."""
    graphdef, unet, rest = nnx.split(decoder, lambda path, _: path[0] == "unet", ...)
    decoder = nnx.merge(graphdef, replicate_params(unet), rest)
    arguments = (prompt_embeds, negative_prompt_embeds, table, guidance_scale, first, last)
    return _constrain_sampler(decoder.denoise(state, *arguments))


def _constrain_sampler(state: SamplerState) -> SamplerState:
    return SamplerState(
        sample=constrain_batch(state.sample),
        anchor=constrain_batch(state.anchor),
        history=constrain_batch(state.history, axis=1),
        keys=None if state.keys is None else constrain_batch(state.keys),
    )
