"""Two workers of a Ray cluster on this machine write what one process writes."""

import json

import pytest

from nextgpt_jax.prepare.run import Options, Preparer
from tests import tiny


@pytest.mark.slow
def test_two_workers_write_the_same_shards(tiny_root, tmp_path):
    pytest.importorskip("ray")
    from nextgpt_jax.prepare.on_ray import write_on_ray

    config, options = tiny.experiment(tiny_root, "stage1"), Options(records_per_shard=3, batch_size=2)
    alone = Preparer(config, tmp_path / "alone", options)
    alone.write(range(alone.count))
    shared = Preparer(config, tmp_path / "shared", options)
    write_on_ray(shared, config, str(tmp_path / "shared"), options, workers=2)
    assert alone.merge() and shared.merge() and alone.count == 4
    found = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("alone", "shared")]
    assert found[0] == found[1]
