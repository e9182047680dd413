"""Paths with "..", through symbolic links, and relative to the working folder."""

import os
import pathlib

import pytest

from convert import convert_checkpoint, export_checkpoint, folders
from nextgpt_jax.files import base_name, normal_path
from nextgpt_jax.weights import orbax_params
from nextgpt_jax.weights.components import COMPONENTS, language_model
from nextgpt_jax.weights.load import read_part
from nextgpt_jax.weights.torch_checkpoint import open_checkpoint
from tests import FIXTURES
from tests.convert.commands import convert, same


@pytest.fixture
def inside(tmp_path, monkeypatch) -> pathlib.Path:
    """The working folder: tmp/work/inside, with the language model in tmp/work/llm and tmp/link -> work/inside."""
    (tmp_path / "work" / "inside").mkdir(parents=True)
    (tmp_path / "work" / "llm").symlink_to(FIXTURES / "vicuna")
    (tmp_path / "link").symlink_to(tmp_path / "work" / "inside")
    monkeypatch.chdir(tmp_path / "work" / "inside")
    return pathlib.Path.cwd()


@pytest.mark.parametrize("up", ["..", "../../link/..", "./../inside/.."])
def test_there_and_back_by_relative_paths(up, inside, capsys):
    convert("llm", f"--source={up}/llm", f"--output={up}/jax")
    assert folders.read_manifest(inside.parent / "jax")["source"] == str((inside.parent / "llm").resolve())
    for place in (pathlib.Path(up, "jax"), (inside.parent / "jax").absolute()):
        (part,) = language_model(place)
        found = read_part(place, part.state, part.table, part.layout, "float32", "")
    assert found["norm"]["scale"].shape == (48,)
    convert("export", "llm", f"--source={up}/jax", f"--output={up}/torch")
    same(open_checkpoint(pathlib.Path(up, "llm")), open_checkpoint(inside.parent / "torch"))


def test_outputs_that_are_links_to_empty_folders(inside):
    (inside / "real").mkdir()
    (inside / "jax").symlink_to("real")
    convert_checkpoint("llm", "../llm", "jax")
    assert (inside / "jax").is_symlink() and orbax_params.saved(inside / "real")
    export_checkpoint("llm", "../inside/torch", source="jax")
    assert COMPONENTS["llm"](inside / "torch")


def test_normal_paths(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "blob").touch()
    (tmp_path / "model.bin").symlink_to("a/blob")
    (tmp_path / "link").symlink_to("a/b")
    monkeypatch.chdir(tmp_path / "a")
    for path, wanted in {
        "../model.bin": "model.bin",  # a file keeps its name
        "../link": "a/b",
        "../link/../blob": "a/blob",
        "../link/../new/file": "a/new/file",
        ".": "a",
        "..": "",
        "": "a",
    }.items():
        assert normal_path(path) == tmp_path / wanted
        assert normal_path(os.path.join(tmp_path, "a", path)) == tmp_path / wanted
    assert [base_name(path) for path in ("b", "../link", ".", "b/..", "..")] == ["b", "link", "a", "a", tmp_path.name]
