"""How much room for media the batches of a run have: a few shapes, each of which one compiled step trains.

A batch has room for what its own samples hold, so that a modality that it lacks costs nothing. All processes choose the
same layout, because it follows from the samples of the global batch alone.
"""

from collections.abc import Iterable

import jax
import numpy as np

from nextgpt_jax.data.examples import BatchSpec, ExampleBuilder
from nextgpt_jax.data.readers import media_kinds
from nextgpt_jax.prompts import Input, Output

MAX_LAYOUTS = 8
# One more layout is worth its compilation if it saves this share of the bytes of all batches, and so many an example.
MIN_SAVING, MIN_SAVED_BYTES = 0.1, 2**16
CHEAP_BYTES = 2**14  # smaller slots, such as those of captions, all layouts have


class Layouts:
    """The layouts of batches, at most MAX_LAYOUTS, one of which has room for any batch.

    Attributes:
      specs: all layouts, the smallest first.
    """

    def __init__(self, media: np.ndarray, builder: ExampleBuilder, batches: Iterable[np.ndarray]):
        """
        Args:
          media: uint8 [samples, kinds], how many media of each of `media_kinds` a sample has.
          builder: makes the examples.
          batches: the samples of some of the batches.
        """
        self._media = media
        largest = np.array([media[members].max(0) for members in batches], np.uint8).reshape(-1, media.shape[1])
        empty = example_bytes(builder, BatchSpec({}, {}))
        self._rows = choose(largest, media.max(0, initial=0), _costs(media, builder), empty)
        self.specs = [_spec(row) for row in self._rows]

    def __call__(self, members: np.ndarray) -> BatchSpec:
        """The smallest layout with room for a batch of these samples."""
        largest = self._media[members].max(0, initial=0)
        return self.specs[int((self._rows >= largest).all(1).argmax())]


def similarity(media: np.ndarray, builder: ExampleBuilder) -> np.ndarray:
    """A number of each sample, the same for those with inputs of the same modalities; larger inputs have larger ones.

    Args:
      media, builder: see `Layouts`.
    """
    inputs = [column for column, (kind, _) in enumerate(media_kinds()) if kind is Input]
    bits = 1 << np.arange(len(inputs))
    present, group = np.unique((media[:, inputs] > 0) @ bits, return_inverse=True)
    costs = (present[:, None] & bits > 0) @ _costs(media, builder)[inputs]
    return np.argsort(np.argsort(costs, kind="stable"))[group]


def _costs(media: np.ndarray, builder: ExampleBuilder) -> np.ndarray:
    """The bytes of a slot of each kind that is there: int64 [kinds]."""
    empty = example_bytes(builder, BatchSpec({}, {}))
    slots = np.diag(media.any(0))
    return np.array([example_bytes(builder, _spec(row)) - empty if row.any() else 0 for row in slots], np.int64)


def _spec(slots: np.ndarray) -> BatchSpec:
    inputs, outputs = (
        {name: int(n) for (given, name), n in zip(media_kinds(), slots, strict=True) if given is kind and n}
        for kind in (Input, Output)
    )
    return BatchSpec(inputs, outputs)


def example_bytes(builder: ExampleBuilder, spec: BatchSpec) -> int:
    """The bytes of an example."""
    example = builder.empty(spec)
    media = [array for part in ("media", "signals") for entry in example[part].values() for array in entry.values()]
    return sum(array.nbytes for array in (example["tokens"], example["lengths"], example["loss_mask"], *media))


def choose(largest: np.ndarray, most: np.ndarray, costs: np.ndarray, base: int) -> np.ndarray:
    """Layouts for batches: the one with room for all, and, one by one, those that save the most bytes.

    Slots are rounded up to powers of two. Kinds with small slots always have all of them.

    Args:
      largest: uint8 [batches, kinds], the largest number of media in a sample of each batch.
      most: uint8 [kinds], in any sample.
      costs: int64 [kinds], the bytes of a slot.
      base: the bytes of an example without media.

    Returns:
      uint8 [layouts, kinds], the smallest layout first.
    """
    sizes = np.array([0, *(1 << max(n - 1, 0).bit_length() for n in range(1, 256))])
    slots = np.where(costs < CHEAP_BYTES, most, np.minimum(sizes[largest], most))
    candidates, counts = np.unique(slots, axis=0, return_counts=True)
    total = base + candidates.astype(np.int64) @ costs
    fits = (candidates[:, None] <= candidates[None]).all(-1)  # [batches, layouts]
    found, now = [most], np.full(len(candidates), base + most.astype(np.int64) @ costs)  # bytes of each batch's example
    while len(found) < MAX_LAYOUTS and len(candidates):
        then = np.where(fits, np.minimum(now[:, None], total), now[:, None])
        best = int((counts @ then).argmin())
        saved = counts @ (now - then[:, best])
        if saved < max(MIN_SAVING * (counts @ now), MIN_SAVED_BYTES * counts.sum()):
            break
        found.append(candidates[best])
        now = then[:, best]
    rows = np.array(found, np.uint8)
    return rows[np.argsort(rows.astype(np.int64) @ costs, kind="stable")]


def describe_layout(batch: dict) -> str:
    """The shape of a batch, for people: 16 examples of 512 tokens, inputs: image 1 (9.7 MB)."""
    size, length = batch["tokens"].shape
    slots = {
        "inputs": {name: entry["positions"].shape[1] for name, entry in batch["media"].items()},
        "outputs": {name: entry["mask"].shape[1] for name, entry in batch["signals"].items()},
    }
    shown = [
        f", {kind}: {' '.join(f'{name} {n}' for name, n in found.items())}" for kind, found in slots.items() if found
    ]
    megabytes = sum(array.nbytes for array in jax.tree.leaves(batch)) / 1e6
    return f"{size} examples of {length} tokens{''.join(shown)} ({megabytes:.1f} MB)"
