"""Conversion tables: one file per kind of checkpoint.

A family's row in models/registry.py names its file here. The file defines `tables(config)` and LORA for a language
model, `tables(config)` for a decoder, `table(branches)` for an encoder, and INPUT and OUTPUT, by kind, for projections.
With `sizes(shapes)`, the fields of the config that a checkpoint's shapes show, the error of one that does not fit says
which differ.
"""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from nextgpt_jax.models import registry
from nextgpt_jax.weights.rules import Table
from nextgpt_jax.weights.tables.llama import LanguageModelTables


def _module(family: registry.Family) -> ModuleType:
    return importlib.import_module(f"{__name__}.{family.tables}")


def language_model(config: Any) -> LanguageModelTables:
    """The tables of a language model with this config."""
    found = _module(registry.family_of(config)).tables(config)
    return found._replace(base=_with_hint(found.base, config), tied=_with_hint(found.tied, config))


def encoder(config: Any, branches: Sequence[str] | None = None) -> Table:
    """The table of an encoder of which `branches` are built (None: all)."""
    table = _module(registry.family_of(config)).table(config.modalities if branches is None else branches)
    return _with_hint(table, config)


def lora(kind: str) -> Table:
    """The table of low-rank updates of a language model of this kind, in peft's layout."""
    return _module(registry.LANGUAGE_MODELS[kind]).LORA


def _with_hint(table: Table, config: Any) -> Table:
    sizes = getattr(_module(registry.family_of(config)), "sizes", None)

    def hint(shapes: Mapping[str, tuple[int, ...]]) -> str:
        found = {name: value for name, value in sizes(shapes).items() if value != getattr(config, name)}
        if not found:
            return ""
        given = ", ".join(f"{name} {getattr(config, name)}" for name in found)
        wanted = ", ".join(f"{name} {value}" for name, value in found.items())
        return f"it has {wanted}, and the config {given}: give the config.json that belongs to these weights"

    return dataclasses.replace(table, hint=hint) if sizes else table


def decoder(config: Any) -> dict[str, Table]:
    """The tables of a decoder's parts, by the names of their folders."""
    return _module(registry.family_of(config)).tables(config)


def input_projector(kind: str) -> Table:
    """The table of an input projection."""
    return _module(registry.INPUT_PROJECTORS[kind]).INPUT[kind]


def output_projector(kind: str) -> Table:
    """The table of an output projection, relative to it."""
    return _module(registry.OUTPUT_PROJECTORS[kind]).OUTPUT[kind]
