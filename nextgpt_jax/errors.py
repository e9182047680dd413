"""Errors that the user can fix. Any other exception is a bug and keeps its traceback."""


class UserError(Exception):
    """Wrong input, configuration or checkpoint: a one-line message that names the problem and the remedy."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, or the name of its type if the message is empty."""
    message = getattr(error, "strerror", None) or str(error)
    return (message.splitlines() or [type(error).__name__])[0]
