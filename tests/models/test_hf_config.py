"""Config files of the hub, read into dataclasses."""

import dataclasses
import json

import pytest

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.hf_config import config_from_dict, read_config, read_json


@dataclasses.dataclass(frozen=True)
class Sizes:
    width: int
    kernels: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self):
        if self.width % 2:
            raise ValueError(f"width {self.width} is odd")


def test_files(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"width": 2}))
    assert read_config(file) == read_json(file) == {"width": 2}
    for content, message in (("[1]", "holds a list, not an object"), ("{", "is not valid JSON")):
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            read_config(file)
    with pytest.raises(UserError, match=f"^no such file: {tmp_path / 'other'}$"):
        read_config(tmp_path / "other")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_config(tmp_path)


def test_fields_are_taken_and_other_keys_ignored():
    config = {"width": 4, "kernels": [[1, 2], [3]], "architectures": ["Net"], "act": "silu"}
    assert config_from_dict(Sizes, config, {"act": ("silu",)}) == Sizes(4, ((1, 2), (3,)))
    assert config_from_dict(Sizes, {"width": 4, "kernels": None}) == Sizes(4)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"width": 4, "act": "relu"}, "Sizes: act='relu' is not supported \\(only 'silu' or 'swish'\\)"),
        ({"kernels": []}, "Sizes: config lacks width"),
        ({"width": 3}, "Sizes: width 3 is odd"),
        ({"width": "wide"}, "Sizes: "),
        ([], "Sizes: the config is a list, not an object"),
    ],
)
def test_configs_that_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        config_from_dict(Sizes, config, {"act": ("silu", "swish")})
