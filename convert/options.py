"""Which component takes which argument. None is ignored in silence."""

from collections.abc import Collection

from nextgpt_jax.errors import UserError
from nextgpt_jax.weights.components import ALIASES

SYSTEM = "nextgpt"  # every part that a config names

_COMPONENTS = ("llm", "encoder", "decoder", "lora", "delta")
_CONVERSION = {  # arguments that not every component takes
    "revision": _COMPONENTS,
    "config": ("delta", SYSTEM),
    "base": ("lora",),
    "delta": ("llm",),
    "growth": ("llm",),
    "vocab_size": ("llm",),
    "allow_partial": ("delta", SYSTEM),
    "tokenizer": ("decoder",),
    "prediction_type": ("decoder",),
    "ema": ("decoder",),
}
_TRAINED = ("delta", "lora")
_EXPORT = {
    "config": ("delta", "lora", SYSTEM),
    "workdir": _TRAINED,
    "step": _TRAINED,
    "ema": _TRAINED,
    "lora": ("llm",),
}


def check_options(component: str, given: Collection[str], *, export: bool = False) -> None:
    """Checks that a component takes the arguments that are `given`.

    Args:
      component: its name or an alias.
      given: names of arguments, as of convert_checkpoint and export_checkpoint.
      export: whether it is exported.

    Raises:
      UserError: an argument belongs to other components, or needs another one.
    """
    own, kind = _EXPORT if export else _CONVERSION, ALIASES.get(component, component)
    for name in given:
        if name not in _CONVERSION.keys() | _EXPORT.keys() or kind in own.get(name, ()):
            continue
        takers = [*_CONVERSION.get(name, ()), *(f"export {taker}" for taker in _EXPORT.get(name, ()))]
        raise UserError(f"--{name} applies to {' and '.join(takers)}, not to {'export ' * export}{component}")
    if "growth" in given and "delta" not in given:
        raise UserError("--growth goes with --delta, whose rows it is for")
    if "workdir" in given and "source" in given:
        raise UserError("give --source or --workdir, not both")
    for name in ("step", "ema"):
        if export and name in given and "workdir" not in given:
            raise UserError(f"--{name} goes with --workdir: it chooses weights of a training run")
    if export and kind == "lora" and "config" in given and "workdir" not in given:
        raise UserError("export lora takes --config with --workdir only: a converted adapter has its own")
