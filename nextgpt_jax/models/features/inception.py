"""The InceptionV3 of FID and IS: features and logits of images.

Matches fid_inception_v3 of pytorch-fid, which has the weights of the TensorFlow network that FID was defined with
(inception-2015-12-05): average pooling does not count padding, and the last block pools maxima. Modules are named as
there. 1 x 1 convolutions of one input are computed as one. Legend: B batch, H height, W width, C channels.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from nextgpt_jax.models.features.norm import NormedConv, convolve
from nextgpt_jax.models.layers import Linear

SIZE = 299  # pixels, of the images that the network was trained with
_EPS = 1e-3


@dataclasses.dataclass(frozen=True)
class InceptionConfig:
    """The published network has one size.

    Attributes:
      divisor: of all widths, for tests.
      classes: of the logits.
    """

    divisor: int = 1
    classes: int = 1008

    @property
    def width(self) -> int:
        """Of the features."""
        return 2048 // self.divisor


class Convs:
    """Makes convolutions of a network whose widths are divided by a number."""

    def __init__(self, divisor: int, rngs: nnx.Rngs):
        self.divisor, self.rngs = divisor, rngs

    def __call__(self, din: int, dout: int, height: int, width: int = 0, *, stride: int = 1, valid: bool = False):
        """A convolution of `height` x `width` (0: a square); `valid` or strided ones do not pad."""
        width = width or height
        padding = 0 if valid or stride > 1 else ((height // 2,) * 2, (width // 2,) * 2)
        din = din if din == 3 else din // self.divisor
        return NormedConv(
            din, dout // self.divisor, (height, width), stride=stride, padding=padding, eps=_EPS, rngs=self.rngs
        )


class InceptionA(nnx.Module):
    def __init__(self, din: int, pooled: int, conv: Convs):
        self.branch1x1 = conv(din, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = conv(din, 48, 1), conv(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3 = (
            conv(din, 64, 1), conv(64, 96, 3), conv(96, 96, 3)
        )  # fmt: skip
        self.branch_pool = conv(din, pooled, 1)

    def __call__(self, x: Array) -> Array:
        single, five, three, pooled = pointwise(
            x, self.branch1x1, self.branch5x5_1, self.branch3x3dbl_1, averaged=self.branch_pool
        )
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(three))
        return jnp.concatenate([single, self.branch5x5_2(five), three, pooled], -1)


class InceptionB(nnx.Module):
    def __init__(self, din: int, conv: Convs):
        self.branch3x3 = conv(din, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = conv(din, 64, 1), conv(64, 96, 3)
        self.branch3x3dbl_3 = conv(96, 96, 3, stride=2)

    def __call__(self, x: Array) -> Array:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return jnp.concatenate([self.branch3x3(x), double, max_pool(x, 2, 0)], -1)


class InceptionC(nnx.Module):
    def __init__(self, din: int, inner: int, conv: Convs):
        self.branch1x1 = conv(din, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = conv(din, inner, 1), conv(inner, inner, 1, 7)
        self.branch7x7_3 = conv(inner, 192, 7, 1)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = conv(din, inner, 1), conv(inner, inner, 7, 1)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = conv(inner, inner, 1, 7), conv(inner, inner, 7, 1)
        self.branch7x7dbl_5 = conv(inner, 192, 1, 7)
        self.branch_pool = conv(din, 192, 1)

    def __call__(self, x: Array) -> Array:
        single, seven, double, pooled = pointwise(
            x, self.branch1x1, self.branch7x7_1, self.branch7x7dbl_1, averaged=self.branch_pool
        )
        seven = self.branch7x7_3(self.branch7x7_2(seven))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(self.branch7x7dbl_3(self.branch7x7dbl_2(double))))
        return jnp.concatenate([single, seven, double, pooled], -1)


class InceptionD(nnx.Module):
    def __init__(self, din: int, conv: Convs):
        self.branch3x3_1, self.branch3x3_2 = conv(din, 192, 1), conv(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = conv(din, 192, 1), conv(192, 192, 1, 7)
        self.branch7x7x3_3, self.branch7x7x3_4 = conv(192, 192, 7, 1), conv(192, 192, 3, stride=2)

    def __call__(self, x: Array) -> Array:
        three, seven = pointwise(x, self.branch3x3_1, self.branch7x7x3_1)
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(seven)))
        return jnp.concatenate([self.branch3x3_2(three), seven, max_pool(x, 2, 0)], -1)


class InceptionE(nnx.Module):
    """`pools_maxima` is the last block's."""

    def __init__(self, din: int, conv: Convs, *, pools_maxima: bool):
        self.branch1x1 = conv(din, 320, 1)
        self.branch3x3_1 = conv(din, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = conv(384, 384, 1, 3), conv(384, 384, 3, 1)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = conv(din, 448, 1), conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = conv(384, 384, 1, 3), conv(384, 384, 3, 1)
        self.branch_pool = conv(din, 192, 1)
        self.pools_maxima = pools_maxima

    def __call__(self, x: Array) -> Array:
        units = self.branch1x1, self.branch3x3_1, self.branch3x3dbl_1
        if self.pools_maxima:
            single, three, double = pointwise(x, *units)
            pooled = self.branch_pool(max_pool(x, 1, 1))
        else:
            single, three, double, pooled = pointwise(x, *units, averaged=self.branch_pool)
        double = self.branch3x3dbl_2(double)
        parts = [single, self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), pooled]
        return jnp.concatenate(parts, -1)


class Inception(nnx.Module):
    """The network up to the last average (`features`), and its classifier."""

    def __init__(self, cfg: InceptionConfig, *, rngs: nnx.Rngs):
        self.config = cfg
        conv = Convs(cfg.divisor, rngs)
        self.Conv2d_1a_3x3 = conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = conv(32, 32, 3, valid=True)
        self.Conv2d_2b_3x3 = conv(32, 64, 3)
        self.Conv2d_3b_1x1 = conv(64, 80, 1)
        self.Conv2d_4a_3x3 = conv(80, 192, 3, valid=True)
        self.Mixed_5b = InceptionA(192, 32, conv)
        self.Mixed_5c = InceptionA(256, 64, conv)
        self.Mixed_5d = InceptionA(288, 64, conv)
        self.Mixed_6a = InceptionB(288, conv)
        self.Mixed_6b = InceptionC(768, 128, conv)
        self.Mixed_6c = InceptionC(768, 160, conv)
        self.Mixed_6d = InceptionC(768, 160, conv)
        self.Mixed_6e = InceptionC(768, 192, conv)
        self.Mixed_7a = InceptionD(768, conv)
        self.Mixed_7b = InceptionE(1280, conv, pools_maxima=False)
        self.Mixed_7c = InceptionE(2048, conv, pools_maxima=True)
        self.fc = Linear(cfg.width, cfg.classes, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b {self.config.width}"]:
        """The features ("pool3") of images with values in [-1, 1], at least 75 x 75 pixels."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool(x, 2, 0)))
        x = max_pool(x, 2, 0)
        for block in (self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a, self.Mixed_6b, self.Mixed_6c,
                      self.Mixed_6d, self.Mixed_6e, self.Mixed_7a, self.Mixed_7b, self.Mixed_7c):  # fmt: skip
            x = block(x)
        return x.mean((1, 2))

    def logits(self, features: Float[Array, "b c"]) -> Float[Array, "b {self.config.classes}"]:
        """The logits that IS is defined with: without the classifier's bias."""
        return features @ self.fc.kernel[...]


def pointwise(x: Array, *units: NormedConv, averaged: NormedConv | None = None) -> list[Array]:
    """The results of several 1 x 1 convolutions of one input, as one convolution; the last one is of the input's 3 x 3
    averages, if `averaged` is given, and averages after it are fewer."""
    kernels, biases = zip(*(unit.folded() for unit in (*units, *([averaged] if averaged else []))), strict=True)
    y = convolve(x, jnp.concatenate(kernels, -1), (1, 1), ((0, 0), (0, 0)))
    parts = jnp.split(y, np.cumsum([len(bias) for bias in biases])[:-1].tolist(), axis=-1)
    if averaged:
        parts[-1] = average_pool(parts[-1])
    return [jax.nn.relu(part + bias) for part, bias in zip(parts, biases, strict=True)]


def max_pool(x: Float[Array, "b h w c"], stride: int, padding: int) -> Float[Array, "b h2 w2 c"]:
    """The maxima of 3 x 3 windows."""
    edge = (padding, padding)
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), ((0, 0), edge, edge, (0, 0))
    )


def average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The means of 3 x 3 windows, of which pixels outside are no part."""
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), padding)
    return total / _counts(*x.shape[1:3])


@functools.cache
def _counts(height: int, width: int) -> np.ndarray:
    rows, columns = (np.convolve(np.ones(n), np.ones(3))[1:-1] for n in (height, width))
    return np.outer(rows, columns)[:, :, None].astype(np.float32)
