"""Metrics for which a model behind a chat endpoint judges answers: LLaVA-Bench, and questions about videos.

A judge's replies are kept in a file of the run, so that a run that goes on asks nothing twice. A reply that cannot be
used is asked for again, up to three times in all; answers without a judgment are left out of the means and counted.
"""

import abc
import ast
import concurrent.futures
import contextlib
import hashlib
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from nextgpt_jax.chat.client import ChatClient, Endpoint, Names, Rejected, key_from
from nextgpt_jax.chat.costs import NO_USAGE, Messages
from nextgpt_jax.chat.journal import Journal
from nextgpt_jax.config import EvalConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.types import Outcome, Sample
from nextgpt_jax.json_files import parse_json

ATTEMPTS = 3
_EXPECTED = 200  # tokens of a reply, about
_NAMES = Names(
    url="config.eval.judge",
    model="config.eval.judge_model",
    max_tokens="max_tokens of config.eval.judge_request",
    key="config.eval.judge_key names the environment variable that has it",
    request="config.eval.judge_request changes it",
    extra="pip install 'nextgpt-jax[build]'",
)


def judge_of(settings: EvalConfig) -> Endpoint | None:
    """The endpoint of a judge; None: there is none.

    Raises:
      UserError: its URL or another setting is wrong.
    """
    if not settings.judge:
        return None
    extra: Any = parse_json(settings.judge_request) if settings.judge_request else {}
    if not isinstance(extra, dict):
        raise UserError(f"config.eval.judge_request is no JSON object: {settings.judge_request[:80]!r}")
    return Endpoint(
        settings.judge, settings.judge_model, key_from(settings.judge_key), response_format="none", max_tokens=1024,
        extra={"temperature": 0.2} | extra, names=_NAMES,
    )  # fmt: skip


class _Judged(abc.ABC):
    """A metric of judgments: a number or more of each outcome, NaN where there is none, and its category.

    Attributes:
      width: numbers of a judgment.
    """

    name: str
    rules: str
    width: int
    higher_is_better = True

    def __init__(self, samples: Sequence[Sample], settings: EvalConfig):
        """
        Args:
          samples: of the run, whose categories are reported.

        Raises:
          UserError: a setting of the judge is wrong.
        """
        self._endpoint = judge_of(settings)
        self._categories = tuple(sorted({sample.category for sample in samples} - {""}))
        self._folder: pathlib.Path | None = None
        self.protocol = f"judge {settings.judge_model or '(none)'}; {self.rules}"

    def keep_in(self, folder: pathlib.Path) -> None:
        """Has replies kept in a folder, which is that of a run."""
        self._folder = folder

    @abc.abstractmethod
    def messages(self, outcome: Outcome) -> Messages:
        """What the judge is asked."""

    @abc.abstractmethod
    def parse(self, reply: str) -> tuple[float, ...]:
        """The numbers in a reply. Raises Rejected."""

    def measure(self, outcomes: Sequence[Outcome]) -> Float[np.ndarray, "n s"]:
        """Judgments, and indices of categories (-1: none).

        Raises:
          UserError: there is no judge, or it does not answer.
        """
        if self._endpoint is None:
            raise UserError(
                "no judge: config.eval.judge is the base URL of an endpoint that follows OpenAI's API, "
                "config.eval.judge_model its model"
            )
        with contextlib.ExitStack() as stack:
            journal = None
            if self._folder is not None:
                path = self._folder / f"{self.name}_replies.jsonl"
                journal = stack.enter_context(Journal(path, "measure later"))
            chat = stack.enter_context(ChatClient(self._endpoint))
            pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(self._endpoint.concurrency))
            asked = [pool.submit(self._judgment, chat, journal, self.messages(outcome)) for outcome in outcomes]
            try:
                judgments = [future.result() for future in asked]
            except BaseException:
                chat.stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
        index = {category: number for number, category in enumerate(self._categories)}
        rows = [(*found, index.get(outcome.sample.category, -1)) for found, outcome in zip(judgments, outcomes)]
        return np.array(rows, np.float64).reshape(-1, self.width + 1)

    def _judgment(self, chat: ChatClient, journal: Journal | None, messages: Messages) -> tuple[float, ...]:
        assert self._endpoint is not None
        text = json.dumps([self._endpoint.model, list(messages)], sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(text.encode()).hexdigest()
        entry = journal.get(key) if journal else None
        if entry and entry.reply is not None:
            with contextlib.suppress(Rejected):  # by what is read now
                return self.parse(entry.reply)
        for _ in range(ATTEMPTS - len(entry.reasons if entry else ())):
            usage = NO_USAGE
            try:
                completion = chat.complete(messages, {}, _EXPECTED)
                usage = completion.usage
                found = self.parse(completion.text)
            except Rejected as error:
                if journal:
                    journal.reject(key, str(error), usage.plus(error.usage))
                continue
            if journal:
                journal.accept(key, completion.text, usage)
            return found
        return (math.nan,) * self.width

    @abc.abstractmethod
    def figures(self, judgments: Float[np.ndarray, "n w"]) -> dict[str, float]:
        """Figures of judgments, of which there is at least one."""

    def aggregate(self, numbers: Float[np.ndarray, "n s"]) -> dict[str, float]:
        """The figures of all, of each category, and the number of answers that have no judgment.

        Raises:
          UserError: no answer has one.
        """
        numbers = np.asarray(numbers, np.float64)
        judged = numbers[~np.isnan(numbers[:, 0])]
        if not len(judged):
            raise UserError(f"none of {len(numbers):,} answers was judged: the judge's replies have no scores")
        found = self.figures(judged[:, :-1])
        main = next(iter(found))
        for number, category in enumerate(self._categories):
            if len(part := judged[judged[:, -1] == number, :-1]):
                found[f"{main}/{category}"] = self.figures(part)[main]
        return {**found, "without a judgment": float(len(numbers) - len(judged))}

    def scores(self, numbers: Float[np.ndarray, "n s"]) -> Float[np.ndarray, " n"]:
        """The last number of each judgment; the lowest of all where there is none."""
        found = np.asarray(numbers[:, -2], np.float64)
        return np.where(np.isnan(found), -1.0, found)


class LLaVABench(_Judged):
    """LLaVA-Bench: a judge scores the reference answer and the answer from 1 to 10; the figure is the sum of the
    answers' scores in percent of that of the references'.

    References: "question", "context" (of the image, in words), "answer" (GPT-4's), and "rule", the task that the judge
    is given, as LLaVA's rule.json has it; without one it is given in this project's words.
    """

    name = "llava_bench"
    width = 2
    rules = "the answer's scores in percent of the reference's, both from 1 to 10 in the first line of a reply"
    _RULE = (
        "Two assistants have answered the question above, which a user asks about an image. You see the image as the "
        "sentences in the context. Judge how helpful, relevant, accurate and detailed each answer is, and give each "
        "a score from 1 to 10; higher is better. Write the scores of Assistant 1 and Assistant 2 alone in the first "
        "line, with a space between them. Give your reasons from the second line on. Do not let the order of the "
        "answers or any other bias have an influence."
    )

    def __init__(self, samples: Sequence[Sample], settings: EvalConfig):
        super().__init__(samples, settings)
        official = bool(samples) and all("rule" in sample.references for sample in samples)
        self.protocol += "; LLaVA's rules" if official else "; rules in this project's words"

    def messages(self, outcome: Outcome) -> Messages:
        """Context, question, both answers and the rule, in LLaVA's order."""
        known = outcome.sample.references
        content = (
            f"[Context]\n{known['context']}\n\n[Question]\n{known['question']}\n\n"
            f"[Assistant 1]\n{known['answer']}\n\n[End of Assistant 1]\n\n"
            f"[Assistant 2]\n{outcome.text}\n\n[End of Assistant 2]\n\n[System]\n{known.get('rule', self._RULE)}\n\n"
        )
        system = "You check the quality of answers. You are precise and helpful."
        return [{"role": "system", "content": system}, {"role": "user", "content": content}]

    def parse(self, reply: str) -> tuple[float, ...]:
        """The two numbers that alone are in the first line."""
        line = reply.split("\n")[0].replace(",", " ").split()
        try:
            first, second = (float(word) for word in line)
        except ValueError:
            raise Rejected("no two scores in the first line") from None
        if not (0 < first <= 10 and 0 < second <= 10):
            raise Rejected("a score that is not from 1 to 10")
        return first, second

    def figures(self, judgments: Float[np.ndarray, "n 2"]) -> dict[str, float]:
        """The quotient in percent; both means, times ten."""
        reference, answer = judgments.mean(0)
        return {
            "relative score": 100 * float(answer / reference),
            "reference's score": 10 * float(reference),
            "answer's score": 10 * float(answer),
        }


class JudgedAnswers(_Judged):
    """Accuracy of answers about videos by the protocol of Video-ChatGPT: a judge says whether the answer means the
    same as the reference, and scores the agreement from 0 to 5. References: "question", "answer"."""

    name = "judged_answers"
    width = 2
    rules = "Video-ChatGPT's protocol in this project's words: yes or no, and a score from 0 to 5"

    def messages(self, outcome: Outcome) -> Messages:
        """The question and both answers."""
        known = outcome.sample.references
        system = (
            "You compare a model's answer to a question with the correct one, and decide whether they mean the same. "
            "Synonyms and paraphrases count as the same."
        )
        content = f"""A question about a video was answered.

Question: {known["question"]}
Correct answer: {known["answer"]}
Model's answer: {outcome.text}

Reply with a Python dictionary and nothing else: 'pred' is 'yes' if the model's answer means the same as the correct
one, otherwise 'no'; 'score' is a whole number from 0 to 5, and 5 is full agreement. Example:
{{'pred': 'yes', 'score': 4}}"""
        return [{"role": "system", "content": system}, {"role": "user", "content": content}]

    def parse(self, reply: str) -> tuple[float, ...]:
        """The score, cut to a whole number, and 1 for yes or 0 for no."""
        text = reply[reply.find("{") : reply.rfind("}") + 1]
        try:
            found = ast.literal_eval(text)
            score, said = int(found["score"]), str(found["pred"]).lower()
        except (ValueError, SyntaxError, TypeError, LookupError, OverflowError, MemoryError, RecursionError):
            raise Rejected("no dictionary with pred and score") from None
        if "yes" not in said and "no" not in said or not 0 <= score <= 5:
            raise Rejected("pred is neither yes nor no, or the score not from 0 to 5")
        return float(score), float("yes" in said)

    def figures(self, judgments: Float[np.ndarray, "n 2"]) -> dict[str, float]:
        """Percent of yes, and the mean score."""
        score, yes = judgments.mean(0)
        return {"accuracy": 100 * float(yes), "score": float(score)}
