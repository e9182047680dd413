"""A whole system at the smallest sizes, random, in the hub's folder layout, and a dataset to train it on."""

import json
import math
import pathlib
import shutil

import numpy as np
from flax import nnx

from nextgpt_jax import media
from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.models import registry
from nextgpt_jax.models.encoders.imagebind import ImageBind, ImageBindConfig
from nextgpt_jax.models.llms.llama import Llama, LlamaConfig
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights import tables, weight_files
from nextgpt_jax.weights.matching import export
from nextgpt_jax.weights.safetensors_writer import save_safetensors
from nextgpt_jax.weights.tables import imagebind as imagebind_table
from nextgpt_jax.weights.tables import llama as llama_table

TOKENIZERS = pathlib.Path(__file__).parent.parent / "examples" / "keypad" / "weights" / "base"

_LLAMA = {
    "model_type": "llama", "vocab_size": 720, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
IMAGEBIND = {
    "modalities": ["vision", "audio"], "vision_embed_dim": 16, "vision_num_blocks": 1, "vision_num_heads": 2,
    "audio_embed_dim": 16, "audio_num_blocks": 1, "audio_num_heads": 2, "audio_kernel_size": 8, "audio_stride": 8,
    "audio_num_mel_bins": 16, "audio_target_len": 24, "audio_clips": 2, "video_clips": 1, "video_crops": 3,
    "out_embed_dim": 24, "kernel_size": [2, 8, 8], "image_size": 16,
}  # fmt: skip
_TEXT = {
    "vocab_size": 624, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 12, "hidden_act": "quick_gelu",
}  # fmt: skip
_CLAP = {
    "model_type": "clap_text_model", "vocab_size": 624, "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 14, "projection_dim": 12,
    "hidden_act": "gelu", "pad_token_id": 1, "type_vocab_size": 1,
}  # fmt: skip
_UNET = {
    "block_out_channels": [8, 16], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "layers_per_block": 1, "attention_head_dim": 2,
    "cross_attention_dim": 16, "norm_num_groups": 4,
}  # fmt: skip
_UNET_3D = {
    "block_out_channels": [8, 16], "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"], "layers_per_block": 1, "attention_head_dim": 4,
    "cross_attention_dim": 16, "norm_num_groups": 4,
}  # fmt: skip
_UNET_AUDIO = _UNET | {
    "cross_attention_dim": [8, 16], "class_embed_type": "simple_projection", "class_embeddings_concat": True,
    "projection_class_embeddings_input_dim": 12,
}  # fmt: skip
_VAE = {"block_out_channels": [8, 8], "norm_num_groups": 4, "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2, "layers_per_block": 1}  # fmt: skip
_VOCODER = {
    "model_in_dim": 8, "sampling_rate": 8000, "upsample_initial_channel": 8, "upsample_rates": [4, 4],
    "upsample_kernel_sizes": [8, 8], "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]],
    "normalize_before": False,
}  # fmt: skip
_SCHEDULER = {"_class_name": "DDIMScheduler", "clip_sample": False, "beta_schedule": "scaled_linear"}

_DECODERS = {  # modality -> folder, parts
    "image": ("stable-diffusion", {"text_encoder": _TEXT, "unet": _UNET, "vae": _VAE}),
    "video": ("text-to-video", {"text_encoder": _TEXT, "unet": _UNET_3D, "vae": _VAE}),
    "audio": (
        "audioldm",
        {
            "text_encoder": _CLAP,
            "unet": _UNET_AUDIO,
            "vae": _VAE | {"in_channels": 1, "out_channels": 1},
            "vocoder": _VOCODER,
        },
    ),
}

_CLASS_NAMES = {
    "image": "StableDiffusionPipeline",
    "video": "TextToVideoSDPipeline",
    "audio": "AudioLDMPipeline",
}

COMPONENTS = {  # what python -m convert calls them -> folder
    "llama": "llm",
    "imagebind": "imagebind",
    "stable_diffusion": "stable-diffusion",
    "text_to_video": "text-to-video",
    "audioldm": "audioldm",
}


class Mesh:
    """As much of a mesh as sizes need."""

    def __init__(self, **shape: int):
        self.shape = {"data": 1, "fsdp": 1, "tensor": 1} | shape


def write_hub(folder: pathlib.Path) -> None:
    """llm/, imagebind/, stable-diffusion/, text-to-video/ and audioldm/ below `folder`."""
    llm, encoder = LlamaConfig.from_dict(_LLAMA), ImageBindConfig.from_dict(IMAGEBIND)
    _write(folder / "llm", _LLAMA, lambda: Llama(llm, rngs=make_rngs(7)), llama_table.BASE)
    table = imagebind_table.table(encoder.modalities)
    _write(folder / "imagebind", IMAGEBIND, lambda: ImageBind(encoder, rngs=make_rngs(7)), table)
    for modality, (name, parts) in _DECODERS.items():
        for part, config in parts.items():
            (folder / name / part).mkdir(parents=True)
            (folder / name / part / "config.json").write_text(json.dumps(config))
        (folder / name / "scheduler").mkdir()
        (folder / name / "scheduler" / "scheduler_config.json").write_text(json.dumps(_SCHEDULER))
        index = json.dumps({"_class_name": _CLASS_NAMES[modality]}, indent=2) + "\n"  # as it is exported
        (folder / name / "model_index.json").write_text(index)
        cfg = registry.read_decoder(folder / name)
        for part, table in tables.decoder(cfg).items():
            make = lambda part=part: registry.build(cfg, components=(part,), rngs=make_rngs(7))  # noqa: B023, E731
            _write(folder / name / part, parts[part], make, table, part)
        shutil.copytree(TOKENIZERS / "stable-diffusion" / "tokenizer", folder / name / "tokenizer")
    for file in TOKENIZERS.glob("llm/tokenizer*"):
        shutil.copy(file, folder / "llm")


def _write(folder: pathlib.Path, config: dict, make, table, part: str = "") -> None:
    """Scales are 1, and all else is random."""
    state = nnx.eval_shape(lambda: nnx.state(getattr(make(), part) if part else make()))
    rng, values = np.random.default_rng(7), []
    for path, leaf in nnx.to_flat_state(state):
        width = 1 / math.sqrt(math.prod(leaf.shape[:-1])) if path[-1] == "kernel" else 0.2
        number = np.ones(leaf.shape) if path[-1] == "scale" else rng.normal(0, width, leaf.shape)
        values.append((path, leaf.replace(number.astype(np.float32))))
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(export(nnx.from_flat_state(values), table), folder / weight_files.decoder_layout(part).written)
    (folder / "config.json").write_text(json.dumps(config))


KINDS, PICTURES = ("image", "video", "audio"), ("image",)


def write_data(folder: pathlib.Path, n: int = 12, kinds: tuple[str, ...] = KINDS) -> None:
    """Captions, conversations, and media of some kinds below `folder`."""
    rng = np.random.default_rng(0)
    words = ("zero", "one", "two", "three")
    captions, instructions = [], []
    for i in range(n):
        word, seen, made = words[i % 4], kinds[i % len(kinds)], kinds[(i // 3) % len(kinds)]
        names = {"image": f"images/{i}.png", "video": f"videos/{i}.mp4", "audio": f"audios/{i}.wav"}
        media.write("image", folder / names["image"], rng.integers(0, 256, (20, 16, 3), np.uint8))
        frames = rng.integers(0, 256, (4, 16, 20, 3), np.uint8)
        media.write("video", folder / names["video"], media.Video(frames, 4.0))
        media.write("audio", folder / names["audio"], media.Audio(rng.uniform(-1, 1, 4000).astype(np.float32), 8000))
        captions.append({"caption": f"a {word}", f"{seen}_name": names[seen]})
        talk = [(f"what is <{seen}> this?", f"a {word}"), (f"make a {word}", f"Sure. <{made}>")]
        messages = [
            {"from": who, "value": text} for turn in talk for who, text in zip(("human", "gpt"), turn, strict=True)
        ]
        record = {"conversations": messages, f"input_{seen}s": [names[seen]], f"{made}_captions": [f"a {word}"]}
        instructions.append(record)
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "instructions.json").write_text(json.dumps(instructions))


def experiment(root: pathlib.Path, stage: str, kinds: tuple[str, ...] = KINDS) -> ExperimentConfig:
    """A config over write_hub(root / "hub") and write_data(root / "data"), which is root / "pictures" for images alone:
    a third of it all, which compiles in a third of the time."""
    data = root / ("data" if kinds == KINDS else "pictures")
    config = ExperimentConfig()
    config.model.llm = str(root / "hub" / "llm")
    config.model.encoder = str(root / "hub" / "imagebind")
    for modality, (name, _) in _DECODERS.items():
        setattr(config.model, f"{modality}_decoder", str(root / "hub" / name) if modality in kinds else "")
    config.model.template = "per_segment"
    config.model.projector_width, config.model.projector_layers = 16, 1
    config.model.projector_heads, config.model.projector_feedforward = 2, 16
    config.model.lora_rank, config.model.lora_alpha = 2, 4.0
    config.data.captions = str(data / "captions.json")
    config.data.instructions = str(data / "instructions.json")
    config.data.batch_size, config.data.max_length = 4, 96
    config.optim.lr = 3e-3
    config.train.stage, config.train.steps, config.train.log_every, config.train.save_every = stage, 4, 2, 2
    for name in ("image", "video", "audio"):
        getattr(config.generation, name).num_inference_steps = 3
    config.generation.image.height = config.generation.image.width = 16
    config.generation.video.height = config.generation.video.width = 16
    config.generation.video.frames, config.generation.video.fps, config.generation.video.batch = 4, 4.0, 2
    config.generation.audio.seconds = 0.1
    config.generation.max_new_tokens = 16
    return config
