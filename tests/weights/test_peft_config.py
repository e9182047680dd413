"""adapter_config.json: what is read, what is harmless, what is refused and why."""

import dataclasses
import json

import peft
import pytest

from nextgpt_jax.errors import UserError
from nextgpt_jax.weights.peft_config import read_adapter_config

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


@pytest.fixture
def read(tmp_path):
    def read(**fields):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**CONFIG, **fields}))
        return read_adapter_config(tmp_path / "adapter_config.json")

    return read


def test_every_field_of_the_installed_peft_is_known(read, tmp_path):
    """If a new release of peft fails this, decide for each new field whether it is used, harmless or refused."""
    peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"]).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved.keys() >= {f.name for f in dataclasses.fields(peft.LoraConfig)} - {"runtime_config"}
    assert dataclasses.replace(read(**saved), source="") == dataclasses.replace(read(), source="")


def test_fields_of_old_and_other_writers(read):
    before = read()
    assert read(enable_lora=None, merge_weights=False, base_model_name_or_path="x", task_type="SEQ_2_SEQ_LM") == before
    assert read(loftq_config={"loftq_bits": 4}, auto_mapping={"unsloth_fixed": True}, inference_mode=False) == before


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"use_something": True}, "use_something=True is no known field"),
        ({"use_something": None}, "use_something=None is no known field .* remove it if .* default, or merge"),
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported .only 'LORA'.: merge it with peft"),
        ({"bias": "all"}, "bias='all'"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"kasa_config": {}}, r"kasa_config={} is not supported \(only null or False\)"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [0]}, "trainable_token_indices"),
        ({"target_parameters": ["weight"]}, "target_parameters"),
        ({"init_lora_weights": "pissa_niter_16"}, "random approximation: save it with path_initial_model_for"),
        ({"init_lora_weights": "corda"}, "depends on data"),
        ({"init_lora_weights": "lora_ga"}, "depends on gradients"),
        ({"init_lora_weights": "loftq"}, "quantized"),
        ({"init_lora_weights": "newer"}, "not a known initialization"),
        ({"init_lora_weights": 1}, "not a known initialization"),
        ({"r": 0}, "a rank is a positive integer"),
        ({"r": None}, "r is missing"),
        ({"r": True}, "a rank is a positive integer"),
        ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern=.*a rank is a positive integer"),
        ({"rank_pattern": ["q_proj"]}, "it has to be an object"),
        ({"lora_alpha": "8"}, "lora_alpha='8': it has to be a number"),
        ({"lora_alpha": float("nan")}, "it has to be a number"),
        ({"use_dora": "yes"}, "true or false"),
        ({"target_modules": [1]}, "a list of names"),
        ({"target_modules": None}, "target_modules is missing"),
        ({"target_modules": "("}, "not a regular expression"),
        ({"alpha_pattern": {"*": 1}}, "not a regular expression"),
        ({"layers_to_transform": ["0"]}, "a list of integers"),
        ({"layers_to_transform": 0, "target_modules": ".*q_proj"}, "it needs a list of target_modules"),
        ({"layers_pattern": "layers"}, "it needs layers_to_transform"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(read, fields, reason):
    with pytest.raises(UserError, match=reason) as caught:
        read(**fields)
    assert "adapter_config.json: " in str(caught.value) and "\n" not in str(caught.value)
