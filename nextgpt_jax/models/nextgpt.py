"""NExT-GPT: the three tiers put together. The only model file that knows all of them.

    media -> encoder -> input_proj -> llm (+ LoRA) -> output_proj -> decoder -> media

The new tokens of its vocabulary (see modalities.py) have embeddings and head columns of their own (signal_embed,
signal_head), so that the base vocabulary stays frozen.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from nextgpt_jax.modalities import MODALITIES, RELEASED, SignalTokens, Vocabulary
from nextgpt_jax.models.connectors.projectors import InputProjector, OutputProjectorConfig, output_projector
from nextgpt_jax.models.diffusion.audioldm import AudioLDM, AudioLDMConfig
from nextgpt_jax.models.diffusion.stable_diffusion import StableDiffusion, StableDiffusionConfig
from nextgpt_jax.models.diffusion.text_to_video import TextToVideo, TextToVideoConfig
from nextgpt_jax.models.encoders.imagebind import ImageBind, ImageBindConfig
from nextgpt_jax.models.layers import LoRAConfig
from nextgpt_jax.models.llms.llama import Llama, LlamaConfig

DecoderConfig = StableDiffusionConfig | TextToVideoConfig | AudioLDMConfig
DECODERS = {  # modality -> its decoder's config and module
    "image": (StableDiffusionConfig, StableDiffusion),
    "video": (TextToVideoConfig, TextToVideo),
    "audio": (AudioLDMConfig, AudioLDM),
}


@dataclasses.dataclass(frozen=True)
class NExTGPTConfig:
    """Everything that fixes the shapes of the model's parameters."""

    llm: LlamaConfig
    encoder: ImageBindConfig | None
    lora: LoRAConfig | None
    input_projector: str
    input_dim: int  # width of the encoder's embeddings
    output_projectors: tuple[tuple[str, OutputProjectorConfig], ...]  # (modality, projector)
    decoders: tuple[tuple[str, DecoderConfig], ...] = ()  # (modality, decoder)
    signals: tuple[SignalTokens, ...] = RELEASED  # of the output modalities, in the order of their token ids
    quantize: str = ""  # how the language model's kernels are kept: see quantize.py

    def __post_init__(self):
        if self.encoder and self.encoder.out_embed_dim != self.input_dim:
            raise ValueError(f"the encoder gives {self.encoder.out_embed_dim} features, not {self.input_dim}")
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
    def encoder_branches(self) -> tuple[str, ...]:
        """The branches of the encoder that read media: all that it has but text, which the language model reads."""
        return tuple(name for name in self.encoder.modalities if name != "text")

    @property
    def input_modalities(self) -> tuple[str, ...]:
        """The modalities that can be shown, in the order of the table."""
        return tuple(name for name, row in MODALITIES.items() if self.encoder and row.encoder in self.encoder_branches)


class NExTGPTModel(nnx.Module):
    """Parameters of the whole system.

    `decoder_parts` chooses what of each decoder is built (None: all): training needs only the text encoder, whose
    caption embeddings are the targets of the output projections; answering needs all.
    """

    def __init__(
        self,
        cfg: NExTGPTConfig,
        *,
        decoder_parts: tuple[str, ...] | None = None,
        rngs: nnx.Rngs,
    ):
        self.config = cfg
        width = cfg.llm.hidden_size
        self.encoder = ImageBind(cfg.encoder, modalities=cfg.encoder_branches, rngs=rngs) if cfg.encoder else None
        self.input_proj = InputProjector(cfg.input_dim, width, kind=cfg.input_projector, rngs=rngs)
        self.llm = Llama(cfg.llm, lora=cfg.lora, quantization=cfg.quantize, rngs=rngs)
        init = nnx.initializers.normal(0.02)
        new = len(cfg.vocabulary.new_tokens)
        self.signal_embed = nnx.Param(init(rngs.params(), (new, width)))
        self.signal_head = nnx.Param(init(rngs.params(), (new, width)))
        self.output_proj = nnx.Dict({name: output_projector(c, rngs=rngs) for name, c in cfg.output_projectors})
        components = {} if decoder_parts is None else {"components": decoder_parts}
        self.decoders = nnx.Dict({name: DECODERS[name][1](c, **components, rngs=rngs) for name, c in cfg.decoders})

    def encode(self, modality: str, media: Float[Array, "n ..."]) -> Float[Array, "n e"]:
        """Encoder embeddings of preprocessed media (`ImageBindConfig.input_shape`), one a medium."""
        row = MODALITIES[modality]
        return (self.encoder.embed_views if row.views else self.encoder.embed)(row.encoder, media)

    def embed_tokens(self, ids: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """Input embeddings of base and new tokens."""
        base = self.llm.config.vocab_size
        known = self.llm.embed_tokens(jnp.minimum(ids, base - 1))
        new = self.signal_embed[...][jnp.clip(ids - base, 0)].astype(known.dtype)
        return jnp.where((ids < base)[..., None], known, new)

    def embed_prompt(
        self, ids: Int[Array, "b t"], media: Float[Array, "b m e"], positions: Int[Array, "b m"]
    ) -> Float[Array, "b t d"]:
        """Token embeddings with the projected media at their positions; positions outside the row are unused."""
        embeddings = self.embed_tokens(ids)
        projected = self.input_proj(media.astype(embeddings.dtype))
        return jax.vmap(lambda row, at, media: row.at[at].set(media, mode="drop"))(embeddings, positions, projected)

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


def is_trainable(path: tuple, leaf: Any = None) -> bool:
    """Is the parameter at this path of a NExTGPTModel one that some stage trains? The others are frozen for good."""
    return path[0] in ("input_proj", "output_proj", "signal_embed", "signal_head") or path[-1] in ("lora_a", "lora_b")


def output_projector_for(
    decoder: DecoderConfig, num_signal_tokens: int, width: int, **options: Any
) -> OutputProjectorConfig:
    """The output projection from a language model of `width` to what `decoder` is conditioned on."""
    tokens, out_dim = decoder.prompt_shape
    return OutputProjectorConfig(
        in_dim=width,
        out_dim=out_dim,
        num_input_tokens=num_signal_tokens,
        num_output_tokens=tokens,
        **options,
    )
