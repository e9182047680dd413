"""The Fréchet distance between features of what was made and of references, by any network (fid.py, sound.py)."""

import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.metrics.gaussians import FrechetDistance, Gaussian, blocks
from nextgpt_jax.evaluation.metrics.outputs import missing, of_made, reference
from nextgpt_jax.evaluation.types import Outcome, Sample

Paths = Sequence[str | os.PathLike]
_SUFFIXES = {  # of references in a folder
    "image": (".bmp", ".jpg", ".jpeg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
    "video": (".mp4", ".avi", ".mkv", ".mov", ".webm", ".gif"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".m4a"),
}
_PART = 256  # references whose features are in memory


class Frechet:
    """The Fréchet distance between the features of what was made and those of the references.

    Each file has one feature, or several (frames). Answers without a medium are left out; "missing" counts them.

    Args:
      name, figure, protocol: see types.Metric; the figure's name.
      features: from files to their features [n, d] or [n, k, d].
      width: d.
      count: k, the features of each file.
      modality: of the files.
      references: a file of statistics (mu and sigma in .npz, as pytorch-fid saves them), or a folder of files; "":
        the samples' own references of the modality, each file once.
      samples: of the run, for their references.

    Raises:
      UserError: there are no references.
    """

    higher_is_better = False

    def __init__(
        self,
        features: Callable[[Paths], Float[np.ndarray, "n ..."]],
        samples: Sequence[Sample],
        *,
        width: int,
        count: int = 1,
        modality: str,
        references: str | os.PathLike = "",
        name: str,
        figure: str,
        protocol: str,
    ):
        self.name, self.protocol, self.modality = name, protocol, modality
        self._features, self._figure, self._width, self._count = features, figure, width, count
        self._statistics: Gaussian | None = None
        self._files: Paths = ()
        if not os.fspath(references):
            files = [reference(sample, modality) for sample in samples]
            self._files = list({str(file): file for file in files}.values())  # files that are made stay unmade so far
        elif os.fspath(references).endswith(".npz"):
            self._statistics = Gaussian.read(pathlib.Path(references))
            if (found := len(self._statistics.mean)) != width:
                raise UserError(f"{references} has statistics of {found} features, and {name} {width}")
        else:
            self._files = _files(pathlib.Path(references), modality)

    def measure(self, outcomes: Sequence[Outcome]) -> Float[np.ndarray, "n s"]:
        """The features of each answer, one after the other."""

        def features(_: Sequence[Outcome], files: Paths) -> Float[np.ndarray, "n s"]:
            return self._features(files).reshape(len(files), -1)

        return of_made(outcomes, self.modality, self._count * self._width, features)

    def aggregate(self, numbers: Float[np.ndarray, "n s"]) -> dict[str, float]:
        """The distance. The features of references are computed once, at the first call.

        Raises:
          UserError: a reference cannot be read, or there are fewer than two of either kind.
        """
        made = Gaussian.of(blocks(numbers, self._width))
        return {self._figure: self._distance(made)} | missing(numbers)

    def scores(self, numbers: Float[np.ndarray, "n s"]) -> None:
        """None: it is no sum over answers."""

    @functools.cached_property
    def _distance(self) -> FrechetDistance:
        return FrechetDistance(self._statistics or Gaussian.of(self._of_references()))

    def _of_references(self) -> Iterator[Float[np.ndarray, "n d"]]:
        for start in range(0, len(self._files), _PART):
            yield self._features(self._files[start : start + _PART]).reshape(-1, self._width)


def _files(folder: pathlib.Path, modality: str) -> list[pathlib.Path]:
    if not folder.is_dir():
        raise UserError(f"references: {folder} is neither a folder nor a file of statistics (.npz)")
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES[modality])
    if not found:
        raise UserError(f"references: {folder} holds no {modality} ({', '.join(_SUFFIXES[modality])})")
    return found
