"""adapter_config.json of peft, read by an allow-list: each field is used, harmless, or has to have one of a few values.

The semantics (which modules a pattern names, ranks, scales) are those of peft 0.21.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.hf_config import read_config

MERGE_WITH_PEFT = "merge it with peft (merge_and_unload) and convert the merged model"
HEAD = "lm_head"

_HARMLESS = {  # fields that do not change merged weights, whatever their value
    **dict.fromkeys(("base_model_name_or_path", "revision", "auto_mapping", "peft_version"), "say where it is from"),
    **dict.fromkeys(("inference_mode", "runtime_config", "merge_weights"), "how peft runs it"),
    "task_type": "the class that peft wraps around the model; weights of other heads are unexpected keys",
    "megatron_core": "read only with megatron_config",
    "qalora_group_size": "read only with use_qalora",
    **dict.fromkeys(
        ("loftq_config", "eva_config", "corda_config", "lora_ga_config"), "read only with init_lora_weights"
    ),
}
_OFF = (None, False, [])  # {} switches some of them on
_ONLY = {  # fields whose other values compute something else
    "peft_type": ("LORA",),
    "bias": ("none",),
    **dict.fromkeys(
        (
            "alora_invocation_tokens", "arrow_config", "enable_lora", "ensure_weight_tying", "fan_in_fan_out",
            "kasa_config", "layer_replication", "lora_bias", "megatron_config", "monteclora_config",
            "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora", "velora_config",
        ),
        _OFF,
    ),
}  # fmt: skip
_USED = frozenset(
    (
        "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "modules_to_save",
        "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora",
        "init_lora_weights",
    )
)  # fmt: skip

_PLAIN = (None, True, False, "gaussian", "eva", "orthogonal", "mica")  # initializations that leave the base as it is
_CHANGED_BASE = ("pissa", "olora")  # those that subtract what they put into A and B, which can be computed again
_KEEP_BASE = "save it with path_initial_model_for_weight_conversion, which makes it a plain one"
_NOT_REPEATABLE = {  # prefixes of initializations that change the base by what the adapter does not record
    "pissa_niter_": f"its changed base comes from a random approximation: {_KEEP_BASE}",
    "corda": f"its changed base depends on data: {_KEEP_BASE}",
    "lora_ga": f"its changed base depends on gradients: {_KEEP_BASE}",
    "loftq": f"its base is quantized in a way of its own: {MERGE_WITH_PEFT}",
}


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """What a LoRA adapter changes in a language model. Modules are named as in transformers' checkpoints.

    Attributes:
      source: the file, for error messages.
      rank, alpha: of modules that `rank_pattern` and `alpha_pattern` (by regular expressions) do not name.
      dropout: of training.
      targets: suffixes of the names of adapted modules, or one regular expression, or "all-linear".
      excluded: modules that are not adapted, as suffixes or one regular expression.
      saved: suffixes of modules that the adapter holds as a whole.
      layers: indices of the adapted layers; empty: all.
      layers_patterns: names (regular expressions) of the lists of layers that `layers` counts; empty: any.
      rslora: the product of A and B is scaled by alpha / sqrt(rank), not alpha / rank.
      dora: the columns of the merged kernels have the lengths that the adapter holds (Liu et al. 2024).
      initialization: "pissa" or "olora" if the adapter belongs to a base without its initial product; or "".
    """

    source: str
    rank: int
    alpha: float
    dropout: float
    targets: str | tuple[str, ...]
    excluded: str | tuple[str, ...]
    saved: tuple[str, ...]
    layers: tuple[int, ...]
    layers_patterns: tuple[str, ...]
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    dora: bool
    initialization: str

    def adapts(self, module: str, linear: bool) -> bool:
        """Whether the module (linear, or an embedding) has a low-rank update."""
        if _named(self.excluded, module) or any(_saved(name).match(module) for name in self.saved):
            return False
        if isinstance(self.targets, str) and self.targets.lower() == "all-linear":
            return linear and module != HEAD
        if isinstance(self.targets, str) or module in self.targets:
            return _named(self.targets, module)
        return _named(self.targets, module) and self._in_layers(module)

    def _in_layers(self, module: str) -> bool:
        if not self.layers:
            return True
        places = map(_layer_index, self.layers_patterns) if self.layers_patterns else [_FIRST_INDEX]
        found = next((found for place in places if (found := place.match(module))), None)
        return found is not None and int(found["idx"]) in self.layers

    def saves(self, module: str) -> bool:
        """Whether the adapter holds the whole module. peft compares names without regard to the dots in them."""
        return any(module.endswith(name) for name in self.saved)

    def rank_of(self, module: str) -> int:
        """The rank of a module's update."""
        return _by_pattern(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """The factor of a module's low-rank product."""
        alpha, rank = _by_pattern(self.alpha_pattern, module, self.alpha), self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


_FIRST_INDEX = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")


def _layer_index(pattern: str) -> re.Pattern:
    return re.compile(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.")


def _saved(name: str) -> re.Pattern:
    return re.compile(rf"(^|.*\.){name}($|\..*)")


def _suffix(pattern: str) -> re.Pattern:
    return re.compile(rf"(.*\.)?({pattern})$")


def _named(names: str | tuple[str, ...], module: str) -> bool:
    if isinstance(names, str):
        return bool(names) and re.fullmatch(names, module) is not None
    return module in names or module.endswith(tuple(f".{name}" for name in names))


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    return next((value for pattern, value in patterns.items() if _suffix(pattern).match(module)), default)


def read_adapter_config(path: pathlib.Path) -> AdapterConfig:
    """Reads an adapter_config.json.

    Raises:
      UserError: it is not a LoRA adapter, or has a field that is unknown, malformed or not supported.
    """
    return _Reader(str(path), read_config(path)).config()


class _Reader:
    def __init__(self, source: str, raw: Mapping[str, Any]):
        self._source, self._raw = source, raw

    def config(self) -> AdapterConfig:
        self._check_fields()
        layers = self._list("layers_to_transform", int, alone=True)
        patterns = self._list("layers_pattern", str, alone=True)
        targets = self._modules("target_modules")
        if isinstance(targets, str) and self._raw.get("layers_to_transform") is not None:
            raise self._bad("layers_to_transform", "it needs a list of target_modules")
        if patterns and self._raw.get("layers_to_transform") is None:
            raise self._bad("layers_pattern", "it needs layers_to_transform")
        ranks = self._mapping("rank_pattern")
        config = AdapterConfig(
            source=self._source,
            rank=self._rank("r", self._raw.get("r")),
            alpha=self._number("lora_alpha", self._raw.get("lora_alpha")),
            dropout=self._number("lora_dropout", self._raw.get("lora_dropout") or 0.0),
            targets=targets,
            excluded=self._modules("exclude_modules"),
            saved=self._list("modules_to_save", str),
            layers=layers,
            layers_patterns=patterns,
            rank_pattern={name: self._rank("rank_pattern", value) for name, value in ranks.items()},
            alpha_pattern={n: self._number("alpha_pattern", v) for n, v in self._mapping("alpha_pattern").items()},
            rslora=self._flag("use_rslora"),
            dora=self._flag("use_dora"),
            initialization=self._initialization(),
        )
        self._check_patterns(config)
        return config

    def _check_fields(self) -> None:
        raw = self._raw
        for name, values in _ONLY.items():
            if name in raw and not any(_same(raw[name], value) for value in values):
                wanted = ["null" if value is None else repr(value) for value in values[:2]]
                raise UserError(
                    f"{self._source}: {name}={raw[name]!r} is not supported (only {' or '.join(wanted)}): "
                    f"{MERGE_WITH_PEFT}"
                )
        if unknown := sorted(raw.keys() - _ONLY.keys() - _USED - _HARMLESS.keys()):
            raise UserError(
                f"{self._source}: {unknown[0]}={raw[unknown[0]]!r} is no known field of LoRA adapters and may change "
                f"what this one computes: remove it if it is at its default, or {MERGE_WITH_PEFT}"
            )
        if missing := [name for name in ("r", "lora_alpha", "target_modules") if raw.get(name) is None]:
            raise UserError(f"{self._source}: r, lora_alpha and target_modules are needed; {missing[0]} is missing")

    def _initialization(self) -> str:
        value = self._raw.get("init_lora_weights")
        name = value.lower() if isinstance(value, str) else value
        if any(_same(name, plain) for plain in _PLAIN):
            return ""
        if name in _CHANGED_BASE:
            return name
        for prefix, reason in _NOT_REPEATABLE.items():
            if isinstance(name, str) and name.startswith(prefix):
                raise UserError(f"{self._source}: init_lora_weights={value!r} is not supported: {reason}")
        raise self._bad("init_lora_weights", f"it is not a known initialization: {MERGE_WITH_PEFT}")

    def _bad(self, name: str, reason: str) -> UserError:
        return UserError(f"{self._source}: {name}={self._raw.get(name)!r}: {reason}")

    def _rank(self, name: str, value: Any) -> int:
        if type(value) is not int or value < 1:
            raise self._bad(name, "a rank is a positive integer")
        return value

    def _number(self, name: str, value: Any) -> float:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self._bad(name, "it has to be a number")
        return float(value)

    def _flag(self, name: str) -> bool:
        value = self._raw.get(name)
        if value not in (None, False, True):
            raise self._bad(name, "it has to be true or false")
        return bool(value)

    def _list(self, name: str, kind: type, *, alone: bool = False) -> tuple:
        value = self._raw.get(name)
        values = [value] if alone and type(value) is kind and value != "" else value or []
        if not isinstance(values, list) or not all(type(entry) is kind for entry in values):
            raise self._bad(name, f"it has to be a list of {'names' if kind is str else 'integers'}")
        return tuple(values)

    def _modules(self, name: str) -> str | tuple[str, ...]:
        value = self._raw.get(name)
        return value if isinstance(value, str) else self._list(name, str)

    def _mapping(self, name: str) -> Mapping[str, Any]:
        value = self._raw.get(name) or {}
        if not isinstance(value, dict):
            raise self._bad(name, "it has to be an object")
        return value

    def _check_patterns(self, config: AdapterConfig) -> None:
        patterns = {
            "target_modules": [config.targets] if isinstance(config.targets, str) else [],
            "exclude_modules": [config.excluded] if isinstance(config.excluded, str) else [],
            "modules_to_save": config.saved,
            "layers_pattern": config.layers_patterns,
            "rank_pattern": config.rank_pattern,
            "alpha_pattern": config.alpha_pattern,
        }
        compiled = {"modules_to_save": _saved, "layers_pattern": _layer_index}
        compiled |= {"rank_pattern": _suffix, "alpha_pattern": _suffix}
        for name, some in patterns.items():
            for pattern in some:
                try:
                    compiled.get(name, re.compile)(pattern)
                except (re.error, RecursionError, OverflowError):
                    raise self._bad(name, f"{pattern!r} is not a regular expression") from None


def _same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and value == other  # 0 and 1 are not False and True
