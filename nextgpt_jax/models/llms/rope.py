"""Rotary position embedding, with the frequencies of long contexts."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nextgpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Frequencies of Llama 3.1 and later (rope_type "llama3"), by wavelength: those longer than the original context
    / low_freq_factor are divided by `factor`, those shorter than it / high_freq_factor are kept, with a linear blend
    between. Fields as in config.json."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self):
        if self.factor <= 0 or not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(f"rope scaling needs factor > 0 and 0 < low_freq_factor < high_freq_factor: {self}")

    def __call__(self, frequencies: Float[Array, " n"]) -> Float[Array, " n"]:
        periods = self.original_max_position_embeddings * frequencies / (2 * math.pi)  # in the original context
        kept = (periods - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = jnp.clip(kept, 0, 1)
        return kept * frequencies + (1 - kept) * frequencies / self.factor


def read_rope(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`rope_theta` (None: not given) and `rope_scaling` from a config.json, in either spelling of transformers.

    Raises:
      UserError: another kind of embedding, or a missing value; the message begins with `name`.
    """
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(f"{name}: rope_type={kind!r} is not supported (only 'default' or 'llama3')")
    if rope.get("partial_rotary_factor", 1) != 1:
        raise UserError(f"{name}: partial_rotary_factor={rope['partial_rotary_factor']} is not supported (only 1)")
    found = {"rope_theta": rope.get("rope_theta", config.get("rope_theta")), "rope_scaling": None}
    if kind == "llama3":
        fields = [field.name for field in dataclasses.fields(Llama3Scaling)]
        if missing := [field for field in fields if rope.get(field) is None]:
            raise UserError(f"{name}: rope_type='llama3' lacks {', '.join(missing)}")
        try:
            found["rope_scaling"] = Llama3Scaling(**{field: rope[field] for field in fields})
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: {error}") from None
    return found


def rope_frequencies(width: int, theta: float, scaling: Llama3Scaling | None = None) -> Float[Array, " n"]:
    """Radians per position of each pair of features; n is width / 2."""
    half = width // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    return scaling(frequencies) if scaling else frequencies


def apply_rope(
    x: Float[Array, "b t h d"], positions: Int[Array, "b t"], frequencies: Float[Array, " n"]
) -> Float[Array, "b t h d"]:
    """Rotates pairs of features, in transformers' layout: (i, i + d/2), not neighbours. Angles in float32."""
    half = x.shape[-1] // 2
    angles = positions[..., None, None].astype(jnp.float32) * frequencies  # [B, T, 1, d/2]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
