"""The table of a sampling run, and the step that runs any sampler from it."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

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
                 + noise * (new standard normal noise)

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
    noise: Coefficient | None = None  # None in all rows: a deterministic sampler, whose program draws no noise


class Run(NamedTuple):
    """A sampling run, or the rest of one that begins later, from a clean sample with noise."""

    rows: list[StepCoefficients]  # one per evaluation
    initial: float  # the level of noise from which a whole run begins
    levels: tuple[float, float]  # of signal and noise before the first of `rows`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplerTable:
    """A sampling run: StepCoefficients of arrays with a leading axis, padded beyond `num_evaluations`.

    All leaves may be traced, or abstract.
    """

    coefficients: StepCoefficients  # float32 [rows], history [rows, slots], history_slot int32 [rows]
    num_evaluations: Any  # int32
    init_noise_sigma: Any  # float32: the level of noise in the first sample
    init_signal: Any  # float32: that of the clean sample in it, 0 if a run begins from noise alone

    @property
    def stochastic(self) -> bool:
        """Whether steps add noise, for which the state has to have keys."""
        return self.coefficients.noise is not None

    def at(self, i: Int[Array, ""] | int) -> StepCoefficients:
        """The coefficients of evaluation `i`."""
        return jax.tree.map(lambda a: jnp.asarray(a)[i], self.coefficients)


def pack(steps: list[StepCoefficients], init_noise_sigma: float, init_signal: float = 0.0) -> SamplerTable:
    """Stacks the coefficients of all evaluations (at least one) into a padded table."""
    length = -(-len(steps) // _BUCKET) * _BUCKET
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(StepCoefficients):
        if getattr(steps[0], field.name) is None:
            columns[field.name] = None
            continue
        values = np.array([getattr(step, field.name) for step in steps])
        padding = ((0, length - len(steps)), *((0, 0),) * (values.ndim - 1))
        columns[field.name] = np.pad(values, padding).astype(np.int32 if field.name == "history_slot" else np.float32)
    start = np.float32(init_noise_sigma), np.float32(init_signal)
    return SamplerTable(StepCoefficients(**columns), np.int32(len(steps)), *start)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplerState:
    """The values that a step changes: arrays, float32, which may be traced or abstract."""

    sample: Any  # [...]
    anchor: Any  # [...]
    history: Any  # [slots, ...]
    keys: Any = None  # random keys [b], one per row of the sample; None: the sampler is deterministic


def init_state(
    table: SamplerTable,
    noise: Float[Array | np.ndarray, "..."],
    keys: Key[Array, " b"] | None = None,
    clean: Float[Array | np.ndarray, "..."] | None = None,
) -> SamplerState:
    """The state before the first evaluation, from standard normal noise of any shape.

    Args:
      clean: the sample to begin from, if the table begins from one: noise is added to it.
      keys: one per row of `noise`, for the noise of later steps; deterministic samplers take none of it.

    Raises:
      ValueError: a stochastic sampler without keys.
    """
    if table.stochastic and keys is None:
        raise ValueError("a stochastic sampler needs a random key per row")
    sample = noise.astype(jnp.float32) * table.init_noise_sigma
    if clean is not None:
        sample += clean.astype(jnp.float32) * table.init_signal
    history = jnp.zeros((HISTORY_SLOTS, *sample.shape), jnp.float32)
    return SamplerState(sample, jnp.zeros_like(sample), history, keys if table.stochastic else None)


def step_noise(state: SamplerState, i: Int[Array, ""] | int) -> Float[Array, "b ..."]:
    """The noise that a stochastic sampler adds after evaluation `i`: of each row by `i` and the row's key alone."""
    shape = state.sample.shape[1:]
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape))(state.keys)


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
    sample = c.sample * x + c.anchor * state.anchor + c.current * p + earlier
    if table.stochastic:
        sample += c.noise * step_noise(state, i)
    return SamplerState(
        sample=sample,
        anchor=jnp.where(c.set_anchor > 0, x, state.anchor),
        history=state.history.at[c.history_slot].set(c.history_keep * state.history[c.history_slot] + p),
        keys=state.keys,
    )
