"""The command `nextgpt prepare mosit`: conversations that mix modalities, around the media of a captioned library."""

import pathlib
import sys
from collections.abc import Sequence

import numpy as np
from absl import flags

from nextgpt_jax.building.captions import describe_skipped, read_library
from nextgpt_jax.building.mosit import conversation_problem, from_templates, make_plans, questions
from nextgpt_jax.building.topics import read_patterns, read_topics, usable
from nextgpt_jax.cli import building
from nextgpt_jax.cli.flags import configure_jax, parse_flags
from nextgpt_jax.errors import UserError

_SHOWN = 5  # topics without media

USAGE = """{program} --library=FILES --output=FILE.json [--endpoint=URL --model=NAME] [options]

Writes conversations of 3 to 7 turns in which people bring media and are answered with others. What they bring is taken
from a library of media with captions. The texts are written by a chat model, or by templates. Options:"""


def _define(values: flags.FlagValues) -> None:
    def define(kind: str, name: str, default: object, text: str) -> None:
        getattr(flags, f"DEFINE_{kind}")(name, default, text, flag_values=values)

    define("string", "library", "", "media with captions: files, folders or patterns, as data.captions has them")
    define("string", "topics", "", "topics with commas, a .txt file with one a line, or library: the captions of media "
           "drawn from it; default: a list of this project")  # fmt: skip
    define("string", "patterns", "", "a file with one a line, such as: image>text, text>video+audio, text>text")
    define("integer", "number", 100, "conversations")
    define("string", "imagebind", "", "folder, Hub id or config of an ImageBind that finds media; empty: by words")
    define("float", "min_similarity", None, "of a medium to the topic, a cosine; default: 0.1")
    define("string", "cache", "", "file of embeddings; default: OUTPUT.embeddings.npz")
    define("string", "media_root", "", "folder that names of media are relative to; empty: that of their file")
    building.define_flags(values)


def main(argv: Sequence[str]) -> None:
    """Parses flags and builds. Raises UserError for what the user can mend."""
    values = parse_flags(argv, _define, USAGE, config=False)
    if not values.library:
        raise UserError("--library=FILES is missing: media with captions, as stage 1 reads them")
    if values.number < 1:
        raise UserError(f"--number={values.number}: give 1 or more")
    command = building.Command(values)
    topics = [] if values.topics == "library" else read_topics(values.topics)
    patterns = read_patterns(values.patterns)
    found = read_library(values.library, values.media_root)
    print(f"{len(found.captions)} media{describe_skipped(found)}", flush=True)
    library = _library(values, found.captions)
    there = library.modalities  # templates take the captions of what is made from there, too
    fitting = usable(patterns, there, _everything(patterns) if command.endpoint else there)
    if not fitting:
        raise UserError(f"--library has only {', '.join(sorted(library.modalities))}, and no pattern goes with that")
    low = 0.1 if values.min_similarity is None else values.min_similarity
    by_templates = command.endpoint is None
    made = make_plans(library, topics, fitting, values.number, low, values.seed, outputs_too=by_templates)
    _report(made, low)
    folder = pathlib.Path(values.media_root or command.output.parent)
    asked = questions(made.plans, folder, values.seed) if command.endpoint else []
    command.run(asked, lambda: from_templates(made.plans, folder, values.seed), folder, conversation_problem)


def _library(values, captions):
    from nextgpt_jax.building.matching import EmbeddedLibrary, WordLibrary

    if not values.imagebind:
        return WordLibrary(captions)
    configure_jax()
    from nextgpt_jax.pipeline.imagebind import ImageBind

    imagebind = ImageBind.from_pretrained(values.imagebind)
    cache = pathlib.Path(values.cache or f"{values.output}.embeddings.npz")

    def progress(done: int, total: int) -> None:
        print(f"embedding media: {done} of {total}", file=sys.stderr, flush=True)

    library = EmbeddedLibrary(captions, imagebind, f"{values.imagebind} {imagebind.config}", cache, progress)
    if library.unreadable:
        print(f"{len(library.unreadable)} media are unreadable, such as: {library.unreadable[0]}", file=sys.stderr)
    return library


def _everything(patterns) -> set[str]:
    return {name for pattern in patterns for name in pattern.outputs()}


def _report(made, low: float) -> None:
    if made.similarities:
        quartiles = ", ".join(f"{value:.2f}" for value in np.quantile(made.similarities, (0.1, 0.5, 0.9)))
        print(f"{len(made.plans)} conversations planned; similarities of their media (10 %, 50 %, 90 %): {quartiles}")
    if made.skipped:
        shown = ", ".join(reason for reason, _ in made.skipped.most_common(_SHOWN))
        print(
            f"{made.skipped.total()} without media of --min_similarity={low}: {shown}"
            f"{', ...' if len(made.skipped) > _SHOWN else ''}",
            flush=True,
        )
    if not made.plans:
        raise UserError("no topic has media in the library: give other --topics, or a lower --min_similarity")
