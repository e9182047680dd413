"""Means over steps, and the files of a run's metrics."""

import json

import pytest

from nextgpt_jax.training.metrics import MetricsLog, window_means


def test_the_alignment_loss_of_a_modality_is_a_mean_over_its_groups():
    window = [
        {"loss": 1.0, "loss_alignment_image": 2.0, "groups_image": 3, "loss_alignment_audio": 0.0, "groups_audio": 0},
        {"loss": 3.0, "loss_alignment_image": 0.0, "groups_image": 0, "loss_alignment_audio": 0.0, "groups_audio": 0},
        {"loss": 5.0, "loss_alignment_image": 4.0, "groups_image": 1, "loss_alignment_audio": 0.0, "groups_audio": 0},
    ]
    assert window_means(window) == pytest.approx({"loss": 3.0, "loss_alignment_image": 2.5})


def test_a_resumed_run_drops_what_it_makes_again(tmp_path):
    for start, steps in ((0, (2, 4, 6)), (4, (6, 8))):
        with MetricsLog(tmp_path, start, enabled=True) as log:
            for step in steps:
                log.write(step, {"loss": float(start)})
    with MetricsLog(tmp_path, 0, enabled=False) as log:
        log.write(1, {"loss": 0.0})
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in written] == [(2, 0.0), (4, 0.0), (6, 4.0), (8, 4.0)]
