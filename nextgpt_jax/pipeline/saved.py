"""Where a pipeline's weights come from, and folders that hold a whole model.

FOLDER/nextgpt.json   the model and generation settings; the paths of parts are relative to FOLDER
FOLDER/<part>/        every part in its published or converted layout, and the trained weights (delta)
"""

import dataclasses
import json
import os
import pathlib
import shutil

import nextgpt_jax
from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.config_files import config_from_dict, config_names, config_to_dict, load_config
from nextgpt_jax.errors import UserError, nearest
from nextgpt_jax.files import atomic_folder, base_name, is_remote, normal_path
from nextgpt_jax.models import hf_config
from nextgpt_jax.weights import hub, hub_files, orbax_params
from nextgpt_jax.weights.assemble import part_folders, resolve_parts
from nextgpt_jax.weights.run_checkpoints import Workdir
from nextgpt_jax.weights.run_steps import LATEST, parse_step

FILE, FORMAT = hub_files.SYSTEM_FILE, 1


@dataclasses.dataclass(frozen=True)
class Source:
    """An experiment config and, if the trained weights are a run's, its workdir (else "") and which of its weights (see
    `Workdir.restore_delta`)."""

    config: ExperimentConfig
    workdir: str = ""
    step: str | int = LATEST
    ema: bool | None = None


def find(
    name_or_path: str | os.PathLike,
    *,
    config: str | ExperimentConfig | None = None,
    revision: str = "",
    step: str | int = LATEST,
    ema: bool | None = None,
) -> Source:
    """The source that `NExTGPT.from_pretrained` is given.

    Raises:
      UserError: there is no such model, or it has no trained weights.
    """
    found = _find(name_or_path, config, revision)
    if (step := parse_step(step)) != LATEST and not found.workdir:
        raise UserError(f"step={step} chooses a checkpoint of a training run, and {name_or_path} is none")
    if ema is not None and not found.workdir:
        raise UserError(f"ema={ema} chooses weights of a training run, and {name_or_path} is none")
    return dataclasses.replace(found, step=step, ema=ema)


def _find(name_or_path: str | os.PathLike, config: str | ExperimentConfig | None, revision: str) -> Source:
    name = os.fspath(name_or_path)
    remote = is_remote(name)
    path = normal_path(name) if remote else pathlib.Path(name)
    given = load_config(config) if isinstance(config, str) else config
    if not remote and path.is_dir() and (path / FILE).is_file():
        return Source(read(path))
    if path.is_dir():
        run = Workdir(path)
        if (found := given or run.config()) is None:
            raise UserError(f"{path} does not record its config: give config=, such as config='keypad:stage3'")
        return Source(found, str(path))
    if remote:
        raise UserError(f"{name} holds no training run")
    if path.is_file() or name.split(":")[0] in config_names():
        found = load_config(name)
        if not found.model.delta:
            raise UserError(f"the config {name} has no trained weights: give the workdir of a training run of it")
        return Source(found)
    if hub.is_hub_id(name):
        folder = hub.find(name, hub_files.SYSTEM, field="from_pretrained", revision=revision).path
        if not (folder / FILE).is_file():
            raise UserError(f"{name} holds no {FILE}: it is no model that save_pretrained wrote")
        return Source(read(folder))
    raise UserError(
        f"no folder or config {name!r} (configs: {', '.join(config_names())}){nearest(name, config_names())}"
    )


def read(folder: pathlib.Path) -> ExperimentConfig:
    """The config that FILE in a folder holds.

    Raises:
      UserError: the file is damaged.
    """
    content = hf_config.read_config(folder / FILE)
    if (found := content.pop("format", None)) != FORMAT:
        raise UserError(f"{folder / FILE}: format {found!r} is of another version of this project (only {FORMAT})")
    config = config_from_dict(content, str(folder / FILE))
    for name in part_folders(config.model):
        parts = [folder / part for part in getattr(config.model, name).split(",")]
        if outside := [part for part in parts if not part.resolve().is_relative_to(folder.resolve())]:
            raise UserError(f"{folder / FILE}: model.{name} is outside the folder: {outside[0]}")
        setattr(config.model, name, ",".join(map(str, parts)))
    return config


def write(folder: pathlib.Path, config: ExperimentConfig, folders: dict[str, str]) -> None:
    """Writes FILE; `folders` are the parts' folders below `folder`, by the field of the config."""
    content = config_to_dict(config)
    content = {"format": FORMAT, "model": content["model"] | folders, "generation": content["generation"]}
    (folder / FILE).write_text(json.dumps(content, indent=2) + "\n")


def save(source: Source, folder: pathlib.Path) -> None:
    """Writes the folder of `NExTGPT.save_pretrained`.

    Raises:
      UserError: the folder is not empty or not writable, or a part is not there.
    """
    model = source.config.model
    if source.workdir:
        model = dataclasses.replace(model, delta=Workdir(source.workdir).base_delta)
    model = resolve_parts(model)
    convert, folders = nextgpt_jax.submodule("convert"), {}
    with atomic_folder(folder, flag="save_pretrained") as scratch:
        for name, (component, path) in part_folders(model).items():
            if name == "delta":
                continue
            parts = [pathlib.Path(part) for part in path.split(",")]
            targets = [_free_name(base_name(part if part.is_dir() else part.parent), scratch) for part in parts]
            for part, target in zip(parts, targets, strict=True):
                if orbax_params.is_converted(part):
                    convert.export_checkpoint(component, source=part, output=scratch / target)
                else:
                    shutil.copytree(part if part.is_dir() else part.parent, scratch / target)
            folders[name] = ",".join(targets)
        folders["delta"] = "delta"
        run = {"workdir": source.workdir, "step": source.step, "ema": source.ema}
        trained = run if source.workdir else {"source": model.delta}
        if source.workdir or orbax_params.is_converted(pathlib.Path(model.delta)):
            convert.export_checkpoint("delta", output=scratch / "delta", config=source.config, **trained)
        else:
            _copy_delta(pathlib.Path(model.delta), scratch / "delta")
        write(scratch, dataclasses.replace(source.config, model=model), folders)


def _free_name(name: str, folder: pathlib.Path) -> str:
    """`name`, or the next of name-2, name-3, ... that the folder does not have."""
    number, found = 1, name
    while (folder / found).exists():
        number, found = number + 1, f"{name}-{number + 1}"
    return found


def _copy_delta(path: pathlib.Path, target: pathlib.Path) -> None:
    if path.is_dir():
        shutil.copytree(path, target)
    else:
        target.mkdir()
        shutil.copy(path, target)
