"""The parts of published models: folders, the modules they fill, and their conversion tables."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models import hf_config, registry
from nextgpt_jax.models.encoders.imagebind import RELEASED_FILE
from nextgpt_jax.models.lora import LoRAConfig
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights import tables
from nextgpt_jax.weights.rules import Table

ADAPTER, BASE_CONFIG = "adapter_config.json", "base_config.json"

LAYOUTS = {  # the files of each component, for error messages
    "llm": "config.json, model.safetensors (or shards with model.safetensors.index.json, or .bin), tokenizer files",
    "encoder": f"{RELEASED_FILE}, or config.json and model.safetensors",
    "decoder": "model_index.json, text_encoder/, tokenizer/, unet/, vae/, scheduler/; for audio vocoder/ too",
    "lora": "adapter_config.json, adapter_model.safetensors (or .bin)",
    "delta": "pytorch_model.pt",
}
ALIASES = {  # names that earlier releases had, one for each family
    "llama": "llm",
    "imagebind": "encoder",
    "stable_diffusion": "decoder",
    "text_to_video": "decoder",
    "audioldm": "decoder",
}
LAYOUTS |= {name: LAYOUTS[component] for name, component in ALIASES.items()}


@dataclasses.dataclass(frozen=True)
class Part:
    """One checkpoint of a component.

    Attributes:
      folder: its folder in the component's folder; "": that folder itself.
      state: the abstract parameters that it fills.
      table: the conversion table.
      file: name of the weights file in the published layout.
    """

    folder: str
    state: nnx.State
    table: Table
    file: str = "model.safetensors"


def _abstract(make: Callable[[], nnx.Module]) -> nnx.State:
    return nnx.state(nnx.eval_shape(make))


def llm_part(config: Any) -> Part:
    """The checkpoint of a language model with the config `config`."""
    return Part(
        "", _abstract(lambda: registry.build(config, rngs=make_rngs(0))), tables.language_model(config).whole(config)
    )


def language_model(folder: pathlib.Path) -> list[Part]:
    """A language model in transformers' layout."""
    return [llm_part(registry.read_language_model(folder))]


def encoder(folder: pathlib.Path) -> list[Part]:
    """An encoder, with the branches that its config sizes."""
    config = registry.read_encoder(folder)
    return [Part("", _abstract(lambda: registry.build(config, rngs=make_rngs(0))), tables.encoder(config))]


def decoder(folder: pathlib.Path) -> list[Part]:
    """A decoder in diffusers' layout, of the kind that model_index.json names."""
    config = registry.read_decoder(folder)
    return [
        Part(
            name,
            _abstract(lambda name=name: getattr(registry.build(config, components=(name,), rngs=make_rngs(0)), name)),
            table,
            "diffusion_pytorch_model.safetensors" if name in ("unet", "vae") else "model.safetensors",
        )
        for name, table in tables.decoder(config).items()
    ]


def lora_config(folder: pathlib.Path) -> LoRAConfig:
    """The settings of a peft adapter.

    Raises:
      UserError: it is not a LoRA adapter, or one of a variant that is not supported.
    """
    raw = hf_config.read_config(folder / ADAPTER)
    supported = {
        "peft_type": ("LORA",),
        "bias": ("none",),
        "use_dora": (False, None),
        "use_rslora": (False, None),
        "fan_in_fan_out": (False, None),
        "modules_to_save": (None, []),
        "layers_to_transform": (None, []),
        "rank_pattern": (None, {}),
        "alpha_pattern": (None, {}),
    }
    targets = raw.get("target_modules")
    if not isinstance(targets, list) or not {"r", "lora_alpha"} <= raw.keys():
        raise UserError(f"{folder / ADAPTER}: r, lora_alpha and a list of target_modules are needed")
    known = {"rank": raw["r"], "alpha": raw["lora_alpha"], "dropout": raw.get("lora_dropout", 0.0)}
    return hf_config.config_from_dict(LoRAConfig, {**raw, **known, "targets": sorted(targets)}, supported, harmless=raw)


def lora_part(base: Any, config: LoRAConfig) -> Part:
    """The low-rank updates of a language model with the config `base`.

    Raises:
      UserError: the language model lacks a projection that the adapter updates.
    """
    try:
        whole = _abstract(lambda: registry.build(base, lora=config, rngs=make_rngs(0)))
    except ValueError as error:
        raise UserError(f"adapter: {error}") from None
    return Part(
        "", nnx.filter_state(whole, nnx.LoRAParam), tables.language_model(base).lora, "adapter_model.safetensors"
    )


def lora(folder: pathlib.Path) -> list[Part]:
    """A converted adapter, whose folder has the config of its language model as BASE_CONFIG."""
    base = registry.language_model_config(hf_config.read_config(folder / BASE_CONFIG), folder / BASE_CONFIG)
    return [lora_part(base, lora_config(folder))]


COMPONENTS: dict[str, Callable[[pathlib.Path], list[Part]]] = {
    "llm": language_model,
    "encoder": encoder,
    "decoder": decoder,
    "lora": lora,
}
COMPONENTS |= {name: COMPONENTS[component] for name, component in ALIASES.items()}
