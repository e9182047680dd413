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
    eps: float = 1e-6
    bias: bool = False
    kind: str | None = "net"
    pair: tuple[int, int] | int = 1

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


def test_fields_are_taken_and_known_keys_allowed():
    config = {"width": 4, "kernels": [[1, 2], [3]], "architectures": ["Net"], "act": "silu"}
    assert config_from_dict(Sizes, config, {"act": ("silu",)}, {"architectures"}) == Sizes(4, ((1, 2), (3,)))
    assert config_from_dict(Sizes, {"width": 4, "kind": None, "eps": 1}) == Sizes(4, kind=None, eps=1)
    assert config_from_dict(Sizes, {"width": 4, "pair": [1, 2]}).pair == (1, 2)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"width": 4, "act": "relu"}, "Sizes: act='relu' is not supported \\(only 'silu' or 'swish'\\)"),
        ({"kernels": []}, "Sizes: config lacks width"),
        ({"width": 3}, "Sizes: width 3 is odd"),
        ({"width": "wide"}, "Sizes: width='wide' should be a whole number: write it without quotes"),
        ([], "Sizes: the config is a list, not an object"),
        ({"width": 4, "widht": 2}, "Sizes: widht=2 is not known here; did you mean width\\?; if it changes nothing"),
        ({"width": 4, "new": None}, "Sizes: new=None is not known here.*remove it from the file"),
        ({"width": 4, "new": "x" * 200}, "new='x{50,80}\\.\\.\\. is not known here"),
        ({"width": 4, "eps": "1e-05"}, "Sizes: eps='1e-05' should be a number: write it without quotes"),
        ({"width": 4, "eps": float("nan")}, "eps=nan should be a number"),
        ({"width": 4, "eps": True}, "eps=True should be a number"),
        ({"width": 4, "eps": None}, "eps=None should be a number"),
        ({"width": True}, "width=True should be a whole number"),
        ({"width": 4.0}, "width=4.0 should be a whole number"),
        ({"width": 4, "bias": 1}, "bias=1 should be true or false"),
        ({"width": 4, "bias": "false"}, "bias='false' should be true or false: write it without quotes"),
        ({"width": 4, "kind": 1}, "kind=1 should be a string or null"),
        ({"width": 4, "pair": [1, 2, 3]}, r"pair=\[1, 2, 3\] should be a list of 2, each a whole number or a whole"),
        ({"width": 4, "kernels": [[1], 2]}, r"kernels=\[\[1\], 2\] should be a list, each a list, each a whole number"),
        ({"width": 4, "kernels": None}, "kernels=None should be a list"),
    ],
)
def test_configs_that_are_refused(config, message):
    with pytest.raises(UserError, match=message) as error:
        config_from_dict(Sizes, config, {"act": ("silu", "swish")})
    assert "\n" not in str(error.value)


def test_messages_may_begin_with_another_name():
    with pytest.raises(UserError, match="^net/config.json: config lacks width$"):
        config_from_dict(Sizes, {}, name="net/config.json")
