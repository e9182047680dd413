"""Files of requests: order, interruption, and what an interrupted run leaves."""

import json
import pathlib
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextgpt_jax.config import ServingConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.requests import RequestFile
from nextgpt_jax.serving.batcher import Batcher
from nextgpt_jax.serving.request_file import ReplyFile, answer_file


def replies(folder):
    return [json.loads(line) for line in (folder / "replies.jsonl").read_text().splitlines()]


@given(st.permutations(range(12)), st.integers(0, 12), st.integers(0, 30))
def test_a_killed_run_has_lost_no_reply(order, count, missing):
    """Whatever was written; of the last line, some bytes may be missing."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        file = ReplyFile(folder, {"of": 1})
        for i in order[:count]:
            file.write(i, {"text": f"reply {i} \N{SNOWMAN}"})
        for path in (folder / "replies.jsonl.part", folder / "replies.jsonl"):  # killed in the middle of a line
            content = path.read_bytes()
            with path.open("ab") as opened:
                opened.write(b'[99, "{}"' if path.suffix == ".part" else (content[:missing] or b"{").split(b"\n")[0])
        again = ReplyFile(folder, {"of": 1})
        assert [i for i in range(12) if i in again] == sorted(order[:count])
        for i in order[count:]:
            again.write(i, {"text": f"reply {i} \N{SNOWMAN}"})
        again.close()
        assert [reply["text"] for reply in replies(folder)] == [f"reply {i} \N{SNOWMAN}" for i in range(12)]
        assert {path.name for path in folder.iterdir()} == {"replies.jsonl", "replies.run.json"}


def test_an_interrupted_run_is_continued(tiny_engine, tmp_path, monkeypatch):
    lengths = [40, 3, 3, 30, 3, 3, 3, 20, 3, 3]
    lines = [json.dumps({"prompt": f"say {i}", "max_new_tokens": n}) for i, n in enumerate(lengths)]
    (tmp_path / "r.jsonl").write_text("\n".join(lines))
    asked, validate = [], tiny_engine.validate
    monkeypatch.setattr(tiny_engine, "validate", lambda request: asked.append(request) or validate(request))
    options = {"modality": "text", "temperature": 0.0}

    def run(output, stop=99):
        def on_reply(done, made):
            if done == stop:
                raise KeyboardInterrupt

        with Batcher(tiny_engine, ServingConfig(rows=2, max_new_tokens=48)) as batcher:
            return answer_file(
                batcher, RequestFile(str(tmp_path / "r.jsonl")), options, output, {"model": "a"}, on_reply
            )

    assert run(tmp_path / "whole") == (10, 0, 10, 0)
    asked.clear()
    for stop in (2, 5, 8):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", stop)
    assert run(tmp_path / "parts").before == 8
    assert replies(tmp_path / "parts") == replies(tmp_path / "whole")
    assert len({r.turns[0].human for r in asked}) == 10 and len(asked) <= 10 + 3 * 4  # those in rows are asked again
    assert run(tmp_path / "parts") == (10, 10, 0, 0)


def test_replies_of_something_else_are_not_continued(tmp_path):
    ReplyFile(tmp_path, {"requests": "a", "options": {"seed": 1}}).close()
    with pytest.raises(UserError, match="run with other options: give another --output"):
        ReplyFile(tmp_path, {"requests": "a", "options": {"seed": 2}})
    (tmp_path / "replies.run.json").unlink()
    with pytest.raises(UserError, match="other requests and options"):
        ReplyFile(tmp_path, {"requests": "a", "options": {}})


@pytest.mark.parametrize(
    "content, message", [(None, "no such file"), (b"\n \n", "has no requests"), (b'{"prompt": "\xff"}', "not UTF-8")]
)
def test_files_that_cannot_be_read(tmp_path, content, message):
    if content is not None:
        (tmp_path / "r.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=f"--requests: .*{message}"):
        RequestFile(str(tmp_path / "r.jsonl"))
