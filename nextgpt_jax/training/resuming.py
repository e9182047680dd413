"""What a run that goes on may change: a table of settings, and the contents of its data files."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.data.fingerprint import fingerprint
from nextgpt_jax.errors import UserError
from nextgpt_jax.training.distributed import print_on_main
from nextgpt_jax.weights.run_checkpoints import Workdir

# Setting, or section -> what its change does to the run, for the line that names it. The first that fits counts.
_SCHEDULE = "the learning rate follows the new schedule from here"
_ORDER = "this epoch may repeat or miss examples"
_NOTHING = ""
_MODEL = "the frozen weights should be the same ones"
CONSEQUENCES = {
    "train.steps": _SCHEDULE,
    "train.epochs": _SCHEDULE,
    "optim.warmup_ratio": _SCHEDULE,
    "optim.schedule": _SCHEDULE,
    "optim": "from here on",
    "train.ema_decay": "a moving average that begins here begins with these weights",
    "train.alignment_weight": "losses before and after this do not compare",
    "train": _NOTHING,
    "data.validation": "losses before and after this may not compare; the best checkpoint is the lowest of both",
    "data.captions": _NOTHING,  # their contents count
    "data.instructions": _NOTHING,
    "data.media_root": _NOTHING,
    "data.num_workers": _NOTHING,
    "data.max_skipped": _NOTHING,
    "data.max_truncated": _NOTHING,
    "data": _ORDER,
    "eval.best": "the best checkpoint is chosen by another figure from here; earlier ones keep theirs",
    "eval.every": _NOTHING,
    "eval": "figures before and after this may not compare",
    "model.quantize": "the frozen weights have another precision from here",
    "model.dtype": "the frozen weights have another precision from here",
    "model.lora_dropout": "from here on",
    "model": _MODEL,
}
# Setting -> why a run cannot go on with another one.
REFUSED = {
    "train.seed": "the order of the samples and dropout follow from it",
    "model.lora_alpha": "the trained low-rank updates are scaled by it",
    "model.template": "what was trained belongs to the layout of conversations",
}


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting with another value than before."""

    name: str
    before: Any
    now: Any

    @property
    def line(self) -> str:
        consequence = _lookup(CONSEQUENCES, self.name)
        return f"{self.name}: {self.before!r} -> {self.now!r}{f' ({consequence})' if consequence else ''}"


def data_record(training: Iterable[str], validation: Iterable[str] = ()) -> dict[str, Any]:
    """What run.json says of data files: their paths, and the fingerprint of their contents.

    Raises:
      UserError: one cannot be read.
    """
    files = {"training": [*map(str, training)], "validation": [*map(str, validation)]}
    return {name: {"files": paths, "fingerprint": fingerprint(paths)} for name, paths in files.items() if paths}


def check_changes(run: Workdir, config: ExperimentConfig, data: Mapping[str, Any]) -> list[Change]:
    """The settings that differ from those with which a run was started or last went on; none of a run that has no
    checkpoint yet.

    Raises:
      UserError: it cannot go on with one of them, or with other data files.
    """
    if run.latest() is None or not run.exists():
        return []
    found = [Change(*change) for change in run.changed_settings(config)]
    remedy = f"set it back, or start a run of its own with --init_from={run.path} and a new --workdir"
    for change in found:
        if reason := REFUSED.get(change.name):
            raise UserError(
                f"{run.path} was trained with {change.name}={change.before!r}, and {reason}: with {change.now!r} it "
                f"cannot go on; {remedy}"
            )
    before, now = run.data.get("training"), data["training"]
    if before and before["fingerprint"] != now["fingerprint"]:
        raise UserError(
            f"the data files have other contents than those that {run.path} was trained on "
            f"({_listed(before['files'])}; now {_listed(now['files'])}), so its position in them means nothing: "
            f"{remedy.replace('set it', 'put them')}"
        )
    return found


def say_changes(changes: Iterable[Change]) -> None:
    """Prints a line for each change."""
    for change in changes:
        print_on_main(f"changed since then: {change.line}")


def record_process(
    run: Workdir, config: ExperimentConfig, data: Mapping[str, Any], entry: Mapping[str, Any], changes: Iterable[Change]
) -> None:
    """Writes to the workdir with what a run begins or goes on; process 0 does."""
    if jax.process_index():
        return
    run.write_config(config)
    changed = {change.name: [change.before, change.now] for change in changes}
    run.add_history(dict(entry) | ({"changed": changed} if changed else {}), data)


def _lookup(table: Mapping[str, str], name: str) -> str:
    return next((text for row, text in table.items() if name == row or name.startswith(row + ".")), "")


def _listed(files: list[str]) -> str:
    return ", ".join(files[:3]) + (f" and {len(files) - 3} others" if len(files) > 3 else "")
