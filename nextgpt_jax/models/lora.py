"""Low-rank adaptation: its settings, and merging it into the kernels. The branch itself is part of layers.Linear."""

import dataclasses

import jax
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adaptation (Hu et al. 2021) with peft's numerics: y = x W + dropout(x) A B * alpha / rank."""

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"LoRA rank must be at least 1, got {self.rank}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"LoRA dropout must be in [0, 1), got {self.dropout}")

    @property
    def scale(self) -> float:
        """The factor of the low-rank product."""
        return self.alpha / self.rank


def merge_lora(module: nnx.Module, *, undo: bool = False) -> None:
    """Adds every LoRA update below `module` to its kernel (or subtracts it again with `undo`), in place.

    Works on stacked layers, and on abstract ones. A merged layers.Linear skips its low-rank branch. Layers that are
    merged already are left as they are; so are quantized ones, which keep their branch.
    """
    for _, layer in nnx.iter_modules(module):
        config = getattr(layer, "lora", None)
        if not isinstance(config, LoRAConfig) or layer.quantization or layer.merged is not undo:
            continue
        if isinstance(layer.kernel.get_raw_value(), jax.Array):
            kernel = layer.kernel[...]
            sharding = kernel.sharding if isinstance(kernel.sharding, NamedSharding) else None
            add = jax.jit(_add_update, static_argnums=3, out_shardings=sharding)
            scale = -config.scale if undo else config.scale
            layer.kernel[...] = add(kernel, layer.lora_a[...], layer.lora_b[...], scale)
        layer.merged = not undo


def _add_update(kernel: Array, a: Array, b: Array, scale: float) -> Array:
    """Sums in the update's dtype; stacked layers one at a time, to save memory."""
    if kernel.ndim > 2:
        return jax.lax.map(lambda layer: _add_update(*layer, scale), (kernel, a, b))
    update = (a @ b) * scale
    return (kernel.astype(update.dtype) + update).astype(kernel.dtype)
