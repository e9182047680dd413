"""python -m convert: every component there and back, adapters, deltas, whole systems."""

import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers
from flax import nnx

from convert import folders
from nextgpt_jax.config import ModelConfig
from nextgpt_jax.pipeline import saved
from nextgpt_jax.weights import matching, nextgpt_delta, orbax_params
from nextgpt_jax.weights.components import COMPONENTS
from nextgpt_jax.weights.load import load_system
from nextgpt_jax.weights.safetensors_writer import save_safetensors
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, open_checkpoint
from tests import FIXTURES, KEYPAD, tiny
from tests.convert.commands import convert, refused, same


@pytest.mark.parametrize("component", tiny.COMPONENTS)
def test_there_and_back_is_bit_for_bit(component, tiny_root, tmp_path, capsys):
    source = tiny_root / "hub" / tiny.COMPONENTS[component]
    convert(component, f"--source={source}", f"--output={tmp_path / 'jax'}", f"--report={tmp_path / 'report.json'}")
    assert f"parameters of" in capsys.readouterr().out  # noqa: F541
    parts = COMPONENTS[component](source)
    assert COMPONENTS[component](tmp_path / "jax")[0].state.keys() == parts[0].state.keys()
    for part in parts:
        assert not list((tmp_path / "jax" / part.folder).glob("*.safetensors"))
        restored = orbax_params.restore(tmp_path / "jax" / part.folder, part.state)
        for a, b in zip(
            jax.tree.leaves(restored),
            jax.tree.leaves(matching.load(open_checkpoint(source / part.folder), part.state, part.table)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
    report = json.loads((tmp_path / "report.json").read_text())
    assert sorted(report["parts"]) == sorted(part.folder or "." for part in parts)
    export = "export", component, f"--source={tmp_path / 'jax'}", f"--output={tmp_path / 'torch'}"
    if component == "audioldm":
        convert(*export, "--dry_run", f"--report={tmp_path / 'export.json'}")
        assert not (tmp_path / "torch").exists()
    convert(*export, f"--report={tmp_path / 'exported.json'}")
    if component == "audioldm":
        assert (tmp_path / "export.json").read_bytes() == (tmp_path / "exported.json").read_bytes()
    found = json.loads((tmp_path / "exported.json").read_text())[component]
    written = [f.relative_to(tmp_path / "torch").as_posix() for f in (tmp_path / "torch").rglob("*") if f.is_file()]
    assert sorted(written) == sorted([*found["weights"], *found["other_files"]])
    for part in parts:
        tensors = open_checkpoint(tmp_path / "torch" / part.folder).tensors
        listed = {key: {"shape": list(t.shape), "dtype": str(t.dtype)} for key, t in tensors.items()}
        assert found["weights"][str(pathlib.PurePosixPath(part.folder, part.file))] == listed
        same(open_checkpoint(source / part.folder), open_checkpoint(tmp_path / "torch" / part.folder))
        assert (tmp_path / "torch" / part.folder / part.file).exists()
    for file in (f for f in source.rglob("*") if f.is_file() and f.suffix != ".safetensors"):
        assert (tmp_path / "torch" / file.relative_to(source)).read_bytes() == file.read_bytes()


def test_the_manifest_says_what_it_was_made_from(tiny_root, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny_root / "hub" / "llm", source)
    (source / "README.md").write_text("---\nlicense: mit\ntags: []\n---\n# A model\n")
    convert("llama", f"--source={source}", f"--output={tmp_path / 'jax'}")
    manifest = folders.read_manifest(tmp_path / "jax")
    assert (manifest["component"], manifest["license"]) == ("llama", "mit")
    assert manifest["source"] == str(source)
    assert manifest["files"]["model.safetensors"]["bytes"] == (source / "model.safetensors").stat().st_size
    assert len(manifest["files"]["model.safetensors"]["sha256"]) == 64
    assert manifest["dtypes"] == {"float32": 12}
    assert set(manifest["companion_files"]) == {"README.md", "config.json", "tokenizer.json", "tokenizer_config.json"}


def test_dtype_and_dry_run(tiny_root, tmp_path, capsys):
    source = tiny_root / "hub" / "llm"
    convert("llama", f"--source={source}", "--dry_run", f"--output={tmp_path / 'a'}")
    assert "fits" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    convert("llama", f"--source={source}", f"--output={tmp_path / 'a'}", "--dtype=bfloat16")
    assert {str(entry.dtype) for entry in orbax_params.saved(tmp_path / "a").values()} == {"bfloat16"}
    convert("export", "llama", f"--source={tmp_path / 'a'}", f"--output={tmp_path / 'b'}", "--dtype=float16")
    original, back = open_checkpoint(source), open_checkpoint(tmp_path / "b")
    for key in original:
        expected = original[key].astype(ml_dtypes.bfloat16).astype(np.float16)
        np.testing.assert_array_equal(back[key], expected)


def test_exported_llama_gives_the_same_in_transformers(tmp_path):
    convert("llama", f"--source={FIXTURES / 'vicuna'}", f"--output={tmp_path / 'jax'}")
    convert("export", "llama", f"--source={tmp_path / 'jax'}", f"--output={tmp_path / 'torch'}")
    ids = torch.arange(20)[None]
    logits = []
    for folder in (FIXTURES / "vicuna", tmp_path / "torch"):
        model, info = transformers.LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        logits.append(model.eval()(ids).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize("layout", ["bin", "shards of bin", "fp16"])
def test_layouts_of_the_hub(layout, tiny_root, tmp_path):
    original, source = tiny_root / "hub" / "llm", tmp_path / "source"
    shutil.copytree(original, source)
    (source / "model.safetensors").unlink()
    tensors = {key: torch.from_numpy(value) for key, value in open_checkpoint(original).items()}
    if layout == "bin":
        torch.save(tensors, source / "pytorch_model.bin")
    elif layout == "fp16":
        tensors = {key: value.half() for key, value in tensors.items()}
        arrays = {key: value.numpy() for key, value in tensors.items()}
        safetensors.numpy.save_file(arrays, source / "model.fp16.safetensors")
    else:
        names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
        parts = [dict(list(tensors.items())[i::2]) for i in range(2)]
        for name, part in zip(names, parts, strict=True):
            torch.save(part, source / name)
        index = {"weight_map": {key: name for name, part in zip(names, parts, strict=True) for key in part}}
        (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    convert("llama", f"--source={source}", f"--output={tmp_path / 'jax'}")
    convert("export", "llama", f"--source={tmp_path / 'jax'}", f"--output={tmp_path / 'torch'}")
    same(open_checkpoint(source), open_checkpoint(tmp_path / "torch"))


def test_imagebind_as_it_was_released(tmp_path, monkeypatch):
    """One file, without a config."""
    monkeypatch.setattr("nextgpt_jax.models.encoders.imagebind.ImageBindConfig.huge", classmethod(_tiny_imagebind))
    source = FIXTURES / "imagebind" / "imagebind_huge.pth"
    convert("imagebind", f"--source={source}", f"--output={tmp_path / 'jax'}")
    monkeypatch.undo()
    convert("export", "imagebind", f"--source={tmp_path / 'jax'}", f"--output={tmp_path / 'torch'}")
    original, back = open_checkpoint(source), open_checkpoint(tmp_path / "torch")
    assert "modality_postprocessors.audio.1.log_logit_scale" in folders.read_manifest(tmp_path / "jax")["ignored"]
    same(back, original)


def _tiny_imagebind(cls):
    return cls.from_dict(json.loads((FIXTURES / "tiny" / "imagebind.json").read_text()))


# Vicuna v0: a delta


@pytest.fixture
def base_and_delta(tmp_path):
    """A base, a delta with two more rows, and what they make."""
    rng = np.random.default_rng(0)
    base, vicuna = tmp_path / "base", tmp_path / "vicuna-delta"
    for folder, rows in ((base, 0), (vicuna, 2)):
        shutil.copytree(FIXTURES / "vicuna", folder, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + rows}))
    original = {key: value.astype(np.float16) for key, value in open_checkpoint(FIXTURES / "vicuna").items()}
    grown = {k: np.pad(v, ((0, 2), (0, 0))) if k in ("lm_head.weight", "model.embed_tokens.weight") else v
             for k, v in original.items()}  # fmt: skip
    change = {key: rng.normal(size=value.shape).astype(np.float16) for key, value in grown.items()}
    save_safetensors(Checkpoint.of("base", original), base / "model.safetensors")
    save_safetensors(Checkpoint.of("delta", change), vicuna / "model.safetensors")
    return base, vicuna, {key: grown[key] + change[key] for key in grown}


def test_vicuna_from_its_delta(base_and_delta, tmp_path):
    base, delta, expected = base_and_delta
    convert("llama", f"--source={base}", f"--delta={delta}", f"--output={tmp_path / 'jax'}")
    convert("export", "llama", f"--source={tmp_path / 'jax'}", f"--output={tmp_path / 'torch'}")
    same(open_checkpoint(tmp_path / "torch"), Checkpoint.of("expected", expected))

    convert("llama", f"--source={base}", f"--delta={delta}", f"--output={tmp_path / 'mean'}", "--growth=mean")
    original = open_checkpoint(base)["model.embed_tokens.weight"]
    mean = original.astype(np.float32).mean(0).astype(np.float16)
    rows = orbax_params.restore(tmp_path / "mean", COMPONENTS["llama"](tmp_path / "mean")[0].state)["embed_tokens"][
        "embedding"
    ]
    added = open_checkpoint(delta)["model.embed_tokens.weight"][-2:]
    np.testing.assert_array_equal(rows[-2:], (mean + added).astype(np.float32))

    rows = len(original)
    convert("llama", f"--source={base}", f"--delta={delta}", f"--output={tmp_path / 'cut'}", f"--vocab_size={rows}")
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["vocab_size"] == rows
    assert orbax_params.saved(tmp_path / "cut")["lm_head.kernel"].shape == (original.shape[1], rows)


def test_deltas_that_do_not_fit(base_and_delta, tmp_path):
    base, delta, _ = base_and_delta
    change = dict(open_checkpoint(delta))
    change["model.norm.weight"] = change["model.norm.weight"][:-1]
    del change["model.layers.0.mlp.up_proj.weight"]
    save_safetensors(Checkpoint.of("delta", change), delta / "model.safetensors")
    message = refused("llama", f"--source={base}", f"--delta={delta}", f"--output={tmp_path / 'jax'}")
    assert "model.layers.0.mlp.up_proj.weight is only in the base" in message
    assert "model.norm.weight has shape [48] in the base and [47] in the delta" in message
    assert "rows, not 999" in refused("llama", f"--source={base}", f"--output={tmp_path / 'jax'}", "--vocab_size=999")


# LoRA


ADAPTERS = {
    "plain": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "rslora": {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "other": {
        "target_modules": ["q_proj", "model.embed_tokens"],
        "layers_to_transform": [1],
        "rank_pattern": {"embed_tokens": 2},
        "modules_to_save": ["lm_head"],
        "use_dora": True,
    },
}


@pytest.fixture(params=ADAPTERS)
def adapter(request, tmp_path):
    base = transformers.LlamaForCausalLM.from_pretrained(FIXTURES / "vicuna")
    config = peft.LoraConfig(r=3, lora_alpha=6, **ADAPTERS[request.param])
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(base, config).eval()
    for name, value in wrapped.named_parameters():
        if "lora_B" in name or "lora_embedding" in name or "modules_to_save" in name:
            torch.nn.init.normal_(value, std=0.2)
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    return wrapped, tmp_path / "adapter"


def test_adapters_there_and_back(adapter, tmp_path):
    wrapped, source = adapter
    convert("lora", f"--source={source}", f"--base={FIXTURES / 'vicuna'}", f"--output={tmp_path / 'jax'}")
    convert("export", "lora", f"--source={tmp_path / 'jax'}", f"--output={tmp_path / 'torch'}")
    same(open_checkpoint(source), open_checkpoint(tmp_path / "torch"))
    base = transformers.LlamaForCausalLM.from_pretrained(FIXTURES / "vicuna")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "torch").eval()
    ids = torch.arange(12)[None]
    assert torch.equal(again(ids).logits, wrapped(ids).logits)


@pytest.mark.parametrize("converted", [False, True])
def test_merged_export(converted, adapter, tmp_path):
    wrapped, source = adapter
    convert("llama", f"--source={FIXTURES / 'vicuna'}", f"--output={tmp_path / 'jax'}")
    if converted:
        convert("lora", f"--source={source}", f"--base={FIXTURES / 'vicuna'}", f"--output={tmp_path / 'lora'}")
        source = tmp_path / "lora"
    convert("export", "llama", f"--source={tmp_path / 'jax'}", f"--lora={source}", f"--output={tmp_path / 'torch'}")
    merged = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "torch").eval()
    ids = torch.arange(12)[None]
    torch.testing.assert_close(merged(ids).logits, wrapped(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adapter", ["plain"], indirect=True)
def test_adapters_that_compute_something_else(adapter, tmp_path):
    _, source = adapter
    config = json.loads((source / "adapter_config.json").read_text())
    command = "lora", f"--source={source}", f"--output={tmp_path / 'jax'}"
    assert "--base is missing" in refused(*command)
    command += (f"--base={FIXTURES / 'vicuna'}",)
    for change, message in (
        ({"use_dora": True}, "missing base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector [48]"),
        ({"use_qalora": True}, "use_qalora=True is not supported"),
        ({"unheard_of": 1}, "unheard_of=1 is no known field"),
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported"),
        ({"target_modules": "all-linear"}, "missing base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"),
        ({"target_modules": ["q_proj"]}, "unexpected base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"),
        ({"target_modules": ["q_proj", "w_pack"]}, "w_pack"),
        ({"r": 4}, "has shape [3, 48], the model needs [4, 48]"),
    ):
        (source / "adapter_config.json").write_text(json.dumps({**config, **change}))
        assert message in refused(*command)


# NExT-GPT's own weights


@pytest.fixture(scope="module")
def system(tiny_root, tmp_path_factory):
    """A tiny system with a delta, and the flags that name its parts."""
    root = tmp_path_factory.mktemp("system")
    shutil.copytree(tiny_root / "hub", root / "hub")
    config = model_config(root / "hub", delta=False)
    model = load_system(config).model

    tensors = nextgpt_delta.export_delta(nnx.state(model), nextgpt_delta.table(model.config))
    save_safetensors(tensors, root / "hub" / "delta" / "model.safetensors")
    return root / "hub"


def model_config(folder: pathlib.Path, delta: bool = True) -> ModelConfig:
    names = {"llm": "llm", "encoder": "imagebind", "image_decoder": "stable-diffusion",
             "video_decoder": "text-to-video", "audio_decoder": "audioldm"}  # fmt: skip
    parts = {name: str(folder / path) for name, path in names.items()}
    sizes = dict(projector_width=16, projector_layers=1, projector_heads=2, projector_feedforward=16, lora_rank=2)
    return ModelConfig(**parts, **sizes, delta=str(folder / "delta") if delta else "", template="per_segment")


def model_flags(folder: pathlib.Path) -> list[str]:
    config = model_config(folder)
    fields = ("llm", "encoder", "image_decoder", "video_decoder", "audio_decoder", "delta", "projector_width",
              "projector_layers", "projector_heads", "projector_feedforward", "lora_rank")  # fmt: skip
    return [f"--config={KEYPAD}", *(f"--config.model.{name}={getattr(config, name)}" for name in fields)]


def test_a_whole_system(system, tmp_path, capsys):
    convert("nextgpt", *model_flags(system), f"--output={tmp_path / 'jax'}")
    assert f"--config.model.llm={tmp_path / 'jax' / 'llm'}" in capsys.readouterr().out
    manifest = folders.read_manifest(tmp_path / "jax")
    assert sorted(manifest["parts"]) == [
        "audio_decoder", "delta", "encoder", "image_decoder", "llm", "video_decoder"
    ]  # fmt: skip
    assert manifest["parts"]["llm"]["files"]["model.safetensors"]["sha256"]
    configs = (saved.read(tmp_path / "jax").model, model_config(system))
    ours, theirs = (load_system(config, decoder_parts=()).model for config in configs)
    for one, other in zip(jax.tree.leaves(nnx.state(ours)), jax.tree.leaves(nnx.state(theirs)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)

    shutil.move(tmp_path / "jax", tmp_path / "moved")  # export needs nothing but this folder
    source, report_file = f"--source={tmp_path / 'moved'}", tmp_path / "report.json"
    convert("export", "nextgpt", source, f"--output={tmp_path / 'torch'}", f"--report={report_file}")
    assert saved.read(tmp_path / "torch").model.llm == str(tmp_path / "torch" / "llm")
    for file in system.rglob("*.safetensors"):
        same(open_checkpoint(file), open_checkpoint(tmp_path / "torch" / file.relative_to(system).parent))

    report = json.loads(report_file.read_text())
    assert report.keys() == manifest["parts"].keys()
    written = {file.name for file in (tmp_path / "torch" / "llm").iterdir()}
    assert {*report["llm"]["weights"], *report["llm"]["other_files"]} == written
    wide = [*model_flags(system), "--config.model.projector_width=32"]
    message = refused("export", "nextgpt", *wide, source, f"--output={tmp_path / 'b'}")
    assert message.endswith(
        "has config.model.projector_width=16, and --config other values: leave --config out, or set these"
    )
    fewer = [*model_flags(system), "--config.model.video_decoder="]
    message = refused("export", "nextgpt", *fewer, source, f"--output={tmp_path / 'b'}")
    assert "has a part video_decoder, and --config has none" in message


def test_a_failing_conversion_promises_nothing(tiny_root, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved, "write", full)
    absent = [f"--config.model.{part}=" for part in ("delta", "video_decoder", "audio_decoder")]
    flags = [*model_flags(tiny_root / "hub"), *absent]
    assert "the disk is full" in refused("nextgpt", *flags, f"--output={tmp_path / 'jax'}")
    assert not capsys.readouterr().out


@pytest.fixture(scope="module")
def converted_delta(system, tmp_path_factory):
    folder = tmp_path_factory.mktemp("delta") / "jax"
    convert("delta", *model_flags(system), f"--source={system / 'delta'}", f"--output={folder}")
    return folder


def test_a_delta_needs_no_config_again(converted_delta, system, tmp_path, capsys):
    source = f"--source={converted_delta}"
    message = refused("export", "llm", source, f"--output={tmp_path / 'b'}")
    assert message.endswith("was converted as delta: export delta")
    capsys.readouterr()
    convert("export", "delta", source, "--dry_run", f"--report={tmp_path / 'report.json'}")
    assert "delta can be exported: 6 files" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())["delta"]
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
    convert("export", "delta", source, f"--output={tmp_path / 'torch'}")
    original, back = open_checkpoint(system / "delta"), open_checkpoint(tmp_path / "torch")
    same(original, back)
    assert report["weights"]["pytorch_model.pt"]["llama_proj.bias"] == {"shape": [32], "dtype": "float32"}
    others = {file.name for file in (tmp_path / "torch").iterdir()} - {"model.safetensors", "pytorch_model.pt"}
    assert others == set(report["other_files"]) == {
        "added_tokens.json", "nextgpt_config.json", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    # What NExT-GPT's own code reads and writes.
    read = torch.load(tmp_path / "torch" / "pytorch_model.pt", weights_only=True)
    assert read.keys() == original.keys()
    for key, value in read.items():
        np.testing.assert_array_equal(value.numpy(), original[key])
    added = json.loads((tmp_path / "torch" / "added_tokens.json").read_text())
    rows = len(original["llama_model.base_model.model.lm_head.weight"])
    assert list(added) == list(json.loads((FIXTURES / "nextgpt" / "added_tokens.json").read_text()))
    assert list(added.values()) == list(range(rows - len(added), rows))

    convert("export", "delta", source, *model_flags(system), "--dry_run")
    other = [*model_flags(system), "--config.model.lora_rank=4", "--config.model.output_projector=linear"]
    message = refused("export", "delta", source, *other, f"--output={tmp_path / 'b'}")
    assert "has config.model.output_projector=transformer config.model.projector_width=16" in message
    assert "config.model.lora_rank=2, and --config other values: leave --config out" in message


def test_deltas_converted_by_earlier_versions_need_the_config(converted_delta, system, tmp_path):
    shutil.copytree(converted_delta, tmp_path / "old")
    manifest = folders.read_manifest(tmp_path / "old")
    del manifest["layout"]
    folders.write_json(tmp_path / "old" / folders.MANIFEST, manifest)
    command = "export", "delta", f"--source={tmp_path / 'old'}", f"--output={tmp_path / 'torch'}"
    assert "is of a version that kept no config: give --config" in refused(*command)
    convert(*command, *model_flags(system))
    same(open_checkpoint(system / "delta"), open_checkpoint(tmp_path / "torch"))


def test_a_system_from_one_folder(system, tmp_path):
    named = model_flags(pathlib.Path("/weights"))
    missing = refused("nextgpt", *named, f"--source={tmp_path}", f"--output={tmp_path / 'a'}")
    assert f"model.llm: not found (looked for {tmp_path / 'llm'} and /weights/llm)" in missing
    convert("nextgpt", *named, f"--source={system}", f"--output={tmp_path / 'a'}")
    assert (tmp_path / "a" / "delta" / "params").is_dir()


def test_partial_deltas(system, tmp_path):
    whole = open_checkpoint(system / "delta")
    part = {key: value for key, value in whole.items() if "gen_text_hidden_fcs_video" not in key}
    save_safetensors(Checkpoint.of("part", part), tmp_path / "part.safetensors")
    command = "delta", *model_flags(system), f"--source={tmp_path / 'part.safetensors'}", f"--output={tmp_path / 'jax'}"
    message = refused(*command)
    assert "holds embedding and head rows" not in message or "but not output_proj.video" in message
    assert "but not output_proj.video" in message and "--allow_partial" in message
    convert(*command, "--allow_partial")
    config = model_config(system)
    config.delta = str(tmp_path / "jax")
    assert not any(name.startswith("output_proj.video") for name in orbax_params.saved(tmp_path / "jax"))
    model = load_system(config, decoder_parts=()).model
    assert model.output_proj["video"].query_embs[...].any()
    given = model.output_proj["image"].query_embs[...]
    np.testing.assert_array_equal(given, whole["gen_text_hidden_fcs.0.query_embs"])
    nothing = tmp_path / "nothing.safetensors"
    save_safetensors(Checkpoint.of("nothing", {"x": np.zeros(3, np.float32)}), nothing)
    assert "holds nothing of a NExT-GPT delta" in refused(
        "delta", *model_flags(system), f"--source={nothing}", f"--output={tmp_path / 'b'}", "--allow_partial"
    )
