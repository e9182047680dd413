"""Config files: found by path or name, and errors in them."""

import subprocess
import sys

import pytest

from nextgpt_jax.config_files import config_names, load_config
from nextgpt_jax.errors import UserError
from tests import KEYPAD, ROOT

FILE = """from nextgpt_jax.config import ExperimentConfig

def get_config(variant="a"):
    config = ExperimentConfig()
    {}
    return config
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(line: str, name: str = "mine.py"):
        (tmp_path / name).write_text(FILE.format(line))
        return str(tmp_path / name)

    return write


def test_by_name_or_path():
    assert config_names() == ["keypad", "nextgpt_7b"]
    assert load_config("keypad:stage3") == load_config(f"{KEYPAD}:stage3")
    assert load_config("keypad").train.stage == load_config("keypad:infer").train.stage
    assert load_config("nextgpt_7b:stage2").train.stage == "stage2"


def test_overrides():
    config = load_config("keypad:stage3", {"optim.lr": 1, "data.threads": 4, "data.bucket_boundaries": [8]})
    assert (config.optim.lr, config.data.num_workers, config.data.bucket_boundaries) == (1.0, 4, (8,))
    with pytest.raises(UserError, match="unknown field optim.lrr; did you mean optim.lr"):
        load_config("keypad", {"optim.lrr": 1.0})


def test_a_file_goes_before_a_name_and_may_have_any_name(write):
    assert load_config(write("config.train.seed = 1")).train.seed == 1
    write("config.train.seed = 2", "keypad")
    assert load_config("keypad").train.seed == 2
    assert load_config("./mine.py:b").train.seed == 1


def test_files_written_for_earlier_releases(write):
    path = write("config.data.media, config.decode.image.steps = 'x', 7")
    with pytest.warns(FutureWarning) as found:
        config = load_config(path)
    assert (config.data.media_root, config.generation.image.num_inference_steps) == ("x", 7)
    assert {str(w.message) for w in found} == {
        "DataConfig.media is now media_root",
        "ExperimentConfig.decode is now generation",
        "ImageOptions.steps is now num_inference_steps",
    }
    assert {(w.filename, w.lineno) for w in found} == {(path, 5)}


@pytest.mark.parametrize(
    "line, message",
    [
        ("config.optim.learning_rate = 1", "OptimConfig has no field 'learning_rate'"),
        ("config.optim.lr = 1 / 0", r".*mine.py:5: ZeroDivisionError: division by zero"),
        ("return", r"get_config of .*mine.py should return an ExperimentConfig, not None"),
        ("else", r".*mine.py: SyntaxError"),
    ],
)
def test_mistakes_in_a_file(write, line, message):
    with pytest.raises(UserError, match=message):
        load_config(write(line))


def test_loading_a_config_needs_no_jax():
    code = "import sys; from nextgpt_jax.config_files import load_config; load_config('keypad'); "
    code += "print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr
