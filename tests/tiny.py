"""A whole system at the smallest sizes, random, in the hub's folder layout, and a dataset to train it on."""

import json
import pathlib
import shutil

import jax
import numpy as np
from flax import nnx
from PIL import Image

import convert.imagebind
import convert.llama
import convert.stable_diffusion as sd
from convert.engine import export, save_safetensors
from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.diffusion.clip_text import CLIPTextConfig, CLIPTextModel
from nextgpt_jax.diffusion.unet_2d import UNet2DConditionModel, UNet2DConfig
from nextgpt_jax.diffusion.vae import AutoencoderKL, AutoencoderKLConfig
from nextgpt_jax.imagebind import ImageBind, ImageBindConfig
from nextgpt_jax.llama import Llama, LlamaConfig

TOKENIZERS = pathlib.Path(__file__).parent.parent / "examples" / "keypad" / "weights" / "base"

_LLAMA = {
    "model_type": "llama", "vocab_size": 720, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
_IMAGEBIND = {
    "vision_embed_dim": 16, "vision_num_blocks": 1, "vision_num_heads": 2, "text_embed_dim": 16, "text_num_blocks": 1,
    "text_num_heads": 2, "out_embed_dim": 24, "kernel_size": [2, 8, 8], "image_size": 16, "text_vocab_size": 32,
    "text_context_length": 8,
}  # fmt: skip
_TEXT = {
    "vocab_size": 624, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 12, "hidden_act": "quick_gelu",
}  # fmt: skip
_UNET = {
    "block_out_channels": [8, 16], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "layers_per_block": 1, "attention_head_dim": 2,
    "cross_attention_dim": 16, "norm_num_groups": 4,
}  # fmt: skip
_VAE = {"block_out_channels": [8, 8], "norm_num_groups": 4, "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2, "layers_per_block": 1}  # fmt: skip
_SCHEDULER = {"_class_name": "DDIMScheduler", "clip_sample": False, "beta_schedule": "scaled_linear"}


def write_hub(folder: pathlib.Path) -> None:
    """llm/, imagebind/ and stable-diffusion/ below `folder`."""
    unet = UNet2DConfig.from_hub(_UNET)
    parts = {
        "llm": (_LLAMA, lambda rngs: Llama(LlamaConfig.from_hub(_LLAMA), rngs=rngs), convert.llama.BASE),
        "imagebind": (
            _IMAGEBIND,
            lambda rngs: ImageBind(ImageBindConfig.from_hub(_IMAGEBIND), modalities=("vision",), rngs=rngs),
            convert.imagebind.table(("vision",)),
        ),
        "stable-diffusion/text_encoder": (
            _TEXT,
            lambda rngs: CLIPTextModel(CLIPTextConfig.from_hub(_TEXT), rngs=rngs),
            sd.TEXT_ENCODER,
        ),
        "stable-diffusion/unet": (_UNET, lambda rngs: UNet2DConditionModel(unet, rngs=rngs), sd.unet_table(unet)),
        "stable-diffusion/vae": (
            _VAE,
            lambda rngs: AutoencoderKL(AutoencoderKLConfig.from_hub(_VAE), rngs=rngs),
            sd.VAE,
        ),
    }
    for name, (config, make, table) in parts.items():
        state = jax.jit(lambda make=make: nnx.state(make(nnx.Rngs(7))))()
        save_safetensors(lively(export(state, table)), folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(config))
    scheduler = folder / "stable-diffusion" / "scheduler"
    scheduler.mkdir()
    (scheduler / "scheduler_config.json").write_text(json.dumps(_SCHEDULER))
    shutil.copytree(TOKENIZERS / "stable-diffusion" / "tokenizer", folder / "stable-diffusion" / "tokenizer")
    for file in TOKENIZERS.glob("llm/tokenizer*"):
        shutil.copy(file, folder / "llm")


def lively(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What starts at zero made random, so that everything has an influence."""
    rng = np.random.default_rng(0)
    return {k: v if v.any() else rng.normal(0, 0.2, v.shape).astype(v.dtype) for k, v in tensors.items()}


def write_data(folder: pathlib.Path, n: int = 12) -> None:
    """Captions, conversations and images below `folder`."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    words = ("zero", "one", "two", "three")
    captions, instructions = [], []
    for i in range(n):
        name, word = f"{i}.png", words[i % 4]
        Image.fromarray(rng.integers(0, 256, (20, 16, 3), np.uint8)).save(folder / "images" / name)
        captions.append({"caption": f"a {word}", "image_name": name})
        talk = [("what is <image> this?", f"a {word}"), (f"draw a {word}", "Sure. <image>")]
        messages = [
            {"from": who, "value": text} for turn in talk for who, text in zip(("human", "gpt"), turn, strict=True)
        ]
        record = {"conversations": messages, "input_images": [name], "image_captions": [f"a {word}"]}
        instructions.append(record)
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "instructions.json").write_text(json.dumps(instructions))


def experiment(root: pathlib.Path, stage: str) -> ExperimentConfig:
    """A config over write_hub(root / "hub") and write_data(root / "data")."""
    config = ExperimentConfig()
    config.model.llm = str(root / "hub" / "llm")
    config.model.encoder = str(root / "hub" / "imagebind")
    config.model.image_decoder = str(root / "hub" / "stable-diffusion")
    config.model.template = "pieces"
    config.model.projector_width, config.model.projector_layers = 16, 1
    config.model.projector_heads, config.model.projector_feedforward = 2, 16
    config.model.lora_rank, config.model.lora_alpha = 2, 4.0
    config.data.captions = str(root / "data" / "captions.json")
    config.data.instructions = str(root / "data" / "instructions.json")
    config.data.media = str(root / "data" / "images")
    config.data.batch_size, config.data.max_length = 4, 64
    config.optim.lr = 3e-3
    config.train.stage, config.train.steps, config.train.log_every, config.train.save_every = stage, 4, 2, 2
    config.decode.steps, config.decode.height, config.decode.width, config.decode.max_new_tokens = 3, 16, 16, 16
    return config
