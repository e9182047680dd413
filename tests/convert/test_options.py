"""Arguments that belong to other components: refused, and never ignored."""

import pytest

from convert import convert_checkpoint, export_checkpoint
from convert.imports import KNOWN
from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.errors import UserError
from tests.convert.commands import convert

OUTPUT = f"{__file__}/x"  # nothing could be written there

CONVERSION = {  # argument -> a value, and the components that take it
    "revision": ("main", {"llm", "llama", "encoder", "imagebind", "decoder", "stable_diffusion", "text_to_video",
                          "audioldm", "lora", "delta"}),
    "config": (ExperimentConfig(), {"delta", "nextgpt"}),
    "base": ("/nowhere", {"lora"}),
    "delta": ("/nowhere", {"llm", "llama"}),
    "growth": ("mean", {"llm", "llama"}),
    "vocab_size": (5, {"llm", "llama"}),
    "allow_partial": (True, {"delta", "nextgpt"}),
}  # fmt: skip
EXPORT = {
    "config": (ExperimentConfig(), {"delta", "nextgpt"}),
    "workdir": ("/nowhere", {"lora", "delta"}),
    "step": ("best", {"lora", "delta"}),
    "lora": ("/nowhere", {"llm", "llama"}),
}


def line(call, *args, **options) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("component", KNOWN)
def test_every_argument_of_every_component(component):
    for name, (value, takers) in CONVERSION.items():
        message = line(convert_checkpoint, component, "/nowhere", OUTPUT, **{name: value})
        assert (f"--{name} applies to " in message) == (component not in takers), (name, message)
        flag = f"--{name}" if value is True else f"--{name}={'keypad' if name == 'config' else value}"
        command = line(convert, component, "--source=/nowhere", f"--output={OUTPUT}", flag)
        assert (f"--{name} applies to " in command) == (component not in takers), (name, command)
        if name not in EXPORT:  # an export has no such argument
            command = line(convert, "export", component, "--source=/nowhere", f"--output={OUTPUT}", flag)
            assert f"--{name} applies to " in command and f"not to export {component}" in command
    for name, (value, takers) in EXPORT.items():
        message = line(export_checkpoint, component, OUTPUT, source="/nowhere", **{name: value})
        if component != "lora" or name == "lora":
            refused = component not in takers
            assert (f"--{name} applies to " in message) == refused, (name, message)
        if name not in CONVERSION:
            command = line(convert, component, "--source=/nowhere", f"--output={OUTPUT}", f"--{name}={value}")
            assert f"--{name} applies to export " in command and f"not to {component}" in command


def test_arguments_that_need_others():
    assert line(convert_checkpoint, "llm", "/nowhere", "x", growth="mean") == (
        "--growth goes with --delta, whose rows it is for"
    )
    config = ExperimentConfig()
    assert "--config with --workdir only" in line(export_checkpoint, "lora", OUTPUT, source="/nowhere", config=config)
    assert "--ema goes with --workdir" in line(convert, "export", "lora", "--source=a", f"--output={OUTPUT}", "--noema")
    assert line(export_checkpoint, "delta", OUTPUT, source="/x", step=3).startswith("--step goes with --workdir")
    assert "--workdir, not both" in line(convert, "export", "lora", "--source=a", "--workdir=b", f"--output={OUTPUT}")
