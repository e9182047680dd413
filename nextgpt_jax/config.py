"""The experiment config: a small tree of mutable dataclasses, filled by configs/*.py and overridden by flags.

Every field is read somewhere; `--config.a.b=v` sets one, with the type it has here. Fields that earlier releases called
by another name still take it, with a warning; any other unknown name is an error.
"""

import dataclasses
import functools
import re
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeGuard

from nextgpt_jax.errors import UserError, nearest

_T = typing.TypeVar("_T", bound="Section")


class UnknownField(UserError, AttributeError):
    """A section of the config has no field of this name; the message has the nearest one."""


class Section:
    """Base of the config's dataclasses. Reading or setting an unknown field raises UnknownField."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    _renamed: ClassVar[Mapping[str, str]] = types.MappingProxyType({})
    _renamed_values: ClassVar[Mapping[str, Mapping[Any, Any]]] = types.MappingProxyType({})

    def __setattr__(self, name: str, value: Any) -> None:
        field = _known_field(type(self), name)
        super().__setattr__(field, _current_value(type(self), field, value))

    if not typing.TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:  # called for names that are no attributes only
            if name.startswith("__"):
                raise AttributeError(name)
            return getattr(self, _known_field(type(self), name))


@typing.dataclass_transform()
def _section(
    *, renamed: Mapping[str, str] | None = None, renamed_values: Mapping[str, Mapping[Any, Any]] | None = None
) -> Callable[[type[_T]], type[_T]]:
    """Makes a Section a dataclass.

    Args:
      renamed: names of fields in earlier releases, to the names of today.
      renamed_values: by field, values of earlier releases, to the values of today.
    """

    def decorate(cls: type[_T]) -> type[_T]:
        cls._renamed, cls._renamed_values = renamed or {}, renamed_values or {}
        cls = dataclasses.dataclass(cls)
        init = cls.__init__

        @functools.wraps(init)
        def __init__(self, *args, **values):
            for name in [*values]:
                field = _known_field(cls, name)
                if field != name and field in values:  # as dataclasses.replace would pass them
                    raise UnknownField(f"{cls.__name__}: {name} is now {field}: give {field}")
                values[field] = _current_value(cls, field, values.pop(name))
            init(self, *args, **values)

        cls.__init__ = __init__  # type: ignore[method-assign]
        return cls

    return decorate


def _known_field(section: type[Section], name: str) -> str:
    """The field of a section called `name`, today or in earlier releases (with a warning).

    Raises:
      UnknownField: there is none.
    """
    if name in section.__dataclass_fields__:
        return name
    if name in section._renamed:
        field = section._renamed[name]
        warnings.warn(f"{section.__name__}.{name} is now {field}", FutureWarning, stacklevel=3)
        return field
    known = [*section.__dataclass_fields__]
    hint = nearest(name, known) or f": its fields are {', '.join(known)}"
    raise UnknownField(f"{section.__name__} has no field {name!r}{hint}")


def _current_value(section: type[Section], field: str, value: Any) -> Any:
    renamed = section._renamed_values.get(field, {})
    if isinstance(value, str) and value in renamed:
        warnings.warn(f"{section.__name__}.{field}: {value!r} is now {renamed[value]!r}", FutureWarning, stacklevel=3)
        return renamed[value]
    return value


@_section(renamed_values={"template": {"pieces": "per_segment"}})
class ModelConfig(Section):
    """The pretrained components (folders in the hub's layout, or hub ids OWNER/NAME[@REVISION]) and settings of the
    trained parts."""

    llm: str = ""
    encoder: str = ""
    image_decoder: str = ""  # empty: this output modality is disabled
    video_decoder: str = ""
    audio_decoder: str = ""
    delta: str = ""  # trained weights in the released layout; empty: start from random projections
    output_modalities: tuple[str, ...] = ()  # signal tokens of a newly created model; empty: image, video, audio
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
    template: str = "reference"  # how conversations are tokenized: reference, per_segment or chat (see templates.py)
    dtype: str = "auto"  # frozen weights and activations; auto: bfloat16 on accelerators, float32 on CPU
    quantize: str = ""  # int8 or nf4: precision of the frozen kernels in the language model's layers (see quantize.py)


@_section(renamed={"media": "media_root", "buckets": "bucket_boundaries", "threads": "num_workers"})
class DataConfig(Section):
    """Training files and the shape of a batch. Several files are separated by commas; their records are mixed, by
    weight if each has one: llava.json:0.5,t2m/*.json:0.3,mosit.json:0.2 (docs/data.md)."""

    captions: str = ""  # stages 1 and 2: pairs of a medium and its caption, or conversations
    instructions: str = ""  # stage 3: conversations
    validation: str = ""  # held-out files, of the kind that the stage trains on; empty: none
    format: str = ""  # of their records (docs/data.md); empty: each record's own, by its fields
    max_skipped: float = 0.01  # share of a file's records that may be malformed or lack a file; with more, none is used
    media_root: str = ""  # folder of the media files, or of their images/, videos/, ...; empty: that of the JSON file
    batch_size: int = 16  # examples per optimizer step
    max_length: int = 512  # tokens per example; longer ones are cut
    max_truncated: float = 0.05  # share of a file's target tokens, or of its media, that may be cut off
    bucket_boundaries: tuple[int, ...] = ()  # shorter padded lengths: examples are batched by length
    alternate: bool = False  # each batch from one source: an entry of the list of files
    group_by_modality: bool = False  # batches of examples with inputs of the same modalities
    max_media: int = 8  # inputs (or outputs) of one modality per conversation, 255 at most; more are refused
    num_workers: int = 2  # threads that read and preprocess media


@_section()
class LRMultipliers(Section):
    """Factors on the learning rate, by trained part."""

    input_proj: float = 1.0
    output_proj: float = 1.0
    signal: float = 1.0
    lora: float = 1.0


@_section(
    renamed={
        "warmup": "warmup_ratio",
        "clip": "grad_clip_norm",
        "accumulate": "grad_accum_steps",
        "rates": "lr_multipliers",
    }
)
class OptimConfig(Section):
    """AdamW with linear warm-up; its defaults are the paper's."""

    lr: float = 4e-4
    schedule: str = "linear"  # after the warm-up: linear or cosine, both to 0 at the last step, or constant
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 1e-3
    warmup_ratio: float = 0.1  # warm-up steps / all steps
    grad_clip_norm: float = 1.0
    grad_accum_steps: int = 1  # micro-batches per step
    lr_multipliers: LRMultipliers = dataclasses.field(default_factory=LRMultipliers)


@_section()
class MeshConfig(Section):
    """Devices along each mesh axis (mesh.py); -1: all remaining devices."""

    data: int = -1  # data parallelism, weights replicated
    fsdp: int = 1  # data parallelism, weights sharded
    tensor: int = 1  # heads, MLP widths and vocabulary sharded, batch replicated


@_section(renamed={"keep": "max_to_keep"})
class TrainConfig(Section):
    """Length of a run, logging and checkpoints."""

    stage: str = "stage1"
    steps: int = 0  # 0: `epochs`
    epochs: float = 1.0  # passes over all samples; without effect if `steps` is set
    seed: int = 0
    log_every: int = 20  # steps
    save_every: int = 500  # steps
    eval_every: int = 500  # steps between losses on data.validation, which are computed with each checkpoint, too
    max_to_keep: int = 2  # newest checkpoints
    keep_best: int = 0  # and this many with the lowest loss on data.validation, or in training
    remat: str = "none"  # activation checkpointing: none, dots, full, offload (see stacking.scan_layers)
    alignment_weight: float = 1.0
    sample_every: int = 0  # steps between answers to a few prompts; 0: none
    sample_prompts: str = ""  # a file of them: text, one a line, or JSONL as infer.py --requests takes it; empty: the
    # first samples of data.validation
    sample_media: bool = False  # answers with media: loads the decoders whole
    wandb_project: str = ""  # of Weights & Biases, to log to; empty: none; needs nextgpt-jax[wandb]
    ema_decay: float = 0.0  # of a moving average of the trained weights, such as 0.999; 0: none


_SAMPLER = {"steps": "num_inference_steps", "guidance": "guidance_scale"}


@_section(renamed=_SAMPLER)
class ImageOptions(Section):
    """Image sampling."""

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    sampler: str = ""  # pndm, ddim, dpm++, unipc, euler, euler_a or ddpm; empty: the decoder's own
    height: int = 512
    width: int = 512
    batch: int = 8  # images sampled at a time; on a mesh at least one per device


@_section(renamed=_SAMPLER)
class VideoOptions(Section):
    """Video sampling."""

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    sampler: str = ""  # pndm, ddim, dpm++, unipc, euler, euler_a or ddpm; empty: the decoder's own
    frames: int = 24
    height: int = 320
    width: int = 576
    fps: float = 8.0  # frame rate of the written file
    batch: int = 1
    feed_forward_chunk: int = 0  # tokens per call of the UNet's widest layers, to save memory; 0: all


@_section(renamed=_SAMPLER)
class AudioOptions(Section):
    """Audio sampling."""

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    sampler: str = ""  # pndm, ddim, dpm++, unipc, euler, euler_a or ddpm; empty: the decoder's own
    seconds: float = 9.0
    batch: int = 8


@_section()
class GenerationDefaults(Section):
    """Defaults of generation; most have a flag of their own in infer.py, where --steps, --guidance and --sampler
    set every modality's."""

    image: ImageOptions = dataclasses.field(default_factory=ImageOptions)
    video: VideoOptions = dataclasses.field(default_factory=VideoOptions)
    audio: AudioOptions = dataclasses.field(default_factory=AudioOptions)
    temperature: float = 0.4
    top_p: float = 1.0
    max_new_tokens: int = 246
    max_media: int = 4  # per reply


@_section()
class ServingConfig(Section):
    """Answering requests that come and go: `nextgpt serve`, and the requests of a file."""

    rows: int = 16  # answers that are decoded together
    context: int = 0  # tokens of a prompt and its answer at most, for which memory is taken; 0: the model's
    max_new_tokens: int = 0  # of an answer at most; 0: the context
    kv_cache: str = ""  # int8 takes about half the memory of bfloat16, a quarter of float32; "": the model's dtype
    queue: int = 256  # requests that wait at most; further ones are refused
    timeout: float = 600.0  # seconds that an answer may take, waiting included
    decode_steps: int = 4  # decoded between two looks at the queue
    joins: int = 4  # prompts that are read together, and at most so many between two looks while others are decoded
    media_seconds: float = 0.05  # of sampling media between two looks
    media_batches: int = 0  # that are sampled at the same time; 0: one, or two on a CPU, which one batch does not fill


@_section()
class EvalConfig(Section):
    """Evaluation: `nextgpt evaluate`, and small evaluations during training (docs/evaluation.md)."""

    batch: int = 32  # samples that are answered together
    inception: str = ""  # weights for FID and IS: pytorch-fid's file
    clip: str = ""  # CLIP for CLIP scores and CLIPSIM: a folder in the hub's layout
    cnn14: str = ""  # PANNs' network for FD, IS and KL of sound: its published file
    judge: str = ""  # base URL of an OpenAI-compatible endpoint, where a protocol needs a judge
    judge_model: str = ""  # its model
    judge_key: str = "OPENAI_API_KEY"  # environment variable with its key, if it needs one
    judge_request: str = ""  # JSON object: fields of its requests, such as {"temperature": 0}; null removes one
    every: int = 0  # while training: steps between evaluations; 0: none
    task: str = ""  # while training: the task
    data: str = ""  # while training: the task's folder
    limit: int = 32  # while training: samples, always the same
    best: str = ""  # while training: the figure by which the best checkpoint is chosen; empty: by the losses


@_section(renamed={"decode": "generation"})
class ExperimentConfig(Section):
    """One experiment: what `get_config` of a file in configs/ returns."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    generation: GenerationDefaults = dataclasses.field(default_factory=GenerationDefaults)
    serving: ServingConfig = dataclasses.field(default_factory=ServingConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)


def _is_section(kind: Any) -> TypeGuard[type[Section]]:
    return isinstance(kind, type) and issubclass(kind, Section)


def field_names(section: type[Section] = ExperimentConfig) -> list[str]:
    """The dotted names of all fields that hold values: model.llm, ..., generation.max_media."""
    names = []
    for name, field in section.__dataclass_fields__.items():
        names += [f"{name}.{leaf}" for leaf in field_names(field.type)] if _is_section(field.type) else [name]
    return names


def current_name(name: str, section: type[Section] = ExperimentConfig) -> str:
    """A dotted name with every part that was renamed since an earlier release replaced; no part has to exist.

    current_name("optim.rates.lora") is "optim.lr_multipliers.lora".
    """
    first, dot, rest = name.partition(".")
    first = section._renamed.get(first, first)
    field = section.__dataclass_fields__.get(first)
    if field is not None and _is_section(field.type):
        rest = current_name(rest, field.type)
    return first + dot + rest


def current_value(name: str, value: Any, section: type[Section] = ExperimentConfig) -> Any:
    """The value of a field, by its current dotted name, if `value` is what an earlier release called it."""
    first, dot, rest = name.partition(".")
    if dot:
        kind: Any = section.__dataclass_fields__[first].type
        return current_value(rest, value, kind)
    return section._renamed_values.get(first, {}).get(value, value)


def _element_type(kind: Any) -> type | None:
    """The type of a tuple's elements; None: another type."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None


def _field_type(name: str) -> Any:
    *parents, last = name.split(".")
    section: Any = functools.reduce(getattr, parents, ExperimentConfig())
    return section.__dataclass_fields__[last].type


def is_tuple(name: str) -> bool:
    """Whether the field of this current dotted name holds a tuple."""
    return _element_type(_field_type(name)) is not None


def parse_tuple(name: str, text: str) -> tuple[Any, ...]:
    """The value of a tuple field from a command line: "1,2" or "(1, 2)"; names with or without quotes; "" for none.

    Args:
      name: its current dotted name.
      text: the elements.

    Raises:
      UserError: an element is of another type.
    """
    element = _element_type(_field_type(name)) or str
    inner = re.sub(r"^[(\[](.*)[)\]]$", r"\1", text.strip(), flags=re.DOTALL)
    items = [re.sub(r"^(['\"])(.*)\1$", r"\2", item.strip()) for item in inner.split(",")]
    if not items[-1]:  # (1,)
        items.pop()
    try:
        found = tuple(element(item) for item in items)
    except ValueError:
        found = ()
    if "" in items or len(found) != len(items):
        example = "128,256" if element is int else "a,b"
        raise UserError(f"{name}={text}: give elements of type {element.__name__} with commas, such as {example}")
    return found


def set_field(config: ExperimentConfig, name: str, value: Any) -> None:
    """Sets a field, or a whole section, by its dotted name, such as "optim.lr".

    Integers are accepted for floats, and lists for tuples.

    Raises:
      UserError: there is no such field, or it has another type.
    """
    name = current_name(name)
    *parents, last = name.split(".")
    try:
        section: Any = functools.reduce(getattr, parents, config)
        field = section.__dataclass_fields__[last]
    except (AttributeError, KeyError):
        raise UserError(f"unknown field {name}{nearest(name, field_names())}") from None
    wanted: Any = typing.get_origin(field.type) or field.type
    element = _element_type(field.type)
    if wanted is float and type(value) is int:
        value = float(value)
    elif wanted is tuple and isinstance(value, list):
        value = tuple(value)
    if type(value) is not wanted:
        raise UserError(f"{name} should be of type {wanted.__name__}, got {value!r}")
    if element and not all(type(item) is element for item in value):
        raise UserError(f"{name} should hold elements of type {element.__name__}, got {value!r}")
    setattr(section, last, value)
