"""Which of several files counts, against transformers, diffusers and peft, which load each folder."""

import itertools
import json
import pathlib
import tempfile

import diffusers
import peft
import pytest
import safetensors.torch
import torch
import transformers
from diffusers.configuration_utils import register_to_config
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.errors import UserError
from nextgpt_jax.weights import weight_files
from nextgpt_jax.weights.torch_checkpoint import open_checkpoint
from nextgpt_jax.weights.weight_files import DELTA, DIFFUSERS, ENCODER, PEFT, TRANSFORMERS, decoder_layout

KEY = "weight"
VARIANTS = ("fp16", "ema", "non_ema")


class OneConfig(transformers.PretrainedConfig):
    model_type = "one"


class OneWeight(transformers.PreTrainedModel):
    """A model of transformers with one parameter."""

    config_class = OneConfig

    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.post_init()

    def _init_weights(self, module):
        pass


class OneWeightOfDiffusers(diffusers.ModelMixin, diffusers.ConfigMixin):
    config_name = "config.json"

    @register_to_config
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


def save(path: pathlib.Path, value: float) -> None:
    """A weights file with one number, or an index of one shard, called after it, with one."""
    name = path.name
    if ".index." in name:
        stem, suffix = name.split(".index.")[0].rsplit(".", 1)
        variant = name.split(".index.")[1].removesuffix("json")
        shard = f"{stem}{'.' * bool(variant)}{variant.rstrip('.')}-00001-of-00001.{suffix}"
        path.write_text(json.dumps({"metadata": {"total_size": 4}, "weight_map": {KEY: shard}}))
        save(path.parent / shard, value)
    elif path.suffix == ".safetensors":
        safetensors.torch.save_file({KEY: torch.tensor([value])}, path, {"format": "pt"})
    else:
        torch.save({KEY: torch.tensor([value])}, path)


def drop_shards(index: pathlib.Path) -> None:
    for shard in set(json.loads(index.read_text())["weight_map"].values()):
        (index.parent / shard).unlink()


def in_variant(name: str, variant: str) -> str:
    stem, suffix = name.rsplit(".", 1)
    return f"{stem}.{variant}.{suffix}"


def loaded(cls, folder: pathlib.Path, **options) -> float | None:
    try:
        return float(cls.from_pretrained(folder, **options).weight.detach())
    except (OSError, ValueError, RuntimeError):
        return None


def read(folder: pathlib.Path, layout) -> float | None:
    try:
        return float(open_checkpoint(folder, layout)[KEY][0])
    except UserError as error:
        assert "\n" not in str(error)
        return None


OTHERS = (
    "adapter_model.safetensors",
    "consolidated.00.pth",
    "optimizer.pt",
    "model_v2.safetensors",
    "flax_model.msgpack",
)


@pytest.mark.parametrize(
    ("layout", "cls", "foreign"),
    [(TRANSFORMERS, OneWeight, DIFFUSERS), (DIFFUSERS, OneWeightOfDiffusers, TRANSFORMERS)],
    ids=["transformers", "diffusers"],
)
def test_the_choice_is_that_of_the_library(layout, cls, foreign, tmp_path):
    """Whatever else is there: if the library loads a folder, the same file is read; if not, at most what it reads on
    request, the variant fp16 or shards of pickles."""
    names = [*layout.names, *(in_variant(name, v) for name in layout.names for v in VARIANTS), *foreign.names, *OTHERS]
    values = dict(zip(names, itertools.count(1)))
    config = tmp_path / "config.json"
    cls(*([OneConfig()] if cls is OneWeight else [])).save_pretrained(tmp_path)
    chosen = set()

    def check(own, other, without_shards):
        with tempfile.TemporaryDirectory(dir=tmp_path) as made:
            folder = pathlib.Path(made)
            (folder / config.name).write_text(config.read_text())
            for name in own | (other if len(other) % 2 else set()):
                save(folder / name, values[name])
            for name in without_shards:
                if ".index." in name and (folder / name).exists():
                    drop_shards(folder / name)
            wanted, found = loaded(cls, folder), read(folder, layout)
            chosen.add(wanted)
            if wanted is None and found is not None:
                wanted = next(
                    value
                    for options in ({"use_safetensors": False}, {"variant": "fp16"})
                    for options in (options, {**options, "use_safetensors": False})
                    if (value := loaded(cls, folder, **options)) is not None
                )
            assert found == wanted, sorted(file.name for file in folder.iterdir())

    for name in layout.names:
        check({name}, set(), set())
    assert len(chosen) > 2
    some = st.sets(st.sampled_from(names))
    settings(max_examples=30, deadline=None)(given(st.sets(st.sampled_from(layout.names)), some, some)(check))()


@pytest.mark.parametrize(
    ("layout", "there", "chosen"),
    [
        (TRANSFORMERS, ["model.safetensors", "model.safetensors.index.json"], "model.safetensors"),
        (TRANSFORMERS, ["model.safetensors.index.json", "pytorch_model.bin"], "model.safetensors.index.json"),
        (TRANSFORMERS, ["pytorch_model.bin.index.json", "pytorch_model.bin"], "pytorch_model.bin"),
        (TRANSFORMERS, ["model.fp16.safetensors", "pytorch_model.bin"], "pytorch_model.bin"),
        (TRANSFORMERS, ["model.fp16.safetensors", "model.ema.safetensors"], "model.fp16.safetensors"),
        (TRANSFORMERS, ["model.safetensors.index.fp16.json"], "model.safetensors.index.fp16.json"),
        (TRANSFORMERS, ["pytorch_model.bin", "adapter_model.safetensors"], "pytorch_model.bin"),
        (TRANSFORMERS, ["pytorch_model.pt", "diffusion_pytorch_model.safetensors"], ""),
        (
            DIFFUSERS,
            ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"],
            "diffusion_pytorch_model.safetensors.index.json",
        ),
        (DIFFUSERS, ["model.safetensors", "diffusion_pytorch_model.bin"], "diffusion_pytorch_model.bin"),
        (DIFFUSERS, ["diffusion_pytorch_model.non_ema.safetensors"], ""),
        (PEFT, ["model.safetensors", "adapter_model.bin"], "adapter_model.bin"),
        (PEFT, ["model.safetensors"], ""),
        (ENCODER, ["imagebind_huge.pth", "model.safetensors"], "model.safetensors"),
        (ENCODER, ["imagebind_huge.pth"], "imagebind_huge.pth"),
        (DELTA, ["pytorch_model.pt", "model.safetensors"], "model.safetensors"),
        (DELTA, ["pytorch_model.pt", "adapter_model.bin"], "pytorch_model.pt"),
    ],
)
def test_each_rule(layout, there, chosen):
    for names in itertools.permutations(there):
        assert layout.choose(names) == chosen


def test_parts_of_pipelines():
    assert decoder_layout("unet") is decoder_layout("vae") is DIFFUSERS
    assert decoder_layout("text_encoder") is decoder_layout("vocoder") is TRANSFORMERS


def test_adapters_are_read_as_peft_reads_them(tmp_path):
    for size in range(1, 3):
        for names in itertools.combinations(PEFT.names, size):
            folder = tmp_path / "-".join(names)
            folder.mkdir()
            for value, name in enumerate((*names, "model.safetensors", "pytorch_model.bin")):
                save(folder / name, value)
            assert read(folder, PEFT) == float(peft.load_peft_weights(str(folder), device="cpu")[KEY])


def test_an_old_index_beside_a_whole_file(tmp_path):
    """transformers reads the file; diffusers the index, whose shards have to be there."""
    for layout, value in ((TRANSFORMERS, 1.0), (DIFFUSERS, 2.0)):
        folder = tmp_path / layout.written
        folder.mkdir()
        save(folder / layout.written, 1)
        save(index := folder / f"{layout.written}.index.json", 2)
        assert read(folder, layout) == value
        drop_shards(index)
    assert read(tmp_path / TRANSFORMERS.written, TRANSFORMERS) == 1
    with pytest.raises(
        UserError, match="a shard that is not there: .* remove the index to read diffusion_pytorch_model"
    ):
        open_checkpoint(folder, DIFFUSERS)


def test_a_model_and_an_adapter_in_one_folder(tmp_path):
    save(tmp_path / "adapter_model.safetensors", 2)
    (tmp_path / weight_files.ADAPTER).write_text("{}")
    with pytest.raises(UserError, match="but an adapter of peft: convert it as lora, with --base"):
        open_checkpoint(tmp_path, TRANSFORMERS)
    save(tmp_path / "model.safetensors", 1)
    with pytest.warns(UserWarning, match="holds an adapter of peft, too, which is not merged"):
        assert read(tmp_path, TRANSFORMERS) == 1
    assert read(tmp_path, PEFT) == 2
    with pytest.raises(UserError, match="several kinds: give one of adapter_model.safetensors, model.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    assert read(tmp_path, TRANSFORMERS) == read(tmp_path, None) == 1
    with pytest.raises(
        UserError, match=r"looked for adapter_model.safetensors.*but a model: give the adapter's folder"
    ):
        open_checkpoint(tmp_path, PEFT)


@pytest.mark.parametrize("name", ["consolidated.00.pth", "model_v2.safetensors", "diffusion_pytorch_model.ema.bin"])
def test_names_that_nothing_has(name, tmp_path):
    save(tmp_path / name, 1)
    with pytest.raises(UserError, match=f"holds no checkpoint .*: {name} is not a name that "):
        open_checkpoint(tmp_path, DIFFUSERS if name.startswith("diff") else TRANSFORMERS)
    assert float(open_checkpoint(tmp_path / name)[KEY][0]) == 1  # a file by itself may have any name
