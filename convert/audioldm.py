"""AudioLDM's text encoder, UNet and vocoder in the hub's layout. Its autoencoder is Stable Diffusion's."""

import numpy as np

from convert.checkpoints import Checkpoint
from convert.rules import CONV, TRANSPOSED_CONV, Table, affine

_MAGNITUDE_AND_DIRECTION = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


def fold_weight_norm(checkpoint: Checkpoint) -> Checkpoint:
    """Shows each pair of tensors that torch's weight norm (of axis 0) has left as the weight g v / |v| they stand for.

    Pairs that are not complete, or whose shapes don't fit each other, are left as they are.
    """
    shapes, readers = dict(checkpoint.shapes), dict.fromkeys(checkpoint.shapes, checkpoint.__getitem__)

    def reader(g, v):
        return lambda key: _weight(checkpoint[g], checkpoint[v])

    for magnitude, direction in _MAGNITUDE_AND_DIRECTION:
        for g in [key for key in checkpoint.shapes if key.endswith(f".{magnitude}")]:
            layer = g.removesuffix(f".{magnitude}")
            v, shape = f"{layer}.{direction}", checkpoint.shapes.get(f"{layer}.{direction}")
            if shape and checkpoint.shapes[g] == (shape[0], *(1,) * (len(shape) - 1)):
                for key in (g, v):
                    del shapes[key], readers[key]
                shapes[f"{layer}.weight"], readers[f"{layer}.weight"] = shape, reader(g, v)
    return Checkpoint(checkpoint.source, shapes, readers)


def _weight(g: np.ndarray, v: np.ndarray) -> np.ndarray:
    g, v = g.astype(np.float32), v.astype(np.float32)
    return g * v / np.sqrt(np.square(v).sum(tuple(range(1, v.ndim)), keepdims=True))


# `mean` and `scale` would normalise the spectrogram, which no AudioLDM does.
VOCODER = Table(
    rules=(
        *affine("conv_pre", "conv_pre", CONV),
        *affine("upsampler.{i}", "upsampler.{i}", TRANSPOSED_CONV),
        *(
            row
            for name in ("convs1", "convs2")
            for row in affine(f"resblocks.{{i}}.{name}.{{j}}", f"resblocks.{{i}}.{name}.{{j}}", CONV)
        ),
        *affine("conv_post", "conv_post", CONV),
    ),
    ignored=("mean", "scale"),
    view=fold_weight_norm,
)
