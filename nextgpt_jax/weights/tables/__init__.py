"""Conversion tables: one file per kind of checkpoint.

A family's row in models/registry.py names its file here. The file defines `tables(config)` for a language model or a
decoder, `table(branches)` for an encoder, and INPUT and OUTPUT, by kind, for projections.
"""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from nextgpt_jax.models import registry
from nextgpt_jax.weights.rules import Table
from nextgpt_jax.weights.tables.llama import LanguageModelTables


def _module(family: registry.Family) -> ModuleType:
    return importlib.import_module(f"{__name__}.{family.tables}")


def language_model(config: Any) -> LanguageModelTables:
    """The tables of a language model with this config."""
    return _module(registry.family_of(config)).tables(config)


def encoder(config: Any, branches: Sequence[str] | None = None) -> Table:
    """The table of an encoder of which `branches` are built (None: all)."""
    return _module(registry.family_of(config)).table(config.modalities if branches is None else branches)


def decoder(config: Any) -> dict[str, Table]:
    """The tables of a decoder's parts, by the names of their folders."""
    return _module(registry.family_of(config)).tables(config)


def input_projector(kind: str) -> Table:
    """The table of an input projection."""
    return _module(registry.INPUT_PROJECTORS[kind]).INPUT[kind]


def output_projector(kind: str) -> Table:
    """The table of an output projection, relative to it."""
    return _module(registry.OUTPUT_PROJECTORS[kind]).OUTPUT[kind]
