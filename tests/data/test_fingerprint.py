"""Fingerprints of data files."""

import os

import pytest

from nextgpt_jax.data import fingerprint as module
from nextgpt_jax.data.fingerprint import fingerprint, identity
from nextgpt_jax.errors import UserError


def test_a_fingerprint_is_that_of_the_contents(tmp_path):
    """Whatever the files are called and wherever they are, in this order."""
    for name, content in (("a.json", b"[1]"), ("b.json", b"[2]"), ("copy", b"[1]"), ("c.json", b"[12]")):
        (tmp_path / name).write_bytes(content)
    a, b, copy, c = (tmp_path / name for name in ("a.json", "b.json", "copy", "c.json"))
    assert fingerprint([a]) == fingerprint([copy]) != fingerprint([b])
    assert len(fingerprint([a])) == 16 and set(fingerprint([a])) <= set("0123456789abcdef")
    assert len({fingerprint(files) for files in ([a, b], [b, a], [a], [a, a], [c])}) == 5
    assert fingerprint([tmp_path]) == fingerprint([a, b, c]), "a folder has its data files"
    with pytest.raises(UserError, match="none.json cannot be read"):
        fingerprint([tmp_path / "none.json"])


@pytest.mark.parametrize("place", [0, 300, 599])
def test_blocks_of_long_files(tmp_path, monkeypatch, place):
    """The first and the last are among them, and the size counts."""
    monkeypatch.setattr(module, "_WHOLE", 100)
    monkeypatch.setattr(module, "_BLOCK", 10)
    monkeypatch.setattr(module, "_BLOCKS", 61)
    content = bytearray(600)
    (tmp_path / "a.tar").write_bytes(content)
    before = fingerprint([tmp_path / "a.tar"])
    content[place] = 1
    (tmp_path / "a.tar").write_bytes(content)
    assert fingerprint([tmp_path / "a.tar"]) != before
    (tmp_path / "a.tar").write_bytes(bytes(601))
    assert fingerprint([tmp_path / "a.tar"]) != before


def test_an_identity_changes_with_the_file(tmp_path, monkeypatch):
    """Small files have none, and those that are not there."""
    path = tmp_path / "a.json"
    path.write_text("[1]")
    assert identity(path) == identity(tmp_path / "none.json") == ""
    monkeypatch.setattr(module, "SMALL", 0)
    os.utime(path, ns=(1, 1))
    found = [identity(path), identity(path)]
    assert found[0] == found[1]
    path.write_text("[2]")
    os.utime(path, ns=(1, 1))
    found.append(identity(path))
    os.utime(path, ns=(2, 2))
    found.append(identity(path))
    path.write_text("[11]")
    found.append(identity(path))
    (tmp_path / "b.json").write_text("[11]")
    found.append(identity(tmp_path / "b.json"))
    found.append(identity(tmp_path))
    assert len(set(found)) == len(found) - 1
