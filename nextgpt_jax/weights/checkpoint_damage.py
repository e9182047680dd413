"""Damage of a run's checkpoint: items or files that are missing, cut short or not readable.

Orbax keeps the arrays of an item in an OCDBT store and lists them in `_METADATA`. Every value of the store is read,
because neither the names nor the sizes of its files show whether a copy was interrupted.
"""

import pathlib
from collections.abc import Sequence

import tensorstore as ts

from nextgpt_jax.errors import UserError
from nextgpt_jax.files import is_remote
from nextgpt_jax.json_files import read_json

_ARRAY_METADATA, _STEP_METADATA = "_METADATA", "_CHECKPOINT_METADATA"
_PENDING = 64  # reads in flight


def find_damage(step: pathlib.Path, items: Sequence[str]) -> str:
    """The first damage in a checkpoint, for a message; empty: its `items` are whole.

    Args:
      step: the checkpoint's folder.
      items: the items that are needed; "data" is JSON, the others are arrays.
    """
    if (step / _STEP_METADATA).exists() and (found := _json_damage(step, _STEP_METADATA)):
        return found
    for item in items:
        found = _json_damage(step, f"{item}/metadata") if item == "data" else _array_damage(step, item)
        if found:
            return found
    return ""


def _json_damage(step: pathlib.Path, name: str) -> str:
    if not (step / name).is_file():
        return f"{name} is missing"
    try:
        read_json(step / name)
    except UserError:
        return f"{name} is damaged"
    return ""


def _array_damage(step: pathlib.Path, item: str) -> str:
    if not (step / item).is_dir():
        return f"{item}/ is missing"
    optional = [file for file in (step / item).glob("array_metadatas/*")] + [step / item / "_sharding"]
    for name in [_ARRAY_METADATA, *(str(file.relative_to(step / item)) for file in optional if file.exists())]:
        if found := _json_damage(step, f"{item}/{name}"):
            return found
    try:
        arrays = read_json(step / item / _ARRAY_METADATA)["tree_metadata"].values()
        wanted = {".".join(part["key"] for part in array["key_metadata"]) for array in arrays}
    except (AttributeError, KeyError, TypeError):
        return f"{item}/{_ARRAY_METADATA} is damaged"
    if wanted - _readable_arrays(step / item):
        return f"{item}/ has files that are missing or cut short"
    return ""


def _readable_arrays(folder: pathlib.Path) -> set[str]:
    """The names of the arrays in a store; none if any value cannot be read."""
    base = f"{folder}/" if is_remote(folder) else {"driver": "file", "path": f"{folder}/"}
    try:
        store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
        keys = store.list().result()
        for start in range(0, len(keys), _PENDING):
            for pending in [store.read(key) for key in keys[start : start + _PENDING]]:
                if not pending.result().value:  # empty if its file is missing
                    return set()
    except (OSError, ValueError):
        return set()
    return {key.decode().rpartition("/")[0] for key in keys}
