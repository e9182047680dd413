"""The package as users import it: exports, version, command line."""

import inspect
import subprocess
import sys

import pytest

import nextgpt_jax as ng
from tests import ROOT


@pytest.mark.parametrize("name", sorted(set(ng.__all__) - {"__version__"}))
def test_exports_exist_and_are_documented(name):
    value = getattr(ng, name)
    assert inspect.getdoc(value) and name in dir(ng)


def test_unknown_attributes_are_errors():
    with pytest.raises(AttributeError, match="no attribute 'NextGPT'"):
        ng.NextGPT  # noqa: B018


def nextgpt(*argv):
    return subprocess.run([sys.executable, "-m", "nextgpt_jax", *argv], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("command", ["infer", "train", "convert", "plan"])
def test_every_subcommand_has_help_that_calls_it_by_its_name(command):
    done = nextgpt(command, "--help")
    assert done.returncode == 0 and f"nextgpt {command}" in done.stdout, done.stdout + done.stderr


def test_subcommands_are_listed_and_unknown_ones_refused():
    assert "infer" in nextgpt().stdout and nextgpt("--version").stdout.strip() == ng.__version__
    done = nextgpt("infr")
    assert done.returncode == 2 and done.stderr == (
        "error: unknown subcommand 'infr' (there are infer, serve, evaluate, train, convert, prepare, warmup, plan); "
        "did you mean infer?\n"
    )
