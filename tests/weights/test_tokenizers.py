"""Tokenizers from folders of several layouts."""

import subprocess
import sys

import pytest
import transformers

from examples.keypad.language import WORDS
from nextgpt_jax.errors import UserError
from nextgpt_jax.weights.tokenizers import load_tokenizer
from tests import FIXTURES, tiny


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


def test_an_unreadable_tokenizer_config(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer_config.json is not valid JSON"):
        load_tokenizer(tmp_path)
