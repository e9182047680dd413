"""FID of images and of videos' frames, IS of images, and the Fréchet distance between embeddings of the system's own
encoder."""

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from nextgpt_jax.evaluation.features.inception import InceptionFeatures
from nextgpt_jax.evaluation.metrics.frechet import Frechet, Paths
from nextgpt_jax.evaluation.metrics.inception_score import SEED, SPLITS, inception_score
from nextgpt_jax.evaluation.metrics.outputs import missing, of_made
from nextgpt_jax.evaluation.types import Outcome, Sample
from nextgpt_jax.pipeline.imagebind import ImageBind


class FID(Frechet):
    """The Fréchet Inception distance (Heusel et al. 2017), as pytorch-fid or clean-fid compute it.

    Args:
      inception: pytorch-fid's weights (`config.eval.inception`).
      samples, references, modality: see Frechet; "image" or "video".
      resize: "pytorch-fid": bilinear without antialiasing, values 2 x / 255 - 1; "clean-fid": Pillow's bicubic filter,
        values (x - 128) / 128.
      frames: of each video, evenly spaced; each of them counts as an image.
      batch: images that are computed together; None: 8 on a CPU, whose caches larger batches leave, 32 elsewhere.

    Raises:
      UserError: weights or references are missing or do not fit.
    """

    def __init__(
        self,
        inception: str | os.PathLike,
        samples: Sequence[Sample],
        *,
        modality: str = "image",
        references: str | os.PathLike = "",
        resize: str = "pytorch-fid",
        frames: int = 16,
        batch: int | None = None,
    ):
        network = InceptionFeatures(inception, resize=resize, batch=batch)
        of = f"{frames} frames of each video" if modality == "video" else "images"
        super().__init__(
            (lambda paths: network.videos(paths, frames)) if modality == "video" else network.images,
            samples,
            width=network.width,
            count=frames if modality == "video" else 1,
            modality=modality,
            references=references,
            name="fid",
            figure="FID",
            protocol=f"{of}, {resize}'s resize to 299 pixels, {network.width:,} features of pytorch-fid's Inception",
        )


class InceptionScore:
    """The Inception score (Salimans et al. 2016): the mean over splits of answers in random order.

    Args:
      inception, resize, batch: see FID.
      splits: see inception_score.
    """

    name = "inception_score"
    higher_is_better = True

    def __init__(
        self,
        inception: str | os.PathLike,
        *,
        resize: str = "pytorch-fid",
        splits: int = SPLITS,
        batch: int | None = None,
    ):
        self._network, self._splits = InceptionFeatures(inception, resize=resize, batch=batch), splits
        self.protocol = f"{splits} splits in the order of seed {SEED}, {resize}'s resize, logits without bias"

    def measure(self, outcomes: Sequence[Outcome]) -> Float[np.ndarray, "n s"]:
        """The features of each image, of which the logits are a product."""
        return of_made(outcomes, "image", self._network.width, lambda _, files: self._network.images(files))

    def aggregate(self, numbers: Float[np.ndarray, "n s"]) -> dict[str, float]:
        """IS, and its standard deviation over the splits."""
        known = np.flatnonzero(~np.isnan(numbers[:, 0]))
        score, deviation = inception_score(lambda rows: self._network.logits(numbers[known[rows]]), len(known),
                                           self._splits)  # fmt: skip
        return {"IS": score, "IS deviation": deviation} | missing(numbers)

    def scores(self, numbers: Float[np.ndarray, "n s"]) -> None:
        """None: it is no sum over answers."""


class EmbeddingDistance(Frechet):
    """The Fréchet distance between ImageBind's embeddings, for worlds that other networks know nothing of.

    Its values are comparable with those of the same encoder only.

    Args:
      encoder: what ImageBind.from_pretrained takes, such as "keypad", or a loaded one.
      samples, references, modality: see Frechet.
    """

    def __init__(
        self,
        encoder: str | os.PathLike | ImageBind,
        samples: Sequence[Sample],
        *,
        modality: str = "image",
        references: str | os.PathLike = "",
    ):
        imagebind = encoder if isinstance(encoder, ImageBind) else ImageBind.from_pretrained(encoder)
        argument = f"{modality}s"

        def embed(paths: Paths) -> Float[np.ndarray, "n d"]:
            return imagebind.embed(**{argument: [os.fspath(path) for path in paths]})[argument]

        width = imagebind.config.out_embed_dim
        super().__init__(
            embed,
            samples,
            width=width,
            modality=modality,
            references=references,
            name=f"frechet_{modality}",
            figure="Fréchet distance",
            protocol=f"{width:,} numbers of the encoder's embeddings of {argument}",
        )
