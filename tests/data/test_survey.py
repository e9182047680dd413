"""One pass over all records, kept between starts; missing files are found at each."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.data import cache, fingerprint, passes, presence, workers
from nextgpt_jax.data import survey as module
from nextgpt_jax.data.media_files import media_exists
from nextgpt_jax.data.presence import name_hash, not_listed
from nextgpt_jax.data.readers import Samples, read_samples
from nextgpt_jax.data.survey import check_problems, survey
from nextgpt_jax.errors import UserError
from nextgpt_jax.prompts import Input

NAMES = st.sampled_from(["a.png", "00001.png", "000012.png", "c", "\u00e9.png"])
FOLDERS = st.sampled_from(["", "images", "audios", "00001", "0000", "b"])


@settings(max_examples=40)
@given(there=st.lists(st.tuples(FOLDERS, NAMES), max_size=6, unique=True), most=st.sampled_from([0, 2, 10_000]))
def test_listings_say_what_looking_for_each_file_says(tmp_path_factory, there, most):
    """Or less; never that a file is there which is not."""
    root = tmp_path_factory.mktemp("there")
    for folder, name in there:
        (root / folder).mkdir(exist_ok=True)
        if not (root / folder / name).exists():
            (root / folder / name).touch()
    if there:
        os.symlink(root / there[0][0] / there[0][1], root / "link.png")
        os.symlink(root / "nowhere", root / "broken.png")
    names = ["a.png", "00001.png", "000012.png", "c", "\u00e9.png", "link.png", "broken.png", "images", "", "no.png"]
    wanted = [(modality, name) for modality in ("image", "audio") for name in names]
    folders = [(str(root), "image"), (str(root), "audio"), (str(root / "nowhere"), "image")]
    wanted += [("nowhere", "a.png")]
    numbers = np.array([{"image": 0, "audio": 1, "nowhere": 2}[modality] for modality, _ in wanted])
    hashes = np.array([name_hash(name) for _, name in wanted], np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presence, "_LEAST", most)
        patch.setattr(presence, "_PER_FILE", 0 if most < 10 else 20)
        absent = not_listed(folders, numbers, hashes).tolist()
    exists = [modality != "nowhere" and media_exists(f"{root}/{name}", modality) for modality, name in wanted]
    missing = [i for i, found in enumerate(exists) if not found]
    assert set(missing) <= set(absent) and absent == sorted(absent)
    if most == 10_000:
        assert missing == absent


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Files of any size are kept."""
    monkeypatch.setenv("NEXTGPT_CACHE", str(tmp_path / "cache"))
    for place, name, value in (
        (cache, "MINIMUM", 1), (fingerprint, "SMALL", 0), (module, "_CHUNK", 3)
    ):  # fmt: skip
        monkeypatch.setattr(place, name, value)


def records(folder):
    """Of two files, some malformed, and some without their media."""
    captions = [{"caption": str(i), "image_name": f"{i % 5}.png"} for i in range(11)] + [{"caption": 3}, 4]
    (folder / "a.json").write_text(json.dumps(captions))
    lines = [{"caption": str(i), "image_name": f"images/{i}.png"} for i in range(4)]
    (folder / "b.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"image_name": "0.png"}])))
    (folder / "images").mkdir()
    (folder / "0.png").rename(folder / "images" / "0.png")
    return f"{folder}/a.json,{folder}/b.jsonl"


def found(paths, limit=8):
    result = survey(read_samples("captioning", paths), limit)
    return [(problem.source[-7:], problem.record, problem.reason) for problem in result.problems], result.media


def test_a_kept_survey_is_what_reading_says(folder, small, monkeypatch):
    paths = records(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "MINIMUM", 1000)
        expected = found(paths)
    assert len(expected[0]) == 4 + 2 + 3 + 1
    assert expected[0][0] == ("/a.json", "record 3", f"no such image: {folder}/3.png")
    with pytest.MonkeyPatch.context() as patch:  # by two processes
        patch.setattr(passes, "ALONE", 0)
        patch.setattr(workers, "cpu_count", lambda: 2)
        first = found(paths)
    reads = []
    original = Samples.conversation
    monkeypatch.setattr(Samples, "conversation", lambda *a: reads.append(a[1:]) or original(*a))
    for problems, media in (first, found(paths)):
        assert problems == expected[0]
        np.testing.assert_array_equal(media, expected[1])
    assert set(reads) == {(0, i) for i in (3, 4, 8, 9)} | {(1, i) for i in (1, 2, 3)}, "those without a file"

    (folder / "1.png").unlink()
    (folder / "images" / "3.png").touch()
    problems, media = found(paths)
    assert {record for source, record, _ in problems if "a.json" in source} == {
        "record 1", "record 6", "record 4", "record 9", "record 11", "record 12"
    }  # fmt: skip
    column = survey([], 8).kinds.index((Input, "image"))
    assert media[:11, column].tolist() == [1, 0, 1, 1, 0, 1, 0, 1, 1, 0, 1]

    (folder / "a.json").write_text(json.dumps([{"caption": "new", "image_name": "2.png"}]))
    problems, media = found(paths)
    assert media.shape[0] == 6 and all("b.jsonl" in source for source, *_ in problems)
    assert len(found(paths, 0)[0]) == 6, "another limit"


def test_problems_are_looked_for_until_there_are_too_many(folder):
    (folder / "c.json").write_text(json.dumps([{"caption": "a", "image_name": f"{i}.jpg"} for i in range(50)]))
    samples = read_samples("captioning", str(folder / "c.json"))
    result = survey(samples, 8, 0.1)
    assert len(result.problems) == 6 and len(survey(samples, 8).problems) == 50
    with pytest.raises(UserError, match="at least 6 of its 50 records cannot be used.* allows 10.00%: record 0: no"):
        check_problems(result.problems, samples.counts(), 0.1, result.given_up)
