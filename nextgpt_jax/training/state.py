"""The state of a run: its parameters, the optimizer's state and the position in the data; created or restored."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.files import normal_path
from nextgpt_jax.models.nextgpt import NExTGPTModel, is_trainable
from nextgpt_jax.training.distributed import print_on_main
from nextgpt_jax.training.optimizer import Average, join_average, split_average
from nextgpt_jax.training.stages import STAGES, param_group
from nextgpt_jax.training.step import optimizer_shardings
from nextgpt_jax.weights.load import LoadedModel
from nextgpt_jax.weights.run_checkpoints import Workdir
from nextgpt_jax.weights.run_steps import Losses


@dataclasses.dataclass
class RunState:
    """What changes from step to step.

    Attributes:
      graphdef: of the model; merged with `trainable` and `frozen` it is the model.
      trainable: the parameters that the stage trains.
      frozen: all others.
      opt: state of the optimizer, with the moving average of `trainable` if there is one.
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

    @property
    def evaluated(self) -> nnx.State:
        """What stands for `trainable` when the model is judged or used: the moving average, if there is one."""
        _, average = split_average(self.opt)
        return self.trainable if average is None else average.params

    def save(self, run: Workdir, losses: Losses) -> None:
        """Starts to save a checkpoint."""
        opt, average = split_average(self.opt)
        data, averaged = {"examples": self.examples}, None
        if average is not None:
            data["ema_updates"], averaged = int(jax.device_get(average.count)), self._delta(average.params)
        run.save(self.step, self._delta(self.trainable), opt, data, losses=losses, average=averaged)

    def restore(self, run: Workdir, model: NExTGPTModel, trainable: Any) -> None:
        """Reads the checkpoint of `step`, also into the model, whose part that the filter `trainable` selects is
        trained."""
        opt, average = split_average(self.opt)
        like = nnx.state(model, is_trainable)
        delta, opt, data = run.restore(self.step, like, opt)
        nnx.update(model, delta)
        self.graphdef, self.trainable, self.frozen = nnx.split(model, trainable, ...)
        self.examples = data["examples"]
        if average is not None:
            average = Average(average.count, jax.tree.map(jnp.copy, self.trainable))
            if run.has_average(self.step):
                found = dict(nnx.to_flat_state(run.restore_average(self.step, like)))
                flat = [(path, leaf.replace(found[path][...])) for path, leaf in nnx.to_flat_state(self.trainable)]
                average = Average(average.count + data["ema_updates"], nnx.from_flat_state(flat))
        self.opt = join_average(opt, average)

    def _delta(self, trainable: nnx.State) -> nnx.State:
        """The parameters that any stage trains."""
        return nnx.state(nnx.merge(self.graphdef, trainable, self.frozen), is_trainable)

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
        state.restore(run, loaded.model, stage.trainable)
        print_on_main(f"resuming {run.path} at step {state.step}")
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
    average = ", its moving average" if source.has_average(number) else ""
    print_on_main(f"starting from {normal_path(workdir)}, step {number}{average}: loaded {sizes(delta)}")
