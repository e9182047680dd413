"""Many questions to an endpoint: what the journal has is not asked again, unusable replies are, and all is counted."""

import collections
import concurrent.futures
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from nextgpt_jax.building.replies import check_schema, parse_reply
from nextgpt_jax.chat.client import ChatClient, Endpoint, Rejected
from nextgpt_jax.chat.costs import NO_USAGE, Messages, Usage, estimate_tokens
from nextgpt_jax.chat.journal import Entry, Journal


class Question(NamedTuple):
    """What is asked, and what of a reply is usable.

    Attributes:
      messages: the system's and the user's.
      schema: of the JSON in the reply.
      check: the reply's content to what is kept of it. Raises Rejected.
      expected: tokens of a reply, about.
    """

    messages: Messages
    schema: Mapping[str, Any]
    check: Callable[[Any], Any]
    expected: int

    def key(self, model: str) -> str:
        """Its name in a journal: the same for the same text to the same model."""
        text = json.dumps([model, list(self.messages)], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


class Answers(NamedTuple):
    """What came of questions.

    Attributes:
      results: what `check` gave for each; None: no reply was usable.
      rejected: number of replies that were not, by reason.
      usage: tokens of this run.
    """

    results: list[Any]
    rejected: collections.Counter[str]
    usage: Usage


class Plan(NamedTuple):
    """What remains to be asked.

    Attributes:
      total: questions.
      answered: of them, in the journal.
      given_up: of them, in the journal as often rejected as they may be.
      usage: tokens of the others, about.
    """

    total: int
    answered: int
    given_up: int
    usage: Usage


def plan(questions: Sequence[Question], model: str, journal: Journal, attempts: int) -> Plan:
    """What asking these questions would take, if no reply is rejected."""
    answered = given_up = 0
    usage = NO_USAGE
    for question in questions:
        entry = journal.get(question.key(model))
        if _checked(question, entry) is not None:
            answered += 1
        elif len(entry.reasons) >= attempts:
            given_up += 1
        else:
            usage = usage.plus(Usage(estimate_tokens(question.messages), question.expected))
    return Plan(len(questions), answered, given_up, usage)


def ask(
    questions: Sequence[Question],
    endpoint: Endpoint,
    journal: Journal,
    attempts: int,
    seed: int = 0,
    client: Callable[[Endpoint, int], ChatClient] = ChatClient,
) -> Answers:
    """Asks what the journal has no usable reply for.

    Args:
      attempts: replies to a question before it is given up, those in the journal among them.

    Raises:
      UserError: the endpoint cannot be used. What it has answered is in the journal.
    """
    results: list[Any] = [None] * len(questions)
    rejected: collections.Counter[str] = collections.Counter()
    usage, open_questions = NO_USAGE, []
    for number, question in enumerate(questions):
        entry = journal.get(question.key(endpoint.model))
        results[number] = _checked(question, entry)
        rejected.update(entry.reasons)
        if results[number] is None and len(entry.reasons) < attempts:
            open_questions.append(number)
    if not open_questions:
        return Answers(results, rejected, usage)
    with client(endpoint, seed) as chat, concurrent.futures.ThreadPoolExecutor(endpoint.concurrency) as pool:
        futures = {pool.submit(_ask_one, questions[n], endpoint, chat, journal, attempts): n for n in open_questions}
        try:
            progress = tqdm(concurrent.futures.as_completed(futures), "asking", len(futures), disable=None)
            for future in progress:
                results[futures[future]], reasons, used = future.result()
                rejected.update(reasons)
                usage = usage.plus(used)
        except BaseException:
            chat.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return Answers(results, rejected, usage)


def _ask_one(
    question: Question, endpoint: Endpoint, chat: ChatClient, journal: Journal, attempts: int
) -> tuple[Any, list[str], Usage]:
    key = question.key(endpoint.model)
    left, reasons, used = attempts - len(journal.get(key).reasons), [], NO_USAGE
    for _ in range(left):
        usage = NO_USAGE
        try:
            completion = chat.complete(_with_reason(question.messages, reasons), question.schema, question.expected)
            usage = completion.usage
            reply = parse_reply(completion.text)
            result = _check(question, reply)
        except Rejected as error:
            reasons.append(str(error))
            usage = usage.plus(error.usage)
            used = used.plus(usage)
            journal.reject(key, reasons[-1], usage)
            continue
        journal.accept(key, reply, usage)
        return result, reasons, used.plus(usage)
    return None, reasons, used


def _with_reason(messages: Messages, reasons: Sequence[str]) -> Messages:
    if not reasons:
        return messages
    remark = f"An earlier answer of yours could not be used: {reasons[-1]}. Write a new one that follows all the rules."
    return [*messages[:-1], {**messages[-1], "content": f"{messages[-1]['content']}\n\n{remark}"}]


def _check(question: Question, reply: Any) -> Any:
    check_schema(reply, question.schema)
    return question.check(reply)


def _checked(question: Question, entry: Entry) -> Any:
    """What the journal's reply gives; None: there is none, or it is not usable by what is checked now."""
    if entry.reply is None:
        return None
    try:
        return _check(question, entry.reply)
    except Rejected:
        return None
