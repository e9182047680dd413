"""NExT-GPT in JAX: text, images, videos and audio in and out, in any mixture.

    import nextgpt_jax as ng

    model = ng.NExTGPT.from_pretrained("keypad")
    model("draw a seven").images[0].save("seven.png")

Everything public is an attribute of this module (see docs/api.md), and is imported when it is first used: `import
nextgpt_jax` alone loads neither JAX nor any model.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from nextgpt_jax.aot.compile import compile_report as compile_report
    from nextgpt_jax.aot.report import CostReport as CostReport
    from nextgpt_jax.config import ExperimentConfig as ExperimentConfig
    from nextgpt_jax.config_files import load_config as load_config
    from nextgpt_jax.convert import convert_checkpoint as convert_checkpoint
    from nextgpt_jax.convert import export_checkpoint as export_checkpoint
    from nextgpt_jax.errors import UserError as UserError
    from nextgpt_jax.media import Audio as Audio
    from nextgpt_jax.media import Video as Video
    from nextgpt_jax.pipeline import AudioLDM as AudioLDM
    from nextgpt_jax.pipeline import Chat as Chat
    from nextgpt_jax.pipeline import GenerationConfig as GenerationConfig
    from nextgpt_jax.pipeline import ImageBind as ImageBind
    from nextgpt_jax.pipeline import MediaOutputs as MediaOutputs
    from nextgpt_jax.pipeline import NExTGPT as NExTGPT
    from nextgpt_jax.pipeline import Request as Request
    from nextgpt_jax.pipeline import Response as Response
    from nextgpt_jax.pipeline import StableDiffusion as StableDiffusion
    from nextgpt_jax.pipeline import StreamEvent as StreamEvent
    from nextgpt_jax.pipeline import TextToVideo as TextToVideo
    from nextgpt_jax.training.loop import train as train

_EXPORTS = {
    "Audio": "media",
    "AudioLDM": "pipeline",
    "Chat": "pipeline",
    "CostReport": "aot.report",
    "ExperimentConfig": "config",
    "GenerationConfig": "pipeline",
    "ImageBind": "pipeline",
    "MediaOutputs": "pipeline",
    "NExTGPT": "pipeline",
    "Request": "pipeline",
    "Response": "pipeline",
    "StableDiffusion": "pipeline",
    "StreamEvent": "pipeline",
    "TextToVideo": "pipeline",
    "UserError": "errors",
    "Video": "media",
    "compile_report": "aot.compile",
    "convert_checkpoint": "convert",
    "export_checkpoint": "convert",
    "load_config": "config_files",
    "train": "training.loop",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(submodule(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])


def submodule(name: str) -> ModuleType:
    """A module of this package, by its name below it. `convert` and `configs` are at the top level of a checkout; the
    wheel takes them into the package."""
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}" or name not in ("convert", "configs"):
            raise
        return importlib.import_module(name)
