"""The command `nextgpt prepare t2m`: instruction data that asks for media, from captions."""

from collections.abc import Sequence

from absl import flags

from nextgpt_jax.building.captions import describe_skipped, read_captions
from nextgpt_jax.building.t2m import from_templates, questions
from nextgpt_jax.cli import building
from nextgpt_jax.cli.flags import parse_flags
from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import output_modalities

USAGE = """{program} --captions=FILES --output=FILE.json [--endpoint=URL --model=NAME] [options]

Writes requests for images, videos and sounds, and the replies that bring them, for the captions in files: by templates,
or by a chat model. Options:"""


def _define(values: flags.FlagValues) -> None:
    known = ",".join(output_modalities())
    flags.DEFINE_string("captions", "", "files, folders or patterns, as data.captions has them", flag_values=values)
    flags.DEFINE_list("modalities", [], f"of {known}: those that are wanted; default: all", flag_values=values)
    flags.DEFINE_integer("number", 0, "captions, drawn at random; 0: all", flag_values=values)
    flags.DEFINE_integer("variants", 1, "records for each caption", flag_values=values)
    building.define_flags(values)


def main(argv: Sequence[str]) -> None:
    """Parses flags and builds. Raises UserError for what the user can mend."""
    values = parse_flags(argv, _define, USAGE, config=False)
    if not values.captions:
        raise UserError("--captions=FILES is missing: pairs of media and captions, as stages 1 and 2 read them")
    if values.number < 0 or values.variants < 1:
        raise UserError("--number: give 0 or more, and --variants 1 or more")
    command = building.Command(values)
    found = read_captions(values.captions, values.modalities, values.number, values.seed)
    print(f"{len(found.captions)} captions{describe_skipped(found)}", flush=True)
    arguments = (found.captions, values.variants, values.seed)
    command.run(questions(*arguments) if command.endpoint else [], lambda: from_templates(*arguments))
