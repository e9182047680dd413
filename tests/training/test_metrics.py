"""Means over steps, and the files of a run's metrics."""

import json

import numpy as np
import pytest

from nextgpt_jax.training.metrics import MetricsLog, describe_validation, window_means
from nextgpt_jax.training.source_losses import losses_by_source


def test_the_alignment_loss_of_a_modality_is_a_mean_over_its_groups():
    window = [
        {"loss": 1.0, "loss_alignment_image": 2.0, "groups_image": 3, "loss_alignment_audio": 0.0, "groups_audio": 0},
        {"loss": 3.0, "loss_alignment_image": 0.0, "groups_image": 0, "loss_alignment_audio": 0.0, "groups_audio": 0},
        {"loss": 5.0, "loss_alignment_image": 4.0, "groups_image": 1},
    ]
    assert window_means(window) == pytest.approx({"loss": 3.0, "loss_alignment_image": 2.5})


def test_the_losses_of_sources_are_means_over_their_targets():
    """Of those that have any; steps without room for a modality say nothing about it."""
    steps = [
        {"by_source_language": np.array([6.0, 0.0, 1.0]), "by_source_tokens": np.array([3, 0, 1])},
        {
            "by_source_language": np.array([0.0, 0.0, 5.0]),
            "by_source_tokens": np.array([0, 0, 2]),
            "by_source_alignment_image": np.array([0.0, 0.0, 6.0]),
            "by_source_groups_image": np.array([0, 0, 4]),
        },
    ]
    found = losses_by_source(steps, ("a", "b", "c"), {"image": 2.0})
    expected = {"loss/a": 2.0, "loss_language/a": 2.0}
    expected |= {"loss/c": 5.0, "loss_language/c": 2.0, "loss_alignment_image/c": 1.5}
    assert found == pytest.approx(expected)
    shown = describe_validation(3, {f"validation_{name}": value for name, value in {"loss": 1.0, **found}.items()})
    assert shown == "validation at step 3  loss 1.0000 ()  [a 2.0000, c 5.0000]"
    assert losses_by_source([{"loss": 1.0}], ("a",), {}) == {}


def test_a_resumed_run_drops_what_it_makes_again(tmp_path):
    for start, steps in ((0, (2, 4, 6)), (4, (6, 8))):
        with MetricsLog(tmp_path, start, enabled=True) as log:
            for step in steps:
                log.write(step, {"loss": float(start)})
    with MetricsLog(tmp_path, 0, enabled=False) as log:
        log.write(1, {"loss": 0.0})
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in written] == [(2, 0.0), (4, 0.0), (6, 4.0), (8, 4.0)]
