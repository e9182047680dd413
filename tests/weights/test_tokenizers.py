"""Tokenizers from folders of several layouts."""

import json
import shutil
import subprocess
import sys

import pytest
import transformers

from examples.keypad.language import WORDS
from nextgpt_jax.errors import UserError
from nextgpt_jax.weights.tokenizers import load_tokenizer
from tests import FIXTURES, tiny

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "0" + "\nsize 499723\n"


@pytest.mark.parametrize("name", ["llm", "stable-diffusion/tokenizer"])
def test_tokenizers_are_silent_about_long_texts(name, caplog, capsys):
    tokenizer = load_tokenizer(tiny.TOKENIZERS / name)
    ids = tokenizer.encode(" ".join(WORDS * 60), add_special_tokens=False)
    assert len(ids) > 500 and tokenizer.decode(ids).split()[:3] == list(WORDS[:3])
    assert not caplog.records and capsys.readouterr() == ("", "")


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match="no readable tokenizer"):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_model_without_importing_torch():
    """A folder without tokenizer.json, as Vicuna's."""
    folder = FIXTURES / "vicuna"
    program = f"""
import sys
from nextgpt_jax.weights.tokenizers import load_tokenizer
print(load_tokenizer({str(folder)!r}).encode("hello <s> there  a\\nb"), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    ids = transformers.AutoTokenizer.from_pretrained(folder).encode("hello <s> there  a\nb")
    assert done.stdout == f"{ids} False\n", done.stderr


def test_empty_special_tokens_are_those_of_the_class(tmp_path):
    """As early conversions of LLaMA have them, with the class under its first name."""
    shutil.copy(FIXTURES / "vicuna" / "tokenizer.model", tmp_path)
    config = json.loads((FIXTURES / "vicuna" / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "LLaMATokenizer"}
    empty = {"bos_token": "", "eos_token": "", "unk_token": ""}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | empty))
    (tmp_path / "special_tokens_map.json").write_text("{}")
    found, expected = load_tokenizer(tmp_path), load_tokenizer(FIXTURES / "vicuna")
    assert (found.bos_token_id, found.eos_token_id, found.unk_token_id) == (1, 2, 0)
    ids = [t.encode("<s>hello  there</s>", add_special_tokens=False) for t in (found, expected)]
    assert ids[0] == ids[1] and (ids[0][0], ids[0][-1]) == (1, 2)


def test_empty_special_tokens_that_nobody_knows(tmp_path):
    shutil.copytree(tiny.TOKENIZERS / "llm", tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": ""}))
    with pytest.raises(UserError, match="tokenizer_config.json: bos_token is empty: write the token of the vocabulary"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "merges.txt"])
def test_a_pointer_of_git_lfs(tmp_path, name):
    (tmp_path / name).write_text(LFS_POINTER)
    with pytest.raises(UserError, match=f"{name} is a Git LFS pointer, not the file itself: run `git lfs pull`"):
        load_tokenizer(tmp_path)


def test_an_unreadable_tokenizer_config(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer_config.json is not valid JSON"):
        load_tokenizer(tmp_path)
