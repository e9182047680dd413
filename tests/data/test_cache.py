"""What was computed from data files is kept, and never trusted."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from nextgpt_jax.data import cache
from nextgpt_jax.data.cache import Arrays, Request, kept
from tests import ROOT


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NEXTGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "MINIMUM", 2)
    return tmp_path / "cache"


MADE = {"a": np.arange(5, dtype=np.int32), "b": np.zeros((3, 2), np.uint8), "none": np.zeros(0)}
NOTES = {"names": ["x", "\udc80"], "n": 1}
REQUEST = Request("data.json", "as it is", ("task", 3))


def get(request=REQUEST, arrays=MADE):
    """The arrays, and whether they were computed."""
    calls = []

    def build(wanted):
        calls.extend(wanted)
        return [Arrays(arrays, NOTES) for _ in wanted]

    (found,) = kept("some", [request], build)
    assert found.notes == NOTES and found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    return found, bool(calls)


@pytest.mark.parametrize("size", [0, 1 << 23])
def test_what_is_computed_once_is_kept(monkeypatch, size):
    """Mapped or read."""
    monkeypatch.setattr(cache, "_MAPPED", size)
    assert [get()[1] for _ in range(3)] == [True, False, False]
    found = pickle.dumps(get()[0])
    assert len(found) < 400, "the place of the file"
    np.testing.assert_array_equal(pickle.loads(found)["a"], MADE["a"])
    assert get(REQUEST._replace(settings=("task", 4)))[1] and not get()[1], "other settings are kept beside it"
    assert get(REQUEST._replace(identity="changed"))[1] and get()[1], "the file as it was is not kept"
    small = {"a": np.zeros(1)}
    assert [get(Request("small", "x"), small)[1] for _ in range(2)] == [True, True]
    assert [get(Request("unknown", ""))[1] for _ in range(2)] == [True, True]


def test_damaged_files_are_replaced(folder):
    get()
    (file,) = (folder / "some").glob("*.bin")
    good = file.read_bytes()
    for place in range(0, len(good), 7):
        bad = bytearray(good)
        bad[place] ^= 1
        file.write_bytes(bad)
        if place < 64 and bad[place] == 1:  # unused
            continue
        assert get()[1], place
        assert file.read_bytes() == good
    for bad in (good[:-1], good + b"\0", good[:70], b"", b"x", json.dumps([1]).encode()):
        file.write_bytes(bad)
        assert get()[1] and not get()[1]


def test_without_a_folder_everything_is_computed(folder):
    folder.write_text("a file")
    assert [get()[1] for _ in range(2)] == [True, True]


def test_several_at_once():
    """Only what is missing is computed, and the same only once."""
    first, second = REQUEST, Request("other.json", "y")
    get(first)
    wanted = []

    def build(requests):
        wanted.extend(requests)
        return [Arrays(MADE, len(wanted)) for _ in requests]

    found = kept("some", [second, first, second], build)
    assert wanted == [second] and [one.notes for one in found] == [1, NOTES, 1]


_STUCK = """
import sys, time
from nextgpt_jax.data import cache
def build(_):
    print("computing", flush=True)
    time.sleep(600)
cache.kept("some", [cache.Request(*map(eval, sys.argv[1:]))], build)
"""


def test_processes_wait_for_the_one_that_computes():
    """And for no longer than it lives."""
    argv = [sys.executable, "-c", _STUCK, *map(repr, REQUEST)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}) as other:
        other.stdout.readline()
        timer = threading.Timer(0.2, other.kill)
        begin = time.monotonic()
        timer.start()
        assert get()[1] and time.monotonic() - begin >= 0.2
    assert not get()[1]
