"""Checkpoints of training runs, by Orbax.

WORKDIR/run.json        identity of the run: stage, base delta, signal tokens, shapes of the trainable parameters
WORKDIR/config.json     the experiment config, with the absolute paths of the components
WORKDIR/<step>/delta    the parameters that any stage trains, so that every stage can start from every other
WORKDIR/<step>/opt      optimizer state of the run's stage
WORKDIR/<step>/data     position of the data iterator
WORKDIR/damaged-<step>-<n>     a checkpoint that was not whole when the run was resumed
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.experimental import multihost_utils

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.config_files import config_from_dict, config_to_dict
from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.files import atomic_write, check_folder, normal_path
from nextgpt_jax.json_files import read_json
from nextgpt_jax.modalities import RELEASED, SignalTokens, signals_from_json, signals_to_json
from nextgpt_jax.models import hf_config
from nextgpt_jax.weights.checkpoint_damage import find_damage
from nextgpt_jax.weights.hub import is_hub_id
from nextgpt_jax.weights.matching import flat_paths

_RUN, _CONFIG = "run.json", "config.json"
_STEP = re.compile(r"0|[1-9]\d*")


def shapes_of(delta: nnx.State) -> dict[str, list[int]]:
    """Shapes of trainable parameters by dotted path, by which a run recognizes its model."""
    names = flat_paths(delta)
    return {names[path]: list(leaf.shape) for path, leaf in nnx.to_flat_state(delta)}


class Workdir:
    """The checkpoints of one run."""

    def __init__(self, path: str | os.PathLike, keep: int = 2, keep_best: int = 0):
        self.path = normal_path(path)
        self._keep, self._keep_best = keep, keep_best
        self._opened: ocp.CheckpointManager | None = None

    @property
    def _manager(self) -> ocp.CheckpointManager:
        if self._opened is None:
            policies = ocp.checkpoint_managers.preservation_policy
            kept = [policies.LatestN(self._keep)]
            if self._keep_best:
                kept += [policies.BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=self._keep_best)]
            options = ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept), create=False
            )
            self._opened = ocp.CheckpointManager(self.path, options=options)
        return self._opened

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        """Waits for pending saves."""
        if self._opened is not None:
            self._opened.close()
        self._opened = None

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

    def exists(self) -> bool:
        """Whether a run has begun in the folder."""
        return (self.path / _RUN).is_file()

    def config(self) -> ExperimentConfig | None:
        """The experiment config that the run was started with, or None if the run is of a version that kept none.

        Raises:
          UserError: no run here, or the file is damaged.
        """
        self._run()
        file = self.path / _CONFIG
        return config_from_dict(hf_config.read_config(file), str(file)) if file.is_file() else None

    def write_config(self, config: ExperimentConfig) -> None:
        """Records the config; to be called by one process."""
        with atomic_write(self.path / _CONFIG) as temporary:
            temporary.write_text(json.dumps(_recorded(config), indent=1) + "\n")

    def changed_settings(self, config: ExperimentConfig) -> list[tuple[str, Any, Any]]:
        """The fields whose values differ from the recorded config's: dotted name, value there, value here."""
        if (before := self.config()) is None:
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
        with atomic_write(self.path / _RUN) as temporary:
            temporary.write_text(json.dumps(run, indent=1))

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

    def steps(self) -> list[int]:
        """The steps of the checkpoints, whole or damaged, newest first."""
        folders = self.path.iterdir() if self.path.is_dir() else ()
        return sorted((int(f.name) for f in folders if _STEP.fullmatch(f.name) and f.is_dir()), reverse=True)

    def latest(self) -> int | None:
        """The step of the newest checkpoint, whole or damaged."""
        return max(self.steps(), default=None)

    def resume_step(self) -> int:
        """The step of the newest whole checkpoint; 0: there is no checkpoint.

        Damaged checkpoints after it are renamed, because their steps will be saved again, and a note is printed. In a
        multi-process job every process calls it, and the first one decides.

        Raises:
          UserError: all checkpoints are damaged.
        """
        step, error = -1, UserError(f"process 0 found no whole checkpoint in {self.path}")
        if not jax.process_index():
            try:
                step, damaged = self._newest_whole(("delta", "opt", "data"))
                for number in damaged:
                    self._set_aside(number)
            except UserError as found:
                error = found
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step < 0:
            raise error
        return step

    def _newest_whole(self, items: Sequence[str]) -> tuple[int, list[int]]:
        """The newest step whose `items` are whole (0: there is no checkpoint), and the damaged ones after it."""
        damage = {}
        for step in self.steps():
            if not (found := find_damage(self.path / str(step), items)):
                if damage and not jax.process_index():
                    print(f"note: {self.path} is damaged ({_listed(damage)}): step {step} is used", file=sys.stderr)
                return step, list(damage)
            damage[step] = found
        if damage:
            raise UserError(f"{self.path} has no whole checkpoint ({_listed(damage)}): copy the files again")
        return 0, []

    def _set_aside(self, step: int) -> None:
        """Renames a damaged checkpoint."""
        source, number = self.path / str(step), 1
        while (target := self.path / f"damaged-{step}-{number}").exists():
            number += 1
        try:
            source.rename(target)
        except OSError as error:
            raise UserError(f"{source} is damaged and can't be renamed: {first_line(error)}") from None
        print(f"note: {source} is now {target.name}", file=sys.stderr)

    def save(self, step: int, delta: nnx.State, opt: Any, data: dict, *, loss: float) -> None:
        """Starts an asynchronous, atomic save of a checkpoint."""
        items = {
            "delta": ocp.args.StandardSave(nnx.to_pure_dict(delta)),
            "opt": ocp.args.StandardSave(jax.tree.leaves(opt)),
            "data": ocp.args.JsonSave(data),
        }
        self._manager.save(step, args=ocp.args.Composite(**items), metrics={"loss": loss})

    def restore(self, step: int, delta: nnx.State, opt: Any) -> tuple[nnx.State, Any, dict]:
        """Reads a checkpoint into the structure of `delta` and `opt` (abstract or real).

        Raises:
          UserError: it does not fit, because the optimizer's settings were changed.
        """
        leaves, treedef = jax.tree.flatten(opt)
        found = self._restore(step, "opt", leaves)
        data = read_json(self.path / str(step) / "data" / "metadata")
        return self._restored_delta(step, delta), jax.tree.unflatten(treedef, found), data

    def restore_delta(self, delta: nnx.State) -> tuple[nnx.State, int]:
        """The trainable parameters of the newest checkpoint in which they are whole, and its step.

        A note is printed if it is not the newest one.

        Raises:
          UserError: there is no such checkpoint, or it belongs to another model.
        """
        self.check(delta)
        step, _ = self._newest_whole(("delta",))
        if not step:
            raise UserError(f"{self.path} has no complete checkpoint yet")
        return self._restored_delta(step, delta), step

    def _restored_delta(self, step: int, delta: nnx.State) -> nnx.State:
        return _filled(delta, self._restore(step, "delta", nnx.to_pure_dict(delta)))

    def _restore(self, step: int, item: str, tree: Any) -> Any:
        path = self.path / str(step) / item
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                return checkpointer.restore(path, _abstract(tree))
        except (OSError, KeyError, ValueError) as error:
            if jax.process_count() > 1:  # perhaps because another process has exited
                raise
            raise UserError(f"{path} can't be restored: {first_line(error)}") from None


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


def _listed(damage: dict[int, str]) -> str:
    return "; ".join(f"step {step}: {reason}" for step, reason in damage.items())


def _location(part: str) -> str:
    return str(normal_path(part)) if part and not is_hub_id(part) else part


def _abstract(tree: Any) -> Any:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def leaf(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or device)

    return jax.tree.map(leaf, tree)


def _filled(state: nnx.State, values: dict) -> nnx.State:
    found = dict(nnx.to_flat_state(nnx.State(values)))
    return nnx.from_flat_state([(path, leaf.replace(found[path])) for path, leaf in nnx.to_flat_state(state)])
