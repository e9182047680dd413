"""Batch normalization with fixed statistics, alone and folded into the convolution before it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nextgpt_jax.models.layers import Conv


class BatchNorm(nnx.Module):
    """Normalization of channels by the statistics of training, as torch's BatchNorm in eval mode."""

    def __init__(self, width: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = nnx.Param(jnp.zeros(width))
        self.var = nnx.Param(jnp.ones(width))
        self.eps = eps

    def affine(self) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """The factor and the summand that it applies to each channel."""
        factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.eps)
        return factor, self.bias[...] - self.mean[...] * factor

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        factor, summand = self.affine()
        return x * factor + summand


class NormedConv(nnx.Module):
    """A convolution without bias, batch normalization and ReLU, computed as one convolution."""

    def __init__(
        self,
        din: int,
        dout: int,
        kernel_size: tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[tuple[int, int], ...] = 0,
        eps: float,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(din, dout, kernel_size, stride=stride, padding=padding, bias=False, rngs=rngs)
        self.bn = BatchNorm(dout, eps=eps)

    def folded(self) -> tuple[Float[Array, "h w din dout"], Float[Array, " dout"]]:
        """Kernel and bias of the convolution that does both."""
        factor, summand = self.bn.affine()
        return self.conv.kernel[...] * factor, summand

    def __call__(self, x: Float[Array, "b h w din"]) -> Float[Array, "b h2 w2 dout"]:
        kernel, bias = self.folded()
        return jax.nn.relu(convolve(x, kernel, self.conv.stride, self.conv.padding) + bias)


def convolve(x: Array, kernel: Array, stride: tuple[int, int], padding: tuple[tuple[int, int], ...]) -> Array:
    """A convolution of channels-last maps."""
    bare = len(kernel) > 1 and not any(map(any, padding))
    if bare:  # XLA's convolutions without any padding are a third as fast on CPUs: compute another row, and drop it
        padding = ((0, stride[0]), (0, 0))
    y = jax.lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y[:, :-1] if bare else y
