"""Messages of libraries, in one line."""

import pytest

from nextgpt_jax.cli.flags import run_command
from nextgpt_jax.errors import UserError, first_line, printable


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n \n  two\n"), "two"),
        (ValueError(), "ValueError"),
        (ValueError("\n"), "ValueError"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("a \x1b[1mbold\x1b[0m \x1b[38;5;1mred\x1b[m word\x07"), "a bold red word"),
    ],
)
def test_first_lines(error, line):
    assert first_line(error) == line


def test_what_is_printable():
    text = "ünïcode 漢字 \U0001f600\ttab\n"
    assert printable(text) == text
    assert printable("a\x1b]0;title\x07bc\x1b[2Jd\x9b1me\x00\x08") == "abcd1me"


def test_errors_of_commands_hold_no_escape_sequences(capsys):
    def main(argv):
        raise UserError("unexpected \x1b[31mkey\x1b[0m\nof a file")

    assert run_command(main, ["x"]) == 2
    assert capsys.readouterr().err == "error: unexpected key of a file\n"
