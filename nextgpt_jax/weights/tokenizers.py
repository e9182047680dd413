"""Tokenizers of local folders, by transformers."""

import inspect
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.files import refuse_lfs_pointer
from nextgpt_jax.models import hf_config

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
_CONFIG, ADDED_TOKENS = "tokenizer_config.json", "added_tokens.json"
_CLASSES = {"LLaMATokenizer": "LlamaTokenizer"}  # the name in conversions of early 2023
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def load_tokenizer(folder: str | pathlib.Path) -> Any:
    """A transformers tokenizer from a local folder. Nothing is downloaded.

    Raises:
      UserError: the folder has no tokenizer, or it cannot be read.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found"
    folder = pathlib.Path(folder)
    for name in _FILES:
        refuse_lfs_pointer(folder / name)
    config = hf_config.read_config(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
    loader = _tokenizer_class(folder, config)
    special = _special_tokens(folder, config, loader)
    try:
        # Lengths are checked by the callers; the tokenizer's own limit would only print a second message.
        return loader.from_pretrained(str(folder), local_files_only=True, model_max_length=2**31, **special)
    except Exception as error:  # many types, bare Exception among them
        raise UserError(f"{folder} holds no readable tokenizer: {first_line(error)}") from None


def tokenizer_files(folder: str | pathlib.Path) -> dict[str, pathlib.Path]:
    """The files of a folder's tokenizer, by name."""
    names = (*_FILES, _CONFIG, "special_tokens_map.json", ADDED_TOKENS, "chat_template.jinja")
    return {name: pathlib.Path(folder, name) for name in names if pathlib.Path(folder, name).is_file()}


def _tokenizer_class(folder: pathlib.Path, config: Mapping[str, Any]) -> Any:
    """AutoTokenizer is the last choice: it imports torch where that is installed, which takes seconds."""
    import transformers

    if (folder / "tokenizer.json").is_file():
        return transformers.PreTrainedTokenizerFast
    name = config.get("tokenizer_class")
    name = _CLASSES.get(name, name) if isinstance(name, str) else ""
    if name.endswith(("Tokenizer", "TokenizerFast")) and hasattr(transformers, name):
        return getattr(transformers, name)
    return transformers.AutoTokenizer


def _special_tokens(folder: pathlib.Path, config: Mapping[str, Any], loader: Any) -> dict[str, str]:
    """The tokens that tokenizer_config.json has as "", as early conversions of LLaMA do: those of the class.

    Raises:
      UserError: the class does not know them.
    """
    empty = [name for name in _SPECIAL if config.get(name) == ""]
    own = {name: p.default for name, p in inspect.signature(loader.__init__).parameters.items() if name in empty}
    if unknown := [name for name in empty if not isinstance(own.get(name), str)]:
        raise UserError(
            f"{folder / _CONFIG}: {unknown[0]} is empty: write the token of the vocabulary, or null for none"
        )
    return own
