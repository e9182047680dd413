"""Independent judges of digits, motion and tones. None of them is a neural network.

Digits are read by a support vector machine, fit only on the real training scans (and shifted copies); tones by
measuring the telephone's frequencies, as a receiver in an exchange does (ITU-T Q.24).

python -m examples.keypad.judge        prints their accuracy on held-out scans, movies of them, and tones
"""

import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, UInt8

from examples.keypad import world

_FRAME, _HOP = 0.025, 0.0125  # seconds: length of a frame, and between the starts of two
_ALL_COLUMNS = (*world.COLUMNS, 1633.0)
_OFF = np.linspace(-0.035, 0.035, 15)  # relative deviations of a frequency that are measured
_TOLERANCE = 0.02  # relative deviation that is accepted
_TWIST = 8.0  # dB between the two levels
_DOMINANCE = 6.0  # dB above the other frequencies of the group
_SHARE = 0.5  # of the frame's energy, in both frequencies
_QUIET = 0.003  # of the loudest frame's energy: below it is silence
_SHORTEST = 3  # frames in a row: 50 ms


@functools.cache
def _classifier():
    from sklearn.svm import SVC

    ink, labels = world.ink()[world.TRAIN], world.scans()[1][world.TRAIN]
    rng = np.random.default_rng(0)
    inks = np.concatenate([ink, *(world.augmented(ink, rng, 0.3) for _ in range(3))])
    return SVC(C=10.0, gamma="scale").fit(features(world.paper(inks)), np.tile(labels, 4))


def features(images: np.ndarray) -> np.ndarray:
    """Mean darkness of blocks of 2 x 2 pixels: [N, 256]."""
    gray = 1.0 - images.astype(np.float32).mean(-1) / 255.0
    side = world.SIZE // 2
    return gray.reshape(len(images), side, 2, side, 2).mean((2, 4)).reshape(len(images), -1)


def classify(images: UInt8[np.ndarray, "n 32 32 3"]) -> Int[np.ndarray, " n"]:
    """The digit in each image."""
    return _classifier().predict(features(images))


def moving_digit(frames: UInt8[np.ndarray, "f 32 32 3"]) -> int | None:
    """The digit of most frames, each scaled to the size of the scans and centered; None on blank paper."""
    large = [image for image in map(_as_scan, world.inked(frames)) if image is not None]
    if not large:
        return None
    return int(np.bincount(classify(world.paper(np.stack(large))), minlength=10).argmax())


def _as_scan(ink: Float[np.ndarray, "32 32"]) -> np.ndarray | None:
    rows, columns = (np.flatnonzero((ink > 0.35).any(axis)) for axis in (1, 0))
    if len(rows) < 4:
        return None
    middle = (rows[0] + rows[-1]) / 2, (columns[0] + columns[-1]) / 2
    return world.zoomed(ink[None], np.array([middle]), np.array([(world.SIZE - 4.0) / (rows[-1] - rows[0] + 1)]))[0]


def motion(frames: UInt8[np.ndarray, "f 32 32 3"]) -> str | None:
    """The direction in which the ink moves, a key of world.STEPS; None without ink or for no or oblique motion."""
    ink = np.where((shown := world.inked(frames)) > 0.35, shown, 0.0)
    amount = ink.sum((1, 2))
    if amount.min() < 4.0:
        return None
    at = np.arange(world.SIZE)
    center = np.stack([ink.sum(2) @ at, ink.sum(1) @ at], -1) / amount[:, None]  # [F, 2]
    third = max(len(frames) // 3, 1)
    way = center[-third:].mean(0) - center[:third].mean(0)
    along = np.abs(way).argmax()
    if abs(way[along]) < 3.0 or abs(way[along]) < 2.0 * abs(way[1 - along]):
        return None
    step = tuple(int(np.sign(way[along])) * np.eye(2, dtype=int)[along])
    return next(name for name, wanted in world.STEPS.items() if wanted == step)


def key(samples: Float[np.ndarray, " samples"], rate: int) -> int | None:
    """The digit whose key sounds for at least 50 ms and in most frames that are not silent; None if there is none."""
    size, hop = round(_FRAME * rate), round(_HOP * rate)
    if len(samples) < size or not np.isfinite(samples).all():
        return None
    frames = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), size)[::hop]
    energy = np.square(frames).sum(-1)
    loud = energy > max(_QUIET * energy.max(), 1e-9)
    rows, columns = _Group(frames, world.ROWS, rate), _Group(frames, _ALL_COLUMNS, rate)
    twist = 10 * np.log10(np.maximum(rows.level, 1e-12) / np.maximum(columns.level, 1e-12))
    share = (rows.level + columns.level) / np.maximum(energy, 1e-12)
    valid = loud & rows.clear & columns.clear & (np.abs(twist) <= _TWIST) & (share >= _SHARE)
    heard = np.where(valid, [_DIGITS.get(pair, -1) for pair in zip(rows.index, columns.index)], -1)
    digit, count = max(((d, int((heard == d).sum())) for d in range(10)), key=lambda pair: pair[1])
    if 2 * count <= loud.sum() or max(_runs(heard == digit)) < _SHORTEST:
        return None
    return digit


_DIGITS = {(3, 1): 0} | {divmod(digit - 1, 3): digit for digit in range(1, 10)}


class _Group:
    """The strongest frequency of a group in each frame: `index`, energy `level`, and whether it is `clear`."""

    def __init__(self, frames: np.ndarray, group: tuple[float, ...], rate: int):
        size = frames.shape[-1]
        frequencies = np.array(group)[:, None] * (1.0 + _OFF)  # [G, O]
        waves = np.exp(-2j * np.pi * frequencies[..., None] * np.arange(size) / rate)
        levels = np.square(np.abs(frames @ waves.reshape(-1, size).T)) * 2 / size
        levels = levels.reshape(len(frames), *frequencies.shape)  # [frames, G, O]
        self.index = levels.max(-1).argmax(-1)
        each = np.arange(len(frames))
        best = levels[each, self.index]  # [frames, O]
        self.level = best.max(-1)
        others = levels[:, :, len(_OFF) // 2].copy()
        others[each, self.index] = 0.0
        dominant = self.level >= 10 ** (_DOMINANCE / 10) * others.max(-1)
        self.clear = dominant & (np.abs(_OFF[best.argmax(-1)]) <= _TOLERANCE + 1e-9)


def _runs(flags: np.ndarray) -> Iterator[int]:
    """Lengths of runs of true values, and 0."""
    yield 0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags, [0]]).astype(int)))
    yield from (int(n) for n in edges[1::2] - edges[::2])


def main() -> None:
    """Prints the judges' accuracy."""
    images, labels = world.scans()
    inks, labels, images = world.ink()[world.HELD_OUT], labels[world.HELD_OUT], images[world.HELD_OUT]
    right = classify(images) == labels
    print(f"{right.sum()} of {len(right)} held-out scans named correctly ({right.mean():.1%})")
    rng = np.random.default_rng(0)
    movies = [(world.movie(ink, d, rng), digit, d) for ink, digit in zip(inks, labels) for d in world.STEPS]
    digits = np.mean([moving_digit(frames) == digit for frames, digit, _ in movies])
    directions = np.mean([motion(frames) == direction for frames, _, direction in movies])
    print(f"{len(movies)} movies of them: {digits:.1%} named correctly, {directions:.1%} of the directions")
    heard = np.mean([key(world.tone(i % 10, rng), world.RATE) == i % 10 for i in range(1000)])
    print(f"1000 tones: {heard:.1%} heard correctly")


if __name__ == "__main__":
    main()
