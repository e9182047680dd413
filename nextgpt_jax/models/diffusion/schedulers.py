"""Noise schedules and samplers, as tables of coefficients.

Every deterministic sampler here is linear in what it sees: the current sample, a sample saved earlier, and the model
outputs of a few evaluations. So `SchedulerConfig.plan(steps)` works out all coefficients in float64 beforehand, one row
an evaluation, and a single `step` runs any of them: PNDM (with and without Runge-Kutta start), DDIM (eta 0),
DPM-Solver++ (2M) and Euler. The rows are padded and their number is a traced value, so neither another number of steps
nor another sampler recompiles anything. Trajectories match diffusers' scheduler classes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nextgpt_jax.errors import UserError
from nextgpt_jax.models import hf_config

_CLASSES = {
    "PNDMScheduler": "pndm",
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpm++",
    "EulerDiscreteScheduler": "euler",
}
SAMPLERS = tuple(_CLASSES.values())

# Options that change the computation, with the values that are implemented; each class ignores those it does not have.
_SUPPORTED = {
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (None, False),
    "thresholding": (None, False),
}
_SUPPORTED_BY = {
    "pndm": {},
    "ddim": {"clip_sample": (False,)},
    "dpm++": {
        "algorithm_type": ("dpmsolver++",),
        "lambda_min_clipped": (None, -float("inf")),
        "solver_type": ("midpoint",),
        "use_beta_sigmas": (None, False),
        "use_dynamic_shifting": (None, False),
        "use_exponential_sigmas": (None, False),
        "use_flow_sigmas": (None, False),
        "use_lu_lambdas": (None, False),
        "variance_type": (None,),
    },
    "euler": {
        "interpolation_type": ("linear",),
        "sigma_max": (None,),
        "sigma_min": (None,),
        "timestep_type": ("discrete",),
        "use_beta_sigmas": (None, False),
        "use_exponential_sigmas": (None, False),
    },
}

_SLOTS = 4  # memory of earlier outputs: three for PNDM's multistep formula, one for a Runge-Kutta sum
_SCRATCH = _SLOTS - 1
_BUCKET = 1024  # rows are padded to a multiple of this


@dataclasses.dataclass(frozen=True)
class SchedulerConfig:
    """Noise schedule and sampler. Fields as in the hub's scheduler_config.json, `name` for its `_class_name`.

    `dataclasses.replace(config, name="dpm++")` swaps the sampler on the same noise schedule. Fields of another sampler
    are without effect; None means the sampler's own default.
    """

    name: str = "pndm"
    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None  # leading for PNDM and DDIM, linspace for DPM-Solver++ and Euler
    steps_offset: int = 0
    set_alpha_to_one: bool | None = None  # False for PNDM, True for DDIM
    skip_prk_steps: bool = False  # PNDM
    use_karras_sigmas: bool = False  # DPM-Solver++ and Euler
    final_sigmas_type: str = "zero"  # DPM-Solver++ and Euler
    solver_order: int = 2  # DPM-Solver++
    lower_order_final: bool = True  # DPM-Solver++
    euler_at_final: bool = False  # DPM-Solver++

    def __post_init__(self):
        allowed = {
            "name": SAMPLERS,
            "beta_schedule": ("linear", "scaled_linear"),
            "prediction_type": ("epsilon", "v_prediction", "sample"),
            "timestep_spacing": (None, "leading", "linspace", "trailing"),
            "final_sigmas_type": ("zero", "sigma_min"),
            "solver_order": (1, 2),
        }
        for field, values in allowed.items():
            if getattr(self, field) not in values:
                wanted = ", ".join(repr(v) for v in values if v is not None)
                raise ValueError(f"{field}={getattr(self, field)!r} is not supported (only {wanted})")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start={self.beta_start!r} and beta_end={self.beta_end!r} should rise between 0 and 1"
            )
        if self.name == "pndm" and self.prediction_type == "sample":
            raise ValueError("PNDM has no prediction_type='sample'")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "SchedulerConfig":
        """Reads a scheduler_config.json. Raises UserError for a class or an option that is not implemented."""
        kind = config.get("_class_name")
        if kind not in _CLASSES:
            raise UserError(f"SchedulerConfig: _class_name={kind!r} is not supported (only {', '.join(_CLASSES)})")
        name = _CLASSES[kind]
        if name == "ddim":
            config = {"clip_sample": True, **config}  # that class's default, which latents must not have
        return hf_config.config_from_dict(cls, {**config, "name": name}, {**_SUPPORTED, **_SUPPORTED_BY[name]})

    def alphas_cumprod(self) -> np.ndarray:
        """The share of signal left at each training timestep: [num_train_timesteps], float64."""
        power = 0.5 if self.beta_schedule == "scaled_linear" else 1.0
        betas = np.linspace(self.beta_start**power, self.beta_end**power, self.num_train_timesteps) ** (1 / power)
        return np.cumprod(1.0 - betas)

    def plan(self, steps: int) -> "SamplerTable":
        """The coefficients of a sampling run of `steps` steps (PNDM evaluates the model more often than that).

        Raises:
          UserError: `steps` is below 1, above num_train_timesteps, too few for PNDM's Runge-Kutta start, or so many
            that two of them fall on one noise level.
        """
        if not 1 <= steps <= self.num_train_timesteps:
            raise UserError(f"the number of steps must be 1 to {self.num_train_timesteps}, got {steps}")
        if self.name == "pndm" and not self.skip_prk_steps and steps < 4:
            raise UserError(f"PNDM with Runge-Kutta steps needs at least 4 steps, got {steps}")
        with np.errstate(all="ignore"):  # checked below
            if self.name == "euler":
                rows, sigma = _euler(self, steps)
            else:
                rows, sigma = {"pndm": _pndm, "ddim": _ddim, "dpm++": _dpm}[self.name](self, steps), 1.0
        if not all(np.isfinite(np.hstack(dataclasses.astuple(row))).all() for row in rows):
            raise UserError(f"{self.name} can't take as many as {steps} steps on this noise schedule: take fewer")
        return _padded(rows, sigma)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Row:
    """One evaluation of the model and the step after it. With x the sample fed and m the model's output,

        p = from_sample x + from_output m
        next x = sample x + saved * (saved sample) + current p + sum over slots of memory[s] * (memory slot s)

    then slot `slot` of the memory becomes keep * (its value) + p, and x is saved if `save`.
    """

    timestep: float
    input_scale: float = 1.0  # the model is fed input_scale * x
    from_sample: float = 0.0
    from_output: float = 1.0
    sample: float = 0.0
    saved: float = 0.0
    current: float = 0.0
    memory: tuple[float, ...] = (0.0,) * _SLOTS
    slot: int = _SCRATCH
    keep: float = 0.0
    save: float = 0.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplerTable:
    """A sampling run: a Row of arrays with a leading axis, padded beyond `count`. All leaves may be traced."""

    rows: Row  # float32 [rows], memory [rows, slots], slot int32 [rows]
    count: Int[Array, ""]
    init_noise_sigma: Float[Array, ""]

    def row(self, i: Int[Array, ""] | int) -> Row:
        return jax.tree.map(lambda a: jnp.asarray(a)[i], self.rows)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplerState:
    """What a step changes; all float32."""

    sample: Float[Array, "..."]
    saved: Float[Array, "..."]
    memory: Float[Array, "slots ..."]


def init_state(plan: SamplerTable, noise: Float[Array, "..."]) -> SamplerState:
    """The state before the first evaluation, from standard normal noise of any shape."""
    sample = noise.astype(jnp.float32) * plan.init_noise_sigma
    return SamplerState(sample, jnp.zeros_like(sample), jnp.zeros((_SLOTS, *sample.shape), jnp.float32))


def model_input(plan: SamplerTable, i: Int[Array, ""] | int, state: SamplerState) -> Float[Array, "..."]:
    """What evaluation `i` feeds to the model, at timestep `plan.row(i).timestep`."""
    return plan.row(i).input_scale * state.sample


def step(
    plan: SamplerTable, i: Int[Array, ""] | int, state: SamplerState, model_output: Float[Array, "..."]
) -> SamplerState:
    """The state after evaluation `i` gave `model_output` (of the kind `prediction_type` says)."""
    row, x = plan.row(i), state.sample
    p = row.from_sample * x + row.from_output * model_output.astype(jnp.float32)
    earlier = sum(row.memory[s] * state.memory[s] for s in range(_SLOTS))
    return SamplerState(
        sample=row.sample * x + row.saved * state.saved + row.current * p + earlier,
        saved=jnp.where(row.save > 0, x, state.saved),
        memory=state.memory.at[row.slot].set(row.keep * state.memory[row.slot] + p),
    )


def add_noise(
    config: SchedulerConfig, x: Float[Array, "b ..."], noise: Float[Array, "b ..."], timesteps: Int[Array, " b"]
) -> Float[Array, "b ..."]:
    """The clean samples `x` brought to the noise level of each row's timestep (the forward process)."""
    signal, spread = _levels(config, x, timesteps)
    return signal * x + spread * noise


def training_target(
    config: SchedulerConfig, x: Float[Array, "b ..."], noise: Float[Array, "b ..."], timesteps: Int[Array, " b"]
) -> Float[Array, "b ..."]:
    """What the model is to predict from `add_noise(...)`: noise, velocity or the clean sample."""
    if config.prediction_type == "epsilon":
        return noise
    if config.prediction_type == "sample":
        return x
    signal, spread = _levels(config, x, timesteps)
    return signal * noise - spread * x


def _levels(config, x, timesteps):
    alphas = config.alphas_cumprod()
    shape = (-1, *(1,) * (x.ndim - 1))
    tables = (jnp.asarray(np.sqrt(a), x.dtype) for a in (alphas, 1.0 - alphas))
    return tuple(table[timesteps].reshape(shape) for table in tables)


def _padded(rows: list[Row], init_noise_sigma: float) -> SamplerTable:
    length = -(-len(rows) // _BUCKET) * _BUCKET
    columns = {}
    for field in dataclasses.fields(Row):
        values = np.array([getattr(row, field.name) for row in rows])
        padding = ((0, length - len(rows)), *((0, 0),) * (values.ndim - 1))
        columns[field.name] = np.pad(values, padding).astype(np.int32 if field.name == "slot" else np.float32)
    return SamplerTable(Row(**columns), np.int32(len(rows)), np.float32(init_noise_sigma))


def _spaced_timesteps(config: SchedulerConfig, steps: int, *, default: str, rounded: bool = True) -> np.ndarray:
    """Descending timesteps of PNDM, DDIM and Euler (which alone takes fractions)."""
    n, spacing = config.num_train_timesteps, config.timestep_spacing or default
    if spacing == "linspace":
        t = np.linspace(0, n - 1, steps)[::-1]
        return t.round() if rounded else t
    if spacing == "leading":
        return (np.arange(steps) * (n // steps))[::-1] + config.steps_offset
    return np.round(np.arange(n, 0, -n / steps))[:steps] - 1


def _alpha_at(config: SchedulerConfig, *, to_one_by_default: bool):
    """alphas_cumprod as a function of the timestep that knows what comes after the last one."""
    alphas = config.alphas_cumprod()
    to_one = to_one_by_default if config.set_alpha_to_one is None else config.set_alpha_to_one
    final = 1.0 if to_one else alphas[0]

    def alpha(t):
        if t >= len(alphas):
            raise UserError(f"timestep {int(t)} is outside the schedule: steps_offset={config.steps_offset}")
        return alphas[int(t)] if t >= 0 else final

    return alpha


def _ddim(config: SchedulerConfig, steps: int) -> list[Row]:
    """x0 and noise from the prediction, then mixed at the previous noise level (Song et al. 2021, eq. 12)."""
    alpha = _alpha_at(config, to_one_by_default=True)
    rows = []
    for t in _spaced_timesteps(config, steps, default="leading"):
        a, previous = alpha(t), alpha(t - config.num_train_timesteps // steps)
        x0 = _x0(config.prediction_type, np.sqrt(a), np.sqrt(1 - a))
        # noise = (x - sqrt(a) x0) / sqrt(1 - a)
        spread = np.sqrt((1 - previous) / (1 - a))
        rows.append(
            Row(
                timestep=t,
                from_sample=x0[0],
                from_output=x0[1],
                sample=spread,
                current=np.sqrt(previous) - spread * np.sqrt(a),
            )
        )
    return rows


def _x0(prediction_type: str, signal: float, spread: float) -> tuple[float, float]:
    """Coefficients of (sample, model output) in the predicted clean sample."""
    if prediction_type == "epsilon":
        return 1.0 / signal, -spread / signal
    return (signal, -spread) if prediction_type == "v_prediction" else (0.0, 1.0)


def _pndm(config: SchedulerConfig, steps: int) -> list[Row]:
    """Liu et al. 2022: Runge-Kutta start (or none) and the linear multistep formula.

    The combination of outputs is taken of the raw predictions; velocities turn into noise afterwards, as in diffusers.
    """
    alpha = _alpha_at(config, to_one_by_default=False)
    stride = config.num_train_timesteps // steps
    times = _spaced_timesteps(config, steps, default="leading")
    rows = []

    def add(t, start, end, weights, *, from_saved=False, save=False, slot=_SCRATCH, keep=0.0):
        """Moves the sample (or the saved one) from `start` to `end` along weights = (current output, memory slots)."""
        a, b = alpha(start), alpha(end)
        of_output = -(b - a) / (a * np.sqrt(1 - b) + np.sqrt(a * (1 - a) * b))
        of_sample = np.sqrt(b / a)
        if config.prediction_type == "v_prediction":
            of_sample += of_output * np.sqrt(1 - a)
            of_output *= np.sqrt(a)
        current, *memory = (w * of_output for w in weights)
        origin = {"saved": of_sample} if from_saved else {"sample": of_sample}
        rows.append(
            Row(timestep=t, **origin, current=current, memory=tuple(memory), slot=slot, keep=keep, save=float(save))
        )

    def weights(current, history, pushed):
        """Weights of the current output and of those pushed before it, newest first; output k sits in slot k % 3."""
        memory = [0.0] * _SLOTS
        for age, weight in enumerate(history, 1):
            memory[(pushed - age) % 3] = weight
        return (current, *memory)

    multistep = [
        (1.0, ()),
        (3 / 2, (-1 / 2,)),
        (23 / 12, (-16 / 12, 5 / 12)),
        (55 / 24, (-59 / 24, 37 / 24, -9 / 24)),
    ]
    if config.skip_prk_steps:
        # The first step is taken twice: the second time from where it began, with the mean of both outputs.
        add(times[0], times[0], times[0] - stride, weights(1.0, (), 0), save=True, slot=0)
        if steps > 1:
            t = times[1]
            add(t, t + stride, t, weights(1 / 2, (1 / 2,), 1), from_saved=True)
        rest, pushed = times[1:], 1
    else:
        newest = (1.0, *(0.0,) * _SLOTS)
        for block in range(3):
            start, end, half = times[block], times[block + 1], stride // 2
            first = [1.0 if s == block else 0.0 for s in range(3)]  # the slot of this block's first output
            # Each stage starts over from the block's first sample.
            add(start, start, start - half, newest, save=True, slot=block)
            add(end + half, start, end + half, newest, from_saved=True)
            add(end + half, start, end, newest, from_saved=True, keep=1.0)
            add(end, start, end, (1 / 6, *(f / 6 for f in first), 1 / 3), from_saved=True)
        rest, pushed = times[3:], 3
    for t in rest:
        current, history = multistep[min(pushed, 3)]
        add(t, t, t - stride, weights(current, history, pushed), slot=pushed % 3)
        pushed += 1
    return rows


def _sigmas(config: SchedulerConfig) -> np.ndarray:
    alphas = config.alphas_cumprod()
    return np.sqrt((1 - alphas) / alphas)


def _karras(first: float, last: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Noise levels from `first` down to `last` (Karras et al. 2022, eq. 5)."""
    ramp = np.linspace(0, 1, steps)
    return (first ** (1 / rho) + ramp * (last ** (1 / rho) - first ** (1 / rho))) ** rho


def _timesteps_of(sigmas: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Fractional timesteps whose noise levels are `sigmas`, interpolated in their logarithm."""
    return np.interp(np.log(sigmas), np.log(table), np.arange(len(table)))


def _with_final(config: SchedulerConfig, sigmas: np.ndarray, table: np.ndarray) -> np.ndarray:
    return np.append(sigmas, 0.0 if config.final_sigmas_type == "zero" else table[0])


def _dpm(config: SchedulerConfig, steps: int) -> list[Row]:
    """DPM-Solver++ (2M), midpoint (Lu et al. 2022): an exponential integrator on the predicted clean samples."""
    n, spacing, table = config.num_train_timesteps, config.timestep_spacing or "linspace", _sigmas(config)
    if config.use_karras_sigmas:
        sigmas = _karras(table[-1], table[0], steps)
        times = _timesteps_of(sigmas, table).round()
    else:
        if spacing == "linspace":
            times = np.linspace(0, n - 1, steps + 1).round()[:0:-1]
        elif spacing == "leading":
            times = (np.arange(steps + 1) * (n // (steps + 1)))[:0:-1] + config.steps_offset
        else:
            times = _spaced_timesteps(config, steps, default="trailing")
        sigmas = np.interp(times, np.arange(n), table)
    sigmas = _with_final(config, sigmas, table)
    signals = 1 / np.sqrt(sigmas**2 + 1)
    spreads = sigmas * signals
    short = config.lower_order_final and steps < 15
    rows = []
    for i, t in enumerate(times):
        x0 = _x0(config.prediction_type, signals[i], spreads[i])
        # With lambda = log(signal / spread) = -log(sigma) and h its increase, exp(-h) is the ratio of the sigmas.
        gain = signals[i + 1] * (1 - sigmas[i + 1] / sigmas[i])
        last = i == steps - 1
        first_order = config.solver_order == 1 or i == 0
        first_order |= last and (config.euler_at_final or short or config.final_sigmas_type == "zero")
        # Second order extrapolates the clean sample by half a step along its last change.
        slope = 0.0 if first_order else 0.5 * np.log(sigmas[i] / sigmas[i + 1]) / np.log(sigmas[i - 1] / sigmas[i])
        rows.append(
            Row(
                timestep=t,
                from_sample=x0[0],
                from_output=x0[1],
                sample=spreads[i + 1] / spreads[i],
                current=gain * (1 + slope),
                memory=(-gain * slope, *(0.0,) * (_SLOTS - 1)),
                slot=0,
            )
        )
    return rows


def _euler(config: SchedulerConfig, steps: int) -> tuple[list[Row], float]:
    """Euler's method on samples that are scaled by their noise (Karras et al. 2022); also the first noise level."""
    table = _sigmas(config)
    times = _spaced_timesteps(config, steps, default="linspace", rounded=False)
    sigmas = np.interp(times, np.arange(len(table)), table)
    if config.use_karras_sigmas:
        sigmas = _karras(sigmas[0], sigmas[-1], steps)
        times = _timesteps_of(sigmas, table)
    sigmas = _with_final(config, sigmas, table)
    rows = []
    for i, t in enumerate(times):
        sigma, delta = sigmas[i], sigmas[i + 1] - sigmas[i]
        scale = 1 / np.sqrt(sigma**2 + 1)
        # The samples here are x / signal, so x0 takes the scaled-down sample.
        x0 = _x0(config.prediction_type, scale, sigma * scale)
        rows.append(
            Row(
                timestep=t,
                input_scale=scale,
                from_sample=x0[0] * scale,
                from_output=x0[1],
                sample=1 + delta / sigma,
                current=-delta / sigma,
            )
        )
    first = sigmas.max()
    return rows, np.sqrt(first**2 + 1) if config.timestep_spacing == "leading" else first
