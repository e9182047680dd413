"""One component of a system by itself: its folder, its weights in memory, its tokenizer."""

import os
import pathlib
from typing import Any

from flax import nnx

from nextgpt_jax.config_files import config_names, load_config
from nextgpt_jax.errors import UserError
from nextgpt_jax.weights import hub
from nextgpt_jax.weights.assemble import frozen_dtype
from nextgpt_jax.weights.components import COMPONENTS, refuse_single_file
from nextgpt_jax.weights.load import read_part


def component_folder(name_or_path: str | os.PathLike, component: str, field: str, revision: str = "") -> pathlib.Path:
    """The folder of a component: a local one, that of a config's field, or a downloaded one.

    Raises:
      UserError: there is none.
    """
    name = os.fspath(name_or_path)
    if not pathlib.Path(name).exists() and name.split(":")[0] in config_names():
        folder = getattr(load_config(name).model, field)
        if not folder:
            raise UserError(f"the config {name} has no model.{field}")
        return pathlib.Path(folder)
    path = hub.find(name, component, field="from_pretrained", revision=revision).path
    refuse_single_file(component, path)
    return path if path.is_dir() else path.parent


def fill_component(model: Any, component: str, folder: pathlib.Path, dtype: str | None) -> None:
    """Fills a model, which may be abstract, with the weights in a folder, in place.

    Args:
      model: the module that the component's folder describes.
      component: as `python -m convert` calls it.
      dtype: "float32" or "bfloat16"; None: bfloat16 on accelerators, float32 on CPUs.

    Raises:
      UserError: a file is missing or does not fit.
    """
    parts = COMPONENTS[component](folder)
    for part in parts:
        state = read_part(folder / part.folder, part.state, part.table, part.layout, frozen_dtype(dtype or "auto"), "")
        nnx.update(getattr(model, part.folder) if part.folder else model, state)
