"""Cost reports from Python."""

import importlib.util
import json

import jax
import pytest

from nextgpt_jax.aot.compile import compile_report, suggestions
from nextgpt_jax.aot.programs import build_program, default_modalities
from nextgpt_jax.chips import chip
from nextgpt_jax.config_files import load_config
from nextgpt_jax.errors import UserError
from nextgpt_jax.mesh import make_mesh

needs_plugin = pytest.mark.skipif(
    not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)),
    reason="the CUDA plugin is not installed: pip install '.[cuda]'",
)


@needs_plugin
def test_a_report_leaves_jax_as_it_is():
    """The compilation cache stays on, and the default device is the same."""
    before = jax.config.jax_enable_compilation_cache, jax.devices()
    config = load_config("keypad", {"data.batch_size": 2})
    report = compile_report(config, topology="h100:1", programs=["decode"])
    assert (jax.config.jax_enable_compilation_cache, jax.devices()) == before
    assert report.fits and report["decode"].batch_size == 2 and report["decode"].bound_by == "HBM"
    assert json.loads(json.dumps(report.to_dict()))["programs"][0]["program"] == "decode"


def build(name, **overrides):
    config = load_config("keypad:stage3", overrides)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        return config, build_program(config, mesh, name)


def test_suggestions_follow_the_config():
    config, program = build("step", **{"data.batch_size": 8})
    small = suggestions(program, chip("TPU v5 lite"), config)
    assert [idea.split("(")[1] for idea in small] == [
        "--config.train.remat=full)", "--config.optim.grad_accum_steps=8)"
    ]  # fmt: skip
    config.train.remat, config.data.batch_size = "full", 1
    assert suggestions(program, chip("TPU v5 lite"), config) == ("take a larger topology, or chips with more memory",)


def test_inference_programs_count_the_whole_system():
    decode, image = (build(name)[1] for name in ("decode", "image"))
    whole = [program.argument_bytes()["weights"] + program.resident_bytes for program in (decode, image)]
    assert whole[0] == whole[1] > decode.resident_bytes > 0


def test_default_modalities():
    assert [default_modalities(stage) for stage in ("stage1", "stage2", "stage3")] == [
        (("image",), ()), ((), ("image",)), (("image",), ("image",))
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name, message", [("steps", "--programs: 'steps' is not one of step, prefill, decode, image, video, audio")]
)
def test_unknown_programs(name, message):
    with pytest.raises(UserError, match=message):
        build(name)
