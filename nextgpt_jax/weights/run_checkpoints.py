"""Checkpoints of training runs, by Orbax; run_record.py has the other files of a workdir.

WORKDIR/<step>/delta    the parameters that any stage trains, so that every stage can start from every other
WORKDIR/<step>/ema      the same with the moving average of those that the stage trains, if the run makes one
WORKDIR/<step>/opt      optimizer state of the run's stage
WORKDIR/<step>/data     position of the data iterator, and the losses at this step
WORKDIR/damaged-<step>-<n>     a checkpoint that was not whole when the run was resumed
"""

import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.experimental import multihost_utils

from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.json_files import read_json
from nextgpt_jax.weights.checkpoint_damage import find_damage
from nextgpt_jax.weights.run_record import RunRecord
from nextgpt_jax.weights.run_steps import BEST, LATEST, LOSS, Losses, best_step, describe_steps, rank

_LOSSES = "losses"
_STEP = re.compile(r"0|[1-9]\d*")


class Workdir(RunRecord):
    """The checkpoints of one run."""

    def __init__(self, path: str | os.PathLike, keep: int = 2, keep_best: int = 0):
        """
        Args:
          keep: the number of newest checkpoints that saving keeps.
          keep_best: and of those with the lowest losses. Checkpoints of unknown losses are kept, too, if it is not 0.
        """
        super().__init__(path)
        self._keep, self._keep_best = keep, keep_best
        self._losses: dict[int, Losses] = {}
        self._opened: ocp.CheckpointManager | None = None

    @property
    def _manager(self) -> ocp.CheckpointManager:
        if self._opened is None:
            policies = ocp.checkpoint_managers.preservation_policy
            kept = [policies.LatestN(self._keep)]
            if self._keep_best:
                self._losses = self.losses()  # of the steps before this process
                kept.append(_Best(self._losses, self._keep_best))
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
                step, damaged = self._newest_whole(lambda step: ("delta", "opt", "data", *self._average_item(step)))
                for number in damaged:
                    self._set_aside(number)
            except UserError as found:
                error = found
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step < 0:
            raise error
        return step

    def _newest_whole(self, items: Callable[[int], Sequence[str]]) -> tuple[int, list[int]]:
        """The newest step whose items are whole (0: there is no checkpoint), and the damaged ones after it."""
        damage = {}
        for step in self.steps():
            if not (found := find_damage(self.path / str(step), items(step))):
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

    def save(
        self, step: int, delta: nnx.State, opt: Any, data: dict, *, losses: Losses, average: nnx.State | None = None
    ) -> None:
        """Starts an asynchronous, atomic save of a checkpoint.

        Args:
          average: `delta` with a moving average of the weights.
          data: position in the data, as JSON values.
          losses: run_steps.LOSS in training, if there are held-out samples run_steps.VALIDATION, and if the
            config has eval.best run_steps.SCORE.
        """
        items = {
            "delta": ocp.args.StandardSave(nnx.to_pure_dict(delta)),
            "opt": ocp.args.StandardSave(jax.tree.leaves(opt)),
            "data": ocp.args.JsonSave(data | {_LOSSES: dict(losses)}),
        }
        if average is not None:
            items["ema"] = ocp.args.StandardSave(nnx.to_pure_dict(average))
        manager = self._manager
        self._losses[step] = losses
        manager.save(step, args=ocp.args.Composite(**items))

    def losses(self) -> dict[int, Losses]:
        """The recorded losses of the checkpoints, by step; without those of which none can be read."""
        found = {}
        for step in self.steps():
            try:
                losses = self._data(step)[_LOSSES]
                if LOSS in losses and all(map(math.isfinite, losses.values())):
                    found[step] = losses
            except (UserError, AttributeError, KeyError, TypeError):  # of an earlier version, or damaged
                continue
        return found

    def _data(self, step: int) -> dict[str, Any]:
        return read_json(self.path / str(step) / "data" / "metadata")

    def restore(self, step: int, delta: nnx.State, opt: Any) -> tuple[nnx.State, Any, dict]:
        """Reads a checkpoint into the structure of `delta` and `opt` (abstract or real).

        Raises:
          UserError: it does not fit, because the optimizer's settings were changed.
        """
        leaves, treedef = jax.tree.flatten(opt)
        found = self._restore(step, "opt", leaves)
        data = {name: value for name, value in self._data(step).items() if name != _LOSSES}
        return self._restored(step, "delta", delta), jax.tree.unflatten(treedef, found), data

    def has_average(self, step: int) -> bool:
        """Whether a checkpoint has a moving average of the weights."""
        return bool(self._average_item(step))

    def _average_item(self, step: int) -> tuple[str, ...]:
        folder = self.path / str(step)
        if (folder / "ema").is_dir():
            return ("ema",)
        try:
            return ("ema",) if "ema_updates" in self._data(step) else ()  # a copy may lack the folder
        except (UserError, TypeError):
            return ()

    def restore_average(self, step: int, delta: nnx.State) -> nnx.State:
        """`delta` with a moving average of the weights; see `has_average`."""
        return self._restored(step, "ema", delta)

    def restore_delta(
        self, delta: nnx.State, step: str | int = LATEST, ema: bool | None = None
    ) -> tuple[nnx.State, int]:
        """The trainable parameters of a checkpoint, and its step.

        Args:
          step: its number; BEST: that with the lowest loss; LATEST: the newest one in which the parameters are whole. A
            note is printed if that is not the newest one.
          ema: True: their moving average; False: they themselves; None: their moving average, if the run makes one.

        Raises:
          UserError: there is no such checkpoint, it is damaged, or it belongs to another model; or it has no average.
        """

        def items(step: int) -> tuple[str, ...]:
            return (ema is not False and self._average_item(step)) or ("delta",)

        self.check(delta)
        number = self.find_step(step)
        if step == LATEST:
            number, _ = self._newest_whole(items)
        elif damage := find_damage(self.path / str(number), items(number)):
            raise UserError(
                f"{self.path} is damaged (step {number}: {damage}): copy the files again, or take another step "
                f"({describe_steps(self.steps())})"
            )
        (item,) = items(number)
        if ema and item != "ema":
            raise UserError(
                f"{self.path} has no moving average of the weights at step {number} (train.ema_decay was 0)"
            )
        return self._restored(number, item, delta), number

    def find_step(self, step: str | int) -> int:
        """The number of the checkpoint that `step` means: LATEST, BEST, or a number.

        Raises:
          UserError: there is no such checkpoint.
        """
        self.require()
        if not (steps := self.steps()):
            raise UserError(f"{self.path} has no complete checkpoint yet")
        if step == LATEST:
            return steps[0]
        if step == BEST:
            if (found := best_step(self.losses())) is None:
                raise UserError(
                    f"{self.path} has no checkpoint with a recorded loss, of which one could be the best "
                    f"({describe_steps(steps)})"
                )
            return found
        if step not in steps:
            raise UserError(f"{self.path} has no checkpoint of step {step}: {describe_steps(steps)}")
        return int(step)

    def _restored(self, step: int, item: str, delta: nnx.State) -> nnx.State:
        return _filled(delta, self._restore(step, item, nnx.to_pure_dict(delta)))

    def _restore(self, step: int, item: str, tree: Any) -> Any:
        path = self.path / str(step) / item
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                return checkpointer.restore(path, _abstract(tree))
        except (OSError, KeyError, ValueError) as error:
            if jax.process_count() > 1:  # perhaps because another process has exited
                raise
            raise UserError(f"{path} can't be restored: {first_line(error)}") from None


def _listed(damage: dict[int, str]) -> str:
    return "; ".join(f"step {step}: {reason}" for step, reason in damage.items())


def _abstract(tree: Any) -> Any:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def leaf(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or device)

    return jax.tree.map(leaf, tree)


def _filled(state: nnx.State, values: dict) -> nnx.State:
    found = dict(nnx.to_flat_state(nnx.State(values)))
    return nnx.from_flat_state([(path, leaf.replace(found[path])) for path, leaf in nnx.to_flat_state(state)])


class _Best(ocp.checkpoint_managers.preservation_policy.PreservationPolicy):
    """Preserves the checkpoints with the lowest losses, and those of unknown losses.

    Orbax's own BestN forgets losses when a run resumes, unless it writes them to an item that it cannot read back if it
    is damaged.
    """

    def __init__(self, losses: Mapping[int, Losses], number: int):
        self._losses, self._number = losses, number

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        steps = [info.step for info in checkpoints]
        known = sorted((s for s in steps if s in self._losses), key=lambda s: (rank(self._losses[s]), -s))
        return [step in known[: self._number] or step not in self._losses for step in steps]
