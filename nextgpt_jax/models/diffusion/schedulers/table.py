"""The table of a sampling run, and the step that runs any sampler from it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

HISTORY_SLOTS = 4  # earlier outputs: three for PNDM's multistep formula, one for a Runge-Kutta sum
SCRATCH_SLOT = HISTORY_SLOTS - 1
_BUCKET = 1024  # tables are padded to a multiple of this

Coefficient = Any  # a float; in a SamplerTable, floats [rows]; in a step, a traced scalar


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepCoefficients:
    """One evaluation of the model and the step after it. With x the current sample and m the model's output,

        p = from_sample x + from_output m
        next x = sample x + anchor * (anchor sample) + current p + sum over slots s of history[s] * (slot s)

    then history slot `history_slot` becomes history_keep * (its value) + p, and x becomes the anchor if `set_anchor`.
    """

    timestep: Coefficient
    input_scale: Coefficient = 1.0  # the model is fed input_scale * x
    from_sample: Coefficient = 0.0
    from_output: Coefficient = 1.0
    sample: Coefficient = 0.0
    anchor: Coefficient = 0.0
    current: Coefficient = 0.0
    history: Any = (0.0,) * HISTORY_SLOTS  # one per slot
    history_slot: Any = SCRATCH_SLOT
    history_keep: Coefficient = 0.0
    set_anchor: Coefficient = 0.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplerTable:
    """A sampling run: StepCoefficients of arrays with a leading axis, padded beyond `num_evaluations`.

    All leaves may be traced, or abstract.
    """

    coefficients: StepCoefficients  # float32 [rows], history [rows, slots], history_slot int32 [rows]
    num_evaluations: Any  # int32
    init_noise_sigma: Any  # float32

    def at(self, i: Int[Array, ""] | int) -> StepCoefficients:
        """The coefficients of evaluation `i`."""
        return jax.tree.map(lambda a: jnp.asarray(a)[i], self.coefficients)


def pack(steps: list[StepCoefficients], init_noise_sigma: float) -> SamplerTable:
    """Stacks the coefficients of all evaluations into a padded table."""
    length = -(-len(steps) // _BUCKET) * _BUCKET
    columns = {}
    for field in dataclasses.fields(StepCoefficients):
        values = np.array([getattr(step, field.name) for step in steps])
        padding = ((0, length - len(steps)), *((0, 0),) * (values.ndim - 1))
        columns[field.name] = np.pad(values, padding).astype(np.int32 if field.name == "history_slot" else np.float32)
    return SamplerTable(StepCoefficients(**columns), np.int32(len(steps)), np.float32(init_noise_sigma))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplerState:
    """The values that a step changes: arrays, float32, which may be traced or abstract."""

    sample: Any  # [...]
    anchor: Any  # [...]
    history: Any  # [slots, ...]


def init_state(table: SamplerTable, noise: Float[Array | np.ndarray, "..."]) -> SamplerState:
    """The state before the first evaluation, from standard normal noise of any shape."""
    sample = noise.astype(jnp.float32) * table.init_noise_sigma
    return SamplerState(sample, jnp.zeros_like(sample), jnp.zeros((HISTORY_SLOTS, *sample.shape), jnp.float32))


def model_input(table: SamplerTable, i: Int[Array, ""] | int, state: SamplerState) -> Float[Array, "..."]:
    """The model's input in evaluation `i`, at timestep `table.at(i).timestep`."""
    return table.at(i).input_scale * state.sample


def step(
    table: SamplerTable, i: Int[Array, ""] | int, state: SamplerState, model_output: Float[Array, "..."]
) -> SamplerState:
    """The state after evaluation `i`, whose `model_output` is of the scheduler's `prediction_type`."""
    c, x = table.at(i), state.sample
    p = c.from_sample * x + c.from_output * model_output.astype(jnp.float32)
    earlier = sum(c.history[s] * state.history[s] for s in range(HISTORY_SLOTS))
    return SamplerState(
        sample=c.sample * x + c.anchor * state.anchor + c.current * p + earlier,
        anchor=jnp.where(c.set_anchor > 0, x, state.anchor),
        history=state.history.at[c.history_slot].set(c.history_keep * state.history[c.history_slot] + p),
    )
