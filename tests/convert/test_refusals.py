"""python -m convert: what can go wrong, and that nothing is left then."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from convert import folders
from nextgpt_jax.errors import UserError
from nextgpt_jax.weights import orbax_params
from nextgpt_jax.weights.components import COMPONENTS
from nextgpt_jax.weights.safetensors_writer import save_safetensors
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, open_checkpoint
from tests.convert.commands import convert, refused


@pytest.fixture
def broken(tiny_root, tmp_path):
    """Makes a LLaMA folder with other tensors, and the command that converts it."""

    def make(change) -> tuple:
        source = tmp_path / "source"
        shutil.copytree(tiny_root / "hub" / "llm", source, dirs_exist_ok=True)
        tensors = dict(open_checkpoint(tiny_root / "hub" / "llm"))
        change(tensors)
        save_safetensors(Checkpoint.of("broken", tensors), source / "model.safetensors")
        return "llama", f"--source={source}", f"--output={tmp_path / 'jax'}"

    return make


def test_keys_and_shapes_that_do_not_fit(broken):
    def change(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((3, 2), np.float32)
        tensors["model.layers.9.mlp.up_proj.weight"] = np.zeros((3, 2), np.float32)

    message = refused(*broken(change))
    assert "missing model.norm.weight [32]" in message
    assert "model.layers.0.mlp.up_proj.weight has shape [3, 2], the model needs [48, 32]" in message
    assert "unexpected model.layers.9.mlp.up_proj.weight [3, 2]" in message


def test_truncated_and_poisoned_files(broken, tmp_path):
    command = broken(lambda tensors: None)
    file = tmp_path / "source" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1000])
    assert f"{file} is not a readable safetensors file" in refused(*command)
    file.unlink()
    torch.save({"a": Trap(str(tmp_path / "sprung"))}, tmp_path / "source" / "pytorch_model.bin")
    assert "pytorch_model.bin is not a readable weights file" in refused(*command)
    assert not (tmp_path / "sprung").exists()


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_file_that_shrinks_while_it_is_read(broken, tmp_path, monkeypatch):
    command = broken(lambda tensors: None)
    file = tmp_path / "source" / "model.safetensors"

    def shrinking(part, checkpoint, dtype):
        matched = match_part(part, checkpoint, dtype)
        os.truncate(file, 5000)
        return matched

    match_part = folders.match_part
    monkeypatch.setattr(folders, "match_part", shrinking)
    assert "has become shorter" in refused(*command)


def test_outputs_that_exist_and_disks_that_are_full(broken, tmp_path, monkeypatch):
    command = broken(lambda tensors: None)
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "mine").write_text("keep")
    assert "exists: give a new folder" in refused(*command)
    shutil.rmtree(tmp_path / "jax")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "and 1 KB are free there" in refused(*command)


def test_a_disk_that_fills_up_in_the_middle(tmp_path, tiny_root):
    """The system refuses to write on: here by a limit on the size of files."""
    source = tiny_root / "hub" / "llm"
    limited = ["bash", "-c", 'ulimit -f 8; exec "$@"', "limited", sys.executable, "-m", "convert", "llama"]
    argv = [*limited, f"--source={source}", f"--output={tmp_path / 'jax'}"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 8))])
def test_a_conversion_that_is_killed_leaves_nothing_that_looks_whole(moment, tmp_path, tiny_root):
    source, output = tiny_root / "hub" / "text-to-video", tmp_path / "jax"
    argv = [sys.executable, "-m", "convert", "text_to_video", f"--source={source}", f"--output={output}"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and not list(tmp_path.glob(".jax.partial-*")):
        time.sleep(0.001)
    time.sleep(np.random.default_rng(moment).uniform(0, 1))  # writing takes about as long
    process.send_signal(signal.SIGKILL)
    process.wait()
    if output.exists():
        parts = COMPONENTS["text_to_video"](output)  # it was killed after the last moment
    else:
        assert list(tmp_path.glob(".jax.partial-*"))
        convert("text_to_video", f"--source={source}", f"--output={output}")
        assert [p.name for p in tmp_path.iterdir()] == ["jax"]
        parts = COMPONENTS["text_to_video"](output)
    for part in parts:
        orbax_params.restore(output / part.folder, part.state)


def test_an_incomplete_converted_folder_is_refused(broken, tmp_path):
    convert(*broken(lambda tensors: None))
    shutil.rmtree(tmp_path / "jax" / "params" / "norm.scale")
    with pytest.raises(UserError, match="no complete set of converted parameters|can't be read"):
        orbax_params.restore(tmp_path / "jax", COMPONENTS["llama"](tmp_path / "jax")[0].state)
    (tmp_path / "jax" / "params" / "_METADATA").unlink()
    with pytest.raises(UserError, match="no complete set"):
        orbax_params.saved(tmp_path / "jax")


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "which component"),
        (["lama"], "unknown component 'lama'.*did you mean llama"),
        (["llama", "--output=x"], "--source is missing: config.json"),
        (["llama", "--source=x"], "--output=DIR is missing"),
        (["llama", "--source=./nowhere", "--output=x"], "no such folder: './nowhere' \\(wanted: config.json"),
        (["delta", "--source=x", "--output=y"], "--config is missing"),
        (["imagebind", "--source=x", "--output=y", "--delta=z"], "--delta applies to llm, not to imagebind"),
        (["export", "llama", "--source=/", "--output=x"], "no converted folder"),
        (["export", "llama", "--output=x"], "--source is missing"),
        (
            ["export", "lora", "--source=x", "--output=y", "--lora=z"],
            "--lora applies to export llm, not to export lora",
        ),
        (["nextgpt", "--config=keypad", "--source=/nowhere", "--output=y"], "^--source: no such folder: '/nowhere'$"),
        (["llama", "--source=x", "--output=y", "--dtype=int8"], "--dtype"),
    ],
)
def test_mistakes(argv, message):
    with pytest.raises(UserError, match=message) as caught:
        convert(*argv)
    assert "\n" not in str(caught.value)


def test_the_hub_cannot_be_reached(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refused("llama", "--source=lmsys/vicuna-7b-v1.5", f"--output={tmp_path / 'x'}")
    assert "there is no folder lmsys/vicuna-7b-v1.5" in message and "config.json, model.safetensors" in message
