"""Requests from prompts and files."""

import pytest

from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.requests import make_request
from nextgpt_jax.weights.assemble import model_config


def test_an_empty_prompt_and_unreadable_files(tiny_config, tmp_path):
    model = model_config(tiny_config.model)
    with pytest.raises(UserError, match="the prompt is empty"):
        make_request("  ", {}, {}, model, tiny_config.generation)
    for name in ("image", "video", "audio"):
        with pytest.raises(UserError, match="nowhere"):
            make_request("what?", {name: [str(tmp_path / "nowhere")]}, {}, model, tiny_config.generation)
    with pytest.raises(UserError, match="does not read thermal"):
        make_request("what?", {"thermal": ["x.png"]}, {}, model, tiny_config.generation)
