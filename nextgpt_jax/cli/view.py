"""The command `nextgpt prepare view`: training data as a web page."""

import pathlib
from collections.abc import Sequence

from absl import flags

from nextgpt_jax.building.page import write_page
from nextgpt_jax.cli.building import take_file
from nextgpt_jax.cli.flags import parse_flags
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import check_folder, format_size

USAGE = """{program} FILE --output=PAGE.html [options]

Writes a web page that shows the records of FILE (or of files, folders, patterns, as data.instructions has them): turns,
images, players of sound and video, and what is wrong with records that cannot be used. Options:"""


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("output", "", "the page, .html; it is replaced if it exists", flag_values=values)
    flags.DEFINE_string("media_root", "", "folder of the media; empty: that of their file", flag_values=values)
    flags.DEFINE_integer("limit", 100, "records, drawn at random and shown in order; 0: all", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the drawing", flag_values=values)
    flags.DEFINE_bool("embed", False, "put media into the page, instead of links to their files", flag_values=values)


def main(argv: Sequence[str]) -> None:
    """Parses flags and writes the page. Raises UserError for what the user can mend."""
    path, argv = take_file(argv, "nextgpt prepare view FILE --output=PAGE.html")
    values = parse_flags(argv, _define, USAGE, config=False)
    output = pathlib.Path(values.output)
    if output.suffix not in (".html", ".htm"):
        raise UserError("--output=PAGE.html is missing" if not values.output else f"--output: {output} is no .html")
    if values.limit < 0:
        raise UserError(f"--limit={values.limit}: give 0 or more")
    check_folder(output.parent, "--output")
    page = write_page(output, path, values.media_root, values.limit, values.seed, values.embed)
    wrong = f", {page.problems} of them cannot be used" if page.problems else ""
    print(f"{output}: {page.shown} of {page.total} records{wrong}, {format_size(output.stat().st_size)}")
