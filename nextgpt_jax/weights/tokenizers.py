"""Tokenizers of local folders, by transformers."""

import os
import pathlib
from typing import Any

from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.models import hf_config


def load_tokenizer(folder: str | pathlib.Path) -> Any:
    """A transformers tokenizer from a local folder. Nothing is downloaded.

    Raises:
      UserError: the folder has no tokenizer, or it cannot be read.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found"
    loader = _tokenizer_class(pathlib.Path(folder))
    try:
        # Lengths are checked by the callers; the tokenizer's own limit would only print a second message.
        return loader.from_pretrained(str(folder), local_files_only=True, model_max_length=2**31)
    except Exception as error:  # many types, bare Exception among them
        raise UserError(f"{folder} holds no readable tokenizer: {first_line(error)}") from None


def _tokenizer_class(folder: pathlib.Path) -> Any:
    """AutoTokenizer is the last choice: it imports torch where that is installed, which takes seconds."""
    import transformers

    if (folder / "tokenizer.json").is_file():
        return transformers.PreTrainedTokenizerFast
    config = folder / "tokenizer_config.json"
    name = hf_config.read_config(config).get("tokenizer_class") if config.is_file() else None
    if isinstance(name, str) and name.endswith(("Tokenizer", "TokenizerFast")) and hasattr(transformers, name):
        return getattr(transformers, name)
    return transformers.AutoTokenizer
