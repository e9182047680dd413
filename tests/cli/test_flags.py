"""Flags and overrides: what is wrong, in one line, with the nearest name."""

import pytest
from absl import flags

from nextgpt_jax.cli.flags import parse_flags, run_command
from nextgpt_jax.errors import UserError
from tests import KEYPAD

CONFIG = str(KEYPAD)


def parse(*argv):
    def define(values):
        flags.DEFINE_string("prompt", None, "what to say", flag_values=values)

    return parse_flags(["infer.py", *argv], define, "usage")


def test_typed_overrides():
    values = parse(f"--config={CONFIG}:stage1", "--config.optim.lr=3e-4", "--config.optim.rates.lora=2", "--prompt=hi")
    assert values.config.optim.lr == 3e-4 and values.config.optim.rates.lora == 2.0 and values.prompt == "hi"
    assert values.config.train.stage == "stage1"


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "--config=FILE"),
        (["--config=nowhere.py"], "no such file: nowhere.py"),
        ([f"--config={CONFIG}:stage11"], "unknown variant 'stage11' \\(there are .*\\); did you mean stage1"),
        (
            [f"--config={CONFIG}", "--config.optim.lrr=1"],
            r"unknown override --config.optim.lrr; did you mean config.optim.lr",
        ),
        (
            [f"--config={CONFIG}", "--config.opt.lr=1"],
            r"unknown override --config.opt.lr; did you mean config.optim.lr",
        ),
        ([f"--config={CONFIG}", "--config.optim.lr=fast"], "--config.optim.lr=fast: could not convert"),
        ([f"--config={CONFIG}", "--promt=x"], "unknown flag --promt; did you mean prompt"),
        ([f"--config={CONFIG}", "stray"], "unexpected argument 'stray'"),
    ],
)
def test_mistakes(argv, message):
    with pytest.raises(UserError, match=message) as error:
        parse(*argv)
    assert "\n" not in str(error.value)


def test_errors_are_one_line_and_status_2(capsys):
    def main(argv):
        raise UserError("this is\nwrong")

    assert run_command(main, []) == 2
    assert capsys.readouterr().err == "error: this is wrong\n"
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        run_command(lambda argv: 1 / 0, [])
