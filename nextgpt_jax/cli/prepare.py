"""The command `nextgpt prepare ...`: builds instruction data, shows it, and computes the features of training data."""

from collections.abc import Sequence

import nextgpt_jax
from nextgpt_jax.errors import UserError, nearest

_COMMANDS = {  # name -> (module, in one line)
    "t2m": ("cli.build_t2m", "requests for images, videos and sounds, from captions"),
    "mosit": ("cli.build_mosit", "conversations that mix text and media, from topics and a captioned library"),
    "export": ("cli.export_data", "instruction data in the reference's formats"),
    "view": ("cli.view", "instruction data as a web page"),
}
USAGE = "\n".join(
    [
        "nextgpt prepare --config=NAME_OR_FILE:STAGE ...    computes the features of training data (--config=keypad",
        "                                                   --help lists its options)",
        "nextgpt prepare COMMAND ...                        (nextgpt prepare COMMAND --help lists its options)",
        "",
        *(f"  {name:<8}{text}" for name, (_, text) in _COMMANDS.items()),
    ]
)


def main(argv: Sequence[str]) -> int | None:
    """Runs a command of `nextgpt prepare`. Raises UserError for input that the user can correct."""
    name = argv[1] if len(argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if name in _COMMANDS:
        return nextgpt_jax.submodule(_COMMANDS[name][0]).main([f"{argv[0]} {name}", *argv[2:]])
    if not name.startswith("-"):
        known = ", ".join(_COMMANDS)
        raise UserError(f"nextgpt prepare: unknown command {name!r} (there are {known}){nearest(name, [*_COMMANDS])}")
    return nextgpt_jax.submodule("cli.prepare_features").main(list(argv))
