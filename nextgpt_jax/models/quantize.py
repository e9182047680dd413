"""Frozen kernels in 8 or 4 bits, by qwix: a language model that is only adapted (LoRA) fits on small machines.

A quantized kernel [in, out] is an array of small numbers and its scales. It is expanded where it is used, forwards and
again backwards, so that no more than one layer's kernels are in memory in floating-point numbers.
"""

import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from nextgpt_jax.errors import UserError

SCHEMES = {  # name -> how many inputs share a scale of an output at most (0: all)
    "int8": 0,
    "nf4": 64,  # QLoRA's 4-bit numbers and blocks (Dettmers et al. 2023)
}

_NF4 = (  # appendix E of the paper
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.3949175,
    -0.28444138,
    -0.18477343,
    -0.091050036,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
)


def check(quantization: str) -> None:
    """Checks the name of a scheme ("": none), and that there is a library for it.

    Raises:
      UserError: there is not.
    """
    if quantization and quantization not in SCHEMES:
        raise UserError(f"model.quantize: {quantization!r} is not one of {', '.join(SCHEMES)}, or nothing for none")
    if quantization and importlib.util.find_spec("qwix") is None:
        raise UserError(f"model.quantize={quantization} needs qwix: pip install 'nextgpt-jax[quantize]'")


def block_size(inputs: int, quantization: str) -> int:
    """How many of a kernel's inputs share a scale."""
    return math.gcd(inputs, SCHEMES[quantization])  # all of them if 0 are given


def quantize(
    kernel: Float[Array, "din dout"], quantization: str
) -> tuple[Num[Array, "din dout"], Float[Array, "n dout"]]:
    """Values and float32 scales of a kernel. n: one scale for all inputs, or one for each block of them."""
    import qwix

    tile = block_size(kernel.shape[0], quantization)
    found = qwix.quantize(kernel.astype(jnp.float32), quantization, channelwise_axes=(1,), tiled_axes={0: tile})
    return found.qvalue, found.scale


def quantize_layers(
    kernels: Float[Array, "l din dout"], quantization: str
) -> tuple[Num[Array, "l ..."], Float[Array, "l ..."]]:
    """`quantize` of stacked kernels, one after the other."""
    return jax.lax.map(lambda kernel: quantize(kernel, quantization), kernels)


def dequantize(
    values: Num[Array, "din dout"], scale: Float[Array, "n dout"], quantization: str, dtype
) -> Float[Array, "din dout"]:
    """The kernel that `quantize` took, nearly."""
    numbers = _looked_up(values) if quantization == "nf4" else values.astype(scale.dtype)
    blocks = numbers.reshape(len(scale), -1, numbers.shape[1]) * scale[:, None]
    return blocks.reshape(numbers.shape).astype(dtype)


def _looked_up(values: Num[Array, "din dout"]) -> Float[Array, "din dout"]:
    """The numbers that 4-bit `values` stand for. Bit by bit, which compilers fuse into the product: a gather, qwix's
    own way, takes a TPU thirty times the memory traffic."""
    numbers: list = list(_NF4)
    for bit in range(4):
        is_set = (values.astype(jnp.int32) >> bit) & 1 != 0
        numbers = [jnp.where(is_set, numbers[i + 1], numbers[i]) for i in range(0, len(numbers), 2)]
    return numbers[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def product(
    x: Float[Array, "*b din"], values: Num[Array, "din dout"], scale: Float[Array, "n dout"], quantization: str
) -> Float[Array, "*b dout"]:
    """x @ kernel; only x has a gradient. One scale for all inputs is applied to the product, which rounds less."""
    if SCHEMES[quantization]:
        return x @ dequantize(values, scale, quantization, x.dtype)
    return (jnp.matmul(x, values.astype(x.dtype), preferred_element_type=jnp.float32) * scale[0]).astype(x.dtype)


def _forward(x, values, scale, quantization):
    return product(x, values, scale, quantization), (values, scale)  # whatever else is saved, no expanded kernel is


def _backward(quantization, kept, gradient):
    values, scale = kept
    if SCHEMES[quantization]:
        return gradient @ dequantize(values, scale, quantization, gradient.dtype).T, None, None
    return (gradient * scale[0]).astype(gradient.dtype) @ values.astype(gradient.dtype).T, None, None


product.defvjp(_forward, _backward)
