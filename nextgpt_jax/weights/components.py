"""The parts of published models: folders, the modules they fill, and their conversion tables."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models import hf_config, registry
from nextgpt_jax.models.encoders.imagebind import RELEASED_FILE
from nextgpt_jax.models.rngs import abstract, make_rngs
from nextgpt_jax.weights import tables, weight_files
from nextgpt_jax.weights.peft_adapter import Modules
from nextgpt_jax.weights.peft_config import AdapterConfig, read_adapter_config
from nextgpt_jax.weights.rules import Table
from nextgpt_jax.weights.weight_files import Layout

BASE_CONFIG = "base_config.json"

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
      layout: which of the folder's files hold its weights.
    """

    folder: str
    state: nnx.State
    table: Table
    layout: Layout = weight_files.TRANSFORMERS

    @property
    def file(self) -> str:
        """Name of the weights file in the published layout."""
        return self.layout.written


def _abstract(make: Callable[[], nnx.Module]) -> nnx.State:
    return nnx.state(abstract(make))


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
    state = _abstract(lambda: registry.build(config, rngs=make_rngs(0)))
    return [Part("", state, tables.encoder(config), weight_files.ENCODER)]


def decoder(folder: pathlib.Path) -> list[Part]:
    """A decoder in diffusers' layout, of the kind that model_index.json names."""
    config = registry.read_decoder(folder)
    return [
        Part(
            name,
            _abstract(lambda name=name: getattr(registry.build(config, components=(name,), rngs=make_rngs(0)), name)),
            table,
            weight_files.decoder_layout(name),
        )
        for name, table in tables.decoder(config).items()
    ]


def lora_config(folder: pathlib.Path) -> AdapterConfig:
    """The settings of a peft adapter, published or converted.

    Raises:
      UserError: it is not a LoRA adapter, or has a field that is unknown, malformed or not supported.
    """
    return read_adapter_config(folder / weight_files.ADAPTER)


def adapted_modules(base: Any, config: AdapterConfig) -> Modules:
    """What an adapter changes in a language model with the config `base`.

    Raises:
      UserError: the language model lacks a module that the adapter names, or one that cannot be adapted.
    """
    part = llm_part(base)
    return Modules(part.state, part.table, config)


def lora_part(base: Any, config: AdapterConfig) -> Part:
    """The tensors of an adapter of a language model with the config `base`: stacked, as the model has them, or, where
    it cannot have such a branch, each on its own.

    Raises:
      UserError: see `adapted_modules`; or a setting is outside its range.
    """
    modules = adapted_modules(base, config)
    try:
        branch = modules.model_config()
    except ValueError as error:
        raise UserError(f"{config.source}: {error}") from None
    if branch:
        whole = _abstract(lambda: registry.build(base, lora=branch, rngs=make_rngs(0)))
        state, table = nnx.filter_state(whole, nnx.LoRAParam), tables.language_model(base).lora
    else:
        state, table = modules.tensors()
    return Part("", state, table, weight_files.PEFT)


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


def refuse_single_file(component: str, path: pathlib.Path) -> None:
    """Checks that a decoder is not one file: it would lack its tokenizer.

    Raises:
      UserError: it is; the command that converts it is named.
    """
    if COMPONENTS.get(component) is decoder and path.is_file():
        raise UserError(
            f"{path} is one file, without a tokenizer: convert it first, python -m convert decoder --source={path} "
            "--tokenizer=FOLDER_OR_HUB_ID --output=DIR, and give the new folder"
        )
