"""Which files of a hub repository a component needs, step by step: small files first, as they name the others."""

import pathlib
from collections.abc import Collection, Iterable

from nextgpt_jax.errors import UserError
from nextgpt_jax.models import hf_config, registry
from nextgpt_jax.weights import weight_files
from nextgpt_jax.weights.components import ALIASES
from nextgpt_jax.weights.torch_checkpoint import shard_names
from nextgpt_jax.weights.weight_files import Layout

COMPANION_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "README.md")  # configs, tokenizers, terms
SYSTEM, SYSTEM_FILE = "nextgpt", "nextgpt.json"  # a whole model, as save_pretrained writes it
TOKENIZER = "tokenizer"  # by itself, or in its folder of a pipeline
LAYOUTS = {SYSTEM: SYSTEM_FILE, TOKENIZER: "vocab.json and merges.txt, or tokenizer.json"}  # for messages
_TERMS = ("LICENSE*", "README.md")
_PIPELINE = "model_index.json"
_PIPELINE_COMPANIONS = ("tokenizer", "scheduler")
_SINGLE_FILE = (".safetensors", ".ckpt")
_LAYOUTS = {"llm": weight_files.TRANSFORMERS, "encoder": weight_files.ENCODER, "delta": weight_files.DELTA}


def companion_files(names: Iterable[str], component: str) -> list[str]:
    """The files to download first: configs, tokenizers, license terms, and the indices of shards that count.

    Args:
      names: the paths of all files of the repository.
      component: as `python -m convert` calls it, SYSTEM or TOKENIZER.
    """
    names, component = list(names), ALIASES.get(component, component)
    if component == TOKENIZER:
        return sorted(_companions(names, "") + _companions(names, TOKENIZER))
    if component == "lora":
        return _matching(_inside(names, ""), (weight_files.ADAPTER, *_TERMS))
    if component == "decoder":
        if _PIPELINE not in names:  # a single-file checkpoint
            return _matching(_inside(names, ""), (*_TERMS, "*.yaml"))
        chosen = _matching(_inside(names, ""), (_PIPELINE, *_TERMS))
        for folder in _PIPELINE_COMPANIONS:
            chosen += _companions(names, folder)
        for folder in registry.decoder_parts():
            chosen += [*_companions(names, folder), *_index(names, weight_files.decoder_layout(folder), folder)]
        return sorted(chosen)
    if component == SYSTEM:  # its parts' companions are few and small
        return sorted(_matching(names, COMPANION_FILES))
    found = [name for name in _companions(names, "") if name != weight_files.ADAPTER]
    return sorted(found + _companions(names, "additional_chat_templates") + _index(names, _LAYOUTS[component], ""))


def weights_files(names: Iterable[str], component: str, folder: pathlib.Path) -> list[str]:
    """The files with weights.

    Args:
      names: the paths of all files of the repository.
      component: as `python -m convert` calls it, or SYSTEM.
      folder: where the files of `companion_files` are.

    Raises:
      UserError: the repository holds nothing that can be read as the component, or one of those files is damaged.
    """
    names, component = list(names), ALIASES.get(component, component)
    if component == "lora":
        return _weights(names, weight_files.PEFT, "", folder)
    if component == SYSTEM:
        return _system_weights(names, folder)
    if component != "decoder":
        return _weights(names, _LAYOUTS[component], "", folder)
    if _PIPELINE not in names:
        return _single_file(names)
    chosen = []
    for part in registry.decoder_parts(folder / _PIPELINE):
        chosen += _weights(names, weight_files.decoder_layout(part), part, folder)
    return sorted(chosen)


def _system_weights(names: Collection[str], folder: pathlib.Path) -> list[str]:
    """Of every part of SYSTEM_FILE, which names the parts' folders by the fields of ModelConfig."""
    if SYSTEM_FILE not in names:
        return []  # refused where it is read
    model = hf_config.read_config(folder / SYSTEM_FILE).get("model")
    chosen: list[str] = []
    for field, places in (model if isinstance(model, dict) else {}).items():
        component = "decoder" if field.endswith("_decoder") else field
        if component in (*_LAYOUTS, "decoder") and isinstance(places, str):
            for place in filter(None, places.split(",")):
                part = str(pathlib.PurePosixPath(place))
                below = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
                chosen += [f"{part}/{name}" for name in weights_files(below, component, folder / part)]
    return sorted(chosen)


def _single_file(names: Collection[str]) -> list[str]:
    found = [name for name in _inside(names, "") if name.endswith(_SINGLE_FILE)]
    found = [name for name in found if not name.endswith(".ckpt") or f"{name[:-5]}.safetensors" not in found]
    if len(found) > 1:
        raise UserError(f"there are several checkpoints: download one of {', '.join(sorted(found))}, and give the file")
    return found


def _inside(names: Iterable[str], folder: str) -> list[str]:
    """The files of a folder, without those below it."""
    return [name for name in names if str(pathlib.PurePosixPath(name).parent) == (folder or ".")]


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [name for name in names if any(pathlib.PurePosixPath(name).match(pattern) for pattern in patterns)]


def _companions(names: Iterable[str], folder: str) -> list[str]:
    found = _matching(_inside(names, folder), COMPANION_FILES)
    return [name for name in found if not any(pathlib.PurePosixPath(name).match(p) for p in weight_files.INDICES)]


def _choose(names: Iterable[str], layout: Layout, folder: str) -> str:
    chosen = layout.choose({pathlib.PurePosixPath(name).name for name in _inside(names, folder)})
    return str(pathlib.PurePosixPath(folder, chosen)) if chosen else ""


def _index(names: Iterable[str], layout: Layout, folder: str) -> list[str]:
    chosen = _choose(names, layout, folder)
    return [chosen] if weight_files.is_index(chosen) else []


def _weights(names: Iterable[str], layout: Layout, part: str, folder: pathlib.Path) -> list[str]:
    chosen = _choose(names, layout, part)
    if weight_files.is_index(chosen):
        return [str(pathlib.PurePosixPath(part, name)) for name in shard_names(folder / chosen)]
    return [chosen] if chosen else []
