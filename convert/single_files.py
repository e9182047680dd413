"""Decoders in one file: a temporary folder with what a folder of diffusers' layout has besides the weights, from which
they are converted like one."""

import os
import pathlib
import shutil
import tempfile
from typing import NamedTuple

import numpy as np

from nextgpt_jax.errors import UserError
from nextgpt_jax.weights import components, hub, hub_files, matching
from nextgpt_jax.weights.components import COMPONENTS
from nextgpt_jax.weights.single_file import SingleFile, open_single_file
from nextgpt_jax.weights.tokenizers import load_tokenizer

from . import folders
from .folders import MatchedPart

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt",
)  # fmt: skip
_PUBLISHED = {  # repositories with the tokenizer of each kind
    "Stable Diffusion 1": "openai/clip-vit-large-patch14",
    "Stable Diffusion 2": "stabilityai/stable-diffusion-2-1",
    "AudioLDM": "laion/clap-htsat-unfused",
}


class SingleFileMatch(NamedTuple):
    """The parts of a file, what its manifest records, and the temporary folder with the rest."""

    parts: list[MatchedPart]
    manifest: dict[str, str]
    staging: tempfile.TemporaryDirectory


def is_single(component: str, path: pathlib.Path) -> bool:
    """Whether the component is a decoder, by any of its names, and the path a file."""
    return COMPONENTS.get(component) is components.decoder and path.is_file()


def match(
    path: pathlib.Path, tokenizer: str | os.PathLike, dtype: np.dtype | None, *, prediction_type: str, ema: bool
) -> SingleFileMatch:
    """Opens and checks a file.

    Raises:
      UserError: see `open_single_file`, `write_companions` and `match_parts`.
    """
    opened = open_single_file(path, prediction_type=prediction_type, ema=ema)
    staging = write_companions(opened, tokenizer)
    parts = match_parts(opened, pathlib.Path(staging.name), dtype)
    return SingleFileMatch(parts, {"kind": opened.kind, "taken": opened.taken, "tokenizer": str(tokenizer)}, staging)


def write_companions(opened: SingleFile, tokenizer: str | os.PathLike) -> tempfile.TemporaryDirectory:
    """A temporary folder in diffusers' layout without weights.

    Args:
      opened: the file.
      tokenizer: a folder or hub id that has the tokenizer, or has it in its folder tokenizer.

    Raises:
      UserError: there is no tokenizer, or it does not fit the text encoder.
    """
    source = opened.checkpoint.source
    if not str(tokenizer):
        raise UserError(
            f"{source} is {opened.kind}, and has no tokenizer: give --tokenizer=FOLDER_OR_HUB_ID, such as "
            f"--tokenizer={_PUBLISHED[opened.kind]}"
        )
    found = hub.find(tokenizer, hub_files.TOKENIZER, field="--tokenizer", weights=False).path
    if not found.is_dir():
        raise UserError(f"--tokenizer: {found} is no folder")
    found = found / "tokenizer" if (found / "tokenizer").is_dir() else found
    _check_tokenizer(opened, found)
    staging = tempfile.TemporaryDirectory(prefix="nextgpt-jax-")
    folder = pathlib.Path(staging.name)
    for name, content in opened.config_files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        folders.write_json(folder / name, content)
    (folder / "tokenizer").mkdir()
    for name in _TOKENIZER_FILES:
        if (found / name).is_file():
            shutil.copyfile(found / name, folder / "tokenizer" / name)
    return staging


def _check_tokenizer(opened: SingleFile, folder: pathlib.Path) -> None:
    loaded = load_tokenizer(folder)
    rows = opened.config_files["text_encoder/config.json"]["vocab_size"]
    if len(loaded) > rows:
        raise UserError(f"--tokenizer: {folder} has {len(loaded)} tokens, the text encoder of {opened.kind} {rows}")
    wanted = loaded.eos_token_id if opened.pad_token_id is None else opened.pad_token_id
    if loaded.pad_token_id != wanted:
        raise UserError(
            f"--tokenizer: {folder} pads with {loaded.pad_token!r} (id {loaded.pad_token_id}), but {opened.kind} was "
            f"trained with {loaded.convert_ids_to_tokens(wanted)!r} (id {wanted}): take its own tokenizer, such as "
            f"{_PUBLISHED[opened.kind]}"
        )


def match_parts(opened: SingleFile, folder: pathlib.Path, dtype: np.dtype | None) -> list[MatchedPart]:
    """The parts that the config files in `folder` describe, filled by the file.

    Raises:
      ConversionError: it does not fit; all mismatches of a part are listed.
    """
    matched = []
    for part in components.decoder(folder):
        table, own = opened.parts[part.folder]
        found = matching.match(own, part.state, table)
        # Keys without weights are recorded, not kept: export writes diffusers' layout, which has no place for them.
        unmatched = (*found.unmatched, *(opened.ignored if part.folder == "unet" else ()))
        bare = own.with_tensors({key: own.tensors[key] for key in own if key not in found.unmatched})
        matched.append(MatchedPart.of(part, bare, found._replace(unmatched=unmatched), dtype))
    return matched
