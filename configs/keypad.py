"""The embedded world of ten digits, written, moving and dialled (examples/keypad). Everything runs, on a CPU."""

import pathlib

from nextgpt_jax.config import AudioOptions, ExperimentConfig, ImageOptions, VideoOptions
from nextgpt_jax.config_files import unknown_variant

VARIANTS = ("infer", "stage1", "stage2", "stage3")
_ROOT = pathlib.Path(__file__).resolve().parent.parent / "examples" / "keypad"


def get_config(variant: str = "infer") -> ExperimentConfig:
    """`infer` answers with the trained weights that ship with the project; the stages start from the base weights."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    config = ExperimentConfig()
    base = _ROOT / "weights" / "base"
    config.model.llm = str(base / "llm")
    config.model.encoder = str(base / "imagebind")
    config.model.image_decoder = str(base / "stable-diffusion")
    config.model.video_decoder = str(base / "text-to-video")
    config.model.audio_decoder = str(base / "audioldm")
    config.model.delta = str(_ROOT / "weights" / "delta") if variant == "infer" else ""
    config.model.template = "per_segment"
    config.model.projector_width = 128
    config.model.projector_layers = 2
    config.model.projector_heads = 4
    config.model.projector_feedforward = 256
    config.model.lora_rank = 16
    config.model.lora_alpha = 16.0
    config.model.lora_dropout = 0.05
    config.generation.image = ImageOptions(num_inference_steps=20, guidance_scale=4.0, height=32, width=32, batch=32)
    config.generation.video = VideoOptions(
        num_inference_steps=20, guidance_scale=5.0, frames=8, height=32, width=32, fps=4.0, batch=16
    )
    config.generation.audio = AudioOptions(num_inference_steps=20, guidance_scale=3.0, seconds=0.5, batch=32)
    config.generation.temperature = 0.0
    config.generation.max_new_tokens = 96
    config.serving.rows, config.serving.joins = 32, 8

    config.data.captions = str(_ROOT / "data" / "captions.json")
    config.data.instructions = str(_ROOT / "data" / "instructions.json")
    config.data.media_root = str(_ROOT / "data")
    config.data.batch_size = 32
    config.data.max_length = 48
    config.optim.lr = 2e-3
    config.train.save_every = 200
    if variant == "stage3":
        config.data.max_length, config.data.bucket_boundaries = 224, (48, 80, 128)
    if variant != "infer":
        config.train.stage = variant
        config.train.steps = {"stage1": 500, "stage2": 500, "stage3": 2000}[variant]
    return config
