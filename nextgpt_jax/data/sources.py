"""The sources of a mixture: files with a name and, if they are mixed by weight, a weight."""

import collections
import fractions
import math
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nextgpt_jax.errors import UserError

_LARGEST_SUM = 2**30  # of integer shares: order.py multiplies them with positions


class Source(NamedTuple):
    """One entry of a list of data files.

    Attributes:
      name: what metrics call it: short, and unlike those of the others.
      files: a file, a folder or a pattern.
      weight: None: its samples count like those of the other sources.
    """

    name: str
    files: str
    weight: fractions.Fraction | None = None


class Mixture(NamedTuple):
    """How the samples of a run are mixed.

    Attributes:
      names: of the sources.
      shares: of the examples that each source gives, as parts of their sum; None: samples count alike.
      sources: the source of each sample, int64 [samples].
    """

    names: tuple[str, ...]
    shares: tuple[int, ...] | None
    sources: np.ndarray

    def describe(self, examples: int) -> str:
        """What each source gives to a run on this many examples, in one line."""
        counts = np.bincount(self.sources, minlength=len(self.names))
        shares = np.array(self.shares or counts) / sum(self.shares or counts)
        parts = [
            f"{name} ({count:,} samples, {share:.1%} of the examples, {share * examples / max(count, 1):.3g} epochs)"
            for name, count, share in zip(self.names, counts, shares, strict=True)
        ]
        return f"sources: {', '.join(parts)}"


def parse_sources(text: str) -> list[Source]:
    """The sources of a list such as "llava.json,t2m/*.json", or "llava.json:0.5,t2m/*.json:0.2" with weights.

    Raises:
      UserError: a weight is not a positive number, or one source has none and others have.
    """
    entries = [entry.strip() for entry in re.split(r",(?![^{]*\})", text)]
    split = [_split_weight(entry) for entry in entries if entry]
    missing = [files for files, weight in split if weight is None]
    if missing and len(missing) < len(split):
        raise UserError(f"{missing[0]} has no weight, but others have: write {missing[0]}:WEIGHT, or none at all")
    return [
        Source(name, files, weight) for name, (files, weight) in zip(_names([f for f, _ in split]), split, strict=True)
    ]


def _split_weight(entry: str) -> tuple[str, fractions.Fraction | None]:
    files, colon, number = entry.rpartition(":")
    if not colon or re.search(r"[/\\*?\]}]", number) or pathlib.Path(entry).exists():
        return entry, None
    if not re.fullmatch(r"\d{1,9}(\.\d{0,9})?|\.\d{1,9}", number.strip()) or not float(number):
        raise UserError(f"{entry}: {number.strip()!r} is no weight: write a positive number, such as 0.5 or 3")
    return files.strip(), fractions.Fraction(number.strip())


def _names(files: Sequence[str]) -> list[str]:
    """Stems; with their folder, or a number, if they are the same."""
    paths = [_without_pattern(name) for name in files]
    stems = [path.stem for path in paths]
    names = [
        f"{path.parent.name}-{path.stem}" if stems.count(path.stem) > 1 and path.parent.name else path.stem
        for path in paths
    ]
    seen: collections.Counter[str] = collections.Counter()
    for i, name in enumerate(names):
        seen[name] += 1
        while seen[name] > 1 and f"{name}-{seen[name]}" in names:
            seen[name] += 1
        if seen[name] > 1:
            names[i] = f"{name}-{seen[name]}"
    return names


def _without_pattern(files: str) -> pathlib.Path:
    """cc3m/part-{00..99}.tar to cc3m/part, t2m/*.json to t2m."""
    found = re.split(r"[*?\[{]", files, maxsplit=1)[0]
    if found == files:
        return pathlib.Path(files)
    folder, _, stem = found.rpartition("/")
    return pathlib.Path(folder, stem.rstrip("-_.")) if stem.rstrip("-_.") else pathlib.Path(folder or "files")


def mixture_of(files: Sequence[Source], counts: Sequence[int], kept: np.ndarray | None = None) -> Mixture:
    """The mixture of the records of files.

    Args:
      files: the source of each.
      counts: of the records of each.
      kept: the numbers of the records that are samples; None: all.

    Raises:
      UserError: a source has a weight but no sample; or weights have too many digits.
    """
    sources = list(dict.fromkeys(files))
    numbers = np.repeat([sources.index(source) for source in files], counts)
    numbers = numbers if kept is None else numbers[kept]
    names, weights = tuple(source.name for source in sources), [source.weight for source in sources if source.weight]
    if not weights:
        return Mixture(names, None, numbers)
    for source, count in zip(sources, np.bincount(numbers, minlength=len(sources)), strict=True):
        if not count:
            raise UserError(f"{source.files}: none of its records can be used")
    return Mixture(names, integer_shares(weights), numbers)


def integer_shares(weights: Sequence[fractions.Fraction]) -> tuple[int, ...]:
    """Weights as the smallest integers in the same proportions.

    Raises:
      UserError: these are too large.
    """
    scale = math.lcm(*(weight.denominator for weight in weights))
    shares = [int(weight * scale) for weight in weights]
    shares = [share // math.gcd(*shares) for share in shares]
    if sum(shares) >= _LARGEST_SUM:
        raise UserError(f"the weights {', '.join(str(float(w)) for w in weights)} have too many digits: round them")
    return tuple(shares)
