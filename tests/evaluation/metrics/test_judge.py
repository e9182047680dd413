"""Judges on 127.0.0.1: what they are asked, what is read in their replies, and that nothing is asked twice."""

import numpy as np
import pytest

from nextgpt_jax.config import EvalConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.measuring import measure
from nextgpt_jax.evaluation.metrics.judge import JudgedAnswers, LLaVABench
from nextgpt_jax.evaluation.types import KeepsReplies, Outcome, Sample
from tests.chat.fixtures import no_waiting  # noqa: F401
from tests.chat.server import Answer, completion, failure, serving


def outcomes(count=4, **references):
    return [
        Outcome(
            Sample(str(number), "", category=("conv", "detail")[number % 2],
                   references={"question": f"what {number}?", "context": "a cat", "answer": "a mat", **references}),
            f"answer {number}",
        )
        for number in range(count)
    ]  # fmt: skip


def settings(server, **fields):
    return EvalConfig(judge=server.url, judge_model="m", **fields)


def asked(body):
    """The number of the outcome that a request is about."""
    return int(body["messages"][1]["content"].split("what ")[1][0])


def samples(given):
    return [outcome.sample for outcome in given]


def test_llava_bench(monkeypatch):
    monkeypatch.setenv("JUDGE", "secret")
    replies = ["8 4\nGood.", "10, 5", "8 8", "9.5 3"]
    given = outcomes(rule="Rate both.")
    with serving(lambda number, body: completion(replies[asked(body)])) as server:
        metric = LLaVABench(samples(given), settings(server, judge_key="JUDGE", judge_request='{"max_tokens": 9}'))
        numbers = np.concatenate([metric.measure(given[:3]), metric.measure(given[3:])])
    figures = metric.aggregate(numbers)
    assert next(iter(figures)) == "relative score" and figures == {
        "relative score": pytest.approx(100 * 20 / 35.5), "reference's score": pytest.approx(88.75),
        "answer's score": pytest.approx(50), "relative score/conv": pytest.approx(75),
        "relative score/detail": pytest.approx(100 * 8 / 19.5), "without a judgment": 0,
    }  # fmt: skip
    assert list(metric.scores(numbers)) == [4, 5, 8, 3] and "LLaVA's rules" in metric.protocol
    body = next(body for body in server.requests if asked(body) == 2)
    assert {name: body[name] for name in ("model", "max_tokens", "temperature")} == {
        "model": "m", "max_tokens": 9, "temperature": 0.2}  # fmt: skip
    assert body["messages"][1] == {
        "role": "user",
        "content": "[Context]\na cat\n\n[Question]\nwhat 2?\n\n[Assistant 1]\na mat\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nanswer 2\n\n[End of Assistant 2]\n\n[System]\nRate both.\n\n",
    }
    assert set(server.keys) == {"Bearer secret"}


@pytest.mark.parametrize(
    ("reply", "numbers"),
    [("{'pred': 'yes', 'score': 4.8}", (4, 1)), ('Sure: {"pred": "No.", "score": "0"}!', (0, 0)),
     ("```\n{'pred': 'YES', 'score': 5}\n```", (5, 1))],
)  # fmt: skip
def test_judged_answers(reply, numbers):
    with serving(lambda number, body: completion(reply)) as server:
        metric = JudgedAnswers([], settings(server))
        found = metric.measure(outcomes(1))
    assert tuple(found[0]) == (*numbers, -1)
    assert metric.aggregate(found) == {"accuracy": 100 * numbers[1], "score": numbers[0], "without a judgment": 0}
    text = server.requests[0]["messages"][1]["content"]
    assert "what 0?" in text and "a mat" in text and "answer 0" in text


@pytest.mark.parametrize(
    ("kind", "reply"),
    [(LLaVABench, reply) for reply in ("Both are good.\n8 9", "8", "8 9 10", "0 5", "11 5", "nan 5", "8 / 9")]
    + [(JudgedAnswers, reply) for reply in ("yes", "{'pred': 'yes'}", "{'pred': 'maybe', 'score': 3}",
       "{'pred': 'yes', 'score': 6}", "{'pred': 'yes', 'score': 1e999}", "{}", "{[}", "{'pred': 'no', 'score': None}")],
)  # fmt: skip
def test_replies_without_scores_are_asked_for_again_and_counted(kind, reply):
    good = {LLaVABench: "5 5", JudgedAnswers: "{'pred': 'yes', 'score': 5}"}[kind]
    with serving(lambda number, body: completion(reply if asked(body) == 1 else good)) as server:
        metric = kind([], settings(server))
        numbers = metric.measure(outcomes(2))
        assert len(server.requests) == 4 and np.isnan(numbers[1, :2]).all()
        figures = metric.aggregate(numbers)
        assert figures["without a judgment"] == 1 and next(iter(figures.values())) == 100
        with pytest.raises(UserError, match="none of 1 answers was judged"):
            metric.aggregate(numbers[1:])


def test_an_interrupted_run_asks_nothing_twice(tmp_path):
    given = outcomes()
    ends = True

    def answer(number: int, body: dict) -> Answer:
        if asked(body) == 3 and ends:
            return failure(404, "gone")
        return completion("no scores" if asked(body) == 2 else "8 4")

    with serving(answer) as server:

        def run():
            metric = LLaVABench(samples(given), settings(server))
            assert isinstance(metric, KeepsReplies)
            return measure([metric], 4, given.__getitem__, tmp_path)[0]

        first = run()
        assert first.error.startswith("not computed: ") and "gone" in first.error and not first.figures
        ends, before = False, len(server.requests)
        second = run()
        later = [asked(body) for body in server.requests[before:]]
        assert second.figures["relative score"] == 50 and second.figures["without a judgment"] == 1
        assert later.count(3) == 1 and len(server.requests) <= 7  # once, but for 2 and 3
        before = len(server.requests)
        assert run().figures == second.figures and len(server.requests) == before


def test_settings_of_a_judge_are_checked():
    with pytest.raises(UserError, match="no judge: config.eval.judge is the base URL"):
        LLaVABench([], EvalConfig()).measure(outcomes(1))
    for fields, message in [
        ({"judge": "host/v1", "judge_model": "m"}, "config.eval.judge: give the URL"),
        ({"judge": "http://host/v1"}, "config.eval.judge_model is missing"),
        ({"judge": "http://host/v1", "judge_model": "m", "judge_request": "[]"}, "judge_request is no JSON object"),
    ]:
        with pytest.raises(UserError, match=message):
            LLaVABench([], EvalConfig(**fields))
    with serving(lambda number, body: failure(401, "who?")) as server:
        with pytest.raises(UserError, match="refuses the key: status 401: who.; config.eval.judge_key names"):
            LLaVABench([], settings(server)).measure(outcomes(1))
