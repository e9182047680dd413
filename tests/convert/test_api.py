"""The Python functions behind python -m convert."""

import json
import shutil

import numpy as np
import pytest

from convert import convert_checkpoint, export_checkpoint
from convert.folders import UNMATCHED
from nextgpt_jax.errors import UserError
from nextgpt_jax.weights.safetensors_writer import save_safetensors
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, open_checkpoint
from tests.convert.commands import same


def test_a_component_there_and_back(tiny_root, tmp_path, capsys):
    source = tiny_root / "hub" / "llm"
    report = convert_checkpoint("llama", source, tmp_path / "jax", report=tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == report
    entry = report["parts"]["."]["parameters"]["embed_tokens.embedding"]
    assert entry["from"] == ["model.embed_tokens.weight"] and entry["dtype"] == "float32"
    export_checkpoint("llama", tmp_path / "torch", source=tmp_path / "jax")
    same(open_checkpoint(source), open_checkpoint(tmp_path / "torch"))
    assert capsys.readouterr().out == ""  # unless verbose is set


def test_a_dry_run_needs_no_output(tiny_root):
    report = convert_checkpoint("llama", tiny_root / "hub" / "llm", dtype="bfloat16", dry_run=True)
    assert {p["dtype"] for p in report["parts"]["."]["parameters"].values()} == {"bfloat16"}


def test_tensors_without_weights_come_back_from_folders_of_either_name(tiny_root, tmp_path):
    shutil.copytree(tiny_root / "hub" / "llm", tmp_path / "source")
    tensors = {**open_checkpoint(tmp_path / "source"), "model.rotary_emb.inv_freq": np.ones(4, np.float32)}
    original = Checkpoint.of("original", tensors)
    save_safetensors(original, tmp_path / "source" / "model.safetensors")
    convert_checkpoint("llama", tmp_path / "source", tmp_path / "jax")
    for name in (UNMATCHED, "left.safetensors"):
        if name != UNMATCHED:
            (tmp_path / "jax" / UNMATCHED).rename(tmp_path / "jax" / name)
        export_checkpoint("llama", tmp_path / name, source=tmp_path / "jax")
        same(original, open_checkpoint(tmp_path / name))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: convert_checkpoint("lama", "x", "y"), "unknown component 'lama'"),
        (lambda: convert_checkpoint("llama", "x"), "--output=DIR is missing"),
        (lambda: convert_checkpoint("llama", output="y"), "--source is missing"),
        (lambda: convert_checkpoint("llama", "/x", "y", dtype="int8"), "--dtype: 'int8' is not one of float32"),
        (lambda: convert_checkpoint("delta", "/x", "y"), "delta needs --config"),
        (lambda: convert_checkpoint("lora", "/x", "y"), "--base is missing"),
        (lambda: export_checkpoint("lama", "y", source="x"), "unknown component 'lama'"),
        (lambda: export_checkpoint("lora", "y", workdir="x"), "/x holds no training run"),
        (
            lambda: export_checkpoint("llama", "y", workdir="x"),
            "^--workdir applies to export delta and export lora, not to export llama$",
        ),
        (lambda: export_checkpoint("llama", source="x"), "--output=DIR is missing"),
        (lambda: export_checkpoint("delta", "y", source="x", workdir="x"), "give --source or --workdir, not both"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
