"""Means and covariances of features, in float64 and bounded memory, and the Fréchet distance of two of them."""

import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float

from nextgpt_jax.errors import UserError, first_line

_BLOCK = 512  # rows that are read at a time


class Gaussian(NamedTuple):
    """The moments of features: the covariance is divided by n - 1, as numpy.cov does."""

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]

    @classmethod
    def of(cls, blocks: Iterable[Float[np.ndarray, "n d"]]) -> "Gaussian":
        """Of features that come in blocks, by the formulas of Chan et al. for joining moments.

        Raises:
          UserError: there are fewer than two.
        """
        count, mean, scatter = 0, np.zeros(()), np.zeros(())
        for block in blocks:
            if not len(block):
                continue
            block = np.asarray(block, np.float64)
            if not np.isfinite(block).all():
                raise UserError("features have values that are not finite")
            own = block.mean(0)
            centered = block - own
            total, shift = count + len(block), own - mean
            scatter = scatter + centered.T @ centered
            if count:
                scatter += np.outer(shift, shift) * (count * len(block) / total)
            mean, count = mean + shift * (len(block) / total), total
        if count < 2:
            raise UserError(f"the distance of distributions needs at least 2 samples, and there are {count}")
        return cls(mean, scatter / (count - 1))

    @classmethod
    def read(cls, path: pathlib.Path) -> "Gaussian":
        """From a file that pytorch-fid has saved: mu and sigma in .npz.

        Raises:
          UserError: it cannot be read, or holds something else.
        """
        try:
            with np.load(path) as file:
                mean, covariance = (np.asarray(file[name], np.float64) for name in ("mu", "sigma"))
        except FileNotFoundError:
            raise UserError(f"no such statistics: {path}") from None
        except Exception as error:  # numpy and zipfile raise many types
            raise UserError(f"{path} is no file of statistics, mu and sigma: {first_line(error)}") from None
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise UserError(f"{path}: mu is {list(mean.shape)} and sigma {list(covariance.shape)}, not [d] and [d, d]")
        return cls(mean, covariance)

    def save(self, path: pathlib.Path) -> None:
        """Writes a file that `read` and pytorch-fid read."""
        np.savez_compressed(path, mu=self.mean, sigma=self.covariance)


def blocks(numbers: Float[np.ndarray, "n s"], width: int) -> Iterator[Float[np.ndarray, "m {width}"]]:
    """Features of `width` in rows of several, in blocks; rows of NaN are left out."""
    for start in range(0, len(numbers), _BLOCK):
        block = np.asarray(numbers[start : start + _BLOCK])
        yield block[~np.isnan(block[:, 0])].reshape(-1, width)


class FrechetDistance:
    """The squared Fréchet distance (Dowson and Landau 1982) from one Gaussian to others:

        |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)).

    The eigenvalues of C1 C2 are those of the symmetric F^T C2 F with C1 = F F^T, which are real and not negative, so
    that neither the root of a matrix that is not symmetric nor an offset of singular covariances is needed. Equals
    calculate_frechet_distance of pytorch-fid.
    """

    def __init__(self, reference: Gaussian):
        self.reference = reference
        self._factor = _factor(reference.covariance)

    def __call__(self, other: Gaussian) -> float:
        if other.mean.shape != self.reference.mean.shape:
            raise UserError(f"features of {len(other.mean)} and {len(self.reference.mean)} numbers can't be compared")
        shift = self.reference.mean - other.mean
        eigenvalues = scipy.linalg.eigvalsh(self._factor.T @ other.covariance @ self._factor)
        root = np.sqrt(np.maximum(eigenvalues, 0)).sum()
        traces = np.trace(self.reference.covariance) + np.trace(other.covariance)
        return float(shift @ shift + traces - 2 * root)


def _factor(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d r"]:
    """F with F F^T = covariance."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:  # of fewer samples than features
        values, vectors = scipy.linalg.eigh(covariance, driver="evd")
        kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
        return vectors[:, kept] * np.sqrt(values[kept])
