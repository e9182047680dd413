"""Many questions: the journal, kills, rejected replies, and the schema of replies."""

import json
import signal
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.building.asking import Question, ask, plan
from nextgpt_jax.building.replies import check_schema, check_text, object_schema, parse_reply, text_schema
from nextgpt_jax.chat.client import Endpoint, Rejected
from nextgpt_jax.chat.costs import Usage, describe
from nextgpt_jax.chat.journal import Journal
from nextgpt_jax.errors import UserError
from tests import ROOT
from tests.chat.server import completion, failure, serving

SCHEMA = object_schema(word=text_schema(1, 20))


def check(reply):
    if reply["word"] == "bad":
        raise Rejected("a bad word")
    return reply["word"]


def asked(*texts):
    return [Question([{"role": "user", "content": text}], SCHEMA, check, 5) for text in texts]


def echo(number, body):
    return completion(json.dumps({"word": body["messages"][-1]["content"].split("\n")[0]}))


def run(server, path, questions, attempts=2, **fields):
    with Journal(path) as journal:
        return ask(questions, Endpoint(server.url, "m", **fields), journal, attempts)


def test_each_question_is_asked_once(tmp_path):
    path = tmp_path / "journal"
    with serving(echo) as server:
        first = run(server, path, asked("a", "b", "bad"))
        again = run(server, path, asked("b", "bad", "a", "c"))
    assert first == (["a", "b", None], {"a bad word": 2}, Usage(28, 12))
    assert again == (["b", None, "a", "c"], {"a bad word": 2}, Usage(7, 3))
    contents = sorted(body["messages"][-1]["content"] for body in server.requests)
    assert [text.split("\n")[0] for text in contents] == ["a", "b", "bad", "bad", "c"]
    assert contents[3].endswith("could not be used: a bad word. Write a new one that follows all the rules.")
    with Journal(path) as journal:
        todo = plan(asked("a", "bad", "d"), "m", journal, 2)
        assert (todo.total, todo.answered, todo.given_up) == (3, 1, 1) and todo.usage == Usage(5, 5)
        assert plan(asked("a"), "another", journal, 2).answered == 0
    assert describe(Usage(2_000_000, 500_000), 0.5, 2) == "2,000,000 tokens in, 500,000 out, cost 2.00"


def test_every_kind_of_bad_reply_is_counted(tmp_path):
    texts = ["hm", '```json\n{"word": 1}\n```', '{"word": "", "x": 1}', '{"wird": "x"}', '["word"]', '{"word": "ok"}']
    with serving(lambda number, body: completion(texts[number])) as server:
        answers = run(server, tmp_path / "journal", asked("a"), attempts=6)
    assert answers.results == ["ok"]
    expected = {"no JSON object": 2, "word is no string": 1, "word is too short": 1, "reply lacks word": 1}
    assert answers.rejected == expected


def test_a_failing_endpoint_keeps_what_was_answered(tmp_path):
    answers = lambda number, body: echo(number, body) if number < 3 else failure(401)  # noqa: E731
    questions = asked(*"abcdefgh")
    with serving(answers) as server, pytest.raises(UserError, match="refuses the key"):
        run(server, tmp_path / "journal", questions, concurrency=1)
    with serving(echo) as server:
        assert run(server, tmp_path / "journal", questions).results == list("abcdefgh")
    assert len(server.requests) == 5


def test_a_killed_run_asks_the_rest(tmp_path):
    """The third request is held until the process is killed; what was journaled is not asked again."""
    reached, release = threading.Event(), threading.Event()

    def hold(number, body):
        if number == 2:
            reached.set()
            release.wait(20)
        return echo(number, body)

    program = (
        "import sys; from tests.building.test_asking import *\n"
        "with Journal(sys.argv[1]) as journal:\n"
        "    ask(asked(*'abcde'), Endpoint(sys.argv[2], 'm', concurrency=1), journal, 2)"
    )
    path = tmp_path / "journal"
    with serving(hold) as server:
        process = subprocess.Popen([sys.executable, "-c", program, path, server.url], cwd=ROOT)
        assert reached.wait(30)
        with pytest.raises(UserError, match="in use by another run"), Journal(path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        release.set()
    with path.open("a") as file:
        file.write('{"key": "ab')  # as a kill in the middle of writing leaves it
    with serving(echo) as server:
        assert run(server, path, asked(*"abcde")).results == list("abcde")
    assert len(server.requests) == 3


def test_a_file_that_is_no_journal(tmp_path):
    path = tmp_path / "journal"
    for content in ("hello\n", "[]\n", '{"key": "x"}\n', '{"key": [], "usage": [1, 2]}\n'):
        path.write_text(content)
        with pytest.raises(UserError, match="line 1 is no journal"), Journal(path):
            pass
        assert path.read_text() == content


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40)
@given(st.text() | JSON.map(json.dumps) | JSON.map(lambda value: json.dumps({"word": value})))
def test_any_reply_is_read_or_rejected(text):
    try:
        reply = parse_reply(text)
        check_schema(reply, SCHEMA)
    except Rejected as error:
        assert str(error)
    else:
        assert isinstance(reply["word"], str) and set(reply) == {"word"}


@pytest.mark.parametrize(
    "text, refusals, message",
    [
        (" \n", False, "is blank"), ("see <Image>", False, "has a tag"), ("[AUD3] there", False, "has a tag"),
        ("### Human: hi", False, "has a tag"), ("I'm sorry, no", True, "is a refusal"),
        ("As an AI, I draw", True, "is a refusal"),
    ],
)  # fmt: skip
def test_texts(text, refusals, message):
    with pytest.raises(Rejected, match=message):
        check_text(text, "it", refusals=refusals)
    assert check_text(" an <imaginary> [IMG] ", "it", refusals=True) == "an <imaginary> [IMG]"
