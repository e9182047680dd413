"""Held-out media as files, and what the judges read in files."""

import itertools
import pathlib
from typing import Any

import numpy as np

from examples.keypad import judge, world
from examples.keypad.things import Thing
from examples.keypad.variations import VARIATIONS
from nextgpt_jax import media, modalities


class Exhibits:
    """Files of held-out inputs, a different one each time: as in the training set, or in a variation of theirs."""

    def __init__(self, folder: pathlib.Path):
        self._folder, self._rng, self._count = folder, np.random.default_rng(2024), itertools.count()
        self._images, labels = (a[world.HELD_OUT] for a in world.scans())
        self._inks = world.ink()[world.HELD_OUT]
        self._next = {digit: itertools.cycle(np.flatnonzero(labels == digit)) for digit in range(10)}

    def show(self, thing: Thing, variation: str = "") -> pathlib.Path:
        """Writes a file that shows a thing, in a variation of VARIATIONS if one is given."""
        path = self._folder / f"{next(self._count):04d}_{'_'.join(map(str, filter(None, thing[1:])))}"
        path = path.with_name(f"{path.name}{modalities.MODALITIES[thing.modality].suffix}")
        media.write(thing.modality, path, self._varied(thing, variation) if variation else self._usual(thing))
        return path

    def _usual(self, thing: Thing) -> Any:
        if thing.modality == "audio":
            return media.Audio(world.tone(thing.digit, self._rng), world.RATE)
        index = next(self._next[thing.digit])
        if thing.modality == "video":
            return media.Video(world.movie(self._inks[index], thing.direction, self._rng), world.FPS)
        return self._images[index]

    def _varied(self, thing: Thing, variation: str) -> Any:
        vary = VARIATIONS[thing.modality][variation]
        if thing.modality == "audio":
            return vary(thing.digit, self._rng)
        ink = self._inks[next(self._next[thing.digit])]
        if thing.modality == "video":
            return vary(world.moving(ink[None], [thing.direction], self._rng)[0], self._rng)
        return vary(ink, self._rng)


def judged(modality: str, path: pathlib.Path) -> Thing | None:
    """The independent judge's reading of a file; None if it recognises nothing."""
    if modality == "audio":
        key = judge.key(media.read_audio(path, sample_rate=world.RATE), world.RATE)
        return None if key is None else Thing("audio", key)
    if modality == "video":
        frames = media.read_video(path).frames
        direction = judge.motion(frames)
        return None if direction is None else Thing("video", judge.moving_digit(frames), direction)
    return Thing("image", int(judge.classify(media.read_image(path)[None])[0]))
