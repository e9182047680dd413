"""What identifies a training run, in its workdir.

WORKDIR/run.json        stage, base delta, signal tokens, shapes of the trainable parameters; the data files and the
                        fingerprint of their contents; history: an entry for each time that the run was begun or resumed
WORKDIR/config.json     the experiment config, with the absolute paths of the components
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.experimental import multihost_utils

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.config_files import config_from_dict, config_to_dict
from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_write, check_folder, normal_path
from nextgpt_jax.json_files import read_json
from nextgpt_jax.modalities import RELEASED, SignalTokens, signals_from_json, signals_to_json
from nextgpt_jax.models import hf_config
from nextgpt_jax.weights.hub import is_hub_id
from nextgpt_jax.weights.matching import flat_paths

_RUN, _CONFIG = "run.json", "config.json"


def shapes_of(delta: nnx.State) -> dict[str, list[int]]:
    """Shapes of trainable parameters by dotted path, by which a run recognizes its model."""
    names = flat_paths(delta)
    return {names[path]: list(leaf.shape) for path, leaf in nnx.to_flat_state(delta)}


class RunRecord:
    """The files of a workdir beside its checkpoints."""

    def __init__(self, path: str | os.PathLike):
        self.path: pathlib.Path = normal_path(path)

    @property
    def base_delta(self) -> str:
        """The delta that the run started from: an absolute path or a hub id; "": none.

        Raises:
          UserError: no run here.
        """
        return self._run()["base_delta"]

    @property
    def signals(self) -> tuple[SignalTokens, ...]:
        """The signal tokens of the run's model.

        Raises:
          UserError: no run here.
        """
        return signals_from_json(self._run().get("signal_tokens", signals_to_json(RELEASED)), str(self.path / _RUN))

    @property
    def data(self) -> dict[str, Any]:
        """The recorded data files; empty for a run of a version that recorded none.

        Raises:
          UserError: no run here.
        """
        return self._run().get("data", {})

    @property
    def history(self) -> list[dict[str, Any]]:
        """An entry for each process that began the run or went on with it.

        Raises:
          UserError: no run here.
        """
        return self._run().get("history", [])

    def add_history(self, entry: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        """Adds an entry to the history, and records the data files; to be called by one process."""
        run = self._run()
        self._write(run | {"data": dict(data), "history": [*run.get("history", []), dict(entry)]})

    def _write(self, run: dict[str, Any]) -> None:
        with atomic_write(self.path / _RUN) as temporary:
            temporary.write_text(json.dumps(run, indent=1))

    def exists(self) -> bool:
        """Whether a run has begun in the folder."""
        return (self.path / _RUN).is_file()

    def require(self) -> None:
        """Raises UserError if no run has begun in the folder."""
        self._run()

    def config(self, like: ExperimentConfig | None = None) -> ExperimentConfig | None:
        """The experiment config that the run was started with, or None if the run is of a version that kept none.

        Args:
          like: see `config_from_dict`.

        Raises:
          UserError: no run here, or the file is damaged.
        """
        self._run()
        file = self.path / _CONFIG
        return config_from_dict(hf_config.read_config(file), str(file), like) if file.is_file() else None

    def write_config(self, config: ExperimentConfig) -> None:
        """Records the config; to be called by one process."""
        with atomic_write(self.path / _CONFIG) as temporary:
            temporary.write_text(json.dumps(_recorded(config), indent=1) + "\n")

    def changed_settings(self, config: ExperimentConfig) -> list[tuple[str, Any, Any]]:
        """The fields whose values differ from the recorded config's: dotted name, value there, value here."""
        if (before := self.config(config)) is None:
            return []
        old, new = (_flat(_recorded(some)) for some in (before, config))
        return [(name, old.get(name), value) for name, value in new.items() if old.get(name) != value]

    def _run(self) -> dict[str, Any]:
        if not self.exists():
            raise UserError(f"{self.path} holds no training run (no {_RUN})")
        return read_json(self.path / _RUN)

    def init_or_validate(
        self, stage: str, delta: nnx.State, base_delta: str, signals: tuple[SignalTokens, ...] = RELEASED
    ) -> None:
        """Creates the folder of a new run, or checks that it belongs to this run. In a multi-process job the first
        process creates it.

        Raises:
          UserError: the folder has checkpoints of another stage or another model.
        """
        if jax.process_index():
            multihost_utils.sync_global_devices("claim")
        self._claim(stage, delta, base_delta, signals)
        if jax.process_count() > 1 and not jax.process_index():
            multihost_utils.sync_global_devices("claim")

    def _claim(self, stage: str, delta: nnx.State, base_delta: str, signals: tuple[SignalTokens, ...]) -> None:
        run = {
            "stage": stage,
            "base_delta": _location(base_delta),
            "signal_tokens": signals_to_json(signals),
            "parameters": shapes_of(delta),
        }
        if self.exists():
            self.check_base(base_delta)
            self.check_signals(signals)
            self.check(delta)
            if (found := self._run()["stage"]) != stage:
                raise UserError(
                    f"{self.path} holds a run of {found}, not {stage}: give {stage} a workdir of its own and start it "
                    f"with --init_from={self.path}"
                )
            return
        check_folder(self.path, "--workdir")
        if self.path.exists() and any(self.path.iterdir()):
            raise UserError(f"{self.path} is not empty and holds no run: give a new --workdir")
        self._write(run)

    def check_base(self, base_delta: str) -> None:
        """Checks that the run started from the same delta, which replaces the frozen embedding and head.

        Raises:
          UserError: it started from another one, or from none.
        """
        if _location(self.base_delta) != _location(base_delta):
            raise UserError(
                f"{self.path} was trained on model.delta={self.base_delta!r}, this config has {base_delta!r}: "
                "make them equal"
            )

    def check_signals(self, signals: tuple[SignalTokens, ...]) -> None:
        """Checks that the run's model has these signal tokens.

        Raises:
          UserError: it has other ones.
        """
        if self.signals != signals:
            names = [", ".join(f"{s.modality} ({s.num_tokens})" for s in some) for some in (self.signals, signals)]
            raise UserError(
                f"{self.path} belongs to a model with signal tokens for {names[0]}, this config has {names[1]}: make "
                "model.output_modalities equal"
            )

    def check(self, delta: nnx.State) -> None:
        """Checks that the checkpoints fit the model with the trainable parameters `delta`.

        Raises:
          UserError: there is no run here, or one of another model; the first difference is named.
        """
        found, wanted = self._run()["parameters"], shapes_of(delta)
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                raise UserError(
                    f"{self.path} belongs to another model: {name} is {found.get(name, 'absent')} there and "
                    f"{wanted.get(name, 'absent')} in this config"
                )


def _recorded(config: ExperimentConfig) -> dict[str, Any]:
    """A config as JSON data, with the absolute paths of components."""
    content = config_to_dict(config)
    for name, value in content["model"].items():
        if name in ("llm", "encoder", "delta") or name.endswith("_decoder"):
            content["model"][name] = ",".join(map(_location, value.split(",")))
    return content


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in content.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _location(part: str) -> str:
    return str(normal_path(part)) if part and not is_hub_id(part) else part
