"""The feature networks of metrics at their smallest sizes, random, in the files that are published."""

import pathlib
import shutil

import torch
import transformers

from tests.models.features import originals
from tests.parity import randomise
from tests.tiny import TOKENIZERS

DIVISOR = 16  # of the widths of Inception and Cnn14: 128 features
_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
CLIP = {
    "projection_dim": 24,
    "text_config": {**_TOWER, "vocab_size": 624, "max_position_embeddings": 12, "eos_token_id": 2},
    "vision_config": {**_TOWER, "image_size": 32, "patch_size": 8},
}


def write_inception(path: pathlib.Path) -> originals.Inception:
    """pytorch-fid's file at `path`; the network in it."""
    return _write(originals.Inception(DIVISOR), path)


def write_cnn14(path: pathlib.Path) -> originals.Cnn14:
    """PANNs' file for 16 kHz at `path`; the network in it."""
    return _write(originals.Cnn14(divisor=DIVISOR), path)


def _write(module: torch.nn.Module, path: pathlib.Path) -> torch.nn.Module:
    torch.save({"model": originals.randomised(module).state_dict()}, path)
    return module


def write_clip(folder: pathlib.Path) -> transformers.CLIPModel:
    """CLIP in the hub's layout, with its tokenizer; the model in it."""
    torch.manual_seed(0)
    model = randomise(transformers.CLIPModel(transformers.CLIPConfig(**CLIP)))
    model.save_pretrained(folder)
    for file in (TOKENIZERS / "stable-diffusion" / "tokenizer").glob("tokenizer*"):
        shutil.copy(file, folder)
    return model
