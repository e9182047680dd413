"""What the folders of published models hold: the parts of each component, the modules they fill, and their tables."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models import hf_config
from nextgpt_jax.models.diffusion.audioldm import AudioLDM, AudioLDMConfig
from nextgpt_jax.models.diffusion.stable_diffusion import StableDiffusion, StableDiffusionConfig
from nextgpt_jax.models.diffusion.text_to_video import TextToVideo, TextToVideoConfig
from nextgpt_jax.models.encoders.imagebind import ImageBind, ImageBindConfig
from nextgpt_jax.models.layers import LoRAConfig, make_rngs
from nextgpt_jax.models.llms.llama import Llama, LlamaConfig
from nextgpt_jax.models.nextgpt import DecoderConfig
from nextgpt_jax.weights.rules import Table
from nextgpt_jax.weights.tables import audioldm as audioldm_table
from nextgpt_jax.weights.tables import imagebind as imagebind_table
from nextgpt_jax.weights.tables import llama as llama_table
from nextgpt_jax.weights.tables import stable_diffusion as stable_diffusion_table
from nextgpt_jax.weights.tables import text_to_video as text_to_video_table

IMAGEBIND_FILE = "imagebind_huge.pth"
ADAPTER, BASE_CONFIG = "adapter_config.json", "base_config.json"

LAYOUTS = {
    "llama": "config.json, model.safetensors (or shards with model.safetensors.index.json, or .bin), tokenizer files",
    "imagebind": f"{IMAGEBIND_FILE}, or config.json and model.safetensors",
    "stable_diffusion": "model_index.json, text_encoder/, tokenizer/, unet/, vae/, scheduler/",
    "text_to_video": "model_index.json, text_encoder/, tokenizer/, unet/, vae/, scheduler/",
    "audioldm": "model_index.json, text_encoder/, tokenizer/, unet/, vae/, vocoder/, scheduler/",
    "lora": "adapter_config.json, adapter_model.safetensors (or .bin)",
    "delta": "pytorch_model.pt",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A folder below a component's ("": the component's own), the parameters it fills, and how it names them.

    file: what the hub calls its weights.
    """

    folder: str
    state: nnx.State  # abstract
    table: Table
    file: str = "model.safetensors"


def _abstract(make: Callable[[], nnx.Module]) -> nnx.State:
    return nnx.state(nnx.eval_shape(make))


def llama_part(config: LlamaConfig) -> Part:
    """The weights of a LLaMA."""
    table = llama_table.TIED if config.tie_word_embeddings else llama_table.BASE
    return Part("", _abstract(lambda: Llama(config, rngs=make_rngs(0))), table)


def llama(folder: pathlib.Path) -> list[Part]:
    """LLaMA, Vicuna and their like in transformers' layout."""
    return [llama_part(LlamaConfig.from_dict(hf_config.read_config(folder / "config.json")))]


def imagebind_config(folder: pathlib.Path) -> ImageBindConfig:
    """The config of a folder with ImageBind; the release is a file of weights alone."""
    if (folder / IMAGEBIND_FILE).is_file() and not (folder / "config.json").exists():
        return ImageBindConfig.huge()
    return ImageBindConfig.from_dict(hf_config.read_config(folder / "config.json"))


def imagebind(folder: pathlib.Path) -> list[Part]:
    """ImageBind, with the towers that its config sizes."""
    config = imagebind_config(folder)
    state = _abstract(lambda: ImageBind(config, rngs=make_rngs(0)))
    return [Part("", state, imagebind_table.table(config.modalities))]


def decoder_tables(config: DecoderConfig) -> dict[str, Table]:
    """The conversion tables of a decoder's parts."""
    if isinstance(config, AudioLDMConfig):
        return audioldm_table.tables(config)
    video = isinstance(config, TextToVideoConfig)
    unet = text_to_video_table.UNET if video else stable_diffusion_table.unet_table(config.unet)
    return {"text_encoder": stable_diffusion_table.TEXT_ENCODER, "unet": unet, "vae": stable_diffusion_table.VAE}


def _decoder(kind: type, module: type, folder: pathlib.Path) -> list[Part]:
    config = kind.from_pretrained(folder)
    return [
        Part(
            name,
            _abstract(lambda name=name: getattr(module(config, components=(name,), rngs=make_rngs(0)), name)),
            table,
            "diffusion_pytorch_model.safetensors" if name in ("unet", "vae") else "model.safetensors",
        )
        for name, table in decoder_tables(config).items()
    ]


def lora_config(folder: pathlib.Path) -> LoRAConfig:
    """The settings of a peft adapter.

    Raises:
      UserError: it is no LoRA, or one that computes something else.
    """
    raw = hf_config.read_config(folder / ADAPTER)
    supported = {
        "peft_type": ("LORA",),
        "bias": ("none",),
        "use_dora": (False, None),
        "use_rslora": (False, None),
        "fan_in_fan_out": (False, None),
        "modules_to_save": (None, []),
        "layers_to_transform": (None, []),
        "rank_pattern": (None, {}),
        "alpha_pattern": (None, {}),
    }
    targets = raw.get("target_modules")
    if not isinstance(targets, list) or not {"r", "lora_alpha"} <= raw.keys():
        raise UserError(f"{folder / ADAPTER}: r, lora_alpha and a list of target_modules are needed")
    known = {"rank": raw["r"], "alpha": raw["lora_alpha"], "dropout": raw.get("lora_dropout", 0.0)}
    return hf_config.config_from_dict(LoRAConfig, {**raw, **known, "targets": sorted(targets)}, supported)


def lora_part(base: LlamaConfig, config: LoRAConfig) -> Part:
    """The low-rank updates of a LLaMA.

    Raises:
      UserError: the base has no such projections.
    """
    try:
        whole = _abstract(lambda: Llama(base, lora=config, rngs=make_rngs(0)))
    except ValueError as error:
        raise UserError(f"adapter: {error}") from None
    return Part("", nnx.filter_state(whole, nnx.LoRAParam), llama_table.LORA, "adapter_model.safetensors")


def lora(folder: pathlib.Path) -> list[Part]:
    """A converted adapter; the config of its base stands beside it as BASE_CONFIG."""
    base = LlamaConfig.from_dict(hf_config.read_config(folder / BASE_CONFIG))
    return [lora_part(base, lora_config(folder))]


COMPONENTS: dict[str, Callable[[pathlib.Path], list[Part]]] = {
    "llama": llama,
    "imagebind": imagebind,
    "stable_diffusion": functools.partial(_decoder, StableDiffusionConfig, StableDiffusion),
    "text_to_video": functools.partial(_decoder, TextToVideoConfig, TextToVideo),
    "lora": lora,
    "audioldm": functools.partial(_decoder, AudioLDMConfig, AudioLDM),
}
