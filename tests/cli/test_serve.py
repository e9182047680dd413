"""The flags of `nextgpt serve`; the server itself is tested in tests/serving/http."""

import socket
import sys

import pytest

from nextgpt_jax.cli import serve
from nextgpt_jax.errors import UserError
from tests import KEYPAD

SERVE = ["nextgpt serve", f"--config={KEYPAD}"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--port=99999"], "--port=99999 is out of range"),
        (["--host=256.0.0.1"], "cannot listen on 256.0.0.1"),
        (["--api_keys=nowhere.txt"], "--api_keys: nowhere.txt"),
        (["--api_key= "], "an API key is empty"),
        (["--max_upload=-1"], "--max_upload"),
        (["--max_upload=0"], "max_upload is 0"),
        (["--rate_limit=nan"], "--rate_limit"),
        (["--step=5"], "--workdir"),
        (["--config.serving.rowz=5"], "did you mean"),
    ],
)
def test_mistakes_are_one_line(flags, message):
    with pytest.raises(UserError, match=message) as error:
        serve.main([*SERVE, *flags])
    assert "\n" not in str(error.value)


def test_an_address_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve.main([*SERVE, f"--port={port}"])


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"pip install 'nextgpt-jax\[serve\]'"):
        serve.main(SERVE)


def test_keys_of_flags_files_and_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys.txt"
    file.write_text("# ours\none\n\n two \n")
    monkeypatch.setenv(serve.KEYS_VARIABLE, "three,four,")
    assert serve.api_keys(["zero"], str(file)) == ("zero", "three", "four", "one", "two")
    file.write_text("# none\n")
    with pytest.raises(UserError, match="has no keys"):
        serve.api_keys([], str(file))


@pytest.mark.parametrize(
    "flags, name",
    [(["--config=keypad"], "keypad"), (["--config", "a/my_config.py:stage2"], "my_config"), (["--port=1"], "nextgpt")],
)
def test_the_model_is_named_after_its_config(flags, name):
    assert serve.model_name(["nextgpt serve", *flags]) == name
