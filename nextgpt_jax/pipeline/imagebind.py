"""ImageBind alone: media and texts to embeddings in one space."""

import functools
import os
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nextgpt_jax import compiler, media
from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.models.encoders.imagebind import ImageBind as ImageBindModel
from nextgpt_jax.models.encoders.imagebind import ImageBindConfig
from nextgpt_jax.models.rngs import abstract, make_rngs
from nextgpt_jax.pipeline.components import component_folder
from nextgpt_jax.pipeline.types import MediaInput
from nextgpt_jax.weights import tables, weight_files
from nextgpt_jax.weights.assemble import frozen_dtype
from nextgpt_jax.weights.load import read_part
from nextgpt_jax.weights.tokenizers import load_tokenizer

_BATCH = 32  # items of a modality that are encoded together


class ImageBind:
    """ImageBind with its preprocessing: files, PIL images and arrays in, numpy arrays out.

    >>> import nextgpt_jax as ng
    >>> imagebind = ng.ImageBind.from_pretrained("keypad")
    >>> embeddings = imagebind.embed(texts=["a handwritten seven", "the tone of key seven"])
    >>> embeddings["texts"].shape
    (2, 128)
    """

    def __init__(self, model: ImageBindModel, tokenizer=None):
        self._model, self._tokenizer = model, tokenizer

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        *,
        dtype: str | None = None,
        revision: str = "",
        branches: Sequence[str] | None = None,
    ) -> Self:
        """Loads the weights of ImageBind.

        Args:
          name_or_path: a folder with imagebind_huge.pth, or with config.json and weights in safetensors or converted; a
            config whose encoder is meant, such as "keypad"; or a Hub id. Texts need a tokenizer in the folder.
          dtype: "float32" or "bfloat16"; None: bfloat16 on accelerators, float32 on CPUs.
          revision: of a Hub repository.
          branches: the towers to load, such as ("text",); None: all that the model has.

        Raises:
          UserError: there is no such folder, its files do not fit, or it lacks a branch.
        """
        folder = component_folder(name_or_path, "imagebind", "encoder", revision)
        config = ImageBindConfig.from_pretrained(folder)
        if missing := set(branches or ()) - set(config.modalities):
            raise UserError(f"this ImageBind has no {min(missing)} tower (it has {', '.join(config.modalities)})")
        model = abstract(lambda: ImageBindModel(config, branches=branches, rngs=make_rngs(0)))
        table = tables.encoder(config, branches)
        state = read_part(folder, nnx.state(model), table, weight_files.ENCODER, frozen_dtype(dtype or "auto"), "")
        nnx.update(model, state)
        tokenizer = load_tokenizer(folder) if any(folder.glob("tokenizer*")) or any(folder.glob("vocab*")) else None
        return cls(model, tokenizer)

    @property
    def config(self) -> ImageBindConfig:
        """The sizes of the towers."""
        return self._model.config

    @property
    def reads_text(self) -> bool:
        """Whether it has the text tower and its tokenizer."""
        return "text" in self._model.towers and self._tokenizer is not None

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The tokens of texts, of which `embed` reads the first `config.text_context_length`."""
        return [len(ids) for ids in self._tokenizer(list(texts))["input_ids"]]

    def embed(
        self,
        *,
        images: Sequence[MediaInput] = (),
        videos: Sequence[MediaInput] = (),
        audios: Sequence[MediaInput] = (),
        depths: Sequence[MediaInput] = (),
        thermals: Sequence[MediaInput] = (),
        imus: Sequence[MediaInput] = (),
        texts: Sequence[str] = (),
    ) -> dict[str, np.ndarray]:
        """Embeddings, by argument: those of {"images": [...]} are float32 [number of images, width].

        Lengths are those that NExT-GPT uses: images have unit length, videos and audios are means over the unit vectors
        of their views, the others have ImageBind's logit scale. Divide by the norm for cosine similarities.

        Raises:
          UserError: a file cannot be read, or the model lacks the tower of a modality.
        """
        given = {"images": images, "videos": videos, "audios": audios, "depths": depths, "thermals": thermals,
                 "imus": imus}  # fmt: skip
        found = {name: self._embed_media(name[:-1], items) for name, items in given.items() if items}
        return found | ({"texts": self._embed_texts(texts)} if texts else {})

    def _embed_media(self, modality: str, items: Sequence[MediaInput]) -> np.ndarray:
        row = MODALITIES[modality]
        if row.branch not in self._model.towers:
            raise UserError(f"this ImageBind does not read {modality} (it has {', '.join(sorted(self._model.towers))})")
        inputs = [media.load(modality, item, self.config) for item in items]
        return self._batched(row.branch, np.stack(inputs), row.views)

    def _embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        if "text" not in self._model.towers:
            raise UserError(f"this ImageBind does not read text (it has {', '.join(sorted(self._model.towers))})")
        if self._tokenizer is None:
            raise UserError("texts need ImageBind's tokenizer: put the files of CLIP's into its folder")
        length = self.config.text_context_length
        ids = self._tokenizer(list(texts), padding="max_length", truncation=True, max_length=length)["input_ids"]
        return self._batched("text", np.asarray(ids, np.int32), False)

    def _batched(self, branch: str, inputs: np.ndarray, views: bool) -> np.ndarray:
        """Embeddings of any number of inputs, in batches of powers of two, so that few programs are compiled."""
        found = []
        for at in range(0, len(inputs), _BATCH):
            some = inputs[at : at + _BATCH]
            size = 1 << (len(some) - 1).bit_length()
            padded = np.concatenate([some, np.zeros((size - len(some), *some.shape[1:]), some.dtype)])
            found.append(np.asarray(_embed(self._model, jnp.asarray(padded), branch=branch, views=views))[: len(some)])
        return np.concatenate(found)


@functools.partial(compiler.jit, static_argnames=("branch", "views"))
def _embed(model: ImageBindModel, x: jax.Array, *, branch: str, views: bool) -> jax.Array:
    dtype = jax.tree.leaves(nnx.state(model.towers[branch]))[0].dtype
    x = x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
    return (model.embed_views if views else model.embed)(branch, x).astype(jnp.float32)
