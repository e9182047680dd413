"""Each task on a copy of its dataset's layout: its samples, what is missing, and what is malformed."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from nextgpt_jax import media
from nextgpt_jax.config import EvalConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.tasks import TASKS, coco, vctk
from nextgpt_jax.evaluation.types import Outcome
from tests.evaluation.layouts import LAYOUTS, write_json

COUNT = 4


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEXTGPT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """The folder of each layout, made once; tests that change one copy it."""
    made = {}

    def folder(name: str) -> pathlib.Path:
        writer = LAYOUTS[name]
        if writer not in made:
            made[writer] = tmp_path_factory.mktemp(writer.__name__)
            writer(made[writer], COUNT)
        return made[writer]

    return folder


def refusal(task: str, data: pathlib.Path) -> str:
    with pytest.raises(UserError) as caught:
        list(TASKS[task].load(data))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", TASKS)
def test_samples(name, copies):
    task, data = TASKS[name], copies(name)
    samples = list(task.load(data))
    assert len(samples) == {"mvbench": 20, "coco-object-editing": 3, "coco-background-editing": 3}.get(name, COUNT)
    assert len({sample.id for sample in samples}) == len(samples)
    assert [s.id for s in task.load(data)] == [s.id for s in samples]
    for sample in samples:
        for modality, files in sample.inputs.items():
            assert sample.prompt.count(f"<{modality}>") == len(files) == 1
            assert os.path.isfile(files[0])
        for key in {"image", "audio", "video"} & sample.references.keys():
            assert os.path.isfile(sample.references[key])
        assert sample.references and all(sample.references.values())
        if edit := task.options.get("edit"):
            assert edit in sample.inputs
    assert task.protocol and task.layout and task.title
    assert (task.options["temperature"], bool(task.differences)) == (0.0, True)


@pytest.mark.parametrize("name", TASKS)
def test_missing_files(name, copies, tmp_path):
    """Each entry of the layout by itself; the line says where it is looked for and where it comes from."""
    task = TASKS[name]
    assert refusal(name, tmp_path / "nowhere") == f"no such folder: {tmp_path / 'nowhere'}"
    for entry, source in task.layout.items():
        data = shutil.copytree(copies(name), tmp_path / "data", copy_function=os.link)
        path = data / entry
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        line = refusal(name, data)
        assert str(path).rstrip("/") in line and source in line
        shutil.rmtree(data)


def _json_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(file for file in folder.rglob("*.json*") if file.is_file())


@pytest.mark.parametrize("name", {writer: name for name, writer in LAYOUTS.items()}.values())
def test_malformed_annotations(name, copies, tmp_path):
    """A field that is read, but missing, null or of another type: the line names the file and the record."""
    data = shutil.copytree(copies(name), tmp_path / "data", copy_function=os.link)
    for file in _json_files(data)[:3]:
        text = file.read_text()
        file.unlink()
        for wrong in ("[", "{}", "[]", "3", '{"images": 3}', '["a"]', '{"a": 3}'):
            file.write_text(wrong)
            assert str(file) in refusal(name, data)
        lines = file.suffix == ".jsonl"
        records = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
        found = 0
        for broken in _broken(records):
            file.write_text("\n".join(map(json.dumps, broken)) if lines else json.dumps(broken))
            try:
                list(TASKS[name].load(data))
            except UserError as error:
                assert str(data) in str(error) and "\n" not in str(error)
                found += 1
        assert found
        file.write_text(text)


def _broken(value, depth: int = 0):
    """Copies of `value` in which the first record lacks a field, or has an object in its place."""
    if isinstance(value, list) and value and depth < 3:
        for inner in _broken(value[0], depth + 1):
            yield [inner, *value[1:]]
    elif isinstance(value, dict):
        records = all(isinstance(inner, dict) for inner in value.values())
        for key in list(value)[: 1 if records else 20]:
            yield {k: v for k, v in value.items() if k != key}
            yield value | {key: {"unexpected": 1}}
            if depth < 3 and isinstance(value[key], dict | list):
                for inner in _broken(value[key], depth + 1):
                    yield value | {key: inner}


def test_malformed_tables(copies, tmp_path):
    data = shutil.copytree(copies("audiocaps-captions"), tmp_path / "data")
    table = data / "test.csv"
    lines = table.read_text().splitlines()
    cases = {
        "\n".join(line.replace("caption", "text") for line in lines): "test.csv has no column 'caption'",
        "\n".join([*lines, '9,abc,10,""']): f"test.csv, line {len(lines) + 1}: lacks caption",
        "\n".join([*lines, '9,abc,10,"open']): "is not a row of a table",
        lines[0]: "test.csv has no rows",
        "": "test.csv has no column 'audiocap_id'",
    }
    for text, line in cases.items():
        table.write_text(text)
        assert line in refusal("audiocaps-captions", data)


def test_some_media_are_missing(copies, tmp_path):
    data = shutil.copytree(copies("msrvtt-captions"), tmp_path / "data")
    (data / "videos" / "video7011.mp4").unlink()
    line = refusal("msrvtt-captions", data)
    assert line.startswith(f"1 of 4 media are missing, the first is {data / 'videos' / 'video7011.mp4'} (nor in ")
    assert line.endswith(f"remove the records of missing ones from {data / 'test_videodatainfo.json'}")


def test_other_places(copies, tmp_path):
    """Files where other publishers of the same data put them."""
    data = shutil.copytree(copies("msrvtt-captions"), tmp_path / "msrvtt")
    (data / "test_videodatainfo.json").rename(data / "MSRVTT_data.json")
    (data / "videos").rename(data / "TestVideo")
    assert len(list(TASKS["msrvtt-captions"].load(data))) == COUNT
    data = shutil.copytree(copies("vctk-editing"), tmp_path / "vctk")
    (data / "wav48").rename(data / "wav48_silence_trimmed")
    for file in data.rglob("*.wav"):
        file.rename(file.with_name(f"{file.stem}_mic1.flac"))
    assert len(list(TASKS["vctk-editing"].load(data))) == COUNT
    data = shutil.copytree(copies("davis-editing"), tmp_path / "davis")
    (data / "JPEGImages").mkdir()
    (data / "DAVIS_480p/480p_frames").rename(data / "JPEGImages/480p")
    assert len(list(TASKS["davis-editing"].load(data))) == COUNT


def test_image_edits(copies):
    data = copies("coco-object-editing")
    for sample in TASKS["coco-object-editing"].load(data):
        target = sample.references["caption"]
        assert target in sample.prompt
        old = sample.prompt.split("Replace the ")[1].split(" with ")[0]
        new = sample.prompt.split(" with a")[1].split(":")[0].removeprefix("n").strip()
        assert old != new and old not in target and new in target
        assert target.startswith("an elephant" if new == "elephant" else f"a {new}")
    for sample in TASKS["coco-background-editing"].load(data):
        target = sample.references["caption"]
        assert target.startswith(("a photo of a cat ", "a photo of a dog ", "a photo of an elephant "))
        assert sample.prompt.endswith(target.removeprefix("a photo of "))


def test_fixed_subsets(copies, monkeypatch):
    """A smaller subset is a part of a larger one, and the same each time."""
    data, found = copies("coco-generation"), []
    for count in (2, 3):
        monkeypatch.setattr(coco, "IMAGES", count)
        found.append([sample.id for sample in coco.load_generation(data)])
    assert found == [["3", "4"], ["1", "3", "4"]]
    monkeypatch.setattr(vctk, "UTTERANCES", 1)
    assert len(list(vctk.load(copies("vctk-editing")))) == 1


def test_the_judge_s_rules_of_llava_bench(copies, tmp_path):
    data = shutil.copytree(copies("llava-bench"), tmp_path / "data")
    (first, *_) = TASKS["llava-bench"].load(data)
    assert "rule" not in first.references
    rules = {f"llava_bench_{kind}": {"role": "Assistant", "prompt": f"Rate {kind}."} for kind in ("conv", "detail")}
    write_json(data / "rule.json", rules)
    assert refusal("llava-bench", data) == f"{data / 'rule.json'} lacks llava_bench_complex"
    write_json(data / "rule.json", rules | {"llava_bench_complex": {"prompt": "Rate complex."}})
    assert {s.category: s.references["rule"] for s in TASKS["llava-bench"].load(data)}["detail"] == "Rate detail."


def test_mvbench_shows_the_part_of_a_question(copies):
    samples = {sample.id: sample for sample in TASKS["mvbench"].load(copies("mvbench"))}
    whole = media.read_video(samples["action_count/0"].inputs["video"][0])
    assert (len(whole.frames), whole.fps) == (6, 3.0)
    part = media.read_video(samples["action_sequence/0"].inputs["video"][0])  # from 0.4 to 1.5 s
    assert (len(part.frames), part.fps) == (3, 3.0)
    frames = media.read_video(samples["episodic_reasoning/0"].inputs["video"][0])
    assert (len(frames.frames), frames.fps) == (3, 3.0)
    prompt = samples["action_sequence/0"].prompt
    assert prompt.endswith("Question: What is zero?\nOptions:\n(A) a.\n(B) b.\n(C) c.\nOnly give the best option.")


def test_speech_with_a_gap(copies, cache):
    (sample, *_) = TASKS["vctk-editing"].load(copies("vctk-editing"))
    whole, gapped = media.read_audio(sample.references["audio"]), media.read_audio(sample.inputs["audio"][0])
    third = len(whole) // 3
    np.testing.assert_allclose(gapped[:third], whole[:third], atol=1e-4)
    assert not gapped[third + 1 : 2 * third].any()
    np.testing.assert_allclose(gapped[2 * third + 2 :], whole[2 * third + 2 :], atol=1e-4)


@pytest.mark.parametrize("name, figure", [("activitynet-qa", "accuracy"), ("llava-bench", "relative score")])
def test_judged_answers(name, figure, judge, tmp_path):
    LAYOUTS[name](tmp_path, 3)
    samples = list(TASKS[name].load(tmp_path))
    metric, *others = TASKS[name].metrics(samples, EvalConfig(judge=judge.url, judge_model="judge"))
    numbers = metric.measure([Outcome(sample, "a bell") for sample in samples])
    assert metric.aggregate(numbers)[figure] == (100.0 if name == "activitynet-qa" else 75.0)
    assert [other.name for other in others] == (["exact_match"] if name == "activitynet-qa" else [])
    assert "a bell" in judge.requests[0]["messages"][-1]["content"]
