"""Prepared data against raw data: the same examples, the embeddings that a step would compute, nothing lost."""

import dataclasses
import json
import shutil
import sys
import types

import jax
import numpy as np
import pytest

from nextgpt_jax.cli import prepare_features
from nextgpt_jax.config import field_names
from nextgpt_jax.data.pipeline import batches
from nextgpt_jax.data.readers import read_samples
from nextgpt_jax.errors import UserError
from nextgpt_jax.mesh import make_mesh
from nextgpt_jax.prepare import reading
from nextgpt_jax.prepare.run import Options, Preparer
from nextgpt_jax.prepare.shards import Folder
from nextgpt_jax.templates import TEMPLATES
from nextgpt_jax.training import losses
from nextgpt_jax.training.loop import train
from nextgpt_jax.training.prepared import load_for_samples, prepared_dtype
from nextgpt_jax.training.samples import make_example_builder, read_usable
from nextgpt_jax.weights import assemble
from nextgpt_jax.weights.frozen import load_encoders
from nextgpt_jax.weights.load import LoadedModel
from nextgpt_jax.weights.tokenizers import load_tokenizer
from tests import tiny

OPTIONS = Options(records_per_shard=5, batch_size=2)


def config_of(root, folder):
    """Stage 3 on the tiny data and three more records: one with a medium that is seen before, under another name, one
    whose medium is broken, and one whose medium is missing."""
    records = json.loads((root / "data" / "instructions.json").read_text())
    names = {name: str(folder / f"{name}.png") for name in ("again", "broken", "missing")}
    image = root / "data" / records[0]["input_images"][0]
    shutil.copy(image, names["again"])
    (folder / "broken.png").write_bytes(image.read_bytes()[:80])
    records[2:2] = [records[0] | {"input_images": [name]} for name in names.values()]
    (folder / "instructions.json").write_text(json.dumps(records))
    config = tiny.experiment(root, "stage3")
    config.data.instructions, config.data.media_root = str(folder / "instructions.json"), str(root / "data")
    config.data.max_skipped = 0.2
    return config


@pytest.fixture(scope="module")
def config(tiny_root, tmp_path_factory):
    return config_of(tiny_root, tmp_path_factory.mktemp("raw"))


def on(config, folder):
    """The config with a folder of prepared data."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, instructions=str(folder)))


def write(config, folder, options=OPTIONS):
    preparer = Preparer(config, folder, options)
    preparer.write(range(preparer.count))
    assert preparer.merge()


@pytest.fixture(scope="module")
def prepared(config, tmp_path_factory):
    """The folder, prepared in one go, and the media that were decoded."""
    folder, decoded = tmp_path_factory.mktemp("prepared") / "data", []
    with pytest.MonkeyPatch.context() as patch:
        load = reading.load_medium
        patch.setattr(
            reading, "load_medium", lambda source, *arguments: decoded.append(source) or load(source, *arguments)
        )
        write(config, folder)
    return folder, decoded


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_nothing_is_lost_and_equal_contents_are_encoded_once(prepared):
    folder, decoded = prepared
    found = manifest(folder)
    assert found["records"] == 15 == found["samples"] + len(found["skipped"])
    assert [row["record"] for row in found["skipped"]] == ["record 4", "record 3"]  # missing: found before the others
    assert "no such image" in found["skipped"][0]["reason"] and "broken.png" in found["skipped"][1]["reason"]
    assert sum(row["samples"] for row in found["shards"]) == 13 and len(found["shards"]) == 3
    assert len(decoded) == 13  # of 14 media that are there: one is read again under another name


@pytest.fixture(scope="module")
def encoders(config):
    """As much of a model as examples and `encode_frozen` need, on the mesh of one device."""
    parts = assemble.resolve_parts(config.model)
    cfg = assemble.model_config(parts)
    frozen = load_encoders(
        parts, cfg, with_encoders=True, captions=cfg.output_modalities, mesh=make_mesh(config.mesh, jax.devices()[:1])
    )
    llm = types.SimpleNamespace(embed_tokens=types.SimpleNamespace(embedding=np.zeros(1, np.float32)))
    model = types.SimpleNamespace(config=cfg, llm=llm, encode_media=frozen.encode_media, decoders=frozen.decoders)
    captions = {name: load_tokenizer(f"{f}/tokenizer") for name, f in assemble.decoder_folders(parts).items()}
    return LoadedModel(model, load_tokenizer(parts.llm), captions, TEMPLATES[parts.template])


def test_examples_and_embeddings_are_those_of_raw_data(config, prepared, encoders):
    samples, spec, _ = read_usable(config, config.data.instructions)
    broken = [i for i in range(len(samples)) if "broken" in str(samples[i][0].human)]
    ready, same_spec, problems = read_usable(on(config, prepared[0]), str(prepared[0]))
    assert same_spec == spec and not problems and len(ready) == len(samples) - 1
    raw = make_example_builder(config, encoders, spec)
    build = make_example_builder(config, encoders, spec, prepared_dtype([ready]))
    usable = [samples[i] for i in range(len(samples)) if i not in broken]
    retokenized = dataclasses.replace(build, layout="of another tokenizer")
    for number, sample in enumerate(usable):
        expected, found, again = raw(sample), build(ready[number]), retokenized(ready[number])
        jax.tree.map(np.testing.assert_array_equal, found, again)
        for name in ("tokens", "loss_mask", "lengths"):
            np.testing.assert_array_equal(found[name], expected[name])
        for kind in ("media", "signals"):
            for name, entry in found[kind].items():
                for field in entry.keys() - {"embeddings"}:
                    np.testing.assert_array_equal(entry[field], expected[kind][name][field])
    data = dataclasses.replace(config.data, batch_size=len(usable))
    (expected,) = batches(usable, raw, data, 0, range(1))
    (found,) = batches(ready, build, data, 0, range(1))
    wanted = jax.jit(lambda batch: losses.encode_frozen(encoders.model, batch))(expected)
    given = losses.encode_frozen(encoders.model, found)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), given, wanted)


def test_an_interrupted_run_goes_on_to_the_same_bytes(config, prepared, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    real, written = Folder.write_shard, []

    def write_shard(self, name, records, describe):
        if len(written) == 1:
            next(iter(records))
            written.append("killed")
            raise Killed
        written.append(name)
        return real(self, name, records, describe)

    monkeypatch.setattr(Folder, "write_shard", write_shard)
    with pytest.raises(Killed):
        write(config, tmp_path / "data")
    write(config, tmp_path / "data")
    names = [row["name"] for row in manifest(prepared[0])["shards"]]
    assert written == [names[0], "killed", *names[1:]]
    for file in prepared[0].rglob("*"):
        if file.is_file():
            assert (tmp_path / "data" / file.relative_to(prepared[0])).read_bytes() == file.read_bytes()


def test_several_processes_write_the_same_shards(config, prepared, tmp_path, capsys, monkeypatch):
    """By the command line; the last one writes the manifest."""
    flags = ["nextgpt prepare", f"--config={tmp_path / 'config.py'}", f"--output={tmp_path / 'data'}"]
    (tmp_path / "config.py").write_text(
        "import json\nfrom nextgpt_jax.config import *\n\n"
        "def get_config(variant=''):\n    config = ExperimentConfig()\n"
        f"    for name, value in json.loads({json.dumps(json.dumps(_leaves(config)))}).items():\n"
        "        set_field(config, name, value)\n    return config\n"
    )
    flags += ["--records_per_shard=5", "--batch_size=2"]
    for index in (1, 0):
        assert not (tmp_path / "data" / "manifest.json").exists()
        assert not prepare_features.main([*flags, f"--shard={index}/2"])
    assert "the last of the processes writes the manifest" in capsys.readouterr().out
    assert manifest(tmp_path / "data") == manifest(prepared[0])
    assert prepare_features.main([*flags[:2], f"--output={tmp_path / 'bad.jsonl'}", "--check"]) == 1
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert lines == manifest(prepared[0])["skipped"]
    assert "13 of 15 records can be used; 14 media were read" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "ray", None)
    for wrong, match in (
        (["--shard=2/2"], "give i/n with i from 0 to n - 1"),
        (["--ray_workers=2"], "needs Ray: pip install"),
        (["--ray_workers=2", "--shard=0/2"], "leave out --shard"),
        (["--dtype=int8"], "--dtype=int8 is not one of float32, bfloat16, float16"),
        (["--records_per_shard=4"], "another records_per_shard .5, now 4.: give a new folder"),
    ):
        with pytest.raises(UserError, match=match):
            prepare_features.main([*flags, *wrong])
    with pytest.raises(UserError, match="--output=DIR is missing"):
        prepare_features.main(flags[:2])


def _leaves(config):
    found = {}
    for name in field_names():
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        found[name] = value
    return found


def change(folder, copy, **changes):
    shutil.copytree(folder, copy)
    found = manifest(copy)
    for name, value in changes.items():
        *parents, last = name.split("__")
        node = found
        for parent in parents:
            node = node[parent]
        node[last] = value
    (copy / "manifest.json").write_text(json.dumps(found))
    return str(copy)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"media__image__weights": "0" * 64},
            "its images were computed with weights 0{12}, and model.encoder has",
        ),
        ({"media__audio__shape": [1, 7]}, "its audios are 1 x 7, and those of model.encoder 1 x 24"),
        (
            {"captions__video__shape": [9, 16]},
            "video captions are 9 x 16, and those of model.video_decoder 12 x 16",
        ),
        (
            {"captions__audio__weights": "0" * 64},
            "audio captions were computed with weights 0{12}, and model.audio_de",
        ),
        ({"captions__image__settings": "other"}, "computed with tokenizer other, and model.image_decoder has"),
    ],
)
def test_data_of_other_encoders_is_refused(config, prepared, tmp_path, changes, match):
    other = on(config, change(prepared[0], tmp_path / "other", **changes))
    samples = read_samples("conversation", other.data.instructions)
    with pytest.raises(UserError, match=match):
        load_for_samples(other, [samples], make_mesh(other.mesh))


def test_other_refusals(config, prepared, tmp_path):
    folder = str(prepared[0])
    with pytest.raises(UserError, match="was prepared for conversation, not for captioning"):
        read_samples("captioning", folder)
    both = read_samples("conversation", f"{folder},{config.data.instructions}", config.data.media_root)
    with pytest.raises(UserError, match="is prepared and .*instructions.json is not: prepare all files"):
        prepared_dtype([both])
    with pytest.raises(UserError, match="is prepared already"):
        Preparer(on(config, folder), tmp_path / "new", OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_runs_on_prepared_data_have_the_losses_of_raw_data(tiny_root, tmp_path, stage):
    config = tiny.experiment(tiny_root, stage)
    config.train.log_every = 1
    config.data.validation = config.data.instructions if stage == "stage3" else config.data.captions
    write(config, tmp_path / "data")
    train(config, str(tmp_path / "raw"))
    config.data.captions = config.data.instructions = config.data.validation = str(tmp_path / "data")
    train(config, str(tmp_path / "prepared"))
    raw, ready = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("raw", "prepared")
    )
    assert len(raw) == len(ready) > 4
    for before, after in zip(raw, ready):
        assert before.keys() == after.keys()
        for name in before:
            if "loss" in name or name == "step":
                assert after[name] == pytest.approx(before[name], rel=1e-4)
