"""A folder with a language model and a peft adapter of it: each command takes its own."""

import json
import shutil

import numpy as np
import pytest

from convert import convert_checkpoint
from nextgpt_jax.weights.safetensors_writer import save_safetensors
from nextgpt_jax.weights.torch_checkpoint import Checkpoint


def test_a_model_with_an_adapter(tiny_root, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(tiny_root / "hub" / "llm", folder)
    config = json.loads((folder / "config.json").read_text())
    width = config["hidden_size"]
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight": np.ones(shape, np.float32)
        for layer in range(config["num_hidden_layers"])
        for side, shape in (("A", (2, width)), ("B", (width, 2)))
    }
    save_safetensors(Checkpoint.of("adapter", tensors), folder / "adapter_model.safetensors")
    adapter = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))

    def source(component: str, **options) -> str:
        return convert_checkpoint(component, folder, dry_run=True, **options)["parts"]["."]["checkpoint"]

    with pytest.warns(UserWarning, match="an adapter of peft, too, which is not merged"):
        assert source("llm") == str(folder / "model.safetensors")
    assert source("lora", base=folder) == str(folder / "adapter_model.safetensors")
