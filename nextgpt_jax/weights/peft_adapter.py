"""peft's LoRA adapters of a language model: the tensors that one has, and the model's weights with it merged in."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from nextgpt_jax.errors import UserError, nearest
from nextgpt_jax.models.lora import LoRAConfig
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.matching import MatchedRule, Parameter
from nextgpt_jax.weights.peft_config import HEAD, MERGE_WITH_PEFT, AdapterConfig
from nextgpt_jax.weights.rules import COPY, LINEAR, Rule, Table, Transform
from nextgpt_jax.weights.torch_checkpoint import Checkpoint

_PREFIX = "base_model.model."
_EMBEDDING = "model.embed_tokens"
_Reader = Callable[[], np.ndarray]


class Place(NamedTuple):
    """Where a tensor of a module is: the piece (layer) of a parameter, and the rule by which it is converted."""

    parameter: str
    piece: int
    rule: MatchedRule


class Modules:
    """The modules of a language model by their names in transformers, such as model.layers.0.self_attn.q_proj, and
    what an adapter changes in them."""

    def __init__(self, state: nnx.State, table: Table, config: AdapterConfig):
        """The model has the abstract parameters `state` with the table `table`.

        Raises:
          UserError: the adapter names modules that the model does not have, or that cannot be adapted.
        """
        self._config = config
        self.places: dict[str, dict[str, Place]] = {}  # by module and tensor ("weight", "bias")
        for parameter, rule in matching.match_rules(state, table).items():
            for piece, spellings in enumerate(rule.keys):
                module, _, tensor = spellings[0].rpartition(".")
                self.places.setdefault(module, {})[tensor] = Place(parameter, piece, rule)
        self._check_names()
        self.saved = [name for name in self.places if config.saves(name)]
        self.adapted = [
            name for name in self.places if self._can_adapt(name) and config.adapts(name, self.linear(name))
        ]
        if odd := [n for n in self.places if not self._can_adapt(n) and config.adapts(n, linear=False)]:
            raise self._bad(f"target_modules names {odd[0]}, which is neither a projection nor an embedding")
        if HEAD not in self.places and (touched := self._touches_tied_rows()):
            raise self._bad(
                f"{touched} of the language model serves both as embedding and as head; merging changes both, which is "
                "not what was trained"
            )
        if twice := set(self.saved) & set(self.adapted):
            raise self._bad(f"{min(twice)} is both adapted and in modules_to_save: {MERGE_WITH_PEFT}")
        if not self.saved and not self.adapted:
            raise self._bad("target_modules names no projection of this language model: is the adapter one of it?")

    def _bad(self, reason: str) -> UserError:
        return UserError(f"{self._config.source}: {reason}")

    def linear(self, module: str) -> bool:
        """Whether the module is a projection."""
        return self._kind(module) == "kernel"

    def _kind(self, module: str) -> str:
        return self.places[module]["weight"].parameter.rpartition(".")[2]

    def _can_adapt(self, module: str) -> bool:
        return self._kind(module) in ("kernel", "embedding")

    def _touches_tied_rows(self) -> str:
        if _EMBEDDING in self.saved or _EMBEDDING in self.adapted:
            return _EMBEDDING
        return HEAD if self._config.saves(HEAD) or self._config.adapts(HEAD, True) else ""

    def _check_names(self) -> None:
        config, names = self._config, [*self.places, HEAD]
        for target in () if isinstance(config.targets, str) else config.targets:
            if not any(name == target or name.endswith(f".{target}") for name in names):
                known = {name.rpartition(".")[2] for name in names if name == HEAD or self._can_adapt(name)}
                raise self._bad(
                    f"target_modules names {target!r}, which the language model does not have (it has "
                    f"{', '.join(sorted(known))}){nearest(target, known)}"
                )
        containers = {name.rsplit(".", n)[0] for name in names for n in range(1, name.count(".") + 1)} | {""}
        if found := sorted(name for name in containers if config.saves(name)):
            raise self._bad(f"modules_to_save names {found[0] or 'the model'}, a group of modules: {MERGE_WITH_PEFT}")

    def model_config(self) -> LoRAConfig | None:
        """The adapter's settings as a branch of the model itself, which has one rank and scale, and adapts whole
        stacks of layers; None if they cannot be expressed so.

        Raises:
          ValueError: a setting is outside its range.
        """
        config, adapted = self._config, set(self.adapted)
        stacks = {self.places[name]["weight"].parameter: name.rpartition(".")[2] for name in self.adapted}
        whole = [name for name, places in self.places.items() if places["weight"].parameter in stacks]
        settings = {(config.rank_of(name), config.scale_of(name)) for name in self.adapted}
        if config.dora or self.saved or adapted != set(whole) or len(settings) != 1:
            return None
        if any(not name.startswith("model.layers.") for name in adapted):
            return None
        ((rank, scale),) = settings
        return LoRAConfig(rank, scale * rank, config.dropout, tuple(sorted(stacks.values())))

    def tensors(self, present: Collection[str] = ()) -> tuple[nnx.State, Table]:
        """The adapter's tensors, each as an abstract parameter of its own, and their table.

        Args:
          present: keys of the checkpoint. It may hold, besides, the rows of embedding and head below the updates.
        """
        rules, leaves = [], []
        for name, spellings, transform, shape in self._tensors(present):
            rules.append(Rule(spellings, name, transform))
            shape = transform.to_flax(np.broadcast_to(np.zeros((), np.int8), shape)).shape
            leaves.append((tuple(name.split(".")), nnx.LoRAParam(jax.ShapeDtypeStruct(shape, np.float32))))
        return nnx.from_flat_state(leaves), Table(tuple(rules))

    def _tensors(self, present: Collection[str]) -> Iterator[tuple[str, tuple[str, ...], Transform, tuple[int, ...]]]:
        """Name, keys, transform and PyTorch shape of each tensor."""
        for name in self.adapted:
            place, rank = self.places[name]["weight"].rule, self._config.rank_of(name)
            rows, columns = place.torch_shape  # [out, in] of a projection, [vocabulary, width] of an embedding
            if not self.linear(name):
                rows, columns = columns, rows
            for side, shape in (("A", (rank, columns)), ("B", (rows, rank))):
                yield f"{name}.lora_{side.lower()}", self._spellings(name, side), LINEAR, shape
            if self._config.dora:
                key = f"{_PREFIX}{name}.lora_magnitude_vector"
                spellings = (key, f"{key}.default", f"{key}.weight", f"{key}.default.weight")
                yield f"{name}.magnitude", spellings, COPY, (rows,)
        for name in self.saved:
            for tensor, place in self.places[name].items():
                key = f"{_PREFIX}{name}"
                spellings = (f"{key}.{tensor}", f"{key}.modules_to_save.default.{tensor}")
                yield f"{name}.{tensor}", spellings, place.rule.transform, place.rule.torch_shape
        for name in {_EMBEDDING, HEAD} & self.places.keys() - set(self.saved):
            key = f"{_PREFIX}{name}.{'base_layer.' if name in self.adapted else ''}weight"
            if key in present:
                rule = self.places[name]["weight"].rule
                yield f"{name}.base", (key,), rule.transform, rule.torch_shape

    def _spellings(self, module: str, side: str) -> tuple[str, ...]:
        if self.linear(module):
            return tuple(f"{_PREFIX}{module}.lora_{side}{adapter}.weight" for adapter in ("", ".default"))
        return tuple(f"{_PREFIX}{module}.lora_embedding_{side}{adapter}" for adapter in ("", ".default"))

    def merge(self, weights: Mapping[str, Parameter], adapter: Checkpoint) -> dict[str, Parameter]:
        """The model's weights with the adapter merged in, as peft does it: sums in float32, module by module.

        Raises:
          ConversionError: tensors of the adapter are missing, unexpected or of the wrong shape; all of them are listed.
        """
        found = matching.match(adapter, *self.tensors(adapter.keys())).parameters
        tensors = {name: parameter.pieces[0] for name, parameter in found.items()}
        pieces = {name: list(parameter.pieces) for name, parameter in weights.items()}

        def replace(place: Place, read: _Reader) -> None:
            dtype = weights[place.parameter].dtype
            pieces[place.parameter][place.piece] = lambda: read().astype(dtype)

        for name in self.places:
            if name in self.saved:
                for tensor, place in self.places[name].items():
                    replace(place, tensors[f"{name}.{tensor}"])
            elif f"{name}.base" in tensors:
                replace(self.places[name]["weight"], tensors[f"{name}.base"])
        for name in self.adapted:
            place = self.places[name]["weight"]
            read = pieces[place.parameter][place.piece]
            if self.linear(name) and self._config.initialization and f"{name}.base" not in tensors:
                read = self._without_initial_product(name, read)
            replace(place, self._merged(name, read, tensors))
        return {name: dataclasses.replace(weights[name], pieces=tuple(pieces[name])) for name in weights}

    def _without_initial_product(self, module: str, kernel: _Reader) -> _Reader:
        """The kernel [in, out] without the product that the initialization put into A and B."""
        rank, scale = self._config.rank_of(module), self._config.scale_of(module)

        def read() -> np.ndarray:
            original = kernel()
            weights = original.astype(np.float32)
            if self._config.initialization == "pissa":  # the principal components
                u, s, v = np.linalg.svd(weights, full_matrices=False)
                product = (u[:, :rank] * s[:rank]) @ v[:rank]
            else:  # olora: the first columns of the QR decomposition of [out, in]
                q, r = np.linalg.qr(weights.T)
                product = scale * (q[:, :rank] @ r[:rank]).T
            return (weights - product).astype(original.dtype)

        return read

    def _merged(self, module: str, kernel: _Reader, tensors: Mapping[str, Any]) -> _Reader:
        a, b, magnitude = (tensors.get(f"{module}.{name}") for name in ("lora_a", "lora_b", "magnitude"))
        scale = self._config.scale_of(module)

        def read() -> np.ndarray:
            update = a().astype(np.float32) @ b().astype(np.float32) * np.float32(scale)
            merged = kernel().astype(np.float32) + update
            if magnitude:  # DoRA: of each output of a projection, each column of an embedding
                merged *= magnitude().astype(np.float32) / np.linalg.norm(merged, axis=0)
            return merged

        return read
