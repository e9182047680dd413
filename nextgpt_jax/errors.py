"""Errors that the user can mend. Everything else is a bug and keeps its traceback."""


class UserError(Exception):
    """Input, configuration or checkpoint is wrong: the message is one line that names the thing and the remedy."""
