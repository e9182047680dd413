"""The GPU of this machine, where there is one, beside its CPU: the keypad's losses and answers, in float32."""

import glob
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from nextgpt_jax.media import read_audio
from tests import ROOT

STEPS = 200
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not glob.glob("/dev/nvidia[0-9]*"), reason="there is no NVIDIA GPU here"),
]


def run(platform: str, *argv: str) -> str:
    """What a command prints that computes on a platform, in float32 rather than TF32."""
    environment = os.environ | {"JAX_PLATFORMS": platform, "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(platform: str, data: pathlib.Path, workdir: pathlib.Path, steps: int = STEPS) -> np.ndarray:
    """The printed losses of the keypad's third stage."""
    said = run(
        platform, "train.py", "--config=configs/keypad.py:stage3", f"--workdir={workdir / 'runs' / platform}",
        f"--config.train.steps={steps}", "--config.train.log_every=20", "--config.model.dtype=float32",
        f"--config.data.instructions={data}/instructions.json", f"--config.data.media_root={data}",
    )  # fmt: skip
    return np.array([float(loss) for loss in re.findall(r"^step \d+/\d+  loss ([\d.]+)", said, re.MULTILINE)])


def answers(platform: str, folder: pathlib.Path) -> list[dict]:
    """The replies to REQUESTS; media in folder/platform."""
    requests = folder / "requests.jsonl"
    requests.write_text("".join(json.dumps(request) + "\n" for request in REQUESTS))
    run(
        platform, "infer.py", "--config=configs/keypad.py", f"--requests={requests}",
        f"--output={folder / platform}", "--config.model.dtype=float32",
    )  # fmt: skip
    return [json.loads(line) for line in (folder / platform / "replies.jsonl").read_text().splitlines()]


REQUESTS = [
    {"prompt": "please draw a seven", "modality": "image"},
    {"prompt": "play the tone of key three", "modality": "audio"},
    {"prompt": "show me a nine, then play its tone"},
    {"prompt": "hello", "modality": "text"},
]


def test_the_keypad_trains_as_on_the_cpu(tmp_path):
    run("cpu", "-m", "examples.keypad.prepare", f"--output={tmp_path / 'data'}")
    cpu, gpu = (losses(platform, tmp_path / "data", tmp_path) for platform in ("cpu", "cuda"))
    assert len(cpu) == STEPS // 20
    np.testing.assert_allclose(gpu, cpu, rtol=1e-2)


def test_the_keypad_answers_as_on_the_cpu(tmp_path):
    cpu, gpu = (answers(platform, tmp_path) for platform in ("cpu", "cuda"))
    assert [reply["text"] for reply in gpu] == [reply["text"] for reply in cpu]
    for one, other in zip(gpu, cpu, strict=True):
        for name in one["images"]:
            images = [np.asarray(Image.open(tmp_path / platform / name), int) for platform in ("cpu", "cuda")]
            assert np.abs(images[0] - images[1]).max() <= 8
        sounds = [
            [read_audio(str(tmp_path / p / name)) for name in r["audios"]] for p, r in (("cuda", one), ("cpu", other))
        ]
        for a, b in zip(*sounds, strict=True):
            assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(b)
