"""Flags and overrides: errors of one line, with the nearest name."""

import pytest
from absl import flags

from nextgpt_jax.cli.flags import parse_flags, parse_shard, run_command
from nextgpt_jax.errors import UserError
from tests import KEYPAD

CONFIG = str(KEYPAD)


def parse(*argv):
    def define(values):
        flags.DEFINE_string("prompt", None, "prompt text", flag_values=values)

    return parse_flags(["infer.py", *argv], define, "{program} --prompt=TEXT\n\nUsage.")


def test_typed_overrides(capsys):
    overrides = ["--config.optim.lr=3e-4", "--config.optim.lr_multipliers.lora=2", "--config.train.steps", "7"]
    values = parse(f"--config={CONFIG}:stage1", *overrides, "--config.data.bucket_boundaries=(8,16)", "--prompt=hi")
    optim = values.config.optim
    assert optim.lr == 3e-4 and optim.lr_multipliers.lora == 2.0 and values.prompt == "hi"
    assert values.config.train.stage == "stage1" and values.config.train.steps == 7
    assert values.config.data.bucket_boundaries == (8, 16)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "argv", [["--config=keypad:stage2"], ["--config", "keypad:stage2"], ["-config", f"{CONFIG}:stage2"]]
)
def test_configs_by_name_or_path_before_or_after_their_overrides(argv):
    for order in ([*argv, "--config.optim.lr=1.0"], ["--config.optim.lr=1.0", *argv]):
        config = parse(*order).config
        assert (config.train.stage, config.optim.lr) == ("stage2", 1.0)


def test_names_and_values_of_earlier_releases(capsys):
    argv = ["--config.data.threads=4", "--config.decode.image.steps", "9", "--config.model.template=pieces"]
    config = parse("--config=keypad", *argv).config
    assert config.data.num_workers == 4 and config.generation.image.num_inference_steps == 9
    assert config.model.template == "per_segment"
    assert capsys.readouterr().err.splitlines() == [
        "note: --config.data.threads is now --config.data.num_workers",
        "note: --config.decode.image.steps is now --config.generation.image.num_inference_steps",
        "note: --config.model.template=pieces is now per_segment",
    ]


@pytest.mark.parametrize(
    "given, expected",
    [("8,16", (8, 16)), ("(8,16)", (8, 16)), ("[8, 16]", (8, 16)), ("8", (8,)), ("(8,)", (8,)), ("", ()), ("()", ())],
)
def test_tuples_of_numbers(given, expected):
    for argv in ([f"--config.data.bucket_boundaries={given}"], ["--config.data.bucket_boundaries", given]):
        assert parse("--config=keypad", *argv, "--prompt=hi").config.data.bucket_boundaries == expected


@pytest.mark.parametrize(
    "given", ["q_proj,v_proj", "'q_proj', 'v_proj'", "('q_proj', 'v_proj')", '["q_proj","v_proj"]']
)
def test_tuples_of_names(given):
    assert parse("--config=keypad", f"--config.model.lora_targets={given}").config.model.lora_targets == (
        "q_proj",
        "v_proj",
    )


def test_help_needs_no_config(capsys):
    with pytest.raises(SystemExit) as done:
        parse("--help")
    output = capsys.readouterr().out
    assert not done.value.code and output.startswith("infer.py --prompt=TEXT\n\nUsage.\n")
    assert "--prompt: prompt text\n" in output and "(keypad, nextgpt_7b)" in output


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "--config is missing: a file or one of keypad, nextgpt_7b, such as --config=keypad"),
        (["--config="], "--config is missing"),
        (["--prompt=hi", "--config"], "--config is missing"),
        (["--config=nowhere.py"], "no such config file: nowhere.py"),
        (["--config=keypat"], r"no config 'keypat' \(there are keypad, nextgpt_7b\); did you mean keypad"),
        ([f"--config={CONFIG}:stage11"], "unknown variant 'stage11' \\(there are .*\\); did you mean stage1"),
        ([f"--config={CONFIG}", "--config.optim.lrr=1"], "unknown override --config.optim.lrr; did you mean config.op"),
        ([f"--config={CONFIG}", "--config.opt.lr=1"], "unknown override --config.opt.lr; did you mean config.optim.lr"),
        ([f"--config={CONFIG}", "--config.optim=1"], "unknown override --config.optim"),
        ([f"--config={CONFIG}", "--config.optim.lr=fast"], "--config.optim.lr=fast: could not convert"),
        (
            [f"--config={CONFIG}", "--config.data.buckets=1.5,2"],
            "boundaries=1.5,2: give elements of type int",
        ),
        (
            [f"--config={CONFIG}", "--config.data.buckets=8,,16"],
            "elements of type int with commas, such as 128,256",
        ),
        ([f"--config={CONFIG}", "--config.model.lora_targets=q_proj,,"], "give elements of type str with commas"),
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


@pytest.mark.parametrize("text", ["", "1", "4/4", "-1/4", "a/b", "0/0"])
def test_shards(text):
    assert parse_shard("3/4") == (3, 4)
    with pytest.raises(UserError, match=f"--shard={text}: give i/n with i from 0 to n - 1"):
        parse_shard(text)
