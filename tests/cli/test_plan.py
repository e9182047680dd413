"""The command line of cost reports, for TPUs. It needs the TPU compiler: pip install '.[tpu]'."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests import ROOT

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install '.[tpu]'"
)


def plan(*argv: str, config: str = "nextgpt_7b") -> subprocess.CompletedProcess:
    command = [sys.executable, "train.py", f"--config=configs/{config}.py:stage3", "--compile_only", *argv]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # libtpu has other ones
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


@needs_compiler
def test_the_paper_s_third_stage_fits_on_sixteen_v5e(tmp_path):
    report = tmp_path / "plan.json"
    mesh = ["--config.mesh.fsdp=16", "--config.mesh.data=1", "--config.data.batch_size=64"]
    done = plan("--topology=v5e:4x4", *mesh, f"--report={report}")
    assert done.returncode == 0, done.stderr
    assert "batch 64 on 16 x TPU v5e" in done.stdout and "fits" in done.stdout and "all-gather" in done.stdout
    (found,) = json.loads(report.read_text())
    weights = 6.7e9 * 2 / 16
    assert weights < found["memory"]["frozen weights"] < 1.6 * weights
    assert sum(found["memory"].values()) < 4 * 2**30
    # Forward and backward without gradients of frozen weights: 4 FLOPs per weight and token.
    tokens = 64 * 512 / 16
    assert 1.0 < found["model_flops"] / (4 * 6.6e9 * tokens) < 1.15
    assert 1.3 < found["hardware_flops"] / found["model_flops"] < 1.5  # every layer is recomputed


@needs_compiler
def test_suggestions_for_a_program_that_does_not_fit():
    done = plan("--topology=v5e:2x2", "--config.data.batch_size=16", "--config.train.remat=none")
    assert done.returncode == 1, done.stderr
    assert "stage3: batch 16 on 4 x TPU v5e DOES NOT FIT: " in done.stdout
    assert "to make it fit: shard the weights over more devices (--config.mesh.fsdp=4" in done.stdout
    assert "--config.train.remat=full" in done.stdout and "--config.optim.grad_accum_steps=4" in done.stdout


@needs_compiler
def test_inference_counts_resident_weights_and_nf4_as_four_bits(tmp_path):
    found = {}
    for scheme in ("", "nf4"):
        report = tmp_path / f"plan{scheme}.json"
        done = plan("--topology=v5e:2x2", "--config.mesh.tensor=4", "--programs=decode", f"--report={report}",
                    "--config.data.batch_size=16", f"--config.model.quantize={scheme}")  # fmt: skip
        assert done.returncode == 0, done.stderr
        (found[scheme],) = json.loads(report.read_text())
    layers, whole = 32 * (4 * 4096**2 + 3 * 4096 * 11008) / 4, found[""]["memory"]["weights"]
    assert 1.0 < whole / (2 * layers) < 1.1
    assert 0.9 < (whole - found["nf4"]["memory"]["weights"]) / ((2 - 0.5 - 4 / 64) * layers) < 1.1
    assert found[""]["memory"]["other weights"] == found["nf4"]["memory"]["other weights"] > 2 * 2**30
    # A token reads the weights and the cache once.
    assert 1 < found[""]["hbm_bytes"] / (whole + found[""]["memory"]["cache"]) < 1.3


@needs_compiler
def test_a_sampler_gathers_its_weights_once(tmp_path):
    gathers = []
    for steps in (2, 7):
        report = tmp_path / f"{steps}.json"
        done = plan("--topology=v5e:2x2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2", "--programs=image",
                    f"--report={report}",
                    f"--config.generation.image.num_inference_steps={steps}", config="keypad")  # fmt: skip
        assert done.returncode == 0, done.stderr
        (found,) = json.loads(report.read_text())
        gathers.append(sum(c["calls"] for c in found["collectives"] if c["opcode"] == "all-gather"))
    assert gathers[0] == gathers[1] > 0


def refused(*argv: str) -> str:
    """The error line of a command that is refused."""
    done = plan(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return error


@pytest.mark.parametrize(
    "argv, message",
    [([], "--topology is missing"), (["--topology=v5e"], "give a TPU and its shape, such as v5e:4x4")],
)
def test_missing_and_malformed_topologies(argv, message):
    assert message in refused(*argv)


@needs_compiler
def test_a_topology_that_does_not_exist():
    assert "--topology=v9:2x2: no such topology" in refused("--topology=v9:2x2")


@needs_compiler
@pytest.mark.parametrize(
    "flags, message",
    [
        ("mesh.fsdp=3", "needs a multiple of 3 devices, found 16"),
        ("mesh.tensor=16 model.llm=examples/keypad/weights/base/llm", "config.mesh.tensor=16 does not divide"),
        ("data.batch_size=8", "of 8 rows is not divisible by mesh.data=16"),
        ("data.batch_size=16 optim.grad_accum_steps=2", "of 8 rows is not divisible by mesh.data=16"),
        ("model.quantize=nf4 mesh.tensor=8", "config.mesh.tensor=8 cuts the blocks of 64 inputs"),
        ("train.remat=half", "train.remat: 'half'"),
    ],
)
def test_mistakes(flags, message):
    assert message in refused("--topology=v5e:4x4", *(f"--config.{flag}" for flag in flags.split()))


@needs_compiler
@pytest.mark.parametrize(
    "program, flag, message",
    [
        ("video", "model.video_decoder=", "--programs=video: this model has no decoder for it"),
        ("image", "generation.image.batch=0", "generation.image.batch is 0"),
        ("decode", "data.max_length=0", "data.max_length should be at least 1"),
    ],
)
def test_programs_that_the_config_does_not_have(program, flag, message):
    assert message in refused("--topology=v5e:4x4", f"--programs={program}", f"--config.{flag}")
