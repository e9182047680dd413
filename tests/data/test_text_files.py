"""Records by their places in text files."""

import csv
import io
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextgpt_jax.data import text_files
from nextgpt_jax.data.text_files import open_json, open_table
from nextgpt_jax.errors import UserError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(
    values=st.lists(VALUES, max_size=8),
    space=st.sampled_from(["", " ", "\n", "\r\n\t"]),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    mark=st.booleans(),
    window=st.sampled_from([1, 7, 64, 1 << 22]),
)
def test_a_list_is_what_json_reads(tmp_path_factory, values, space, indent, ascii_only, mark, window):
    """Whatever the size of the window that slides over it."""
    items = [json.dumps(value, indent=indent, ensure_ascii=ascii_only) for value in values]
    text = space + "[" + f"{space},{space}".join(["", *items]).removeprefix(f"{space},{space}") + f"{space}]{space}"
    path = tmp_path_factory.getbasetemp() / "list.json"
    path.write_bytes(text.encode("utf-8-sig" if mark else "utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "_CHUNK", window)
        records = open_json(str(path))
    assert list(records) == json.loads(text) == values
    assert [records.place(i) for i in range(len(values))] == [f"record {i}" for i in range(len(values))]


@given(
    values=st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), min_size=2, max_size=8),
    end=st.sampled_from(["\n", "\r\n", "\n\n", "\n  \n"]),
    window=st.sampled_from([1, 5, 1 << 22]),
)
def test_lines_are_what_json_reads(tmp_path_factory, values, end, window):
    path = tmp_path_factory.getbasetemp() / "lines.json"
    path.write_bytes(end.join(json.dumps(value, ensure_ascii=False) for value in values).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "_CHUNK", window)
        records = open_json(str(path))
    assert list(records) == values
    lines = path.read_bytes().split(b"\n")
    assert [int(records.place(i).split()[1]) for i in range(len(values))] == [
        number for number, line in enumerate(lines, 1) if line.strip()
    ]


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@given(
    rows=st.lists(st.tuples(CELLS, CELLS).map(list), min_size=1, max_size=8), window=st.sampled_from([1, 5, 1 << 22])
)
def test_a_table_is_what_csv_reads(tmp_path_factory, rows, window):
    """With quotes, commas and line ends in its cells."""
    written = io.StringIO(newline="")
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows([["one", "two"], *rows])
    path = tmp_path_factory.getbasetemp() / "table.csv"
    path.write_bytes(written.getvalue().encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "_CHUNK", window)
        records = open_table(str(path), ",")
    assert [[row.get("one", ""), row.get("two", "")] for row in records] == rows


@given(
    st.lists(st.sampled_from(['{"a": 1}', "[", "]", ",", "{", "}", '"', "1", " ", "\n", "x", '"a":', "\\"]), max_size=9)
)
def test_what_is_no_list_and_no_lines_is_refused(tmp_path_factory, pieces):
    """Or read as json reads it."""
    text = "".join(pieces)
    path = tmp_path_factory.getbasetemp() / "other.json"
    path.write_text(text)
    try:
        found = open_json(str(path))
        records = list(found) if isinstance(found, text_files.TextRecords) else found
    except UserError as error:
        assert "other.json" in str(error) or "JSON" in str(error)
        assert "\n" not in str(error)
        return
    try:
        assert records == json.loads(text)
    except json.JSONDecodeError:
        assert records == [json.loads(line) for line in text.split("\n") if line.strip()]


def test_records_are_read_in_other_processes_too(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    records = open_json(str(tmp_path / "a.jsonl"))
    assert records[1] == {"a": 2}
    assert list(pickle.loads(pickle.dumps(records))) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    "text, message",
    [
        ("a\tb\n1\t2\t3\n", "has 3 cells, but there are 2 columns"),
        ("a\ta\n1\t2\n", "its columns are not different"),
        ("a\tb\n", "has no rows"),
        ("", "has no rows"),
    ],
)
def test_malformed_tables(tmp_path, text, message):
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(UserError, match=message):
        list(open_table(str(tmp_path / "a.tsv"), "\t"))


def test_a_file_that_became_shorter(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    records = open_json(str(path))
    path.write_text("{")
    with pytest.raises(UserError, match="has become shorter"):
        records[1]
