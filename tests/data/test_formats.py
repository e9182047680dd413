"""Records in the formats that datasets are published in, five of each, as the conversations they become."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextgpt_jax.data.formats import TASKS, Formats
from nextgpt_jax.data.pairs import Place
from nextgpt_jax.data.readers import expand, read_samples
from nextgpt_jax.data.survey import survey
from nextgpt_jax.errors import UserError
from nextgpt_jax.training.stages import STAGES
from tests import ROOT
from tests.data.published import chat, published, talk, write_all_formats, write_array_records, write_tar
from tests.data.test_examples import builder

ASKS, REPLY = talk("a", "b")


@pytest.mark.parametrize("name", published(0))
def test_published_formats(name):
    for i in range(5):
        record, expected = published(i)[name]
        for task, conversation in expected.items():
            assert Formats().conversation(record, Place(task, Path("data"), i)) == conversation


def test_a_file_of_each_format_with_its_media(tmp_path, monkeypatch):
    """Five records each, all of which make examples of their stage."""
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("NEXTGPT_CACHE", str(tmp_path / "cache"))
    written = write_all_formats(tmp_path / "all")
    assert {stage for _, stage in written.values()} == set(STAGES)
    for name, (path, stage) in written.items():
        samples = read_samples(STAGES[stage].task, path)
        assert len(samples) == 5 and not survey(samples, 8).problems, name
        make = builder(samples, max_length=160)
        for i in range(5):
            example = make(samples[i])
            assert example["loss_mask"].any() and 0 < example["lengths"] < make.max_length, name


@pytest.mark.parametrize("name", published(0))
def test_as_one_file_of_each_kind(name, tmp_path, monkeypatch):
    """A list, lines and an ArrayRecord file have the same samples."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    records = [published(i)[name][0] for i in range(5)]
    task = next(iter(published(0)[name][1]))
    expected = [published(i)[name][1][task] for i in range(5)]
    (tmp_path / "data/list.json").write_text(json.dumps(records))
    (tmp_path / "data/lines.jsonl").write_text("\n".join(map(json.dumps, records)))
    write_array_records("data/records.array_record", records)
    for path in ("list.json", "lines.jsonl", "records.array_record"):
        assert list(read_samples(task, f"data/{path}")) == expected
    mixed = read_samples(task, "data/list.json,data/*.jsonl")
    assert list(mixed) == expected * 2 and mixed.where(5) == ("data/lines.jsonl", "line 1")


def test_tables(tmp_path):
    """CC3M has no header; AudioCaps and WebVid have, and other columns of a table are ignored."""
    (tmp_path / "cc3m.tsv").write_text('a "dog"\thttp://a\na cat\thttp://b\n')
    first, second = read_samples("generation", str(tmp_path / "cc3m.tsv"))
    assert first[0].human == ('a "dog"',) and second[0].human == ("a cat",)
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / "000000001.jpg").touch()
    found = survey(read_samples("captioning", str(tmp_path / "cc3m.tsv")), 8)
    assert [problem.record for problem in found.problems] == ["line 1"], "the second is in the folder of its shard"
    with (tmp_path / "audiocaps.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows(
            [["audiocap_id", "youtube_id", "start_time", "caption"], [1, "abc", 30, 'a dog, a "cat"\nand I']]
        )
    (tmp_path / "audios").mkdir()
    (tmp_path / "audios" / "abc.wav").touch()
    (sample,) = read_samples("captioning", str(tmp_path / "audiocaps.csv"))
    assert sample[0].assistant == ('a dog, a "cat"\nand I',)
    assert sample[0].human[0].content == tmp_path / "abc.wav"
    (tmp_path / "own.csv").write_text("image_name,caption,width\n1.png,a,3\n")
    samples = read_samples("generation", str(tmp_path / "own.csv"))
    assert samples[0][0].human == ("a",) and samples.files[0].unused == ("width",)
    (tmp_path / "bad.csv").write_text("image_name,caption,image_path\n1.png,a,3\n")
    with pytest.raises(UserError, match=r"bad.csv, line 2: unknown field 'image_path'"):
        read_samples("generation", str(tmp_path / "bad.csv"))[0]


def test_coco(tmp_path):
    content = {
        "info": {},
        "images": [{"id": 7, "file_name": "b.jpg", "height": 1}, {"id": 3, "file_name": "a.jpg"}],
        "annotations": [{"id": 1, "image_id": 3, "caption": "a"}, {"id": 2, "image_id": 7, "caption": "b"}],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content))
    samples = read_samples("captioning", str(tmp_path / "captions.json"), str(tmp_path))
    assert [s[0].human[0].content.name for s in samples] == ["a.jpg", "b.jpg"]
    assert [s[0].assistant for s in samples] == [("a",), ("b",)]
    (tmp_path / "captions.json").write_text(json.dumps({**content, "images": []}))
    with pytest.raises(UserError, match="no captions file of COCO"):
        read_samples("captioning", str(tmp_path / "captions.json"))


def test_webdataset(tmp_path, folder):
    picture = (folder / "1.png").read_bytes()
    for shard in (0, 1):
        members = []
        for i in range(3):
            key = f"{shard:05d}{i:04d}"
            members += [(f"{key}.png", picture), (f"{key}.txt", f"caption {i}".encode())]
            members.append((f"{key}.json", json.dumps({"caption": "x", "url": "y", "width": 3}).encode()))
        write_tar(tmp_path / f"{shard:05d}.tar", members)
    samples = read_samples("captioning", f"{tmp_path}/{{00000..00001}}.tar")
    assert len(samples) == 6 and samples.where(4) == (str(tmp_path / "00001.tar"), "sample 000010001")
    assert [s[0].assistant for s in samples] == [(f"caption {i}",) for i in range(3)] * 2
    assert samples[5][0].human[0].content.read() == picture
    assert list(read_samples("captioning", str(tmp_path))) == list(samples), "a folder of them"
    assert survey(samples, 8).inputs == {"image": 1}
    chat = {"conversations": talk("<image> what?", "this")}
    write_tar(tmp_path / "chat.tar", [("a.jpg", picture), ("a.json", json.dumps(chat).encode()), ("a.cls", b"3")])
    with pytest.raises(UserError, match=r"chat.tar, sample a: the member a.cls is of a kind that is not read"):
        read_samples("conversation", str(tmp_path / "chat.tar"))[0]
    write_tar(tmp_path / "chat.tar", [("x/a.jpg", picture), ("x/a.json", json.dumps(chat).encode())])
    (sample,) = read_samples("conversation", str(tmp_path / "chat.tar"))
    assert sample[0].human[0].content.read() == picture and sample[0].assistant == ("this",)
    (tmp_path / "chat.tar").write_bytes(b"not a tar")
    with pytest.raises(UserError, match="is no readable tar"):
        read_samples("conversation", str(tmp_path / "chat.tar"))


def test_embedded_media_are_what_files_are(tmp_path, folder):
    """And an unreadable one is named by its place."""
    write_tar(
        tmp_path / "a.tar",
        [("k.png", (folder / "1.png").read_bytes()), ("k.txt", b"a"), ("l.png", b"x"), ("l.txt", b"b")],
    )
    inside, broken = read_samples("captioning", str(tmp_path / "a.tar"))
    (tmp_path / "a.json").write_text(json.dumps([{"image_name": str(folder / "1.png"), "caption": "a"}]))
    (outside,) = read_samples("captioning", str(tmp_path / "a.json"))
    make = builder([inside])
    np.testing.assert_array_equal(make(inside)["media"]["image"]["input"], make(outside)["media"]["image"]["input"])
    with pytest.raises(UserError, match=r"^\S+/a.tar: l.png is not an image"):
        make(broken)


def test_parquet_and_arrow(tmp_path, folder, monkeypatch):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    monkeypatch.setenv("NEXTGPT_CACHE", str(tmp_path / "cache"))
    picture = (folder / "1.png").read_bytes()
    columns = {
        "image": [
            {"bytes": picture, "path": "a.png"},
            {"bytes": picture, "path": None},
            {"bytes": None, "path": "1.png"},
        ],
        "text": ["a", "b", "c"],
        "width": [1, 2, 3],
    }
    table = arrow.table(columns)
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet", row_group_size=2)
    (tmp_path / "saved").mkdir()
    with arrow.OSFile(str(tmp_path / "saved" / "data-00000-of-00001.arrow"), "wb") as sink:
        with arrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (tmp_path / "saved" / "state.json").write_text("{}")
    for path in ("data", "saved", "data/train-00000-of-00001.parquet"):
        samples = read_samples("captioning", str(tmp_path / path), str(folder))
        assert [s[0].assistant for s in samples] == [("a",), ("b",), ("c",)]
        assert [s[0].human[0].content.read() for s in list(samples)[:2]] == [picture] * 2
        assert samples[2][0].human[0].content == folder / "1.png"
        assert samples.files[0].unused == ("width",) and not survey(samples, 8).problems
    assert len(list((tmp_path / "cache" / "arrow").glob("*.arrow"))) == 1


@pytest.mark.parametrize(
    "task, record, message",
    [
        ("captioning", {"instruction": "a", "output": "b"}, "has no media to read, which is what stage1 trains"),
        ("generation", {"conversations": talk("a", "b")}, "has no media to make, which is what stage2 trains"),
        ("conversation", {"image_name": "a.jpg", "caption": "b"}, "is a caption, for stages 1 and 2"),
        ("conversation", {"image": "a.jpg", "conversations": talk("a", "b")}, "more images than .* mark where"),
        (
            "conversation",
            {"inputimage": "a", "conversations": talk("a", "b")},
            "'inputimage'.*did you mean input_image",
        ),
        ("conversation", {"conversation": [ASKS, REPLY | {"caption": "c"}]}, "a caption, but no output_modality"),
        ("conversation", {"conversation": [ASKS | {"input_modality": "image"}, REPLY]}, "image, but no file"),
        ("conversation", {"conversation": [ASKS, REPLY | {"output_modality": "smell"}]}, "smell cannot"),
        ("conversation", {"conversations": [ASKS, REPLY | {"output_modality": "audio"}]}, "no caption for it"),
        ("conversation", {"video": "a.mp4", "QA": [{"q": "", "a": "b"}]}, "QA 0: has no question"),
        ("conversation", {"video": "a.mp4", "QA": [{"q": "a"}]}, "QA 0: lacks a"),
        ("conversation", {"QA": [{"q": "a", "a": "b"}]}, "needs one medium"),
        ("conversation", {"image_list": [{"image_name": "a.jpg"}], "conversation": talk("a", "b")}, "lacks caption"),
        ("conversation", {"messages": chat("a", "b", people=("system", "user"))}, "message 0 is from 'system'"),
        ("generation", {"depth_name": "a.png", "caption": "b"}, "depth cannot be generated"),
        ("conversation", {"zzzz": 1}, "no known format has the fields zzzz"),
        ("conversation", {}, r"no known format has the fields \(none\)"),
    ],
)
def test_refusals(task, record, message, tmp_path):
    with pytest.raises(UserError, match=message):
        Formats().conversation(record, Place(task, tmp_path))


def test_the_formats_are_documented():
    table = (ROOT / "docs" / "data.md").read_text().partition("| format |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == sorted(Formats())


def test_a_format_by_name(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"caption": "a", "url": "b"}]))
    assert read_samples("generation", str(tmp_path / "a.json"), format="cc3m")[0][0].human == ("a",)
    with pytest.raises(UserError, match=r"record 0: unknown field 'url'"):
        read_samples("generation", str(tmp_path / "a.json"), format="captions")[0]
    with pytest.raises(UserError, match="data.format: 'cc12m' is not one of .*did you mean cc3m"):
        read_samples("generation", str(tmp_path / "a.json"), format="cc12m")


def test_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.json", "a.json", "c[1].json"):
        (tmp_path / name).touch()
    assert expand("b.json, a.json") == ["b.json", "a.json"]
    assert expand("?.json") == ["a.json", "b.json"] and expand("c[1].json") == ["c[1].json"]
    assert expand(f"{tmp_path}/?.json") == [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert expand("x-{08..10}.tar,{1..2}{3..4}") == ["x-08.tar", "x-09.tar", "x-10.tar", "13", "14", "23", "24"]
    with pytest.raises(UserError, match=r"no file matches z\*.json"):
        expand("z*.json")


_NAMES = sorted({name for row in Formats().values() for name in (*row.known, *row.unused)} | {"imgs", "from"})
_LEAVES = (
    st.none() | st.text(max_size=5) | st.integers() | st.sampled_from(["<image> a", "human", "gpt", "image", "a.jpg"])
)
_MESSAGES = st.dictionaries(
    st.sampled_from(["from", "value", "caption", "q", "a", "role", "content", "output_modality"]), _LEAVES
)


@given(
    record=st.dictionaries(st.sampled_from(_NAMES), _LEAVES | st.lists(_LEAVES | _MESSAGES, max_size=3), max_size=4),
    task=st.sampled_from(TASKS),
)
def test_random_records_are_read_or_refused(record, task, tmp_path_factory):
    """Never a traceback, and never a conversation without words of the model's."""
    try:
        conversation = Formats().conversation(record, Place(task, tmp_path_factory.getbasetemp()))
    except UserError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert conversation and all(turn.assistant is not None for turn in conversation)
