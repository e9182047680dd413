"""CLIP's towers against transformers' CLIPModel."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import transformers

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.features.clip import CLIP, CLIPConfig
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights.feature_networks import load_clip
from nextgpt_jax.weights.tables.clip import CLIP as TABLE
from tests.parity import compiled, exported, load_into, randomise, relative_error
from tests.tiny import TOKENIZERS

_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {
    "projection_dim": 24,
    "text_config": {**_TOWER, "vocab_size": 624, "max_position_embeddings": 12, "eos_token_id": 1, "bos_token_id": 0},
    "vision_config": {**_TOWER, "image_size": 33, "patch_size": 8},
}


def pair(hub):
    config = CLIPConfig.from_dict(hub.to_dict())
    torch.manual_seed(0)
    original = randomise(transformers.CLIPModel(hub))
    return original, load_into(lambda: CLIP(config, rngs=make_rngs(0)), TABLE, original)


def compare(original, model):
    """Errors of unit vectors of images and texts."""
    config, rng = model.config, np.random.default_rng(0)
    size, length = config.vision.image_size, config.text.max_position_embeddings
    images = rng.standard_normal((2, size, size, 3)).astype(np.float32)
    end = original.config.text_config.eos_token_id
    ids = rng.integers(3, config.text.vocab_size - 1, (3, length))
    ids[0, 4:], ids[1, -1], ids[2, 2] = end, end, end
    if end == 2:  # read at the highest id
        ids[:, 5] = config.text.vocab_size - 1
    with torch.no_grad():
        seen = original.get_image_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        read = original.get_text_features(torch.from_numpy(ids))
    seen, read = (getattr(x, "pooler_output", x) for x in (seen, read))  # transformers 5
    return [
        relative_error(compiled(model, method)(given), expected / expected.norm(dim=-1, keepdim=True))
        for method, given, expected in (("embed_images", images, seen), ("embed_texts", ids, read))
    ]


@pytest.mark.parametrize("end", [1, 2])
def test_embeddings(end):
    config = SMALL | {"text_config": SMALL["text_config"] | {"eos_token_id": end}}
    assert max(compare(*pair(transformers.CLIPConfig(**config)))) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("config", [CLIPConfig.vit_b32(), CLIPConfig.vit_l14()], ids=["b32", "l14"])
def test_full_size(config):
    hub = transformers.CLIPConfig(
        text_config=dataclasses.asdict(config.text),
        vision_config=dataclasses.asdict(config.vision),
        projection_dim=config.projection_dim,
    )
    original, model = pair(hub)
    assert dataclasses.replace(model.config, end_token=None) == config
    assert max(compare(original, model)) < 1e-4


def test_files(tmp_path):
    hub = transformers.CLIPConfig(**SMALL)
    original, model = pair(hub)
    original.load_state_dict(exported(model, TABLE) | {"logit_scale": original.logit_scale}, strict=True)
    original.save_pretrained(tmp_path)
    for file in (TOKENIZERS / "stable-diffusion" / "tokenizer").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    loaded, tokenizer = load_clip(tmp_path)
    assert loaded.config == model.config and tokenizer("seven")["input_ids"]

    with pytest.raises(UserError, match=r"needs CLIP in the hub's layout: hf download.*--config.eval.clip"):
        load_clip("")
    with pytest.raises(UserError, match=r"--config.eval.clip: .* is a file: give the folder"):
        load_clip(tmp_path / "config.json")
    settings = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"model_type": "siglip"}, "model_type='siglip' is not supported"),
        ({"vision_config": settings["vision_config"] | {"num_channels": 1}}, "num_channels=1 is not supported"),
        ({"vision_config": settings["vision_config"] | {"patch_size": 64}}, "33 pixels have no patch of 64"),
        ({"vision_config": settings["vision_config"] | {"patch_size": 4}}, r"does not fit the model: .*has shape"),
        ({"text_config": 3}, "text_config is a int, not an object"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(UserError, match=message):
            load_clip(tmp_path)


def test_old_config():
    """As openai/clip-vit-large-patch14 has it: the towers' fields twice, and the end token as 2."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
    config = {
        "model_type": "clip", "projection_dim": 768, "logit_scale_init_value": 2.6592, "torch_dtype": "float32",
        "text_config_dict": text, "text_config": text | {"eos_token_id": 2, "length_penalty": 1.0, "dropout": 0.0},
        "vision_config_dict": vision | {"patch_size": 14}, "vision_config": vision | {"patch_size": 14},
    }  # fmt: skip
    assert CLIPConfig.from_dict(config) == CLIPConfig.vit_l14()
