"""Rotary position embedding, with the frequencies of long contexts.

Matches transformers' kinds of `rope_type`: default, linear, dynamic (within the context only), yarn and llama3.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nextgpt_jax.errors import UserError
from nextgpt_jax.models import hf_config

FIELDS = ("rope_theta", "rope_scaling", "rope_parameters")  # of config.json, read by `read_rope`

_FEWEST_TURNS = 1e-6  # over the original length, of a feature that yarn divides; fewer overflow


@dataclasses.dataclass(frozen=True)
class RopeScaling(abc.ABC):
    """Base of the frequencies of long contexts. Fields as in config.json.

    Attributes:
      factor: by how much the context grows.
      scale: factor of queries and keys.
    """

    factor: float

    def __post_init__(self):
        if self.factor <= 0:
            raise ValueError(f"rope scaling needs factor > 0, got {self.factor:g}")

    @property
    def scale(self) -> float:
        return 1.0

    @abc.abstractmethod
    def __call__(self, frequencies: Float[Array, " n"], theta: float) -> Float[Array, " n"]:
        """The scaled frequencies; `theta` is the base of those given."""


@dataclasses.dataclass(frozen=True)
class LinearScaling(RopeScaling):
    """All frequencies are divided by `factor` (rope_type "linear")."""

    def __call__(self, frequencies: Float[Array, " n"], theta: float) -> Float[Array, " n"]:
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class DynamicScaling(RopeScaling):
    """Frequencies that depend on the length of sequences longer than max_position_embeddings (rope_type "dynamic").

    Those up to it have the usual ones, and longer ones are refused: keys in a cache have the frequencies of the length
    at which they were written.
    """

    def __call__(self, frequencies: Float[Array, " n"], theta: float) -> Float[Array, " n"]:
        return frequencies


@dataclasses.dataclass(frozen=True)
class Llama3Scaling(RopeScaling):
    """Frequencies of Llama 3.1 and later (rope_type "llama3"), by wavelength: those longer than the original context
    / low_freq_factor are divided by `factor`, those shorter than it / high_freq_factor are kept, with a linear blend
    between."""

    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self):
        if self.factor <= 0 or not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(f"rope scaling needs factor > 0 and 0 < low_freq_factor < high_freq_factor: {self}")

    def __call__(self, frequencies: Float[Array, " n"], theta: float) -> Float[Array, " n"]:
        periods = self.original_max_position_embeddings * frequencies / (2 * math.pi)  # in the original context
        kept = (periods - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = jnp.clip(kept, 0, 1)
        return kept * frequencies + (1 - kept) * frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class YarnScaling(RopeScaling):
    """YaRN (Peng et al. 2023; rope_type "yarn"): features that turn less than `beta_slow` times in the original context
    are divided by `factor`, those that turn more than `beta_fast` times are kept, with a linear blend over the features
    between. Queries and keys are scaled by `attention_factor`, by default by one that `factor` and both `mscale` give.
    """

    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float | None = None  # default 32
    beta_slow: float | None = None  # default 1
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True  # the blend begins and ends at whole features

    def __post_init__(self):
        super().__post_init__()
        if self.original_max_position_embeddings < 1 or min(self._turns) < _FEWEST_TURNS or self.scale <= 0:
            raise ValueError(
                "rope scaling needs original_max_position_embeddings, beta_fast, beta_slow and the factor of attention "
                f"above 0 (the betas at least {_FEWEST_TURNS:g}): {self}"
            )

    @property
    def _turns(self) -> tuple[float, float]:
        return self.beta_fast or 32, self.beta_slow or 1

    @property
    def scale(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        growth = 0.1 * math.log(max(self.factor, 1))
        if self.mscale and self.mscale_all_dim:
            return (growth * self.mscale + 1) / (growth * self.mscale_all_dim + 1)
        return growth + 1

    def __call__(self, frequencies: Float[Array, " n"], theta: float) -> Float[Array, " n"]:
        width = 2 * len(frequencies)

        def feature(turns: float) -> float:
            turns_of_first = self.original_max_position_embeddings / (turns * 2 * math.pi)
            return width * math.log(turns_of_first) / (2 * math.log(theta))

        first, last = map(feature, self._turns)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        last += 0.001 if first == last else 0
        divided = jnp.clip((jnp.arange(len(frequencies)) - first) / (last - first), 0, 1)
        return (1 - divided) * frequencies + divided * frequencies / self.factor


SCALINGS: dict[str, type[RopeScaling] | None] = {
    "default": None,
    "linear": LinearScaling,
    "dynamic": DynamicScaling,
    "yarn": YarnScaling,
    "llama3": Llama3Scaling,
}
_CONTEXT = "original_max_position_embeddings"
_HARMLESS = ("finetuned", _CONTEXT)  # what the kinds without such fields ignore


def read_rope(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`rope_theta`, if it is given, and `rope_scaling` from a config.json, in either spelling of transformers.

    Raises:
      UserError: another kind of embedding, or a missing or unknown value; the message begins with `name`.
    """
    spellings = [config.get(key) or {} for key in ("rope_scaling", "rope_parameters")]
    if not all(isinstance(spelling, Mapping) for spelling in spellings):
        raise UserError(f"{name}: rope_scaling and rope_parameters should be objects")
    older, newer = spellings
    if older and newer and older != newer:
        raise UserError(f"{name}: rope_scaling and rope_parameters differ: keep the one of the training")
    rope = dict(older or newer)
    kind = rope.pop("rope_type", rope.get("type", "default"))
    rope.pop("type", None)
    if not isinstance(kind, str) or kind not in SCALINGS:
        known = ", ".join(map(repr, SCALINGS))
        raise UserError(f"{name}: rope_type={kind!r} is not supported (only {known})")
    if (part := rope.pop("partial_rotary_factor", 1)) != 1:
        raise UserError(f"{name}: partial_rotary_factor={part!r} is not supported (only 1)")
    thetas = [place["rope_theta"] for place in (rope, config) if "rope_theta" in place]
    if thetas[1:] and thetas[0] != thetas[1]:
        raise UserError(f"{name}: rope_theta={thetas[1]!r} and, in rope_parameters, {thetas[0]!r}: keep one of them")
    rope.pop("rope_theta", None)
    scaling = SCALINGS[kind]
    if kind == "yarn" and rope.get(_CONTEXT) is None:
        rope[_CONTEXT] = config.get("max_position_embeddings")
    where = f"{name}: rope_type={kind!r}"
    read = hf_config.config_from_dict(scaling or _Default, rope, harmless=_HARMLESS, name=where)
    return {"rope_scaling": read if scaling else None} | ({"rope_theta": thetas[0]} if thetas else {})


@dataclasses.dataclass(frozen=True)
class _Default:
    """No fields: any that is there is unknown."""


def rope_frequencies(width: int, theta: float, scaling: RopeScaling | None = None) -> Float[Array, " n"]:
    """Radians per position of each pair of features; n is width / 2."""
    half = width // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    return scaling(frequencies, theta) if scaling else frequencies


def apply_rope(
    x: Float[Array, "b t h d"], positions: Int[Array, "b t"], frequencies: Float[Array, " n"], scale: float = 1.0
) -> Float[Array, "b t h d"]:
    """Rotates pairs of features and scales them, in transformers' layout: (i, i + d/2), not neighbours. Angles in
    float32."""
    half = x.shape[-1] // 2
    angles = positions[..., None, None].astype(jnp.float32) * frequencies  # [B, T, 1, d/2]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if scale != 1:
        cos, sin = cos * scale, sin * scale
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
