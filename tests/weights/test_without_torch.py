"""Without PyTorch: everything but pickles can be read."""

import os
import subprocess
import sys

PROGRAM = """
import pathlib, sys
from nextgpt_jax.config_files import load_config
from nextgpt_jax.errors import UserError
from nextgpt_jax.weights.components import COMPONENTS
from nextgpt_jax.weights.load import load_trained
from nextgpt_jax.weights.matching import load
from nextgpt_jax.weights.torch_checkpoint import open_checkpoint

config = load_config("keypad").model
load_trained(config, "")
(part,) = COMPONENTS["llama"](pathlib.Path(config.llm))
load(open_checkpoint(config.llm), part.state, part.table)
assert not {"torch", "diffusers", "peft"} & sys.modules.keys()

sys.modules["torch"] = None  # as if it were not installed
try:
    open_checkpoint(sys.argv[1])
except UserError as error:
    print(error)
"""


def test_the_keypad_system_loads_and_pickles_say_what_they_need(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(b"")
    argv = [sys.executable, "-c", PROGRAM, str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{file} is a pickle, and reading it needs PyTorch: pip install 'nextgpt-jax[convert]'")
    assert "safetensors" in line
