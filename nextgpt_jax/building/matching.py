"""Which media of a library fit a text: by the words of their captions, or by ImageBind."""

import abc
import collections
import hashlib
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from nextgpt_jax.building.captions import Caption
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_write
from nextgpt_jax.pipeline.imagebind import ImageBind

_WORD = re.compile(r"\w+")
_STOP = frozenset(
    "a an and are as at be being by for from has have he her his i in into is it its of off on one or over she some "
    "that the their them then there these they this to two up was were what which while who with you your".split()
)
_BATCH = 32  # media that are embedded together
_SAVED = 512  # media between two writings of the cache, at least


class Match(NamedTuple):
    """A medium, and how near it is: a cosine."""

    medium: Caption
    similarity: float


class Library(abc.ABC):
    """Media that can be searched.

    Attributes:
      media: in order.
    """

    def __init__(self, media: Sequence[Caption]):
        self.media = list(media)
        self._numbers = {
            name: np.array([i for i, medium in enumerate(media) if medium.modality == name])
            for name in {medium.modality for medium in media}
        }
        self._found: dict[tuple[str, str, int], list[Match]] = {}

    @property
    def modalities(self) -> set[str]:
        """Those that it has media of."""
        return set(self._numbers)

    def nearest(self, text: str, modality: str, count: int) -> list[Match]:
        """The media of a modality that are nearest to a text, the nearest first."""
        key = (text, modality, count)
        if key not in self._found:
            numbers = self._numbers.get(modality, np.zeros(0, int))
            scores = self._similarities(text)[numbers] if len(numbers) else np.zeros(0)
            near = np.argpartition(-scores, count)[:count] if count < len(scores) else np.arange(len(scores))
            order = near[np.lexsort((near, -scores[near]))]
            self._found[key] = [Match(self.media[numbers[i]], float(scores[i])) for i in order]
        return self._found[key]

    @abc.abstractmethod
    def _similarities(self, text: str) -> np.ndarray:
        """The cosine of each medium, float [media]."""


class WordLibrary(Library):
    """Compares captions by their words, weighted by how rare they are (TF-IDF)."""

    def __init__(self, media: Sequence[Caption]):
        super().__init__(media)
        postings: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
        for number, medium in enumerate(self.media):
            for word, count in collections.Counter(words(medium.text)).items():
                postings[word].append((number, count))
        self._postings, squares = {}, np.zeros(len(self.media))
        for word, found in postings.items():
            numbers, counts = np.array(found).T
            rarity = np.log(1 + len(self.media) / len(numbers))
            weights = (1 + np.log(counts)) * rarity
            squares[numbers] += weights**2
            self._postings[word] = (numbers, weights, rarity)
        self._lengths = np.sqrt(np.maximum(squares, 1e-12))
        self._unknown = np.log(1 + len(self.media))

    def _similarities(self, text: str) -> np.ndarray:
        scores, square = np.zeros(len(self.media)), 0.0
        for word, count in collections.Counter(words(text)).items():
            numbers, weights, rarity = self._postings.get(word, (np.zeros(0, int), np.zeros(0), self._unknown))
            weight = (1 + np.log(count)) * rarity
            scores[numbers] += weight * weights
            square += weight**2
        return scores / self._lengths / max(np.sqrt(square), 1e-6)


def words(text: str) -> list[str]:
    """The words of a text that say what it is about, in lower case and without the plural's s."""
    found = (word.lower() for word in _WORD.findall(text))
    return [word[:-1] if len(word) > 3 and word[-1] == "s" and word[-2] != "s" else word for word in found
            if word not in _STOP]  # fmt: skip


class EmbeddedLibrary(Library):
    """Compares a text's ImageBind embedding with those of the media.

    Attributes:
      unreadable: media that were left out, with the reason.
    """

    def __init__(
        self,
        media: Sequence[Caption],
        imagebind: ImageBind,
        name: str,
        cache: pathlib.Path,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ):
        """
        Args:
          name: of the weights, for the cache.
          cache: a .npz file that keeps embeddings; they are computed anew for files that have changed.
          progress: is told how many of the media have embeddings.

        Raises:
          UserError: ImageBind does not read a modality, the cache is something else, or no medium is readable.
        """
        self._imagebind, self.unreadable = imagebind, list[str]()
        known = _read_cache(cache)
        keys = [_key(medium, name) for medium in media]
        todo = [i for i, key in enumerate(keys) if key not in known]
        unsaved = 0
        for at in range(0, len(todo), _BATCH):
            progress(len(media) - len(todo) + at, len(media))
            some = todo[at : at + _BATCH]
            known |= self._embedded([media[i] for i in some], [keys[i] for i in some])
            unsaved += len(some)
            if unsaved >= max(_SAVED, len(known) // 8) or at + _BATCH >= len(todo):
                _write_cache(cache, known)
                unsaved = 0
        kept = [i for i, key in enumerate(keys) if key in known]
        if not kept:
            raise UserError(f"no medium of the library is readable; the first: {self.unreadable[0]}")
        super().__init__([media[i] for i in kept])
        self._embeddings = np.stack([known[keys[i]] for i in kept])  # [media, width], float16, unit length

    def _embedded(self, media: Sequence[Caption], keys: Sequence[str]) -> dict[str, np.ndarray]:
        found = {}
        for name in {medium.modality for medium in media}:
            some = [(key, medium) for key, medium in zip(keys, media, strict=True) if medium.modality == name]
            try:
                vectors = self._imagebind.embed(**{f"{name}s": [medium.path for _, medium in some]})[f"{name}s"]
                found |= {key: _unit(vector) for (key, _), vector in zip(some, vectors, strict=True)}
            except UserError as error:
                if len(some) == 1:
                    self.unreadable.append(str(error))
                else:  # one of them: each by itself
                    for key, medium in some:
                        found |= self._embedded([medium], [key])
        return found

    def _similarities(self, text: str) -> np.ndarray:
        vector = _unit(self._imagebind.embed(texts=[text])["texts"][0]).astype(np.float32)
        parts = np.array_split(self._embeddings, 1 + len(self._embeddings) // 65536)
        return np.concatenate([part.astype(np.float32) @ vector for part in parts])


def _unit(vector: np.ndarray) -> np.ndarray:
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float16)


def _key(medium: Caption, name: str) -> str:
    assert medium.path is not None
    status = medium.path.stat()
    text = f"{name}\n{medium.modality}\n{medium.path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _read_cache(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        with np.load(path) as content:
            return dict(zip(content["keys"].tolist(), content["embeddings"], strict=True))
    except Exception:  # NumPy raises many types
        raise UserError(f"{path} is no cache of embeddings: move it, or give another --cache") from None


def _write_cache(path: pathlib.Path, known: dict[str, np.ndarray]) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        vectors = np.stack(list(known.values())) if known else np.zeros((0, 1), np.float16)
        np.savez(file, keys=np.array(list(known), "U64"), embeddings=vectors)
