"""Shared by the commands that build instruction data: flags of the endpoint and of the output, asking, the summary."""

import collections
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from absl import flags

from nextgpt_jax.building.asking import Question, ask, plan
from nextgpt_jax.building.export import to_reference
from nextgpt_jax.building.records import check_output, make_folder, usable_records, write_records
from nextgpt_jax.chat.client import FORMATS, Endpoint, key_from
from nextgpt_jax.chat.costs import describe
from nextgpt_jax.chat.journal import Journal
from nextgpt_jax.data.pairs import Conversation
from nextgpt_jax.errors import UserError
from nextgpt_jax.json_files import parse_json

_SHOWN = 8  # reasons in a summary


def define_flags(values: flags.FlagValues) -> None:
    """The flags that all building commands have."""

    def define(kind: str, name: str, default: object, text: str) -> None:
        getattr(flags, f"DEFINE_{kind}")(name, default, text, flag_values=values)

    define("string", "output", "", "file to write: .json, or .jsonl for one record per line")
    define("boolean", "overwrite", False, "replace the file if it exists")
    define("string", "format", "own", "own (docs/data.md), or reference: the original's formats")
    define("integer", "seed", 0, "of all random choices")
    define("boolean", "dry_run", False, "print what would be asked and what it would cost, and stop")
    define("string", "endpoint", "", "URL of an OpenAI-compatible API (https://host/v1); empty: write by templates")
    define("string", "model", "", "name of the endpoint's model")
    define("string", "key_env", "OPENAI_API_KEY", "environment variable with the endpoint's key, if it needs one")
    define("float", "price_in", 0.0, "price of a million tokens of prompts, for the cost")
    define("float", "price_out", 0.0, "price of a million tokens of replies")
    define("float", "requests_per_minute", 0.0, "limit of the endpoint; 0: none")
    define("float", "tokens_per_minute", 0.0, "limit of the endpoint; 0: none")
    define("integer", "concurrency", 8, "requests at the same time")
    define("integer", "attempts", 3, "replies to a question before it is given up")
    define("integer", "retries", 8, "of a request that fails because the endpoint is busy or broken")
    define("integer", "max_tokens", 1500, "of a reply")
    define("string", "response_format", "json_object", f"how JSON is asked for: {', '.join(FORMATS)}")
    define("string", "request", "", "further fields of requests, as JSON, such as '{\"temperature\": 1.2}'")


class Command:
    """One run of a building command.

    Attributes:
      output: the file to write.
      endpoint: None: write by templates.
      name: of what writes the texts, for the records' field `model`.
    """

    def __init__(self, values: flags.FlagValues):
        """Checks the shared flags. Raises UserError."""
        self._values = values
        if values.format not in ("own", "reference"):
            raise UserError(f"--format: {values.format!r} is not own or reference")
        self.output = check_output(values.output, values.overwrite or values.dry_run)
        self.endpoint = self._endpoint() if values.endpoint else None
        if not self.endpoint and (values.model or values.dry_run):
            raise UserError(f"--{'model' if values.model else 'dry_run'} is for an endpoint: add --endpoint=URL")
        if not values.model.isprintable():
            raise UserError("--model has characters that are no text")
        if not values.attempts >= 1:
            raise UserError(f"--attempts={values.attempts}: give 1 or more")
        if not (values.price_in >= 0 and values.price_out >= 0):
            raise UserError("--price_in and --price_out: give 0 or more")
        self.name = self.endpoint.model if self.endpoint else "templates"

    def _endpoint(self) -> Endpoint:
        v = self._values
        extra = parse_json(v.request) if v.request else {}
        if not isinstance(extra, dict):
            raise UserError("--request should be a JSON object")
        return Endpoint(
            url=v.endpoint, model=v.model, key=key_from(v.key_env), response_format=v.response_format,
            max_tokens=v.max_tokens, extra=extra, retries=v.retries, concurrency=v.concurrency,
            requests_per_minute=v.requests_per_minute, tokens_per_minute=v.tokens_per_minute,
        )  # fmt: skip

    def run(
        self,
        questions: Sequence[Question],
        by_templates: Callable[[], Iterable[dict[str, Any]]],
        folder: pathlib.Path | None = None,
        problem_of: Callable[[Conversation], str] = lambda conversation: "",
    ) -> None:
        """Makes records, checks them and writes the file; or, with --dry_run, prints the costs.

        Args:
          folder: that names of media are relative to; default: that of the file.
          problem_of: what a conversation lacks; empty: nothing.

        Raises:
          UserError: the endpoint cannot be used, no record is usable, or the file cannot be written.
        """
        rejected: collections.Counter[str] = collections.Counter()
        if self.endpoint is None:
            records: Iterable[dict[str, Any]] = by_templates()
        elif (answered := self._ask(questions)) is None:
            return
        else:
            records, rejected = answered
        make_folder(self.output.parent)  # names of media may begin with its ".."
        usable = usable_records(records, folder or self.output.parent, rejected, problem_of)
        named = (record | {"model": self.name} for record in usable)
        try:
            count = write_records(self.output, to_reference(named) if self._values.format == "reference" else named)
        except UserError as error:
            raise UserError(f"{error}{_reasons(rejected)}") from None
        print(f"{self.output}: {count} records{_reasons(rejected)}")

    def _ask(self, questions: Sequence[Question]) -> tuple[list[dict[str, Any]], collections.Counter[str]] | None:
        assert self.endpoint is not None
        v = self._values
        with Journal(journal_of(self.output)) as journal:
            todo = plan(questions, self.endpoint.model, journal, v.attempts)
            left = todo.total - todo.answered - todo.given_up
            print(
                f"{todo.total} questions to {self.endpoint.model} at {self.endpoint.place}, {todo.answered} of them "
                f"answered before; {left} to ask: about {describe(todo.usage, v.price_in, v.price_out)}",
                flush=True,
            )
            if v.dry_run:
                return None
            answers = ask(questions, self.endpoint, journal, v.attempts, v.seed)
        found = [result for result in answers.results if result is not None]
        print(f"used {describe(answers.usage, v.price_in, v.price_out)}", flush=True)
        if len(found) < len(questions):
            print(f"{len(questions) - len(found)} of {len(questions)} questions have no usable answer", file=sys.stderr)
        return found, answers.rejected


def journal_of(output: pathlib.Path) -> pathlib.Path:
    """The file that keeps the answers of an endpoint."""
    return output.with_name(f"{output.name}.journal")


def _reasons(rejected: collections.Counter[str]) -> str:
    if not rejected:
        return ""
    shown = ", ".join(f"{count} {reason}" for reason, count in rejected.most_common(_SHOWN))
    return f"; rejected: {shown}"


def take_file(argv: Sequence[str], usage: str) -> tuple[str, list[str]]:
    """The first argument, and the others without it. With --help there is none.

    Args:
      usage: what to write, for the message.

    Raises:
      UserError: there is none, or it is an option.
    """
    if any(arg in ("-h", "--help", "-help") for arg in argv):
        return "", list(argv)
    if len(argv) < 2 or argv[1].startswith("-"):
        raise UserError(f"give the file first: {usage}")
    return argv[1], [argv[0], *argv[2:]]
