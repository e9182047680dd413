"""JSON of users: what Python's parser accepts is read or refused in one line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.errors import UserError
from nextgpt_jax.json_files import parse_json, read_json

ODD_TEXTS = st.sampled_from(["\ud800", "\udc00", "\\ud800", "\U0001f600"])
TEXTS = st.text(st.characters(exclude_categories=[]), max_size=4) | ODD_TEXTS
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXTS, v, max_size=3), max_leaves=8)


def encodable(value) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(VALUES, st.booleans())
def test_values_come_back_unless_they_hold_a_lone_surrogate(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only or not encodable(value))
    if encodable(json.loads(text)):  # two surrogates next to each other may make a character
        assert parse_json(text) == json.loads(text)
    else:
        with pytest.raises(UserError, match="not valid JSON: a surrogate without its pair") as caught:
            parse_json(text)
        str(caught.value).encode()


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20) | st.text('[]{}",:1\\ude8-. \n', max_size=20))
def test_other_texts_are_refused_in_one_line(text):
    try:
        parse_json(text)
    except UserError as error:
        assert str(error).startswith("not valid JSON: ") and "\n" not in str(error)


@pytest.mark.parametrize(
    "text, message",
    [
        ("9" * 5000, "an integer has too many digits"),
        ('[{"seed": -' + "9" * 5000 + "}]", "an integer has too many digits"),
        ("[" * 100_000, "nested more than 100 levels deep"),
        ("[" * 5000 + "]" * 5000, "nested more than 100 levels deep"),
        ('{"a":' * 101 + "[]" + "}" * 101, "nested more than 100 levels deep"),
        (r'[{"caption": "a"}, {"caption": "\ud83d"}]', r"a surrogate without its pair in \[1\].caption$"),
        (r'{"\udc00": 1}', "a surrogate without its pair$"),
        ('["a" "b"]', "column 6$"),
        ('[\n"a" "b"]', "line 2 column 5$"),
    ],
    ids=lambda value: value[:20],
)
def test_refusals(text, message):
    with pytest.raises(UserError, match=message):
        parse_json(text)


def test_a_hundred_levels_are_read():
    assert parse_json("[" * 100 + "]" * 100) == json.loads("[" * 100 + "]" * 100)


@pytest.mark.parametrize(
    "content, message",
    [(b"\xff\xfe[\x00", "is not UTF-8"), (b"{", "is not valid JSON"), (None, "no such file")],
)
def test_files(content, message, tmp_path):
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[1]", encoding="utf-8-sig")
    assert read_json(tmp_path / "x.json") == [1]
