"""The same run on one device and on meshes of eight, and what is wrong with a mesh. All stages on all meshes:

python -m tests.training.meshes
"""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from convert.__main__ import main as convert
from nextgpt_jax import sharding
from nextgpt_jax.config import MeshConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.training.loop import train
from nextgpt_jax.weights.load import abstract_state, model_config
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


@pytest.mark.parametrize("stage, names", [("stage1", ["all"]), ("stage2", ["accumulated"]), ("stage3", ["fsdp-all"])])
def test_meshes_do_not_change_the_losses(tiny_root, tmp_path, stage, names):
    """Nor does going on, after step 10, on another one. The second stage starts from converted weights."""
    root = converted(tiny_root, tmp_path / "converted") if stage == "stage2" else tiny_root
    found = losses(root, tmp_path, stage, "one", *names)
    expected = found.pop("one")
    assert len(expected) == 20
    for name, values in found.items():
        assert list(values) == list(expected)[10 if "-" in name else 0 :]
        np.testing.assert_allclose(list(values.values()), [expected[step] for step in values], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "mesh, message",
    [
        (MeshConfig(data=2), "data=2 x fsdp=1 x tensor=1 has 2 places for 1 devices"),
        (MeshConfig(data=-1, fsdp=-1), "or -1 for one"),
        (MeshConfig(fsdp=0), "sizes are at least 1"),
        (MeshConfig(data=-1, tensor=2), "data=0 x fsdp=1 x tensor=2 has 0 places for 1 devices"),
    ],
)
def test_meshes_that_do_not_match_the_devices(tiny_root, tmp_path, mesh, message):
    config = tiny.experiment(tiny_root, "stage1")
    config.mesh = mesh
    with pytest.raises(UserError, match=message):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_every_parameter_has_a_row_and_sizes_that_do_not_divide_are_named(tiny_root):
    config = tiny.experiment(tiny_root, "stage1")
    cfg = model_config(config.model)
    for path, leaf in nnx.to_flat_state(abstract_state(cfg)):
        sharding.parameter_spec(".".join(map(str, path)), leaf.shape, tiny.Mesh(fsdp=2, tensor=2))
    with pytest.raises(ValueError, match=r"no row of sharding.PARAMETERS fits the parameter llm.extra \[3\]"):
        sharding.parameter_spec("llm.extra", (3,), tiny.Mesh())
    with pytest.raises(
        UserError, match=r"llm.lm_head.kernel \[32, 721\]: 721 \(vocab\) does not divide into mesh.tensor=2"
    ):
        sharding.parameter_spec("llm.lm_head.kernel", (32, 721), tiny.Mesh(tensor=2))
    with pytest.raises(UserError, match="mesh.tensor=4 does not divide the model's 2 key/value heads"):
        sharding.validate_heads(tiny.Mesh(tensor=4), **{"attention heads": 4, "key/value heads": 2})


def test_the_widest_axis_is_cut():
    mesh, wide = tiny.Mesh(fsdp=4, tensor=2), ("fsdp", "tensor")
    P = jax.sharding.PartitionSpec
    assert sharding.parameter_spec("decoders.image.unet.conv.kernel", (3, 3, 320, 640), mesh) == P(
        None, None, None, wide
    )
    assert sharding.parameter_spec("encoder.towers.vision.trunk.blocks.fc1.kernel", (32, 1280, 5121), mesh) == P(
        None, wide, None
    )
    assert sharding.parameter_spec("decoders.image.unet.conv.bias", (320,), mesh) == P()
    assert sharding.parameter_spec("decoders.image.unet.conv.kernel", (3, 3, 321, 644), mesh) == P(
        None, None, None, ("fsdp",)
    )


def test_batches_that_do_not_divide():
    places = "does not divide into mesh.data=2 x mesh.fsdp=2"
    with pytest.raises(UserError, match=rf"a batch \(data.batch_size / optim.grad_accum_steps\) of 6 rows {places}"):
        sharding.HostBatch(tiny.Mesh(data=2, fsdp=2), 6)
