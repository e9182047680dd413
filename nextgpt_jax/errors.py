"""Errors that the user can mend. Everything else is a bug and keeps its traceback."""

import sys


class UserError(Exception):
    """Input, configuration or checkpoint is wrong: the message is one line that names the thing and the remedy."""


def run_command(main, argv) -> int:
    """Runs `main(argv)` for an entry point: a UserError becomes one line on stderr and exit status 2."""
    try:
        return main(argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
