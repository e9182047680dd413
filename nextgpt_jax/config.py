"""The experiment config: a small tree of mutable dataclasses, filled by configs/*.py, overridden by flags.

Every field is read somewhere; `--config.a.b=v` sets one, with the type it has here.
"""

import dataclasses


@dataclasses.dataclass
class ModelConfig:
    """Where the frozen parts lie (folders in the hub's layout) and what is trained between them."""

    llm: str = ""
    encoder: str = ""
    image_decoder: str = ""  # decoders: "" does without the modality
    video_decoder: str = ""
    audio_decoder: str = ""
    delta: str = ""  # trained weights in the released layout; "" starts from random projections
    output_modalities: tuple[str, ...] = ()  # that a new model has signal tokens for; empty: image, video, audio
    input_projector: str = "linear"  # linear or mlp
    output_projector: str = "transformer"  # linear, transformer or qformer
    projector_width: int = 0  # sizes inside the output projection; 0: as published
    projector_layers: int = 0
    projector_heads: int = 0
    projector_feedforward: int = 0
    lora_rank: int = 32
    lora_alpha: float = 32.0
    lora_dropout: float = 0.1
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    template: str = "reference"  # how conversations become ids: reference or pieces (see prompts.py)
    dtype: str = "auto"  # of the frozen weights and activations; auto: bfloat16 on accelerators, float32 on CPU
    quantize: str = ""  # int8 or nf4: keeps the kernels of the language model's layers in so few bits (see quantize.py)


@dataclasses.dataclass
class DataConfig:
    """The training files and the shape of a batch. Several files are separated by commas, and mixed."""

    captions: str = ""  # [{"caption", "image_name" | "video_name" | ...}, ...]: stages 1 and 2
    instructions: str = ""  # conversations: stage 3
    media: str = ""  # folder of the media that the files name, or of their images/, videos/, ...; "": beside each file
    batch_size: int = 16  # of one optimizer step
    max_length: int = 512  # tokens of a conversation
    buckets: tuple[int, ...] = ()  # shorter lengths: batches of conversations of like length are padded to one of them
    max_media: int = 8  # inputs, or outputs, of one modality in a conversation; more are refused
    threads: int = 2  # that load and preprocess media


@dataclasses.dataclass
class RatesConfig:
    """Multiples of the learning rate for each trainable part."""

    input_proj: float = 1.0
    output_proj: float = 1.0
    signal: float = 1.0
    lora: float = 1.0


@dataclasses.dataclass
class OptimConfig:
    """AdamW with linear warm-up and decay, as in the paper."""

    lr: float = 4e-4
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 1e-3
    warmup: float = 0.1  # share of the steps
    clip: float = 1.0  # global norm of the gradients
    accumulate: int = 1  # micro-batches of a step
    rates: RatesConfig = dataclasses.field(default_factory=RatesConfig)


@dataclasses.dataclass
class MeshConfig:
    """How many devices each axis of the mesh has (sharding.py); -1: as many as are left."""

    data: int = -1  # copies of the weights, each with rows of its own
    fsdp: int = 1  # devices that share one copy, each with rows of its own
    tensor: int = 1  # devices that share the heads, MLP widths and vocabulary for the same rows


@dataclasses.dataclass
class TrainConfig:
    """The length of a run and what it leaves behind."""

    stage: str = "stage1"
    steps: int = 0  # 0: one epoch
    seed: int = 0
    log_every: int = 20
    save_every: int = 500
    keep: int = 2  # newest checkpoints
    keep_best: int = 0  # and those of the lowest loss
    remat: str = "none"  # how the backward pass saves memory: none, dots, full, offload (see layers.scan_layers)
    alignment_weight: float = 1.0


@dataclasses.dataclass
class ImageOptions:
    """How images are sampled."""

    steps: int = 50
    guidance: float = 7.5
    height: int = 512
    width: int = 512
    batch: int = 8  # sampled together at most; on a mesh at least one on each device


@dataclasses.dataclass
class VideoOptions:
    """How videos are sampled."""

    steps: int = 50
    guidance: float = 7.5
    frames: int = 24
    height: int = 320
    width: int = 576
    fps: float = 8.0  # frames per second of the file
    batch: int = 1
    feed_forward_chunk: int = 0  # tokens that the UNet's widest layers take at once, for less memory; 0: all


@dataclasses.dataclass
class AudioOptions:
    """How audio is sampled."""

    steps: int = 50
    guidance: float = 7.5
    seconds: float = 9.0
    batch: int = 8


@dataclasses.dataclass
class GenerationConfig:
    """Defaults of infer.py, most with a flag of their own; --steps and --guidance hold for every modality."""

    image: ImageOptions = dataclasses.field(default_factory=ImageOptions)
    video: VideoOptions = dataclasses.field(default_factory=VideoOptions)
    audio: AudioOptions = dataclasses.field(default_factory=AudioOptions)
    temperature: float = 0.4
    top_p: float = 1.0
    max_new_tokens: int = 246
    max_media: int = 4  # in one answer


@dataclasses.dataclass
class ExperimentConfig:
    """One experiment: what `get_config` of a file in configs/ returns."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    decode: GenerationConfig = dataclasses.field(default_factory=GenerationConfig)
