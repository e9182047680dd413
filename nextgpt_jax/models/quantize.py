"""Frozen kernels in 8 or 4 bits, quantized by qwix, for language models that are trained with LoRA only.

A quantized kernel [in, out] is stored as integers and scales. It is dequantized where it is used, in the forward and
again in the backward pass, so that at most one layer's kernels are in memory as floats.
"""

import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from nextgpt_jax.errors import UserError

SCHEMES = {  # name -> largest block of inputs that share a scale (0: all inputs of an output)
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
    """Checks a value of config.model.quantize.

    Raises:
      UserError: it is no key of SCHEMES (or empty), or qwix is not installed.
    """
    if quantization and quantization not in SCHEMES:
        raise UserError(f"model.quantize: {quantization!r} is not one of {', '.join(SCHEMES)}, or nothing for none")
    if quantization and importlib.util.find_spec("qwix") is None:
        raise UserError(f"model.quantize={quantization} needs qwix: pip install 'nextgpt-jax[quantize]'")


def block_size(inputs: int, quantization: str) -> int:
    """The number of inputs that share a scale."""
    return math.gcd(inputs, SCHEMES[quantization])  # gcd(n, 0) is n


def quantize(
    kernel: Float[Array, "din dout"], quantization: str
) -> tuple[Num[Array, "din dout"], Float[Array, "n dout"]]:
    """Integers and float32 scales of a kernel; n is the number of blocks of inputs."""
    import qwix

    tiles = {0: block_size(kernel.shape[0], quantization)}
    found = qwix.quantize(kernel.astype(jnp.float32), quantization, channelwise_axes=(1,), tiled_axes=tiles)
    return found.qvalue, found.scale


def quantize_layers(
    kernels: Float[Array, "l din dout"], quantization: str
) -> tuple[Num[Array, "l ..."], Float[Array, "l ..."]]:
    """`quantize` for stacked kernels, one at a time to save memory."""
    return jax.lax.map(lambda kernel: quantize(kernel, quantization), kernels)


def dequantize(
    values: Num[Array, "din dout"], scale: Float[Array, "n dout"], quantization: str, dtype
) -> Float[Array, "din dout"]:
    """Approximate inverse of `quantize`."""
    numbers = nf4_decode(values) if quantization == "nf4" else values.astype(scale.dtype)
    blocks = numbers.reshape(len(scale), -1, numbers.shape[1]) * scale[:, None]
    return blocks.reshape(numbers.shape).astype(dtype)


def nf4_decode(values: Num[Array, "din dout"]) -> Float[Array, "din dout"]:
    """The numbers for 4-bit codes. Selects bit by bit, which compilers fuse into the matmul; qwix's gather has thirty
    times the memory traffic on a TPU."""
    numbers: list = list(_NF4)
    for bit in range(4):
        is_set = (values.astype(jnp.int32) >> bit) & 1 != 0
        numbers = [jnp.where(is_set, numbers[i + 1], numbers[i]) for i in range(0, len(numbers), 2)]
    return numbers[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def quantized_matmul(
    x: Float[Array, "*b din"], values: Num[Array, "din dout"], scale: Float[Array, "n dout"], quantization: str
) -> Float[Array, "*b dout"]:
    """x @ kernel, differentiable in x only. A scale that all inputs share is applied to the product: rounds less."""
    if SCHEMES[quantization]:
        return x @ dequantize(values, scale, quantization, x.dtype)
    return (jnp.matmul(x, values.astype(x.dtype), preferred_element_type=jnp.float32) * scale[0]).astype(x.dtype)


def _forward(x, values, scale, quantization):
    return quantized_matmul(x, values, scale, quantization), (values, scale)  # no dequantized kernel is saved


def _backward(quantization, saved, gradient):
    values, scale = saved
    if SCHEMES[quantization]:
        return gradient @ dequantize(values, scale, quantization, gradient.dtype).T, None, None
    return (gradient * scale[0]).astype(gradient.dtype) @ values.astype(gradient.dtype).T, None, None


quantized_matmul.defvjp(_forward, _backward)
