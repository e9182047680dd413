"""What identifies weights: the files that count, wherever they are."""

import dataclasses
import pathlib
import shutil

import jax.numpy as jnp
import pytest
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation import fingerprints
from nextgpt_jax.weights.assemble import folders_by_part, with_folders
from nextgpt_jax.weights.run_checkpoints import Workdir


def test_parts_are_told_apart_by_their_contents(tiny_config, tmp_path):
    config = tiny_config.model
    found = fingerprints.weights(config)
    assert list(found) == ["audio_decoder", "encoder", "image_decoder", "llm", "video_decoder"]
    copies = {name: tmp_path / pathlib.Path(f).name for name, (_, f) in folders_by_part(config).items()}
    for name, (_, folder) in folders_by_part(config).items():
        shutil.copytree(folder, copies[name])
    moved = with_folders(config, copies)
    assert fingerprints.weights(moved) == found
    (copies["llm"] / "README.md").write_text("not read by anything")
    (copies["llm"] / "pytorch_model.bin").write_bytes(b"nor this, beside model.safetensors")
    (copies["image_decoder"] / ".cache").mkdir()
    (copies["image_decoder"] / ".cache" / "model.safetensors").write_bytes(b"of the hub")
    assert fingerprints.weights(moved) == found
    with (copies["image_decoder"] / "unet" / "diffusion_pytorch_model.safetensors").open("ab") as file:
        file.write(b"x")
    (copies["encoder"] / "config.json").write_text("{}")
    changed = fingerprints.weights(moved)
    assert [name for name in found if changed[name] != found[name]] == ["encoder", "image_decoder"]


def test_checkpoints(tiny_config, tmp_path):
    state = lambda value: nnx.State({"input_proj": {"kernel": nnx.Param(jnp.full(2, value))}})  # noqa: E731
    with Workdir(tmp_path / "run", keep=2) as run:
        run.init_or_validate("stage1", state(0.0), "")
        for step in (1, 2):
            data = {"examples": step, "ema_updates": step}
            opt = {"count": jnp.int32(step)}
            run.save(step, state(1.0 * step), opt, data, losses={"loss": 1.0}, average=state(step + 0.5))
    found = {
        fingerprints.weights(tiny_config.model, str(tmp_path / "run"), step, ema)["checkpoint"]
        for step in (1, 2)
        for ema in (True, False)
    }
    assert len(found) == 4
    average = fingerprints.weights(tiny_config.model, str(tmp_path / "run"), 2)
    assert average == fingerprints.weights(tiny_config.model, str(tmp_path / "run"), 2, True)


def test_missing_parts(tiny_config):
    with pytest.raises(UserError, match="model.llm: no such folder"):
        fingerprints.weights(dataclasses.replace(tiny_config.model, llm="nowhere"))
