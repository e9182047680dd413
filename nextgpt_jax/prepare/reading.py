"""Media, read and decoded by threads ahead of the encoders; equal contents once."""

import collections
import concurrent.futures
import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nextgpt_jax.data.examples import load_medium
from nextgpt_jax.data.media_files import EmbeddedMedium, Source, resolved
from nextgpt_jax.errors import UserError


class Medium(NamedTuple):
    """A medium that was read.

    Attributes:
      modality: of it.
      sha256: of its content; empty: it cannot be read.
      input: of the encoder, float32; None: that of an earlier medium with the same content.
      reason: why it cannot be read.
    """

    modality: str
    sha256: str = ""
    input: np.ndarray | None = None
    reason: str = ""


class MediaReader:
    """Reads media in order. The same content is decoded and yielded once, the same file is read once."""

    def __init__(
        self,
        wanted: Sequence[tuple[str, Source]],
        encoders: Mapping[str, Any],
        pool: concurrent.futures.Executor,
        ahead: int,
    ):
        """Begins to read.

        Args:
          wanted: modality and place of each medium.
          encoders: configs by modality.
          pool: of threads.
          ahead: media that are read before they are asked for.
        """
        self._wanted, self._encoders, self._pool, self._ahead = wanted, encoders, pool, ahead
        self._lock = threading.Lock()
        self._inputs: dict[tuple[str, str], concurrent.futures.Future] = {}  # by content, of those not yielded yet
        self._claimed: set[tuple[str, str]] = set()
        self._by_source: dict[tuple[str, Source], concurrent.futures.Future] = {}
        self._pending: collections.deque[concurrent.futures.Future] = collections.deque()
        self._submitted = 0
        self._fill()

    def _fill(self) -> None:
        while self._submitted < len(self._wanted) and len(self._pending) < self._ahead:
            key = self._wanted[self._submitted]
            if (future := self._by_source.get(key)) is None:
                future = self._by_source[key] = self._pool.submit(self._read, *key)
            self._pending.append(future)
            self._submitted += 1

    def __iter__(self) -> Iterator[Medium]:
        """A Medium for each that is wanted."""
        for modality, source in self._wanted:
            sha256, reason = self._pending.popleft().result()
            self._fill()
            found = None
            if not reason and (claim := self._inputs.get((modality, sha256))) is not None:
                found, reason = claim.result()
                if reason:  # of another file with this content: the message should name this one
                    reason = self._decode(modality, source)[1]
                else:
                    del self._inputs[modality, sha256]
            yield Medium(modality, "" if reason else sha256, found, reason)

    def _read(self, modality: str, source: Source) -> tuple[str, str]:
        """Content hash, and the reason why there is none."""
        try:
            sha256 = content_hash(source, modality)
        except (UserError, OSError) as error:
            return "", _reason(error, source)
        key = modality, sha256
        with self._lock:
            if key in self._claimed:
                return sha256, ""
            self._claimed.add(key)
            self._inputs[key] = claim = concurrent.futures.Future()
        try:
            claim.set_result(self._decode(modality, source))
        except BaseException as error:  # a bug: whoever waits for the claim has to hear of it
            claim.set_exception(error)
            raise
        return sha256, claim.result()[1]

    def _decode(self, modality: str, source: Source) -> tuple[np.ndarray | None, str]:
        try:
            return load_medium(source, modality, self._encoders[modality]), ""
        except (UserError, OSError) as error:
            return None, _reason(error, source)


def content_hash(source: Source, modality: str) -> str:
    """The SHA-256 of a medium's bytes.

    Raises:
      UserError: it is missing.
      OSError: it cannot be read.
    """
    source = resolved(source, modality)
    if isinstance(source, EmbeddedMedium):
        return hashlib.sha256(source.read()).hexdigest()
    try:
        with open(source, "rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"no such {modality}: {source}") from None


def _reason(error: Exception, source: Source) -> str:
    return str(error) if isinstance(error, UserError) else f"{source} cannot be read: {error}"
