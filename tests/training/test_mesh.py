"""The same run on one device and on meshes of eight. All stages on all meshes:

python -m tests.training.meshes
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from convert.__main__ import main as convert
from nextgpt_jax.config import MeshConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.training.loop import train
from tests import tiny


def losses(root, workdir, stage: str, *names: str) -> dict[str, dict[str, float]]:
    argv = [sys.executable, "-m", "tests.training.meshes", str(root), str(workdir), stage, *names]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def converted(root, output):
    """The same root with Orbax in the place of the hub's weights."""
    for component in ("llama", "imagebind", "stable_diffusion"):
        name = tiny.COMPONENTS[component]
        convert(["convert", component, f"--source={root / 'hub' / name}", f"--output={output / 'hub' / name}"])
    assert not list((output / "hub").rglob("model.safetensors"))
    (output / "pictures").symlink_to(root / "pictures")
    return output


@pytest.mark.parametrize(
    "stage, names",
    [
        pytest.param("stage1", ["all"], marks=pytest.mark.slow),
        pytest.param("stage2", ["accumulated"], marks=pytest.mark.slow),
        ("stage3", ["fsdp-all"]),
    ],
)
def test_meshes_do_not_change_the_losses(tiny_root, tmp_path, stage, names):
    """Nor does going on, after half the steps, on another one. The second stage starts from converted weights."""
    root = converted(tiny_root, tmp_path / "converted") if stage == "stage2" else tiny_root
    found = losses(root, tmp_path, stage, "one", *names)
    expected = found.pop("one")
    assert len(expected) == 8
    for name, values in found.items():
        assert list(values) == list(expected)[4 if "-" in name else 0 :]
        np.testing.assert_allclose(list(values.values()), [expected[step] for step in values], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "mesh, message",
    [
        (MeshConfig(data=2), "data=2 x fsdp=1 x tensor=1 needs 2 devices, found 1"),
        (MeshConfig(data=-1, fsdp=-1), "or -1 for one"),
        (MeshConfig(fsdp=0), "sizes are at least 1"),
        (MeshConfig(data=-1, tensor=2), "data=-1 x fsdp=1 x tensor=2 needs a multiple of 2 devices, found 1"),
    ],
)
def test_meshes_that_do_not_match_the_devices(tiny_root, tmp_path, mesh, message):
    config = tiny.experiment(tiny_root, "stage1")
    config.mesh = mesh
    with pytest.raises(UserError, match=message):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
