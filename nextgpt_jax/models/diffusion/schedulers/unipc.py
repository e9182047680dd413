"""UniPC (Zhao et al. 2023): a multistep predictor whose every sample is corrected with the next model output.

With B(h) as in the paper. A step and its correction start from the same sample and scale it alike, so that the
corrected sample is the uncorrected one and a sum of outputs: nothing but outputs has to be kept.
"""

import numpy as np

from nextgpt_jax.models.diffusion.schedulers.options import SchedulerOptions, check_choice, clean_sample, pure_noise
from nextgpt_jax.models.diffusion.schedulers.spacing import check_respacing, multistep_schedule, respaced, with_final
from nextgpt_jax.models.diffusion.schedulers.table import HISTORY_SLOTS, Run, StepCoefficients

SUPPORTED = {
    "shift_terminal": (None,),
    "solver_p": (None,),
    "use_dynamic_shifting": (None, False),
    "use_flow_sigmas": (None, False),
}

_SLOTS = 3  # output i is in slot i % 3 until it is replaced
_OF_OTHERS = ("midpoint", "heun", "logrho")  # solver_type of other classes, which diffusers replaces by bh2


def check(options: SchedulerOptions) -> None:
    """Raises ValueError for options that this sampler has but that are not supported."""
    check_respacing(options)
    check_choice("solver_type", options.solver_type, (None, "bh2", "bh1", *_OF_OTHERS))
    zero = options.final_sigmas_type == "zero"
    if zero and not options.predict_x0:
        raise ValueError("UniPC with predict_x0=False needs final_sigmas_type='sigma_min'")
    if options.rescale_betas_zero_snr and not options.predict_x0:
        raise ValueError("UniPC with predict_x0=False has no steps from rescale_betas_zero_snr=True")
    if zero and options.solver_order > 1 and not options.lower_order_final:
        raise ValueError("UniPC with lower_order_final=False needs final_sigmas_type='sigma_min'")
    if not zero and respaced(options):
        raise ValueError("UniPC with sigmas of Karras, exponential or beta needs final_sigmas_type='zero'")


def coefficients(options: SchedulerOptions, steps: int, first: int = 0) -> Run:
    """The run of `steps` from evaluation `first` on; the initial noise level is 1."""
    training_sigmas = options.sigmas()
    times, sigmas = multistep_schedule(options, steps, end=options.num_train_timesteps, whole=True)
    sigmas = with_final(options, sigmas, training_sigmas)
    signals = 1 / np.sqrt(sigmas**2 + 1)
    noises = sigmas * signals
    predicted = clean_sample if options.predict_x0 else pure_noise
    kept, other = (noises, signals) if options.predict_x0 else (signals, noises)
    rows: list[StepCoefficients] = []
    order = 0
    for i, t in enumerate(times[first:], first):
        from_sample, from_output = predicted(options.prediction_type, signals[i], noises[i])
        # Weights of the outputs of this evaluation and of those before it, newest first.
        correction = np.zeros(_SLOTS + 1)
        if i > first and i - 1 not in options.disable_corrector:
            correction = _weights(options, sigmas, i - 1, order, corrected=True) * other[i]
            correction[1:] -= _weights(options, sigmas, i - 1, order, corrected=False) * other[i]
        order = min(options.solver_order, i - first + 1)
        if options.lower_order_final:
            order = min(order, len(times) - i)
        scale = kept[i + 1] / kept[i]
        outputs = scale * correction
        outputs[:_SLOTS] += _weights(options, sigmas, i, order, corrected=False) * other[i + 1]
        history = [0.0] * HISTORY_SLOTS
        for age, weight in enumerate(outputs[1:], 1):
            history[(i - age) % _SLOTS] = weight
        rows.append(
            StepCoefficients(
                timestep=t,
                from_sample=from_sample,
                from_output=from_output,
                sample=scale,
                current=outputs[0],
                history=tuple(history),
                history_slot=i % _SLOTS,
            )
        )
    start = min(first, len(times))
    return Run(rows, 1.0, (signals[start], noises[start]))


def _weights(options: SchedulerOptions, sigmas: np.ndarray, i: int, order: int, *, corrected: bool) -> np.ndarray:
    """Weights, newest first, of the outputs in step `i` from sigmas[i] to sigmas[i + 1], relative to the level there.

    Without correction these are the outputs at i, i - 1 and i - 2; `corrected` puts the output at i + 1 before them.
    """
    lambdas = -np.log(sigmas[max(i - order + 1, 0) : i + 2])  # log(signal / noise), oldest first
    h = lambdas[-1] - lambdas[-2]
    hh = -h if options.predict_x0 else h
    ratios = np.append((lambdas[-3::-1] - lambdas[-2]) / h, 1.0)  # of earlier times to this step, and 1
    factor = hh if options.solver_type == "bh1" else np.expm1(hh)
    rhos = _solution(ratios, hh, factor, corrected)
    weights = np.zeros(_SLOTS + corrected)
    weights[int(corrected)] = -np.expm1(hh)
    for age, rho in enumerate(rhos[: order - 1], 1):
        weight = factor * rho / ratios[age - 1]
        weights[age + corrected] -= weight
        weights[int(corrected)] += weight
    if corrected:
        weights[0] -= factor * rhos[-1]
        weights[1] += factor * rhos[-1]
    return weights


def _solution(ratios: np.ndarray, hh: float, factor: float, corrected: bool) -> np.ndarray:
    """The weights of the differences to earlier outputs and, `corrected`, of that to the new one."""
    order = len(ratios)
    if order == 1 + (not corrected):
        return np.array([0.5])  # as in the paper's code, not the solution of the equation
    if order == 1:
        return np.zeros(0)
    values, factorial, phi = [], 1, np.expm1(hh) / hh - 1
    for k in range(1, order + 1):
        values.append(phi * factorial / factor)
        factorial *= k + 1
        phi = phi / hh - 1 / factorial
    size = order if corrected else order - 1
    powers = np.vander(ratios[:size], size, increasing=True).T
    try:
        return np.linalg.solve(powers, np.array(values[:size]))
    except np.linalg.LinAlgError:  # two of the times are the same: there is no such step
        return np.full(size, np.nan)
