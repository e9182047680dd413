"""The command `nextgpt prepare export`: instruction data in the reference's formats."""

from collections.abc import Sequence

from absl import flags

from nextgpt_jax.building.export import to_reference
from nextgpt_jax.building.records import check_output, read_records, write_records
from nextgpt_jax.cli.building import take_file
from nextgpt_jax.cli.flags import parse_flags

USAGE = """{program} FILE --output=FILE.json

Writes records of this project's schema (docs/data.md) in the reference's formats: one request for a medium as T2M,
other conversations as MosIT before its prepare_data.py. Options:"""


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("output", "", "file to write: .json, or .jsonl for one record per line", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "replace the file if it exists", flag_values=values)


def main(argv: Sequence[str]) -> None:
    """Parses flags and exports. Raises UserError for what the user can mend."""
    path, argv = take_file(argv, "nextgpt prepare export FILE --output=FILE.json")
    values = parse_flags(argv, _define, USAGE, config=False)
    output = check_output(values.output, values.overwrite)
    count = write_records(output, to_reference(read_records(path)))
    print(f"{output}: {count} records")
