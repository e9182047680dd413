"""Topologies, and costs on GPUs. They need the compilers: pip install '.[tpu]' and '.[cuda]'."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from nextgpt_jax import chips, compiler
from nextgpt_jax.aot.topologies import GPU_COMPILER_OPTIONS, GPU_TARGETS
from tests import ROOT
from tests.cli.test_plan import needs_compiler, plan, refused

needs_plugin = pytest.mark.skipif(
    not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)),
    reason="the CUDA plugin is not installed: pip install '.[cuda]'",
)
PROGRAMS = ("step", "prefill", "decode", "image", "video", "audio")


def test_targets_are_chips_with_their_capability_and_memory():
    for target in GPU_TARGETS.values():
        chip = chips.chip(target.kind)
        assert chip.capability == target.capability
        assert chip.memory == chips.GPU_MEMORY_FRACTION * target.memory
        assert 0.9 < chip.hbm_bandwidth / target.bandwidth < 1.1


@pytest.mark.parametrize(
    "kind, name, memory",
    [
        ("TPU v5 lite", "TPU v5e", 15.75),
        ("TPU v6 lite", "TPU v6e", 31.25),
        ("TPU v5", "TPU v5p", 95.74),
        ("TPU7x", "TPU7x", 94.75),
        ("TPU v4", "TPU v4", 30.75),
        ("TPU v3", "TPU v3", 15.48),
        ("TPU v2", "TPU v2", 7.48),
    ],
)
def test_tpus_have_the_memory_that_their_compiler_enforces(kind, name, memory):
    chip = chips.chip(kind)
    assert (chip.name, chip.memory) == (name, memory * chips.GIB)


@needs_compiler
def test_tpu_topologies():
    """TPU v7, megacore of v4, parts of a host, and chips of two devices."""
    expected = {"v5e:1x1": 1, "v5e:1x2": 2, "v5e:2x4": 8, "v6e:1x1": 1, "v5p:2x2x1": 4, "v4:2x2x1": 4, "v4:1x1x1": 1,
                "v3:2x2": 8, "v2:2x2": 8, "tpu7x:2x2x1": 8, "tpu7x:1x1x1": 2}  # fmt: skip
    code = (
        "from nextgpt_jax.aot import topologies; topologies.prepare_compilers()\n"
        f"print({{name: len(topologies.topology_devices(name)) for name in {list(expected)}}})"
    )
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(expected)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("topology, devices", [("v4:2x2x1", 4), ("tpu7x:2x2x1", 8)])
def test_the_keypad_on_other_tpus(topology, devices):
    done = plan(f"--topology={topology}", "--config.data.batch_size=8", config="keypad")
    assert done.returncode == 0, done.stderr
    assert f"on {devices} x TPU" in done.stdout and "fits" in done.stdout


@pytest.mark.parametrize("platform", compiler.OPTIONS)
def test_this_xla_knows_our_options(platform):
    for name, value in (compiler.OPTIONS[platform] | GPU_COMPILER_OPTIONS).items():
        jax.jit(lambda x: x + 1, compiler_options={name: value})(1.0)
    with pytest.raises(Exception, match="No such compile option"):
        jax.jit(lambda x: x + 1, compiler_options={"xla_no_such_option": 1})(1.0)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--topology=h100:0"], "--topology=h100:0: give a GPU, hosts and GPUs per host, such as h100:8"),
        (["--topology=h100:2x2x2"], "--topology=h100:2x2x2: give a GPU, hosts and GPUs per host"),
        (["--topology=h300:8"], "or GPUs (a100, h100, h200, b200), such as h100:8"),
        (["--topology=h100:8", "--num_slices=2"], "give the hosts of GPUs in the topology, such as h100:2x8"),
    ],
)
def test_unknown_topologies(argv, message):
    assert message in refused(*argv)


@needs_plugin
@pytest.mark.parametrize(
    "topology, domains",
    [
        pytest.param("h100:2", 1, marks=pytest.mark.slow),
        ("a100:2x1", 2),
        pytest.param("b200:1x2", 1, marks=pytest.mark.slow),
    ],
)
def test_the_keypad_s_third_stage(topology, domains, tmp_path):
    report = tmp_path / "plan.json"
    flags = ["--config.data.batch_size=8", "--config.data.max_length=256", "--config.mesh.fsdp=2"]
    done = plan(f"--topology={topology}", *flags, f"--report={report}", config="keypad")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(report.read_text())
    assert found["num_devices"] == 2 and found["fits"]
    assert 1.0 <= found["hardware_flops"] / found["model_flops"] < 1.2
    assert {c["crosses_slices"] for c in found["collectives"]} == {domains > 1}
    assert ("between hosts" in done.stdout) == (domains > 1)


@needs_plugin
def test_decoding_reads_the_weights_once(tmp_path):
    """Nothing but them and the cache is read."""
    report = tmp_path / "plan.json"
    done = plan("--topology=h100:1", "--programs=decode", "--config.data.batch_size=1", f"--report={report}")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(report.read_text())
    assert (
        found["memory"]["weights"] < found["hbm_bytes"] < 1.03 * (found["memory"]["weights"] + found["memory"]["cache"])
    )
    assert "HBM-bound" in done.stdout


@needs_plugin
@pytest.mark.slow
@pytest.mark.parametrize("topology, fsdp", [("h100:1", 1), ("h100:8", 1), ("h100:8", 8)])
@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_the_paper_s_stages(stage, topology, fsdp):
    """With one medium of every modality in each example."""
    flags = [f"--config.mesh.fsdp={fsdp}", f"--config.data.batch_size={4 * int(topology[-1])}"]
    media = {
        "stage1": ["--input_modalities=image,video,audio,depth,thermal,imu"],
        "stage2": ["--output_modalities=image,video,audio"],
    }
    done = plan(f"--topology={topology}", *flags, *media.get(stage, []), f"--config.train.stage={stage}")
    assert done.returncode == 0, done.stderr
    assert "fits" in done.stdout


@needs_plugin
@pytest.mark.slow
@pytest.mark.parametrize("topology, tensor", [("h100:1", 1), ("h100:8", 1), ("h100:8", 8)])
def test_the_paper_s_answers(topology, tensor):
    flags = [f"--config.mesh.tensor={tensor}", f"--config.data.batch_size={int(topology[-1])}"]
    done = plan(f"--topology={topology}", *flags, f"--programs={','.join(PROGRAMS[1:])}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fits") == len(PROGRAMS) - 1


@pytest.mark.slow
@needs_plugin
def test_suggestions_for_a_program_that_does_not_fit():
    done = plan("--topology=h100:1", "--config.data.batch_size=64", "--config.train.remat=dots")
    assert done.returncode == 1, done.stderr
    assert "DOES NOT FIT" in done.stdout and "--config.train.remat=full" in done.stdout


@pytest.mark.slow
@needs_plugin
@pytest.mark.parametrize("name, size", [("llama-3.1-8b", 7.505e9), ("qwen2.5-7b", 7.071e9)])
def test_other_language_models_decode_on_two_devices(name, size, tmp_path):
    report = tmp_path / "plan.json"
    flags = [f"--config.model.llm=weights/{name}", "--config.mesh.tensor=2", "--config.data.batch_size=1"]
    done = plan("--topology=h100:2", "--programs=decode", *flags, f"--report={report}")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(report.read_text())
    assert found["fits"]
    assert 1.0 < found["memory"]["weights"] / size < 1.01  # all but the embedding, half of it in bfloat16
