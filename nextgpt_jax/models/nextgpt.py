"""NExT-GPT: the three tiers put together. The only model file that knows all of them.

    media -> encoder -> input_proj -> llm (+ LoRA) -> output_proj -> decoder -> media

The new tokens of its vocabulary (see modalities.py) have embeddings and head columns of their own (signal_embed,
signal_head), so that the base vocabulary stays frozen.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from nextgpt_jax.modalities import MODALITIES, RELEASED, SignalTokens, Vocabulary
from nextgpt_jax.models import registry
from nextgpt_jax.models.connectors.projectors import OutputProjectorConfig
from nextgpt_jax.models.diffusion.latent_diffusion import LatentDiffusionConfig
from nextgpt_jax.models.lora import LoRAConfig
from nextgpt_jax.models.rngs import draw


@dataclasses.dataclass(frozen=True)
class NExTGPTConfig:
    """Everything that fixes the shapes of the model's parameters. Configs of parts are those of models/registry.py."""

    llm: Any
    encoders: tuple[Any, ...]
    lora: LoRAConfig | None
    input_projector: str
    output_projectors: tuple[tuple[str, OutputProjectorConfig], ...]  # (modality, projector)
    decoders: tuple[tuple[str, LatentDiffusionConfig], ...] = ()  # (modality, decoder)
    signals: tuple[SignalTokens, ...] = RELEASED  # of the output modalities, in the order of their token ids
    quantize: str = ""  # how the language model's kernels are kept: see quantize.py

    def __post_init__(self):
        if self.input_projector not in registry.INPUT_PROJECTORS:
            known = list(registry.INPUT_PROJECTORS)
            raise ValueError(f"input projection {self.input_projector!r} is not one of {known}")
        kinds = [registry.kind_of(encoder) for encoder in self.encoders]
        if twice := [kind for kind in kinds if kinds.count(kind) > 1]:
            raise ValueError(f"there are two encoders of the kind {twice[0]}")
        projectors = dict(self.output_projectors)
        for name, projector in self.output_projectors:
            if name not in self.vocabulary.output_modalities:
                known = ", ".join(self.vocabulary.output_modalities)
                raise ValueError(f"the vocabulary has no signal tokens for {name} (only for {known})")
            if (count := len(self.vocabulary.signal_ids(name))) != projector.num_input_tokens:
                given = projector.num_input_tokens
                raise ValueError(
                    f"the {name} projection takes {given} hidden states but there are {count} signal tokens"
                )
        for name, decoder in self.decoders:
            given = projectors[name].num_output_tokens, projectors[name].out_dim
            wanted = decoder.prompt_shape
            if given != wanted:
                raise ValueError(
                    f"the {name} projection gives {given[0]} x {given[1]} prompt embeddings but its decoder takes "
                    f"{wanted[0]} x {wanted[1]}"
                )

    @property
    def vocabulary(self) -> Vocabulary:
        """The token ids."""
        return Vocabulary(self.llm.vocab_size, self.signals)

    @property
    def output_modalities(self) -> tuple[str, ...]:
        """The modalities that the model can generate, in the order of their signal tokens."""
        return tuple(name for name in self.vocabulary.output_modalities if name in dict(self.output_projectors))

    @property
    def input_encoders(self) -> dict[str, Any]:
        """The encoder's config of each modality that can be read, in the order of the table."""
        return encoders_by_modality(self.encoders)

    @property
    def embedding_dims(self) -> dict[str, int]:
        """Width of the embeddings of each kind of encoder."""
        return {registry.kind_of(encoder): encoder.out_embed_dim for encoder in self.encoders}

    @property
    def num_embeddings(self) -> dict[str, int]:
        """Embeddings of one medium of each modality that can be read."""
        return {name: encoder.num_embeddings(name) for name, encoder in self.input_encoders.items()}

    @property
    def input_modalities(self) -> tuple[str, ...]:
        """The modalities that can be read, in the order of the table."""
        return tuple(self.input_encoders)


def encoders_by_modality(encoders: Sequence[Any]) -> dict[str, Any]:
    """The encoder's config of each modality that some encoders read, in the order of the table."""
    by_kind = {registry.kind_of(encoder): encoder for encoder in encoders}
    rows = [(name, row, by_kind.get(row.encoder)) for name, row in MODALITIES.items()]
    return {name: encoder for name, row, encoder in rows if encoder and row.branch in encoder.media_branches}


class NExTGPTModel(nnx.Module):
    """Parameters of the whole system.

    `decoder_parts` chooses what of each decoder is built (None: all): training needs only the text encoder, whose
    caption embeddings are the targets of the output projections; generation needs all. Without `with_encoders`, media
    have to come as embeddings.
    """

    def __init__(
        self,
        cfg: NExTGPTConfig,
        *,
        decoder_parts: tuple[str, ...] | None = None,
        with_encoders: bool = True,
        rngs: nnx.Rngs,
    ):
        self.config = cfg
        width = cfg.llm.hidden_size
        encoders = {registry.kind_of(c): c for c in cfg.encoders}
        self.encoders = _encoders(cfg, rngs) if with_encoders else nnx.Dict()
        projector = registry.INPUT_PROJECTORS[cfg.input_projector].module
        projectors = {kind: projector(c.out_embed_dim, width, rngs=rngs) for kind, c in encoders.items()}
        # A single one is not named after its encoder: so the released checkpoints have it.
        self.input_proj = next(iter(projectors.values())) if len(projectors) == 1 else nnx.Dict(projectors)
        self.llm = registry.build(cfg.llm, lora=cfg.lora, quantization=cfg.quantize, rngs=rngs)
        init = nnx.initializers.normal(0.02)
        new = len(cfg.vocabulary.new_tokens)
        self.signal_embed = nnx.Param(draw(init, rngs, (new, width)))
        self.signal_head = nnx.Param(draw(init, rngs, (new, width)))
        self.output_proj = nnx.Dict({name: registry.build(c, rngs=rngs) for name, c in cfg.output_projectors})
        components = {} if decoder_parts is None else {"components": decoder_parts}
        self.decoders = nnx.Dict({name: registry.build(c, **components, rngs=rngs) for name, c in cfg.decoders})

    def encode_media(self, modality: str, media: Float[Array, "n ..."]) -> Float[Array, "n k e"]:
        """Encoder embeddings, k a medium, of media of the config's `input_encoders[modality].input_shape(modality)`."""
        return _encode_media(self.encoders, modality, media)

    def embed_tokens(self, ids: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """Input embeddings of base and new tokens."""
        base = self.llm.config.vocab_size
        known = self.llm.embed_tokens(jnp.minimum(ids, base - 1))
        new = self.signal_embed[...][jnp.clip(ids - base, 0)].astype(known.dtype)
        return jnp.where((ids < base)[..., None], known, new)

    def embed_prompt(
        self,
        ids: Int[Array, "b t"],
        media: Mapping[str, tuple[Float[Array, "b _p _e"], Int[Array, "b _p"]]],
    ) -> Float[Array, "b t d"]:
        """Token embeddings with projected media in place.

        `media` are, for each kind of encoder, its embeddings and their positions; those outside the row are unused.
        """
        embeddings = self.embed_tokens(ids)
        for kind, (found, positions) in media.items():
            projector = self.input_proj if len(self.config.encoders) == 1 else self.input_proj[kind]
            projected = projector(found.astype(embeddings.dtype))
            embeddings = jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(
                embeddings, positions, projected
            )
        return embeddings

    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b vocab"]:
        """Scores of the base vocabulary and, after it, the new tokens."""
        return jnp.concatenate([self.llm.logits(hidden), self.new_logits(hidden)], -1)

    def new_logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b n"]:
        """Scores of the new tokens alone."""
        return hidden @ self.signal_head[...].T.astype(hidden.dtype)

    def prompt_embeddings(
        self, modality: str, hidden: Float[Array, "n w d"], ids: Int[Array, "n w"]
    ) -> Float[Array, "n t c"]:
        """What the decoder is conditioned on: the projection of the hidden states at a group of signal tokens."""
        return self.output_proj[modality](hidden, self.embed_tokens(ids).astype(hidden.dtype))


class FrozenEncoders(nnx.Module):
    """The encoders of media and the text encoders of some decoders, called as in NExTGPTModel: what is computed once
    for data that is prepared."""

    def __init__(self, cfg: NExTGPTConfig, *, with_encoders: bool, captions: Collection[str], rngs: nnx.Rngs):
        self.encoders = _encoders(cfg, rngs) if with_encoders else nnx.Dict()
        decoders = {name: c for name, c in cfg.decoders if name in captions}
        self.decoders = nnx.Dict(
            {name: registry.build(c, components=("text_encoder",), rngs=rngs) for name, c in decoders.items()}
        )

    def encode_media(self, modality: str, media: Float[Array, "n ..."]) -> Float[Array, "n k e"]:
        """As NExTGPTModel.encode_media."""
        return _encode_media(self.encoders, modality, media)


def _encoders(cfg: NExTGPTConfig, rngs: nnx.Rngs) -> nnx.Dict:
    return nnx.Dict(
        {registry.kind_of(c): registry.build(c, branches=c.media_branches, rngs=rngs) for c in cfg.encoders}
    )


def _encode_media(encoders: nnx.Dict, modality: str, media: Array) -> Array:
    row = MODALITIES[modality]
    return encoders[row.encoder].encode_media(row.branch, media, views=row.views)


def is_trainable(path: tuple, leaf: Any = None) -> bool:
    """Is the parameter at this path of a NExTGPTModel one that some stage trains? The others are frozen for good."""
    return path[0] in ("input_proj", "output_proj", "signal_embed", "signal_head") or path[-1] in ("lora_a", "lora_b")


def output_projector_for(
    decoder: LatentDiffusionConfig, num_signal_tokens: int, width: int, kind: str, **sizes: int
) -> OutputProjectorConfig:
    """The output projection from a language model of `width` to what `decoder` is conditioned on.

    Raises:
      ValueError: as `registry.output_projector_config`.
    """
    tokens, out_dim = decoder.prompt_shape
    return registry.output_projector_config(kind, width, out_dim, num_signal_tokens, tokens, **sizes)
