"""What identifies the weights that an evaluation is of: fingerprints of the files of each part."""

import hashlib
import json
import pathlib
from collections.abc import Iterable

from nextgpt_jax.config import ModelConfig
from nextgpt_jax.data.fingerprint import fingerprint
from nextgpt_jax.files import is_remote
from nextgpt_jax.weights import assemble, orbax_params, weight_files
from nextgpt_jax.weights.run_checkpoints import Workdir

HASHED = (
    "16 hexadecimal digits of SHA-256 over the sizes and contents of the files of weights, configs and tokenizers; of "
    "a file of more than 256 MiB, 256 blocks of 1 MiB at equal distances; of a checkpoint in a bucket, over the names "
    "and sizes of its files"
)
_LAYOUTS = (weight_files.TRANSFORMERS, weight_files.DIFFUSERS, weight_files.ENCODER, weight_files.DELTA)
_COMPANIONS = (".json", ".txt", ".model", ".jinja")


def weights(config: ModelConfig, workdir: str = "", step: int = 0, ema: bool | None = None) -> dict[str, str]:
    """Fingerprints by part: "llm", "encoder", "image_decoder", ..., "delta", and "checkpoint" of a run. HASHED says of
    what; of 30 GB they take seconds.

    Args:
      step: of the checkpoint of `workdir`; it is there.
      ema: see `Workdir.restore_delta`.

    Raises:
      UserError: a part is missing or cannot be read.
    """
    found = {}
    if workdir:
        run = Workdir(workdir)
        config = assemble.with_folders(config, {"delta": run.base_delta})
        item = "ema" if ema is not False and run.has_average(step) else "delta"
        found["checkpoint"] = _folder(run.path / str(step) / item)
    for name, (_, folder) in assemble.folders_by_part(assemble.resolve_parts(config)).items():
        found[name] = fingerprint(_files(pathlib.Path(folder)))
    return dict(sorted(found.items()))


def _folder(folder: pathlib.Path) -> str:
    """Of all files of a checkpoint."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if not is_remote(folder):
        return fingerprint(files)
    names = [[str(file)[len(str(folder)) :], file.stat().length] for file in files]  # etils.epath's
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    """The files of a part that count, in order: converted ones, or in the published layout those that are loaded."""
    if path.is_file():
        return [path]
    folders = [path, *sorted(folder for folder in path.rglob("*") if folder.is_dir())]
    inner = [(folder, folder.relative_to(path).parts) for folder in folders]
    shown = [(folder, parts) for folder, parts in inner if not any(part.startswith(".") for part in parts)]
    return [file for folder, parts in shown for file in _files_of(folder, orbax_params.FOLDER in parts)]


def _files_of(folder: pathlib.Path, converted: bool) -> list[pathlib.Path]:
    """The files of one folder, without those below it."""
    files = {file.name: file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")}
    if converted:
        return [files[name] for name in sorted(files)]
    chosen = {layout.choose(files) for layout in _LAYOUTS} - {""}
    for index in filter(weight_files.is_index, list(chosen)):
        chosen |= set(_shards(files[index])) & files.keys()
    companions = {name for name in files if name.endswith(_COMPANIONS) and not weight_files.is_index(name)}
    return [files[name] for name in sorted(chosen | companions)]


def _shards(index: pathlib.Path) -> Iterable[str]:
    try:
        return json.loads(index.read_text())["weight_map"].values()
    except (OSError, ValueError, KeyError, AttributeError):  # its reader says what is wrong
        return ()
