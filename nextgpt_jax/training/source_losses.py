"""The losses of each source of a mixture."""

from collections.abc import Mapping, Sequence

import numpy as np

from nextgpt_jax.training.losses import BY_SOURCE


def losses_by_source(
    steps: Sequence[Mapping[str, np.ndarray]], names: Sequence[str], weights: Mapping[str, float]
) -> dict[str, float]:
    """The losses of each source that has a target in some steps: loss/NAME, loss_language/NAME, ..., as those of all.

    Args:
      steps: metrics, with the sums over the examples of each source that `losses.loss` returns.
      names: of the sources.
      weights: on the alignment losses, by modality.
    """
    sums: dict[str, np.ndarray] = {}
    for step in steps:
        for name, value in step.items():
            if name.startswith(BY_SOURCE):
                sums[name.removeprefix(BY_SOURCE)] = sums.get(name.removeprefix(BY_SOURCE), 0) + np.float64(value)
    modalities = [name.removeprefix("groups_") for name in sums if name.startswith("groups_")]
    found = {}
    for i, source in enumerate(names if sums else ()):
        losses = {}
        if sums["tokens"][i]:
            losses["loss_language"] = sums["language"][i] / sums["tokens"][i]
        for name in modalities:
            if sums[f"groups_{name}"][i]:
                losses[f"loss_alignment_{name}"] = sums[f"alignment_{name}"][i] / sums[f"groups_{name}"][i]
        if losses:
            aligned = sum(weights[name] * losses.get(f"loss_alignment_{name}", 0.0) for name in modalities)
            losses = {"loss": losses.get("loss_language", 0.0) + aligned, **losses}
        found |= {f"{name}/{source}": float(value) for name, value in losses.items()}
    return found


def describe_sources(metrics: Mapping[str, float], prefix: str = "") -> str:
    """The losses by source, for people."""
    start = f"{prefix}loss/"
    parts = [f"{name.removeprefix(start)} {value:.4f}" for name, value in metrics.items() if name.startswith(start)]
    return f"  [{', '.join(parts)}]" if parts else ""
