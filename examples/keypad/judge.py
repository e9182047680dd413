"""An independent reader of digits: a support vector machine, fit on the real training scans (and shifted copies) only.

python -m examples.keypad.judge        its accuracy on the held-out scans
"""

import functools

import numpy as np
from jaxtyping import Int, UInt8

from examples.keypad import world


@functools.cache
def _classifier():
    from sklearn.svm import SVC

    ink, labels = world.ink()[world.TRAIN], world.scans()[1][world.TRAIN]
    rng = np.random.default_rng(0)
    inks = np.concatenate([ink, *(world.augmented(ink, rng, 0.3) for _ in range(3))])
    return SVC(C=10.0, gamma="scale").fit(_features(world.paper(inks)), np.tile(labels, 4))


def _features(images: np.ndarray) -> np.ndarray:
    """Mean darkness of 2 x 2 pixels. [N, 256]."""
    grey = 1.0 - images.astype(np.float32).mean(-1) / 255.0
    side = world.SIZE // 2
    return grey.reshape(len(images), side, 2, side, 2).mean((2, 4)).reshape(len(images), -1)


def classify(images: UInt8[np.ndarray, "n 32 32 3"]) -> Int[np.ndarray, " n"]:
    """The digit in each image."""
    return _classifier().predict(_features(images))


def main() -> None:
    images, labels = world.scans()
    right = classify(images[world.HELD_OUT]) == labels[world.HELD_OUT]
    print(f"{right.sum()} of {len(right)} held-out scans named correctly ({right.mean():.1%})")


if __name__ == "__main__":
    main()
