"""`nextgpt prepare`: which command gets which arguments."""

import types

import pytest

import nextgpt_jax
from nextgpt_jax.cli import main, prepare
from nextgpt_jax.errors import UserError


def test_commands(monkeypatch):
    calls = []
    module = lambda name: types.SimpleNamespace(main=lambda argv: calls.append((name, argv)))  # noqa: E731
    for argv in (["t2m", "--output=x"], ["view", "a.json"], ["--config=keypad:stage1", "--check"]):
        monkeypatch.setattr(nextgpt_jax, "submodule", module)
        prepare.main(["nextgpt prepare", *argv])
    assert calls == [
        ("cli.build_t2m", ["nextgpt prepare t2m", "--output=x"]),
        ("cli.view", ["nextgpt prepare view", "a.json"]),
        ("cli.prepare_features", ["nextgpt prepare", "--config=keypad:stage1", "--check"]),
    ]


def test_help_and_mistakes(capsys):
    for argv in (["prepare"], ["prepare", "--help"]):
        assert main.main(["nextgpt", *argv]) == 0
        shown = capsys.readouterr().out
        assert all(name in shown for name in ("t2m", "mosit", "export", "view", "--config"))
    with pytest.raises(UserError, match="unknown command 'veiw' .*did you mean view"):
        main.main(["nextgpt", "prepare", "veiw"])
