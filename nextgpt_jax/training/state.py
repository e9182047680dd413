"""The state of a run: its parameters, the optimizer's state and the position in the data; created or restored."""

import dataclasses
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.files import normal_path
from nextgpt_jax.models.nextgpt import is_trainable
from nextgpt_jax.training.distributed import print_on_main
from nextgpt_jax.training.stages import STAGES, param_group
from nextgpt_jax.training.step import optimizer_shardings
from nextgpt_jax.weights.load import LoadedModel
from nextgpt_jax.weights.run_checkpoints import Workdir


@dataclasses.dataclass
class RunState:
    """What changes from step to step.

    Attributes:
      graphdef: of the model; merged with `trainable` and `frozen` it is the model.
      trainable: the parameters that the stage trains.
      frozen: all others.
      opt: state of the optimizer.
      step: steps made.
      examples: examples consumed, the position in the data.
      metrics: of the last step, on the devices; empty before the first one.
    """

    graphdef: nnx.GraphDef
    trainable: nnx.State
    frozen: nnx.State
    opt: Any
    step: int = 0
    examples: int = 0
    metrics: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

    def delta(self) -> nnx.State:
        """The parameters that any stage trains."""
        return nnx.state(nnx.merge(self.graphdef, self.trainable, self.frozen), is_trainable)

    def advance(self, trainable: nnx.State, opt: Any, metrics: dict[str, jax.Array], examples: int) -> None:
        """Takes the results of a step on this many examples."""
        self.trainable, self.opt, self.metrics = trainable, opt, metrics
        self.step, self.examples = self.step + 1, self.examples + examples


def begin(
    run: Workdir,
    config: ExperimentConfig,
    loaded: LoadedModel,
    tx: optax.GradientTransformation,
    init_from: str,
    init_step: str | int,
    mesh: Mesh,
) -> RunState:
    """Creates the workdir and the state of a new run, or restores those of a run that goes on, which is said.

    Args:
      init_from: workdir of an earlier stage, whose trained parameters a new run starts from; "": none.
      init_step: of its checkpoint, see `Workdir.restore_delta`.

    Raises:
      UserError: the workdir, or that of `init_from`, belongs to another run or is damaged.
    """
    if init_from and run.latest() is None:
        _init_from(loaded, init_from, init_step, config.model.delta)
    stage, signals = STAGES[config.train.stage], loaded.model.config.signals
    run.init_or_validate(config.train.stage, nnx.state(loaded.model, is_trainable), config.model.delta, signals)
    state = RunState(*nnx.split(loaded.model, stage.trainable, ...), opt=None)
    state.opt = jax.jit(tx.init, out_shardings=optimizer_shardings(tx, state.trainable, mesh))(state.trainable)
    state.step = run.resume_step()
    if state.step:
        delta, state.opt, position = run.restore(state.step, nnx.state(loaded.model, is_trainable), state.opt)
        nnx.update(loaded.model, delta)
        state.graphdef, state.trainable, state.frozen = nnx.split(loaded.model, stage.trainable, ...)
        state.examples = position["examples"]
        print_on_main(f"resuming {run.path} at step {state.step}")
        for name, before, now in run.changed_settings(config):
            print_on_main(f"changed since then: {name}: {before!r} -> {now!r}{_consequence(name)}")
    if jax.process_index() == 0:
        run.write_config(config)
    return state


def sizes(state: nnx.State) -> str:
    """The numbers of parameters, by trained part."""
    found: dict[str, int] = {}
    for path, leaf in nnx.to_flat_state(state):
        found[param_group(path)] = found.get(param_group(path), 0) + leaf.size
    return ", ".join(f"{name} ({n:,})" for name, n in found.items())


def _init_from(loaded: LoadedModel, workdir: str, step: str | int, base_delta: str) -> None:
    """Replaces the trained parameters of a model by those of an earlier run."""
    source = Workdir(workdir)
    source.check_base(base_delta)
    source.check_signals(loaded.model.config.signals)
    delta, number = source.restore_delta(nnx.state(loaded.model, is_trainable), step)
    nnx.update(loaded.model, delta)
    print_on_main(f"starting from {normal_path(workdir)}, step {number}: loaded {sizes(delta)}")


def _consequence(name: str) -> str:
    """What it does to a run that a setting changes on the way."""
    if name.startswith("data.") and name not in ("data.num_workers", "data.max_skipped", "data.max_truncated"):
        return " (this epoch may repeat or miss examples)"
    if name == "train.seed":
        return " (another order of examples and other dropout from here)"
    if name in ("train.steps", "train.epochs", "optim.warmup_ratio", "optim.schedule"):
        return " (the learning rate follows the new schedule from here)"
    return ""
