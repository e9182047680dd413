"""Loads the networks whose features metrics compare, from the files that are published."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import TypeVar

from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.features.clip import CLIP, CLIPConfig
from nextgpt_jax.models.features.cnn14 import Cnn14, Cnn14Config
from nextgpt_jax.models.features.inception import Inception, InceptionConfig
from nextgpt_jax.models.rngs import abstract, make_rngs
from nextgpt_jax.templates import Tokenizer
from nextgpt_jax.weights import weight_files
from nextgpt_jax.weights.matching import load
from nextgpt_jax.weights.rules import Table
from nextgpt_jax.weights.tables.clip import CLIP as CLIP_TABLE
from nextgpt_jax.weights.tables.cnn14 import CNN14
from nextgpt_jax.weights.tables.inception import INCEPTION
from nextgpt_jax.weights.tokenizers import load_tokenizer
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, open_checkpoint

_M = TypeVar("_M", bound=nnx.Module)
SOURCES = {  # setting -> what it is and where it comes from
    "inception": "FID's InceptionV3, pt_inception-2015-12-05-6726825d.pth: download "
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "clip": "CLIP in the hub's layout: hf download openai/clip-vit-base-patch32 --local-dir DIR "
    "(or openai/clip-vit-large-patch14)",
    "cnn14": "PANNs' Cnn14 for 16 kHz, Cnn14_16k_mAP=0.438.pth: download "
    "https://zenodo.org/record/3987831/files/Cnn14_16k_mAP%3D0.438.pth (for 32 kHz: "
    "https://zenodo.org/record/3576403/files/Cnn14_mAP%3D0.431.pth)",
}
_FRONT_ENDS = {512: Cnn14Config(), 1024: Cnn14Config.of_32_khz()}


def load_inception(path: str | pathlib.Path) -> Inception:
    """FID's Inception from pytorch-fid's file.

    Raises:
      UserError: there is no file, or it holds another network.
    """
    checkpoint = _open(path, "inception")
    if checkpoint.shapes.get("fc.weight", (0,))[0] == 1000:
        raise UserError(f"{path} is torchvision's Inception, not the one of FID. Needed: {SOURCES['inception']}")
    config = InceptionConfig(divisor=_divisor(checkpoint, "Conv2d_1a_3x3.conv.weight", 32))
    return _load(lambda: Inception(config, rngs=make_rngs(0)), checkpoint, INCEPTION)


def load_clip(folder: str | pathlib.Path) -> tuple[CLIP, Tokenizer]:
    """CLIP and its tokenizer from a folder in the hub's layout.

    Raises:
      UserError: there is no folder, or its files do not fit.
    """
    checkpoint = _open(folder, "clip")
    config = CLIPConfig.from_pretrained(folder)
    return _load(lambda: CLIP(config, rngs=make_rngs(0)), checkpoint, CLIP_TABLE), load_tokenizer(folder)


def load_cnn14(path: str | pathlib.Path) -> Cnn14:
    """PANNs' Cnn14 from its published file, for the rate that its front end has.

    Raises:
      UserError: there is no file, or it holds another network.
    """
    checkpoint = _open(path, "cnn14")
    n_fft = checkpoint.shapes.get("spectrogram_extractor.stft.conv_real.weight", (0, 0, 512))[-1]
    if n_fft not in _FRONT_ENDS:
        raise UserError(f"{path} has frames of {n_fft} samples. Needed: {SOURCES['cnn14']}")
    config = _FRONT_ENDS[n_fft]
    divisor = _divisor(checkpoint, "conv_block1.conv1.weight", config.widths[0])
    config = dataclasses.replace(config, widths=tuple(width // divisor for width in config.widths))
    return _load(lambda: Cnn14(config, rngs=make_rngs(0)), checkpoint, CNN14)


def _divisor(checkpoint: Checkpoint, key: str, width: int) -> int:
    """By which the widths of a network are smaller than the published one's, as tests have them; 1: they are not, or
    it is another network."""
    found = checkpoint.shapes.get(key, (0,))[0]
    return width // found if found and not width % found else 1


def _open(path: str | pathlib.Path, setting: str) -> Checkpoint:
    if not str(path):
        raise UserError(f"this metric needs {SOURCES[setting]}, and give --config.eval.{setting}")
    if not pathlib.Path(path).exists():
        raise UserError(f"--config.eval.{setting}: {path} does not exist. Needed: {SOURCES[setting]}")
    if setting == "clip" and not pathlib.Path(path).is_dir():
        raise UserError(f"--config.eval.clip: {path} is a file: give the folder. Needed: {SOURCES[setting]}")
    return open_checkpoint(path, weight_files.TRANSFORMERS if setting == "clip" else None)


def _load(make: Callable[[], _M], checkpoint: Checkpoint, table: Table) -> _M:
    graphdef, state = nnx.split(abstract(make))
    return nnx.merge(graphdef, load(checkpoint, state, table))
