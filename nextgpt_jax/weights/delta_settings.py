"""Which settings of ModelConfig a delta needs, from its keys and shapes: what an error should say instead of listing
hundreds of them."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from nextgpt_jax.config import ModelConfig
from nextgpt_jax.models import registry
from nextgpt_jax.models.nextgpt import NExTGPTConfig
from nextgpt_jax.weights.tables.projectors import input_kind, output_kind

Shapes = Mapping[str, tuple[int, ...]]

_SIZES = {  # field of a projection's config -> of ModelConfig
    "hidden_dim": "projector_width",
    "num_layers": "projector_layers",
    "feedforward_dim": "projector_feedforward",
}
_LORA = re.compile(r"\.(\w+)\.lora_A(?:\.\w+)?\.weight")


def settings_of(model: NExTGPTConfig) -> dict[str, Any]:
    """The settings of a model that fix the shapes of its delta, by field of ModelConfig."""
    found: dict[str, Any] = {"input_projector": model.input_projector}
    for _, projector in model.output_projectors[:1]:  # all are of one kind and size; none without output modalities
        found |= {"output_projector": registry.kind_of(projector), **_sizes(dataclasses.asdict(projector))}
    if model.lora:
        found |= {"lora_rank": model.lora.rank, "lora_targets": model.lora.targets}
    return found


def settings_in(config: ModelConfig) -> dict[str, Any]:
    """As `settings_of`, of a config, whose parts are not read."""
    given = {name: getattr(config, name) for name in ("input_projector", "output_projector", "lora_rank")}
    sizes = {name: getattr(config, name) for name in _SIZES.values() if getattr(config, name)}
    return given | _published(config.output_projector) | sizes | {"lora_targets": tuple(config.lora_targets)}


def needed(shapes: Shapes, given: Mapping[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    """The settings that a delta with tensors of these keys and shapes needs, where they differ from those `given`.

    Args:
      shapes: of the delta's tensors.
      given: as `settings_of`.
      prefixes: of the keys of output projections.
    """
    found: dict[str, Any] = {}
    if (kind := input_kind(shapes)) != given["input_projector"]:
        found["input_projector"] = kind
    outputs = ({k.removeprefix(p): s for k, s in shapes.items() if k.startswith(p)} for p in prefixes)
    if keys := next(filter(None, outputs), None):
        kind, sizes = output_kind(keys)
        compared = dict(given)
        if kind != given.get("output_projector"):
            found["output_projector"] = kind
            compared = _published(kind)
        found |= {name: size for name, size in _sizes(sizes).items() if compared.get(name) != size}
    lora = [(match[1], shape) for key, shape in shapes.items() if (match := _LORA.search(key))]
    if lora and "lora_rank" in given:
        if (targets := {name for name, _ in lora}) != set(given["lora_targets"]):
            found["lora_targets"] = tuple(sorted(targets))
        if len(ranks := {shape[0] for _, shape in lora}) == 1 and given["lora_rank"] not in ranks:
            found["lora_rank"] = ranks.pop()
    return {name: value for name, value in found.items() if value}


def as_flags(settings: Mapping[str, Any]) -> str:
    """Settings as flags of the command line, without their dashes."""
    texts = {name: ",".join(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    return " ".join(f"config.model.{name}={text}" for name, text in texts.items())


def _sizes(fields: Mapping[str, int]) -> dict[str, int]:
    return {name: fields[field] for field, name in _SIZES.items() if field in fields}


def _published(kind: str) -> dict[str, int]:
    family = registry.OUTPUT_PROJECTORS.get(kind)
    return _sizes({f.name: f.default for f in dataclasses.fields(family.config)}) if family else {}  # type: ignore
