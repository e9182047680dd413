"""DPM-Solver and DPM-Solver++ (Lu et al. 2022), multistep of order 1 to 3, as ODE or SDE: exponential integrators on
the predicted noise, and on the predicted clean samples."""

import numpy as np

from nextgpt_jax.models.diffusion.schedulers.options import SchedulerOptions, check_choice, clean_sample, pure_noise
from nextgpt_jax.models.diffusion.schedulers.spacing import (
    check_respacing,
    exponential,
    multistep_schedule,
    timesteps_of,
    whole_timesteps,
    with_final,
)
from nextgpt_jax.models.diffusion.schedulers.table import HISTORY_SLOTS, Run, StepCoefficients

SUPPORTED = {"use_dynamic_shifting": (None, False), "use_flow_sigmas": (None, False)}

_ALGORITHMS = ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver")
_OF_OTHERS = ("logrho", "bh1", "bh2")  # solver_type of other classes, which diffusers replaces by midpoint


def check(options: SchedulerOptions) -> None:
    """Raises ValueError for options that this sampler has but that are not supported."""
    check_respacing(options)
    check_choice("algorithm_type", options.algorithm_type, _ALGORITHMS)
    check_choice("solver_type", options.solver_type, (None, "midpoint", "heun", *_OF_OTHERS))
    if options.variance_type in ("learned", "learned_range"):
        raise ValueError(f"variance_type={options.variance_type!r} is not supported: UNets here predict no variance")
    if not options.algorithm_type.endswith("++") and options.final_sigmas_type == "zero":
        raise ValueError(f"algorithm_type={options.algorithm_type!r} needs final_sigmas_type='sigma_min'")
    if not options.algorithm_type.endswith("++") and options.rescale_betas_zero_snr:
        raise ValueError(f"algorithm_type={options.algorithm_type!r} has no steps from rescale_betas_zero_snr=True")
    if options.algorithm_type == "sde-dpmsolver" and options.solver_order == 3:
        raise ValueError("algorithm_type='sde-dpmsolver' has no solver_order=3")


def coefficients(options: SchedulerOptions, steps: int, first: int = 0) -> Run:
    """The run of `steps` from evaluation `first` on; the initial noise level is 1."""
    times, sigmas = _timesteps_and_sigmas(options, steps)
    steps = len(times)
    signals = 1 / np.sqrt(sigmas**2 + 1)
    noises = sigmas * signals
    predicted = clean_sample if options.algorithm_type.endswith("++") else pure_noise
    slots = max(options.solver_order - 1, 1)  # output i is in slot i % slots until it is replaced
    rows = []
    for i, t in enumerate(times[first:], first):
        from_sample, from_output = predicted(options.prediction_type, signals[i], noises[i])
        order = _order(options, i, steps, i - first)
        # With lambda = log(signal / noise) = -log(sigma) and h its increase, exp(-h) is the ratio of the sigmas.
        hs = [np.log(sigmas[i - k] / sigmas[i - k + 1]) for k in range(order)]
        sample, gain, slope, curve, noise = _integrals(
            options, order, hs[0], sigmas[i : i + 2], signals[i : i + 2], noises[i : i + 2]
        )
        current, history = gain * _outputs(order, hs, slope, curve), [0.0] * HISTORY_SLOTS
        for age, weight in enumerate(current[1:], 1):
            history[(i - age) % slots] = weight
        rows.append(
            StepCoefficients(
                timestep=t,
                from_sample=from_sample,
                from_output=from_output,
                sample=sample,
                current=current[0],
                history=tuple(history),
                history_slot=i % slots,
                noise=noise,
            )
        )
    start = min(first, steps)
    return Run(rows, 1.0, (signals[start], noises[start]))


def _order(options: SchedulerOptions, i: int, steps: int, outputs: int) -> int:
    """The order of step `i`: lower while there are too few earlier `outputs`, and in the last of few steps."""
    few_steps = options.lower_order_final and steps < 15
    order = min(options.solver_order, outputs + 1)
    if i == steps - 1 and (options.euler_at_final or few_steps or options.final_sigmas_type == "zero"):
        return 1
    return min(order, 2) if i == steps - 2 and few_steps else order


def _integrals(
    options: SchedulerOptions, order: int, h: float, sigmas: np.ndarray, signals: np.ndarray, noises: np.ndarray
) -> tuple[float, float, float, float, float | None]:
    """Coefficients of a step between the two levels given: of the sample and of the output; of the output's first and
    second derivative, relative to the latter; and of new noise, None without.
    """
    stochastic = options.algorithm_type.startswith("sde")
    midpoint = options.solver_type != "heun" and order < 3
    if options.algorithm_type.endswith("++"):
        k = 2 * h if stochastic else h
        sample = noises[1] / noises[0] * (sigmas[1] / sigmas[0] if stochastic else 1.0)
        gain = signals[1] * (1 - (sigmas[1] / sigmas[0]) ** (2 if stochastic else 1))
        unit = signals[1]
        noise = noises[1] * np.sqrt(1 - (sigmas[1] / sigmas[0]) ** 2) if stochastic else None
        slope = 0.5 if midpoint else unit * (np.expm1(-k) / k + 1) / gain
        curve = 0.0 if order < 3 else _curve_of_clean(unit, k, stochastic) / gain
    else:
        sample = signals[1] / signals[0]
        unit = -noises[1] * (2 if stochastic else 1)
        gain = unit * np.expm1(h)
        noise = noises[1] * np.sqrt(np.expm1(2 * h)) if stochastic else None
        slope = 0.5 if midpoint else unit * (np.expm1(h) / h - 1) / gain
        curve = 0.0 if order < 3 else unit * ((np.expm1(h) - h) / h**2 - 0.5) / gain
    return sample, gain, slope, curve, noise


def _curve_of_clean(signal: float, k: float, stochastic: bool) -> float:
    # The two differ in sign of the integral, as in diffusers: expm1(-k) + k, and -expm1(-k) - k.
    integral = (np.expm1(-k) + k) / k**2
    return signal * (-integral - 0.5) if stochastic else -signal * (integral - 0.5)


def _outputs(order: int, hs: list[float], slope: float, curve: float) -> np.ndarray:
    """Weights of the current output and of those before it, newest first: [order].

    Derivatives are divided differences of the outputs, in units of the step `hs[0]`; `hs` are newest first.
    """
    if order == 1:
        return np.ones(1)
    if order == 2:
        extrapolation = slope * hs[0] / hs[1]
        return np.array([1 + extrapolation, -extrapolation])
    r0, r1 = hs[1] / hs[0], hs[2] / hs[0]
    newest, older = np.array([1, -1, 0]) / r0, np.array([0, 1, -1]) / r1
    first = newest + r0 / (r0 + r1) * (newest - older)
    second = (newest - older) / (r0 + r1)
    return np.array([1, 0, 0]) + slope * first + curve * second


def _timesteps_and_sigmas(options: SchedulerOptions, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps [steps] and noise levels [steps + 1]."""
    training_sigmas = options.sigmas()
    whole = options.beta_schedule != "squaredcos_cap_v2"
    end = options.num_train_timesteps
    if options.lambda_min_clipped is not None:
        end -= int(np.searchsorted(-np.log(training_sigmas[::-1]), options.lambda_min_clipped))
    times, sigmas = multistep_schedule(options, steps, end=end, whole=whole)
    if options.use_lu_lambdas and not options.use_karras_sigmas:
        sigmas = exponential(training_sigmas[-1], training_sigmas[0], steps)
        times = whole_timesteps(timesteps_of(sigmas, training_sigmas), rounded=whole)
    return times, with_final(options, sigmas, training_sigmas)
